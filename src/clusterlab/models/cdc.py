"""CDC: an autoencoder that keeps what is near near, and clusters that agree with neighbours."""

from typing import Any

import torch
from torch import Tensor

from clusterlab.assignment import soft_assignment, target_distribution
from clusterlab.data.datamodule import Batch
from clusterlab.losses import Divergence, squared_distances
from clusterlab.models.base import DeepClustering
from clusterlab.networks import Autoencoder

FLOOR = 1e-10  # of a similarity, for the logarithm


class CDC(DeepClustering):
    """Correlation losses for deep clustering (Trinh, Pham, 2024).

    Pretrain:  L_AE = L_r + lambda [L_cr(Z, X) + L_cr(Z, X')]               eq. (7)
    Finetune:  L_DC = L_c + eta L_a + beta [L_cr(Z, X) + L_cr(Z, X')]       eq. (13)

    In the finetune phase the centers follow L_c + eta L_a, the encoder L_DC and the decoder L_AE,
    as Algorithm 1 says: all in one backward pass, see ``finetune_loss``. That takes each gradient
    at the same weights, where lines 12 to 14 update one after the other on the same batch.

    Differs from the paper, as its authors' code does: similarities are normalised row by row and
    sharpened where they are a target. Differs from that code, which leaves L_r out of the finetune
    phase: the decoder keeps learning it, as in Algorithm 1. Pairs are those of a batch; of several
    processes each takes the pairs of its own.

    L_a needs assignments that are decided: similarities of q differ by a factor of 3 at most, those
    of embeddings by hundreds, so that with a diffuse q it asks all embeddings to come together. On
    newsgroups20, where the mean of the largest q is 0.14 at the start, eta = 0.75 leaves a single
    cluster after 100 steps; begun where L_c alone ends, at 0.91, it keeps them all.

    Args:
        network: The autoencoder.
        n_clusters: K.
        divergence: Compares q with p, both ``(B, K)``: ``divergence(q, p) -> scalar``.
        lambda_: Weight of the correlation terms in L_AE.
        eta: Weight of L_a.
        beta: Weight of the correlation terms in L_DC.
        over_rows: Whether similarities are normalised by row, as in the authors' code, or over all
            pairs, as in eq. (5).
        affinity_gradient: Whether L_a also moves its target C_Q, as in the authors' code.
        seed: Seed of the training and of k-means.
        n_init: Starts of k-means.
    """

    def __init__(
        self,
        network: Autoencoder,
        n_clusters: int,
        divergence: Divergence,
        lambda_: float,
        eta: float,
        beta: float,
        seed: int,
        over_rows: bool = True,
        affinity_gradient: bool = True,
        n_init: int = 20,
    ) -> None:
        super().__init__(network, n_clusters, seed, n_init)
        self.divergence = divergence
        self.lambda_ = lambda_
        self.eta = eta
        self.beta = beta
        self.over_rows = over_rows
        self.affinity_gradient = affinity_gradient
        if eta > 0:  # it draws embeddings together as long as assignments are alike
            self.suspect = "the affinity term, loss.eta"

    @property
    def pretrain_objective(self) -> dict[str, Any]:
        """Reconstruction and correlation."""
        if self.lambda_ == 0:
            return super().pretrain_objective
        return {"reconstruction": "mse", "lambda": self.lambda_, "over_rows": self.over_rows}

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_r and lambda [L_cr(Z, X) + L_cr(Z, X')], eq. (7)."""
        x = batch["x"]
        z, x_hat = self.network(x)  # (B, d), (B, ...)
        terms = {"reconstruction": self.network.reconstruction_loss(x, x_hat)}
        if self.lambda_ > 0:
            terms["correlation"] = self.lambda_ * self._correlation(z, x, x_hat)
        return terms

    def finetune_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return terms whose sum sends to each parameter the gradient of Algorithm 1.

        The decoder works twice: on fixed embeddings, from which L_AE reaches nothing but its own
        weights, and with fixed weights, through which L_cr(Z, X') reaches the encoder.
        """
        assert self.target is not None
        x = batch["x"]
        z = self.network.encode(x)  # (B, d)
        q = soft_assignment(z, self.centers)  # (B, K)  eq. (8)
        p = self.target[batch["index"]]  # (B, K)  eq. (10)
        terms = {"clustering": self.divergence(q, p)}  # eq. (9)
        if self.eta > 0:
            affinity = affinity_loss(q, z, self.over_rows, self.affinity_gradient)
            terms["affinity"] = self.eta * affinity
        if self.beta > 0:
            x_hat = self.network.decode(z, frozen=True)
            terms["correlation"] = self.beta * self._correlation(z, x, x_hat)  # eq. (12)
        z = z.detach()
        x_hat = self.network.decode(z)
        terms["reconstruction"] = self.network.reconstruction_loss(x, x_hat)
        if self.lambda_ > 0:
            seen = self.network.seen(x_hat)
            terms["decoded"] = self.lambda_ * correlation_loss(z, seen, self.over_rows)
        return terms

    def _correlation(self, z: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
        # As the network sees them: the kernel's width is 1, whatever the samples' numbers are.
        seen = (self.network.seen(samples) for samples in (x, x_hat))
        with_x, with_x_hat = (correlation_loss(z, samples, self.over_rows) for samples in seen)
        return with_x + with_x_hat


def similarities(x: Tensor, over_rows: bool = True) -> Tensor:
    r"""Turn the distances of every pair into probabilities with a Student's t kernel.

    .. math:: C(x_i, x_j) = \frac{(1 + \|x_i - x_j\|^2)^{-1}}{\sum (1 + \|x_k - x_l\|^2)^{-1}}

    Eq. (5), with one degree of freedom. Distances are those of the centered samples, see
    ``squared_distances``: gradients are finite also where two samples are the same.

    Args:
        x: Samples, shape ``(B, ...)``.
        over_rows: Whether the sum is over the pairs of sample i, its pair with itself included, as
            in the authors' code; else over all pairs of two samples, as in eq. (5).

    Returns:
        Shape ``(B, B)``; at least 1e-10, so that logarithms are finite.

    Example:
        >>> similarities(torch.tensor([[0.0], [1.0]]))
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]])
        >>> similarities(torch.tensor([[0.0], [1.0]]), over_rows=False)[0, 1]
        tensor(0.5000)
    """
    x = x.flatten(1)
    x = x - x.mean(0)  # |x|^2 would dwarf the distances of samples far from the origin
    kernel = 1 / (1 + squared_distances(x, x))
    if over_rows:
        return (kernel / kernel.sum(1, keepdim=True)).clamp(min=FLOOR)
    kernel = kernel - torch.diag_embed(kernel.diagonal())
    return (kernel / kernel.sum().clamp(min=FLOOR)).clamp(min=FLOOR)  # one sample has no pair


def correlation_loss(z: Tensor, x: Tensor, over_rows: bool = True) -> Tensor:
    r"""Ask that what is near in one space be near in the other.

    .. math:: L_{cr}(Z, X) = \mathrm{KL}(C_Z \| C_X)
        = \sum_{ij} C(z_i, z_j) \log \frac{C(z_i, z_j)}{C(x_i, x_j)}

    Eq. (6). By row, as in the authors' code, C_Z is sharpened as a target is, and rows are
    averaged.

    Args:
        z: Samples in one space, shape ``(B, ...)``.
        x: The same in the other, shape ``(B, ...)``.
        over_rows: See ``similarities``.

    Returns:
        Divergence in nats, a scalar.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> correlation_loss(x, x, over_rows=False)
        tensor(0.)
    """
    c_z = similarities(z, over_rows)
    if over_rows:
        c_z = target_distribution(c_z)
    return _divergence(c_z, similarities(x, over_rows), over_rows)


def affinity_loss(q: Tensor, z: Tensor, over_rows: bool = True, gradient: bool = True) -> Tensor:
    r"""Ask that embeddings be as near as their soft assignments are.

    .. math:: L_a = \mathrm{KL}(C_Q \| C_Z)

    Eq. (11), with C_Q sharpened like a target distribution.

    Args:
        q: Soft assignment, shape ``(B, K)``.
        z: Embeddings, shape ``(B, d)``.
        over_rows: See ``similarities``.
        gradient: Whether q gets a gradient too.

    Returns:
        Divergence in nats, a scalar.
    """
    c_q = similarities(q if gradient else q.detach(), over_rows)
    c_q = target_distribution(c_q)
    if not over_rows:
        c_q = c_q / len(c_q)  # all pairs sum to one
    return _divergence(c_q, similarities(z, over_rows), over_rows)


def _divergence(p: Tensor, q: Tensor, over_rows: bool) -> Tensor:
    terms = (p * (p / q).log()).sum(1)
    return terms.mean() if over_rows else terms.sum()
