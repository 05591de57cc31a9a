"""DCEC, and with other networks and weights DEC, IDEC and DEC-conv."""

from torch import Tensor

from clusterlab.assignment import soft_assignment
from clusterlab.data.datamodule import Batch
from clusterlab.losses import Divergence
from clusterlab.models.base import DeepClustering
from clusterlab.networks import Autoencoder


class DCEC(DeepClustering):
    """Deep Clustering with Convolutional Autoencoders (Guo, Liu, Zhu, Yin; ICONIP 2017).

    Pretrain:  L = L_r                       eq. (4)
    Finetune:  L = L_r + gamma KL(P || Q)    eq. (5), (7)

    Without reconstruction and with gamma = 1 it is DEC (Xie et al., ICML 2016) on the MLP and
    DEC-conv on this network; with the MLP and both terms it is IDEC (Guo et al., IJCAI 2017).

    Differs from the paper: L_r is the mean over pixels and L_c the mean over the batch, as in the
    authors' code (with eq. 4's sum, gamma = 0.1 weighs 784 times less and the published numbers do
    not come); batches are reshuffled every epoch, where that code keeps one fixed order.

    What the numbers of DEC and IDEC in its Table 1 hang on: the scale of the pixels, see
    ``MLPAutoencoder``, and the optimizer of the finetune phase, which the paper does not name. With
    SGD, as in the authors' DEC code, DEC on USPS goes from an ACC of 0.636 to 0.705 (seed 0); with
    Adam at 1e-3 its labels settle at 0.652 within 1,000 steps, and IDEC's at 0.663 after 3,220.
    IDEC needs the momentum of its authors' code, 0.99: with 0.9 and gamma = 0.1 only 0.1 to 0.6%
    of its labels change between two refreshes while its scores still rise, so that the tolerance
    ends it by chance, at an ACC of 0.67 to 0.70 after 4,760 to 20,000 steps; with 0.99 it comes to
    0.74. That code's rate for USPS, 0.1, diverges here at step 23.

    Args:
        network: The autoencoder.
        n_clusters: K.
        divergence: Compares q with p, both ``(B, K)``: ``divergence(q, p) -> scalar``.
        gamma: Weight of the clustering term.
        reconstruction: Weight of L_r in the finetune phase; 0 drops the decoder from it.
        seed: Seed of the training and of k-means.
        n_init: Starts of k-means.
    """

    def __init__(
        self,
        network: Autoencoder,
        n_clusters: int,
        divergence: Divergence,
        gamma: float,
        reconstruction: float,
        seed: int,
        n_init: int = 20,
    ) -> None:
        super().__init__(network, n_clusters, seed, n_init, finetune_decoder=reconstruction > 0)
        self.divergence = divergence
        self.gamma = gamma
        self.reconstruction = reconstruction

    def finetune_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_r and gamma L_c, eq. (5)."""
        assert self.target is not None
        z = self.network.encode(batch["x"])  # (B, d)
        q = soft_assignment(z, self.centers)  # (B, K)  eq. (6)
        p = self.target[batch["index"]]  # (B, K)  eq. (8)
        terms = {"clustering": self.gamma * self.divergence(q, p)}  # eq. (7)
        if self.reconstruction > 0:
            x_hat = self.network.decode(z)  # (B, C, H, W)
            loss = self.network.reconstruction_loss(batch["x"], x_hat)  # eq. (4)
            terms["reconstruction"] = self.reconstruction * loss
        return terms
