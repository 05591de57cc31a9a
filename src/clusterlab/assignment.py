"""Soft assignment q, target distribution p, and how many labels changed: the equations of DEC."""

from torch import Tensor


def soft_assignment(z: Tensor, centers: Tensor) -> Tensor:
    r"""Assign embeddings to cluster centers with a Student's t kernel of one degree of freedom.

    .. math:: q_{ij} = \frac{(1 + \|z_i - \mu_j\|^2)^{-1}}{\sum_k (1 + \|z_i - \mu_k\|^2)^{-1}}

    Eq. (6) of DCEC (Guo et al., ICONIP 2017); eq. (1) of DEC (Xie et al., ICML 2016).

    Args:
        z: Embeddings, shape ``(B, d)``.
        centers: Cluster centers, shape ``(K, d)``.

    Returns:
        Soft assignment, shape ``(B, K)``, rows sum to one.

    Example:
        >>> import torch
        >>> soft_assignment(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([[0.8333, 0.1667],
                [0.5000, 0.5000]])
    """
    # Differences, not |z|^2 - 2 z.mu + |mu|^2: that form loses the small distances that decide q.
    squared = (z[:, None] - centers).square().sum(-1)  # (B, K)
    kernel = 1.0 / (1.0 + squared)
    return kernel / kernel.sum(1, keepdim=True)


def target_distribution(q: Tensor) -> Tensor:
    r"""Sharpen soft assignments into the target distribution.

    .. math:: p_{ij} = \frac{q_{ij}^2 / f_j}{\sum_k q_{ik}^2 / f_k}, \qquad f_j = \sum_i q_{ij}

    Eq. (8) of DCEC; eq. (3) of DEC. The sum in ``f_j`` runs over all rows of ``q``, so pass the
    whole data set, not a batch.

    Args:
        q: Soft assignments, shape ``(N, K)``, rows sum to one.

    Returns:
        Target distribution, shape ``(N, K)``, rows sum to one.

    Example:
        >>> import torch
        >>> target_distribution(torch.tensor([[0.6, 0.4], [0.9, 0.1]]))
        tensor([[0.4286, 0.5714],
                [0.9643, 0.0357]])
    """
    weight = q.square() / q.sum(0)
    return weight / weight.sum(1, keepdim=True)


def label_change(previous: Tensor, labels: Tensor) -> float:
    """Return the share of samples whose label differs between two refreshes, in [0, 1].

    The quantity that DCEC's section 3.4 compares with the tolerance.

    Args:
        previous: Labels of the refresh before, shape ``(N,)``.
        labels: Labels now, shape ``(N,)``.

    Example:
        >>> import torch
        >>> label_change(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]))
        0.25
    """
    return int((previous != labels).sum()) / len(labels)
