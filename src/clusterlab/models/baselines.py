"""What the papers compare themselves with: clustering without a finetune phase."""

import torch
from sklearn.manifold import spectral_embedding
from sklearn.neighbors import kneighbors_graph
from torch import Tensor, nn

from clusterlab.data.samples import Samples, as_float
from clusterlab.models.base import DeepClustering
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
