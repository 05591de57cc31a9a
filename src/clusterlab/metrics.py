"""How good a clustering is: scores of a contingency table, and scores that need no ground truth.

``table`` is always the contingency table, shape ``(n_classes, n_clusters)``, ``int64``, any device.
"""

from abc import abstractmethod
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.special import entr
from torchmetrics import Metric, MetricCollection

SCORES = ("accuracy", "nmi", "ari", "f1")


def contingency(y: Tensor, labels: Tensor, n_classes: int, n_clusters: int) -> Tensor:
    """Count how often each class meets each cluster.

    Args:
        y: Ground truth, shape ``(N,)``, in 0..``n_classes``-1.
        labels: Hard assignment, shape ``(N,)``, in 0..``n_clusters``-1.
        n_classes: Number of rows.
        n_clusters: Number of columns.

    Raises:
        ValueError: If the lengths differ or a value is out of range.
    """
    if len(y) != len(labels):
        raise ValueError(f"Expected as many y as labels, got {len(y)} and {len(labels)}")
    # Unchecked, a value out of range would be counted silently in a neighbouring row.
    for name, values, end in (("y", y, n_classes), ("labels", labels, n_clusters)):
        if len(outside := values[(values < 0) | (values >= end)]):
            raise ValueError(f"Expected {name} in 0..{end - 1}, got {int(outside[0])}")
    cells = torch.bincount(y.long() * n_clusters + labels, minlength=n_classes * n_clusters)
    return cells.view(n_classes, n_clusters)


def match(table: Tensor) -> Tensor:
    """Give each cluster its class under the one-to-one matching that maximises the accuracy.

    Where several do, the one of highest macro-F1 is taken, so that no score depends on how the
    clusters happen to be numbered.

    Returns:
        Class of each cluster, shape ``(n_clusters,)``; -1 where clusters outnumber classes.

    Example:
        >>> match(torch.tensor([[0, 9, 0], [5, 0, 4]]))
        tensor([ 1,  0, -1])
    """
    # Counts are integers and these F1 sum to less than one: they break ties and nothing else.
    value = table.cpu().double() + _pair_f1(table.cpu()) / (min(table.shape) + 1)
    classes, clusters = linear_sum_assignment(value.numpy(), maximize=True)
    matched = torch.full((table.shape[1],), -1, dtype=torch.int64)
    matched[torch.as_tensor(clusters)] = torch.as_tensor(classes)
    return matched


def by_class(table: Tensor) -> tuple[list[int], Tensor]:
    """Order the clusters as their matched classes, those without one last, and share out classes.

    Returns:
        The clusters, and the share of each class in each cluster, shape of the table, ``float64``;
        its columns are in the table's order.

    Example:
        >>> by_class(torch.tensor([[0, 3, 1], [4, 0, 0]]))
        ([1, 0, 2], tensor([[0.0000, 0.7500, 0.2500],
                [1.0000, 0.0000, 0.0000]], dtype=torch.float64))
    """
    matched = match(table).tolist()
    clusters = sorted(range(len(matched)), key=lambda k: (matched[k] < 0, matched[k]))
    return clusters, table.double() / table.sum(1, keepdim=True).clamp(min=1)


def _pair_f1(table: Tensor) -> Tensor:
    """Return the F1 of each class with each cluster, 0 where both are empty."""
    size = table.sum(1, keepdim=True) + table.sum(0)
    return 2 * table.double() / size.clamp(min=1)


def _sum_of_pairs(value: Tensor, table: Tensor) -> float:
    """Sum the entries of ``value`` at the matched pairs of ``table``."""
    matched = match(table)
    clusters = torch.nonzero(matched >= 0).flatten()
    return float(value[matched[clusters], clusters].sum())


def accuracy(table: Tensor) -> float:
    r"""Return the clustering accuracy ACC: the share of samples on matched pairs.

    .. math:: \mathrm{ACC} = \max_m \frac{1}{N} \sum_i \mathbf{1}[y_i = m(s_i)]

    where m runs over the one-to-one maps from clusters to classes. Without samples it is 0.

    Example:
        >>> accuracy(torch.tensor([[0, 9, 0], [5, 0, 4]]))
        0.7777777777777778
    """
    return _sum_of_pairs(table.cpu(), table) / max(int(table.sum()), 1)


def nmi(table: Tensor) -> float:
    r"""Return the normalized mutual information, by the arithmetic mean of the entropies.

    .. math:: \mathrm{NMI} = \frac{2\, I(y; s)}{H(y) + H(s)}

    As in scikit-learn, 1 for one class in one cluster, and 0 if only one of the two is split.

    Example:
        >>> round(nmi(torch.tensor([[0, 9, 0], [5, 0, 4]])), 4)
        0.8014
    """
    joint = table.cpu().double() / table.sum().clamp(min=1).cpu()
    row, column = joint.sum(1), joint.sum(0)
    if max((row > 0).sum(), (column > 0).sum()) <= 1:
        return 1.0
    # Cell by cell: a difference of entropies would leave 1e-16 where scikit-learn says 0.
    terms = (joint * (joint / torch.outer(row, column)).log())[joint > 0]
    return float(2 * terms.sum().clamp(min=0) / (entr(row).sum() + entr(column).sum()))


def ari(table: Tensor) -> float:
    r"""Return the adjusted Rand index: agreement on pairs of samples, 0 at chance, at least -0.5.

    .. math:: \mathrm{ARI} = \frac{t - ab/T}{(a + b)/2 - ab/T}

    where of all T pairs a share the class, b the cluster, t both. As in scikit-learn, 1 for equal
    partitions even where the quotient is 0 / 0.

    Example:
        >>> round(ari(torch.tensor([[0, 9, 0], [5, 0, 4]])), 4)
        0.7335
    """
    # Python integers: products of pair counts overflow int64 at N = 70,000.
    n = int(table.sum())
    both, a, b = (int(m.square().sum()) - n for m in (table, table.sum(1), table.sum(0)))
    pairs = n * n - n
    return 1.0 if both == a == b else 2 * (pairs * both - a * b) / (pairs * (a + b) - 2 * a * b)


def macro_f1(table: Tensor) -> float:
    r"""Return the F1 after matching, averaged over the classes that occur.

    .. math:: \mathrm{F1} = \frac{1}{C} \sum_k \frac{2\, n_{k m(k)}}{n_{k\cdot} + n_{\cdot m(k)}}

    where m(k) is the cluster of class k. Samples in unmatched clusters are errors, and a class
    without a cluster has F1 0.
    """
    # A class that does not occur adds 0 to the sum, matched or not.
    return _sum_of_pairs(_pair_f1(table.cpu()), table) / max(int((table.sum(1) > 0).sum()), 1)


class ContingencyMetric(Metric):
    """Score the contingency table of all batches and processes."""

    full_state_update = False
    table: Tensor

    def __init__(self, n_classes: int, n_clusters: int, **kwargs: Any) -> None:
        """Start from an empty table."""
        super().__init__(**kwargs)
        self.add_state("table", torch.zeros(n_classes, n_clusters).long(), dist_reduce_fx="sum")

    def update(self, labels: Tensor, y: Tensor) -> None:
        """Count samples in: hard assignment and ground truth, each of shape ``(N,)``."""
        self.table = self.table + contingency(y, labels, *self.table.shape).to(self.device)

    def compute(self) -> Tensor:
        """Return the score, 0-d ``float64``."""
        return torch.tensor(self.score(self.table), dtype=torch.float64)

    @staticmethod
    @abstractmethod
    def score(table: Tensor) -> float:
        """Return the score of a contingency table."""


class ClusterAccuracy(ContingencyMetric):
    """Clustering accuracy, see :func:`accuracy`."""

    score = staticmethod(accuracy)


class NormalizedMutualInfo(ContingencyMetric):
    """Normalized mutual information, see :func:`nmi`."""

    score = staticmethod(nmi)


class AdjustedRand(ContingencyMetric):
    """Adjusted Rand index, see :func:`ari`."""

    score = staticmethod(ari)


class MacroF1(ContingencyMetric):
    """Macro-F1 after matching, see :func:`macro_f1`."""

    score = staticmethod(macro_f1)


def clustering_scores(n_classes: int, n_clusters: int, **kwargs: Any) -> MetricCollection:
    """Return "accuracy", "nmi", "ari" and "f1" as one collection on one shared table.

    Args:
        n_classes: Number of classes.
        n_clusters: Number of clusters.
        kwargs: What torchmetrics' ``Metric`` takes.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": ClusterAccuracy(n_classes, n_clusters, **kwargs),
        "nmi": NormalizedMutualInfo(n_classes, n_clusters, **kwargs),
        "ari": AdjustedRand(n_classes, n_clusters, **kwargs),
        "f1": MacroF1(n_classes, n_clusters, **kwargs),
    }
    # Named, because torchmetrics would find the group out by a first update of every metric.
    return MetricCollection(metrics, compute_groups=[list(metrics)])


def score(labels: Tensor, y: Tensor, n_clusters: int) -> dict[str, float]:
    """Score the labels of a whole data set, of which every process holds all.

    Args:
        labels: Hard assignment, shape ``(N,)``.
        y: Ground truth, shape ``(N,)``.
        n_clusters: K.

    Returns:
        "accuracy", "nmi", "ari" and "f1".
    """
    # Not summed over processes: each sample would count once for every one of them.
    scores = clustering_scores(int(y.max()) + 1, n_clusters, sync_on_compute=False)
    scores.update(labels, y)
    values = scores.compute()
    return {name: float(values[name]) for name in SCORES}


def silhouette(z: Tensor, labels: Tensor, max_samples: int = 2000, seed: int = 0) -> float | None:
    """Return the mean silhouette, in [-1, 1]: how much nearer the own cluster is than the next.

    Of embeddings ``(N, d)`` and labels ``(N,)``, on a random sample: it has a quadratic cost. Of
    2,000 of Fashion-MNIST its standard error is 0.003: two runs may differ by that for no reason.
    ``None`` if the sample lies in one cluster, or each of its members in a cluster of its own.
    """
    sample = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:max_samples]
    s = labels.detach().cpu()[sample]
    if not 2 <= len(set(s.tolist())) < len(s):
        return None
    return float(silhouette_score(z.detach().cpu()[sample].numpy(), s.numpy()))


def cluster_sizes(labels: Tensor, n_clusters: int) -> Tensor:
    """Return the number of samples in each cluster, shape ``(n_clusters,)``, ``int64``."""
    return torch.bincount(labels, minlength=n_clusters)


def assignment_entropy(q: Tensor) -> float:
    """Return the mean entropy of soft assignments ``(N, K)`` in nats, from 0 to log K."""
    return float(entr(q).sum(1).mean())


def mean_confidence(q: Tensor) -> float:
    """Return the mean of the largest soft assignment of each row ``(N, K)``, from 1/K to 1."""
    return float(q.max(1).values.mean())
