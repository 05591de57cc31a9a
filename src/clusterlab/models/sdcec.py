"""SDCEC: DCEC with a few known labels."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import one_hot

from clusterlab.assignment import soft_assignment
from clusterlab.centers import kmeans
from clusterlab.data.datamodule import Batch
from clusterlab.losses import WeightedDivergence
from clusterlab.models.base import DeepClustering
from clusterlab.networks import Autoencoder


class SDCEC(DeepClustering):
    """Semi-supervised deep clustering with convolutional autoencoders (Fiorentino, 2022).

    Pretrain:  L = L_r
    Finetune:  L = L_r + lambda KL(P* || Q)    eq. (4)

    Where a label is known, a row of P* is that label; elsewhere it is DCEC's target, eq. (5). The
    center of a class starts as the mean embedding of its known samples, eq. (6); the centers of
    classes without any as those of k-means that are left. Without known labels it is DCEC.

    Differs from the authors' code, which drops L_r in the finetune phase and draws the known
    samples from each class in proportion; the paper keeps L_r and draws from all. We keep L_r and
    draw in proportion by default.

    Args:
        network: The autoencoder.
        n_clusters: K.
        divergence: Compares q with p, both ``(B, K)``, by the samples' weights, ``(B,)``:
            ``divergence(q, p, weight) -> scalar``.
        gamma: lambda, DCEC's gamma: weight of the clustering term.
        seed: Seed of the training and of k-means.
        n_init: Starts of k-means.
        labelled_weight: Weight in the clustering term of a sample whose label is known, where the
            others have 1; the paper's is 1.
        known: Known labels in 0..K-1, -1 where unknown; shape ``(N,)``. ``None`` for a trained
            model.
    """

    def __init__(
        self,
        network: Autoencoder,
        n_clusters: int,
        divergence: WeightedDivergence,
        gamma: float,
        seed: int,
        n_init: int = 20,
        labelled_weight: float = 1.0,
        known: Tensor | None = None,
    ) -> None:
        super().__init__(network, n_clusters, seed, n_init)
        self.divergence = divergence
        self.gamma = gamma
        self.labelled_weight = labelled_weight
        self.known: Tensor | None
        self.register_buffer("known", known, persistent=False)

    def initial_centers(self, z: Tensor) -> Tensor:
        """Return class means, eq. (6), and k-means' centers where a class has no known sample."""
        assert self.known is not None
        means, counts = class_means(z, self.known, len(self.centers))
        if (counts > 0).all():
            return means
        found, _ = kmeans(z, len(self.centers), self.seed, self.n_init)
        return complete(means, counts > 0, found)

    def refresh_target(self, q: Tensor) -> Tensor:
        """Return the target distribution with the known labels in it, eq. (5)."""
        assert self.known is not None
        return with_known_labels(super().refresh_target(q), self.known)

    def finetune_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_r and lambda L_c, eq. (4)."""
        assert self.target is not None
        assert self.known is not None
        z, x_hat = self.network(batch["x"])  # (B, d), (B, C, H, W)
        q = soft_assignment(z, self.centers)  # (B, K)
        p = self.target[batch["index"]]  # (B, K)
        sure = self.known[batch["index"]] >= 0  # (B,)
        weight = torch.where(sure, self.labelled_weight, 1.0)
        return {
            "clustering": self.gamma * self.divergence(q, p, weight),
            "reconstruction": self.network.reconstruction_loss(batch["x"], x_hat),
        }


def with_known_labels(p: Tensor, known: Tensor) -> Tensor:
    r"""Replace the target of samples whose label is known by that label.

    .. math:: p^*_i = \begin{cases} \mathrm{onehot}(y_i) & i \in S \\ p_i & \text{else} \end{cases}

    Eq. (5).

    Args:
        p: Target distribution, shape ``(N, K)``.
        known: Labels in 0..K-1, -1 where unknown; shape ``(N,)``, ``int64``.

    Returns:
        Shape ``(N, K)``.

    Example:
        >>> with_known_labels(torch.tensor([[0.4, 0.6], [0.4, 0.6]]), torch.tensor([0, -1]))
        tensor([[1.0000, 0.0000],
                [0.4000, 0.6000]])
    """
    sure = one_hot(known.clamp(min=0), p.shape[1]).to(p.dtype)
    return torch.where(known[:, None] >= 0, sure, p)


def class_means(z: Tensor, known: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    r"""Average the embeddings of each class's known samples.

    .. math:: \mu_j = \frac{1}{|S_j|} \sum_{i \in S_j} z_i

    Eq. (6).

    Args:
        z: Embeddings, shape ``(N, d)``.
        known: Labels in 0..K-1, -1 where unknown; shape ``(N,)``, ``int64``.
        n_clusters: K.

    Returns:
        Means, shape ``(K, d)``, zero where a class has no known sample; how many it has, ``(K,)``.

    Example:
        >>> z = torch.tensor([[1.0], [3.0], [7.0]])
        >>> class_means(z, torch.tensor([0, 0, -1]), n_clusters=2)
        (tensor([[2.],
                [0.]]), tensor([2, 0]))
    """
    members = one_hot(known + 1, n_clusters + 1)[:, 1:]  # (N, K)
    counts = members.sum(0)
    return members.to(z.dtype).T @ z / counts.clamp(min=1)[:, None], counts


def complete(means: Tensor, there: Tensor, found: Tensor) -> Tensor:
    """Give classes without a mean the centers that are left when the others took the nearest.

    Args:
        means: Class means, shape ``(K, d)``.
        there: Which of them are known, shape ``(K,)``, ``bool``.
        found: Centers of clusters, shape ``(K, d)``.

    Returns:
        The known means, and centers of ``found`` elsewhere; shape ``(K, d)``.

    Example:
        >>> means, there = torch.tensor([[5.1], [0.0]]), torch.tensor([True, False])
        >>> complete(means, there, found=torch.tensor([[5.0], [9.0]]))
        tensor([[5.1000],
                [9.0000]])
    """
    distances = torch.cdist(means[there], found)
    _, taken = linear_sum_assignment(distances.cpu().numpy())
    left = torch.ones(len(found), dtype=torch.bool, device=found.device)
    left[torch.from_numpy(taken).to(found.device)] = False
    centers = means.clone()
    centers[~there] = found[left]
    return centers
