"""The terms of the objectives and what they are made of, as pure functions of tensors."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor, nn

Divergence = Callable[[Tensor, Tensor], Tensor]  # of (q, p), a scalar
WeightedDivergence = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (q, p, weight), a scalar

Given = ParamSpec("Given")


def full_precision(function: Callable[Given, Tensor]) -> Callable[Given, Tensor]:
    """Keep a function's products out of autocast: what they leave has fewer digits than bf16."""

    @wraps(function)
    def outside(*args: Given.args, **kwargs: Given.kwargs) -> Tensor:
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return outside


def kl_divergence(q: Tensor, p: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Compare the soft assignment with its target.

    .. math:: \mathrm{KL}(P \| Q) = \frac1B \sum_i w_i \sum_j p_{ij} \log \frac{p_{ij}}{q_{ij}}

    Eq. (7) of DCEC, where ``w`` is 1, averaged over the batch as in its authors' code: the paper
    writes a sum over ``i``, with which gamma would depend on the batch size. A term with ``p = 0``
    counts zero.

    Args:
        q: Soft assignment, shape ``(B, K)``, rows sum to one.
        p: Target distribution, shape ``(B, K)``, rows sum to one; no gradient is sent into it.
        weight: Weight of each sample, shape ``(B,)``; ``None`` for 1.

    Returns:
        Divergence in nats, a scalar.

    Example:
        >>> q, p = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.8, 0.2]])
        >>> kl_divergence(q, p)
        tensor(0.1927)
    """
    p = p.detach()
    divergence = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1)  # (B,)
    return (divergence if weight is None else weight * divergence).mean()


def squared_weights(module: nn.Module) -> Tensor:
    r"""Return half the squared norm of all weights and biases of a module.

    .. math:: L_w = \frac12 \sum_l \|w^l\|_2^2 + \|b^l\|_2^2

    Eq. (6) of IDCEC. The parameters are joined into one vector, so that it costs one copy and one
    product however many layers there are.

    Returns:
        A scalar.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(layer.weight, 2.0), nn.init.constant_(layer.bias, 1.0)
        >>> squared_weights(layer).item()
        4.5
    """
    vector = torch.cat([parameter.flatten() for parameter in module.parameters()])
    return vector.dot(vector) / 2


@full_precision
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the squared distances of every two rows, from their Gram matrix.

    .. math:: \|a_i - b_j\|^2 = \|a_i\|^2 + \|b_j\|^2 - 2\, a_i \cdot b_j

    No tensor is larger than the result, and gradients are finite also where two rows are equal.
    Rows far from the origin lose digits: bring them near it first.

    Args:
        a: Shape ``(n, d)``.
        b: Shape ``(m, d)``.

    Returns:
        Shape ``(n, m)``, at least 0.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([[16.],
                [ 9.]])
    """
    products = a @ b.T
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * products).clamp(min=0)
