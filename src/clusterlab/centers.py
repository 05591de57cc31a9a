"""Where cluster centers come from."""

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torch.nn.functional import cosine_similarity

from clusterlab.errors import problem
from clusterlab.metrics import ari, contingency
from clusterlab.seeding import derive_seed

SAME_END = 0.95  # of an adjusted Rand index; ends that split another class have one of .9 or less


def kmeans(z: Tensor, n_clusters: int, seed: int, n_init: int = 20) -> tuple[Tensor, Tensor]:
    """Cluster embeddings with k-means and keep the best of several starts.

    Twenty starts as in the DEC and DCEC code; with one, the result varies by several points of ACC.
    scikit-learn's Lloyd, which was faster than its Elkan and than faiss on 70,000 such samples.

    Args:
        z: Embeddings, shape ``(N, d)``, any device.
        n_clusters: K.
        seed: Seed of the starts.
        n_init: Number of starts.

    Returns:
        Centers, shape ``(K, d)``, and labels, shape ``(N,)``, ``int64``; both on ``z``'s device.

    Example:
        >>> centers, labels = kmeans(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), 2, seed=0)
        >>> centers.sort(dim=0).values.flatten()
        tensor([0.5000, 9.5000])
    """
    result = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(z.detach().cpu().numpy())
    centers = torch.as_tensor(result.cluster_centers_, dtype=z.dtype, device=z.device)
    return centers, torch.as_tensor(result.labels_, dtype=torch.int64, device=z.device)


def consistent_kmeans(
    z: Tensor, view: Tensor, n_clusters: int, seed: int, n_starts: int = 100, n_skipped: int = 0
) -> Tensor:
    r"""Keep the start of k-means whose labels changed images tell best, or one that comes after it.

    .. math:: \max I(S; S'), \qquad s_i = \arg\min_j \|z_i - \mu_j\|, \quad
        s'_i = \arg\min_j \|z'_i - \mu_j\|

    The least sum of squares, by which k-means chooses among its starts, rewards splitting a large
    class and joining two small ones. Where such a split runs through a class, an augmented image
    often falls on its other side; where it runs between classes, seldom. The mutual information of
    the two labels also pays for many and equal clusters (Ji, Henriques, Vedaldi, ICCV 2019).

    Args:
        z: Embeddings, shape ``(N, d)``, any device.
        view: Embeddings of the same samples, augmented; shape ``(N, d)``.
        n_clusters: K.
        seed: Seed of the starts.
        n_starts: Number of starts.
        n_skipped: How many of the best ends to pass over. Starts that end with nearly the same
            labels, of an adjusted Rand index above ``SAME_END``, have one end.

    Returns:
        Centers, shape ``(K, d)``, on ``z``'s device.

    Raises:
        UserError: If the starts have fewer ends.
    """
    ends = []
    for start in range(n_starts):
        centers, labels = kmeans(z, n_clusters, derive_seed(seed, "start", start), n_init=1)
        told = torch.cdist(view, centers).argmin(1)
        ends.append((float(mutual_info_score(labels.cpu(), told.cpu())), centers, labels))
    different: list[Tensor] = []
    for _, centers, labels in sorted(ends, key=lambda end: -end[0]):
        tables = (contingency(labels, other, n_clusters, n_clusters) for other in different)
        if not any(ari(table) > SAME_END for table in tables):
            different.append(labels)
            if len(different) > n_skipped:
                return centers
    found = f"{len(different)} that differ, from {n_starts} starts"
    remedy = "skip fewer, or set more starts"
    raise problem(f"{n_skipped + 1} ends of k-means or more", found, remedy)


def agreement(
    z: Tensor, n_clusters: int, seed: int = 0, n_repeats: int = 5, max_samples: int = 10_000
) -> list[float]:
    """Cluster two halves of the samples apart, and tell how alike they label all samples.

    The adjusted Rand index is 1 for the same clusters and corrected for chance: 0 is what labels
    of these sizes have in common if drawn at random. It is not corrected for the shape of the
    data: two clusters are found again in any cloud that is longer than wide.

    Args:
        z: Embeddings, shape ``(N, d)``, any device.
        n_clusters: K.
        seed: Seed of the halves and of their starts.
        n_repeats: Number of times that the samples are halved.
        max_samples: The most samples that are halved; all are labelled.

    Returns:
        The adjusted Rand index of each repeat.

    Raises:
        UserError: If a half has fewer samples than clusters.

    Example:
        >>> z = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2], [9.3]])
        >>> agreement(z, 2, n_repeats=3)
        [1.0, 1.0, 1.0]
    """
    size = min(len(z), max_samples) // 2
    if size < n_clusters:
        remedy = "set fewer clusters"
        raise problem(f"{n_clusters} samples or more in half of them", size, remedy)
    values = []
    for repeat in range(n_repeats):
        own = derive_seed(seed, "agreement", repeat)
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(own)).to(z.device)
        halves = order[:size], order[size : 2 * size]
        one, other = (
            torch.cdist(z, kmeans(z[half], n_clusters, derive_seed(own, i), n_init=5)[0]).argmin(1)
            for i, half in enumerate(halves)
        )
        values.append(ari(contingency(one, other, n_clusters, n_clusters)))
    return values


def renumber(centers: Tensor, labels: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Number clusters as other centers are numbered, each with one of its own nearby.

    Args:
        centers: Cluster centers, shape ``(K, d)``.
        labels: Hard assignment to them, shape ``(N,)``.
        like: The other centers, shape ``(K, d)``.

    Returns:
        The same centers and labels under the new numbers; the sum of the distances between centers
        of the same number is the least possible.

    Example:
        >>> centers, labels = torch.tensor([[5.0], [1.0]]), torch.tensor([0, 1, 1])
        >>> renumber(centers, labels, like=torch.tensor([[0.0], [9.0]]))
        (tensor([[1.],
                [5.]]), tensor([1, 0, 0]))
    """
    old, new = linear_sum_assignment(torch.cdist(centers, like).cpu().numpy())
    number = torch.empty(len(centers), dtype=torch.int64, device=labels.device)
    number[torch.from_numpy(old)] = torch.from_numpy(new).to(labels.device)
    ordered = torch.empty_like(centers)
    ordered[number] = centers
    return ordered, number[labels]


def center_samples(z: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    r"""Find the sample of each cluster that is nearest to its center.

    .. math:: \mathrm{center}_j = \arg\min_{i: s_i = j} \|z_i - \mu_j\|^2

    Eq. (17) of IDCEC (Lu et al., 2022), there over all samples: over the cluster's own, each
    cluster keeps one for certain.

    Args:
        z: Embeddings, shape ``(N, d)``.
        labels: Hard assignment, shape ``(N,)``.
        centers: Cluster centers, shape ``(K, d)``.

    Returns:
        Indices, shape ``(K,)``, ``int64``; that of an empty cluster means nothing.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [9.0], [8.0]])
        >>> center_samples(z, torch.tensor([0, 0, 1, 1]), torch.tensor([[0.9], [8.4]]))
        tensor([1, 3])
    """
    squared = (z - centers[labels]).square().sum(1)
    own = labels == torch.arange(len(centers), device=z.device)[:, None]  # (K, N)
    return squared.expand(len(centers), -1).masked_fill(~own, torch.inf).argmin(1)


def reliable_samples(z: Tensor, labels: Tensor, centers: Tensor, threshold: float) -> Tensor:
    r"""Tell which samples point in nearly the same direction as their cluster's center sample.

    .. math:: \frac{z_i}{\|z_i\|} \cdot
        \frac{\mathrm{center}_{s_i}}{\|\mathrm{center}_{s_i}\|} \ge \lambda

    Eq. (16) of IDCEC (Lu et al., 2022), which divides by squared norms; its text speaks of
    normalised features and of values up to 1, hence the cosine. Center samples are always in.

    Args:
        z: Embeddings, shape ``(N, d)``.
        labels: Hard assignment, shape ``(N,)``.
        centers: Cluster centers, shape ``(K, d)``.
        threshold: lambda; -1 or less takes all samples, above 1 only the center samples.

    Returns:
        Shape ``(N,)``, ``bool``.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> labels, centers = torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.1], [0.0, 2.0]])
        >>> reliable_samples(z, labels, centers, threshold=0.9)
        tensor([ True, False,  True])
    """
    index = center_samples(z, labels, centers)
    cosine = cosine_similarity(z, z[index][labels]).clamp(-1, 1)
    there = labels.bincount(minlength=len(centers)) > 0
    return (cosine >= threshold).index_fill(0, index[there], True)


def pedcc(n_clusters: int, dim: int, seed: int) -> Tensor:
    r"""Place centers evenly on the unit sphere: the corners of a regular simplex.

    .. math:: \mu_j \cdot \mu_l = -\frac{1}{K - 1}, \qquad \|\mu_j\| = 1

    The PEDCC of ICAE (Zhu, Wang, 2019), there from points that repel one another; a simplex is
    where they come to rest, and exact. It lies in a frame drawn at random.

    Args:
        n_clusters: K.
        dim: M, at least K - 1.
        seed: Seed of the frame.

    Returns:
        Shape ``(K, M)``, ``float32``.

    Raises:
        UserError: If M < K - 1: there is no such simplex.

    Example:
        >>> centers = pedcc(3, 2, seed=0)
        >>> (centers @ centers.T).round(decimals=4)
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]])
    """
    if dim < n_clusters - 1:
        raise problem(
            f"an embedding of {n_clusters - 1} dimensions or more for {n_clusters} even centers",
            dim,
            f"set network.embedding_dim={n_clusters}",
        )
    centered = torch.eye(n_clusters, dtype=torch.float64) - 1 / n_clusters  # rank K - 1
    basis = torch.linalg.svd(centered)[0][:, : n_clusters - 1]  # (K, K - 1)
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(dim, n_clusters - 1, generator=generator, dtype=torch.float64)
    corners = centered @ basis @ torch.linalg.qr(frame)[0].T
    centers: Tensor = corners / corners.norm(dim=1, keepdim=True)
    return centers.float()
