"""What the papers compare themselves with: no finetune phase, clusters or classes as they come."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, laplacian
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.base import ClassifierMixin
from sklearn.neighbors import kneighbors_graph
from torch import Tensor, nn

from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import problem
from clusterlab.models.base import DeepClustering
from clusterlab.models.sdcec import class_means
from clusterlab.networks import Autoencoder

log = logging.getLogger(__name__)


class KMeans(DeepClustering):
    """Run k-means on a network's embedding (MacQueen, 1967; Lloyd, 1982).

    After a pretrain phase it is the papers' SAE + k-means and CAE + k-means; on the network
    ``Pixels`` it is plain k-means. All of it is inherited: reconstruction, then centers.
    """


class Spectral(DeepClustering):
    r"""Run k-means on the first K eigenvectors of a neighbour graph's normalised Laplacian.

    It stands where the DCEC paper has SEC (spectral embedded clustering, Nie et al., 2011), of
    which no maintained code exists, and is another method: the plain normalised cut (Shi and
    Malik, 2000), as scikit-learn has it and with its defaults. It is what IDCEC (Lu et al., 2022)
    calls SC-Ncut in its Tables 2 and 3, to the third digit. The graph is sparse: of 70,000 images
    of 28 x 28 it takes five minutes on a busy core, and its eigenvectors ten seconds.

    The affinity is :math:`\tfrac12 (A + A^\top)` with A the graph of nearest neighbours. It gives
    no rule for new samples.

    Args:
        network: ``Pixels``; the graph is that of the images.
        n_clusters: K, also the number of eigenvectors.
        seed: Seed of k-means and of the eigenvectors' iteration.
        n_init: Starts of k-means.
        n_neighbors: Neighbours of an image in the graph, itself included.
    """

    def __init__(
        self,
        network: Autoencoder,
        n_clusters: int,
        seed: int,
        n_init: int = 20,
        n_neighbors: int = 10,
    ) -> None:
        super().__init__(network, n_clusters, seed, n_init)
        self.n_neighbors = n_neighbors
        self.centers = nn.Parameter(torch.zeros(n_clusters, n_clusters))
        self._embedding: Tensor | None = None

    def embed_samples(self, samples: Samples, device: torch.device) -> Tensor:
        """Return the eigenvectors, scaled to a mean square of about one; shape ``(N, K)``."""
        if self._embedding is None:
            x = as_float(samples.x).flatten(1).numpy()
            graph = kneighbors_graph(x, min(self.n_neighbors, len(x)), include_self=True)
            z = normalised_cut(0.5 * csr_array(graph + graph.T), len(self.centers), self.seed)
            self._embedding = torch.as_tensor(z, dtype=torch.float32) * len(x) ** 0.5
        return self._embedding.to(device)


class EmbeddingClassifier(DeepClustering):
    """Train a classifier on the embeddings of the samples whose label is known.

    What a semi-supervised method must beat: the same pretrained network, the same known labels, and
    a classifier of scikit-learn's. Unknown samples are of no use to it.

    Args:
        network: The autoencoder.
        classifier: From ``sklearn``, with ``predict_proba``.
        n_clusters: K, the number of classes.
        seed: Seed of the pretraining.
        known: Known labels in 0..K-1, -1 where unknown; shape ``(N,)``. ``None`` for a trained
            model.
    """

    def __init__(
        self,
        network: Autoencoder,
        classifier: ClassifierMixin,
        n_clusters: int,
        seed: int,
        known: Tensor | None = None,
    ) -> None:
        super().__init__(network, n_clusters, seed)
        self.classifier = classifier
        self.known = known

    @property
    def inductive(self) -> bool:
        """False: the classifier is not among the weights."""
        return False

    def initial_centers(self, z: Tensor) -> Tensor:
        """Return the class means, for the figures."""
        assert self.known is not None
        return class_means(z, self.known.to(z.device), len(self.centers))[0]

    def assign_samples(self, samples: Samples, z: Tensor) -> Tensor:
        """Train the classifier and return its probabilities of all samples, shape ``(N, K)``.

        Raises:
            UserError: If it cannot be trained on so few samples.
        """
        assert self.known is not None
        rows, there = z.cpu().numpy(), self.known.numpy() >= 0
        try:
            self.classifier.fit(rows[there], self.known.numpy()[there])
            found = torch.as_tensor(self.classifier.predict_proba(rows), dtype=z.dtype)
        except ValueError as error:
            got = f"{there.sum()}: {error}"
            raise problem("enough labelled samples", got, "raise data.labelled") from None
        q = found.new_zeros(len(z), len(self.centers))
        q[:, torch.from_numpy(self.classifier.classes_)] = found
        return q.to(z.device)


def normalised_cut(graph: csr_array, k: int, seed: int) -> NDArray[np.float64]:
    r"""Return the first eigenvectors of :math:`D^{-1} W`, of the largest eigenvalues.

    They are :math:`D^{-1/2}` times those of the normalised Laplacian
    :math:`I - D^{-1/2} W D^{-1/2}`. Each part of a graph that is not connected has one of
    eigenvalue 1, which is constant there and 0 elsewhere.

    Args:
        graph: W, symmetric weights, shape ``(N, N)``; its diagonal does not count.
        k: Number of eigenvectors, K < N. Of more than K parts the largest are told apart.
        seed: Seed of the iteration.

    Returns:
        Shape ``(N, K)``.

    Example:
        >>> pairs = csr_array(np.kron(np.eye(2), 1 - np.eye(2)))  # 0 with 1, and 2 with 3
        >>> normalised_cut(pairs, 2, seed=0).round(2).tolist()
        [[0.71, 0.0], [0.71, 0.0], [0.0, 0.71], [0.0, 0.71]]
    """
    n = graph.shape[0]
    cut, root_degree = laplacian(graph, normed=True, return_diag=True)
    n_parts, part = connected_components(graph, directed=False)
    if n_parts > k:
        told = "The neighbour graph falls into %d parts, of which the %d largest are told apart. "
        log.warning(told + "Try a larger model.n_neighbors.", n_parts, k)
    rank = np.argsort(np.argsort(-np.bincount(part), kind="stable"))[part]
    volume = np.bincount(rank, root_degree**2)
    parts = csr_array((root_degree / volume[rank] ** 0.5, (np.arange(n), rank)))
    found = parts[:, :k].toarray()
    if n_parts < k:
        # An iteration finds an eigenvalue that occurs several times too seldom: those of the parts
        # are taken out. Of the inverse, as in scikit-learn, it needs fewer steps but the factors
        # of a sparse matrix, which fill up: for 70,000 images it was not done after ten minutes.
        others = LinearOperator((n, n), lambda u: u - cut @ u - parts @ (parts.T @ u), dtype=float)
        start = np.random.default_rng(seed).uniform(-1, 1, n)
        _, vectors = eigsh(others, k - n_parts, which="LA", v0=start)
        found = np.hstack([found, vectors[:, ::-1]])
    embedding: NDArray[np.float64] = found / root_degree[:, None]
    return embedding
