"""Which clusters might be one: those without a gap between them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

Array = NDArray[Any]

GAP = 0.5  # a valley less deep than half the lower hill is no gap


@dataclass
class Neighbours:
    """Two clusters, how deep the valley between them is, and samples from its bottom.

    Args:
        a: One cluster.
        b: The other, of a higher number.
        valley: Least density between their means, as a share of that at the lower of them: 1
            where there is no gap at all, 0 where nothing lies between.
        between: Samples nearest to the border, those of a first.
    """

    a: int
    b: int
    valley: float
    between: list[int]


def valley(side_a: Array, side_b: Array) -> float:
    """Return how deep the density falls between two clusters, on the line through their means.

    Of a cluster that was cut in two by k-means it does not fall: at the cut is its middle.

    Args:
        side_a: Embeddings of one cluster, shape ``(n, d)``, at least two.
        side_b: Of the other, shape ``(m, d)``, at least two.

    Returns:
        The least density between the means over that at the lower one, from 0 to 1.

    Example:
        >>> x = np.sort(np.random.default_rng(0).normal(0, 1, (500, 1)), axis=0)
        >>> valley(x[:250], x[250:]) > 0.9 > 0.05 > valley(x, x + 9)
        True
    """
    axis = side_b.mean(0) - side_a.mean(0)
    length = float(axis @ axis)
    both = np.concatenate([side_a, side_b])
    if length == 0 or np.ptp(both @ axis) == 0:
        return 1.0
    # Both sides weigh the same, so that a small cluster has a hill of its own.
    weights = np.repeat([1 / len(side_a), 1 / len(side_b)], [len(side_a), len(side_b)])
    at = (both - side_a.mean(0)) @ axis / length  # 0 at one mean, 1 at the other
    narrow = np.sqrt(max(np.var(at[: len(side_a)]), np.var(at[len(side_a) :])))
    spread = float(np.cov(at, aweights=weights)) ** 0.5  # by which the kernel's width is counted
    width = max(narrow, 1e-3) * len(at) ** -0.2 / max(spread, 1e-12)
    density = gaussian_kde(at, bw_method=width, weights=weights)(np.linspace(0, 1, 101))
    return float(density.min() / min(density[0], density[-1]))


def neighbours(
    z: Array,
    labels: Array,
    n_clusters: int,
    n_pairs: int = 8,
    n_between: int = 4,
    n_most: int = 1000,
) -> list[Neighbours]:
    """Find pairs of clusters without a gap between them, the most joined first.

    Args:
        z: Embeddings, shape ``(N, d)``.
        labels: Clusters, shape ``(N,)``.
        n_clusters: K.
        n_pairs: Most pairs to return.
        n_between: Samples of each side to name, of those nearest to the border.
        n_most: Samples of a cluster to look at, evenly chosen.

    Returns:
        Pairs whose valley is at least ``GAP``. Each cluster is compared with its three nearest.
    """
    members = [np.flatnonzero(labels == k) for k in range(n_clusters)]
    members = [m[np.linspace(0, len(m) - 1, min(len(m), n_most)).astype(int)] for m in members]
    present = [k for k in range(n_clusters) if len(members[k]) > 1]
    means = {k: z[members[k]].mean(0) for k in present}
    pairs = set()
    for a in present:
        others = sorted((float(np.linalg.norm(means[a] - means[b])), b) for b in present if b != a)
        pairs |= {(min(a, b), max(a, b)) for _, b in others[:3]}
    found = []
    for a, b in sorted(pairs):
        depth = valley(z[members[a]], z[members[b]])
        if depth < GAP:
            continue
        between = []
        for own, other in ((a, b), (b, a)):
            axis = means[other] - means[own]
            order = np.argsort(-(z[members[own]] @ axis), kind="stable")
            between += members[own][order[:n_between]].tolist()
        found.append(Neighbours(a, b, depth, between))
    return sorted(found, key=lambda pair: -pair.valley)[:n_pairs]
