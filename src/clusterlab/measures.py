"""How well an embedding falls into K clusters: measures without labels, over random halves."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from clusterlab.centers import agreement, kmeans
from clusterlab.metrics import silhouette
from clusterlab.seeding import derive_seed
from clusterlab.verdict import Values

log = logging.getLogger(__name__)

MOST_DIM = 20  # a mixture sees so many principal components: each covariance has d(d + 1)/2 numbers
NARROWEST = 1e-4  # variance of a component, of 1 over all: repeated samples are no cluster

Row = dict[str, float]


def whitened(z: Tensor) -> Values:
    """Return the principal components of ``(N, d)``, at most 20, each of variance 1."""
    found = PCA(min(MOST_DIM, *z.shape), whiten=True, svd_solver="full").fit(z.double().numpy())
    alive = found.explained_variance_ > 1e-9 * found.explained_variance_[0]
    components: Values = found.transform(z.double().numpy())[:, alive]
    return components


def bic(x: Values, labels: NDArray[np.int64]) -> float:
    r"""Return how much better K Gaussians describe samples than one does; negative is better.

    .. math:: (\mathrm{BIC}_K - \mathrm{BIC}_1) / N, \qquad
        \mathrm{BIC}_K = p_K \ln N - 2 \ln L_K

    Each Gaussian has a full covariance. The axes of an embedding are arbitrary up to a linear map,
    on which any other kind of covariance would depend.

    Args:
        x: Whitened embeddings, shape ``(N, d)``.
        labels: The clusters that the Gaussians start from, shape ``(N,)``; all of 0..K-1 occur.
    """

    def of(start: NDArray[np.int64]) -> float:
        clusters = [x[start == j] for j in range(start.max() + 1)]
        narrowest = NARROWEST * np.eye(x.shape[1])
        mixture = GaussianMixture(
            len(clusters),
            reg_covar=NARROWEST,
            max_iter=200,
            weights_init=[len(cluster) / len(x) for cluster in clusters],
            means_init=[cluster.mean(0) for cluster in clusters],
            precisions_init=[
                np.linalg.inv(np.atleast_2d(np.cov(cluster.T, bias=True)) + narrowest)
                for cluster in clusters
            ],
        )
        with warnings.catch_warnings():
            # A likelihood short of its maximum by the last rounds changes no choice.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return float(mixture.fit(x).bic(x)) / len(x)

    return of(labels) - of(np.zeros_like(labels))


def one_gaussian(z: Tensor, seed: int) -> Tensor:
    """Draw as many samples from one Gaussian of the same mean and covariance as ``(N, d)``."""
    mean = z.mean(0)
    _, scale, axes = torch.linalg.svd(z - mean, full_matrices=False)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(z), len(scale), generator=generator, dtype=z.dtype)
    cloud: Tensor = mean + noise * scale / len(z) ** 0.5 @ axes
    return cloud


def measure(z: Tensor, ks: Sequence[int], seeds: int, samples: int, seed: int) -> list[Row]:
    """Measure each K on several random halves of the samples.

    Args:
        z: Embeddings, shape ``(N, d)``.
        ks: The numbers of clusters.
        seeds: Number of halves.
        samples: The most samples of which a half is taken.
        seed: Seed of all of them.

    Returns:
        For each K and half "k", "seed", "silhouette", "bic" and "agreement", and as
        "agreement_one_gaussian" the last of samples without clusters.

    Raises:
        UserError: If a half has fewer samples than clusters.
    """
    rows = []
    for i in range(seeds):
        own = derive_seed(seed, "scan", i)
        chosen = torch.randperm(len(z), generator=torch.Generator().manual_seed(own))[:samples]
        half, cloud = z[chosen[: len(chosen) // 2]], one_gaussian(z[chosen], own)
        x = whitened(half)
        for k in ks:
            _, labels = kmeans(half, k, own, n_init=5)
            row: Row = {"k": k, "seed": i}
            row["silhouette"] = silhouette(half, labels, 5000, own) or 0.0
            row["bic"] = bic(x, labels.numpy())
            (row["agreement"],) = agreement(z[chosen], k, own, n_repeats=1)
            (row["agreement_one_gaussian"],) = agreement(cloud, k, own, n_repeats=1)
            rows.append(row)
        log.info("K from %d to %d measured on half %d of %d.", ks[0], ks[-1], i + 1, seeds)
    return rows
