"""What the papers compare themselves with: no finetune phase, clusters or classes as they come."""

import torch
from sklearn.base import ClassifierMixin
from sklearn.manifold import spectral_embedding
from sklearn.neighbors import kneighbors_graph
from torch import Tensor, nn

from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import problem
from clusterlab.models.base import DeepClustering
from clusterlab.models.sdcec import class_means
from clusterlab.networks import Autoencoder


class KMeans(DeepClustering):
    """Run k-means on a network's embedding (MacQueen, 1967; Lloyd, 1982).

    After a pretrain phase it is the papers' SAE + k-means and CAE + k-means; on the network
    ``Pixels`` it is plain k-means. All of it is inherited: reconstruction, then centers.
    """


class Spectral(DeepClustering):
    r"""Run k-means on the first K eigenvectors of a neighbour graph's normalised Laplacian.

    It stands where the DCEC paper has SEC (spectral embedded clustering, Nie et al., 2011), of
    which no maintained code exists, and is another method: the plain normalised cut (Shi and
    Malik, 2000), in scikit-learn's implementation and with its defaults. It is what IDCEC (Lu et
    al., 2022) calls SC-Ncut in its Tables 2 and 3, to the third digit. The graph is sparse: 10,000
    images of 28 x 28 took one minute and 600 MiB on one busy core.

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
            z = spectral_embedding(
                0.5 * (graph + graph.T),
                n_components=len(self.centers),
                random_state=self.seed,
                drop_first=False,
            )
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
