"""What is wrong with a clustering, told without labels: each finding has a name and an advice."""

import re

import torch
from torch import Tensor

# So much in one cluster is the method's doing: the largest class of any benchmark set is 45 %.
COLLAPSE_SHARE = 0.9
DOMINANT_SHARE = 0.5  # and at least three times N / K
TINY_SHARE = 0.01  # of N / K, the size of each cluster if all were equal
LOST_SPREAD = 0.01  # of the embeddings' length
FLAT = 1.2  # effective dimensions
UNSETTLED_CHANGE = 0.02  # of the labels, between the last two refreshes
UNSTABLE_AGREEMENT = 0.6  # adjusted Rand index of two halves' clusterings
SUSPECT = "the clustering term"  # whose weight is gamma or alpha: each method has its own letter


def size_trouble(sizes: Tensor, suspect: str = SUSPECT) -> list[str]:
    """Name clusters that are empty, nearly so, or hold most samples.

    Of a collapse nothing else is told: what is empty then, is so because of it.

    Args:
        sizes: Samples of each cluster, shape ``(K,)``.
        suspect: The term to weigh less where they collapse.

    Example:
        >>> size_trouble(torch.tensor([40, 0, 60]))
        ['Empty: cluster 1. Try fewer n_clusters or longer training.']
    """
    n, k = int(sizes.sum()), len(sizes)
    collapsed = (sizes > COLLAPSE_SHARE * n) & (k > 1)
    smaller = (
        f"Try a smaller weight of {suspect}, a smaller learning rate or a larger update_interval."
    )
    uneven = [
        ("Empty", sizes == 0, "Try fewer n_clusters or longer training."),
        (
            "Nearly empty",
            (sizes > 0) & (sizes * k < TINY_SHARE * n),
            "If these are no outliers, try fewer n_clusters.",
        ),
        (
            "Dominating",
            (sizes > DOMINANT_SHARE * n) & (sizes * k >= 3 * n),
            f"If no kind of sample is that frequent: {smaller[0].lower()}{smaller[1:]}",
        ),
    ]
    messages = []
    for what, found, advice in [("Collapsed", collapsed, smaller)] if collapsed.any() else uneven:
        clusters = [
            f"{j} ({sizes[j]:,} of {n:,} samples)" if sizes[j] else str(j)
            for j in torch.where(found)[0].tolist()
        ]
        messages += [f"{what}: cluster {', '.join(clusters)}. {advice}"] if clusters else []
    return messages


def spread_trouble(z: Tensor, suspect: str = SUSPECT) -> list[str]:
    """Name an embedding whose samples lie in nearly one place, or on a line.

    Args:
        z: Embeddings that were trained, shape ``(N, d)``; of many, every so many-th is looked at.
        suspect: The term to weigh less.

    Example:
        >>> spread_trouble(torch.tensor([[1.0, 1.0], [1.0, 1.001], [1.001, 1.0]]))[0][:12]
        'Spread lost:'
    """
    z = z[:: max(1, len(z) // 2000)].cpu().double()  # on no device that has no float64
    length = z.square().sum(1).mean()
    z = z - z.mean(0)
    covariance = (z.T @ z if len(z) > z.shape[1] else z @ z.T) / len(z)  # of equal eigenvalues
    variance = covariance.trace()
    advice = f"Try longer pretraining, a smaller weight of {suspect}, or reconstruction beside it."
    if variance <= LOST_SPREAD**2 * length:
        share = float((variance / length.clamp(min=1e-300)).sqrt())
        return [f"Spread lost: embeddings differ by {share:.2%} of their length. {advice}"]
    # Of d equal variances d, of a single one 1.
    dimensions = float(variance.square() / covariance.square().sum())
    if z.shape[1] > 2 and dimensions < FLAT:
        text = f"Flat: the embedding uses {dimensions:.1f} of its {z.shape[1]} dimensions."
        return [f"{text} {advice}"]
    return []


def kind(line: str) -> str:
    """Return what a finding is about, without its counts, to tell whether it is a new one.

    Example:
        >>> kind("Dominating: cluster 4 (5,077 of 10,000 samples). If no kind ...")
        'Dominating: cluster 4'
        >>> kind("Flat: the embedding uses 1.1 of its 10 dimensions. Try ...")
        'Flat'
    """
    name, _, rest = line.partition(":")
    if not rest.startswith(" cluster"):
        return name
    return re.sub(r" \([^)]*\)", "", line).split(".")[0]


def change_trouble(change: float | None, stop_reason: str) -> list[str]:
    """Name a phase that ended at its limit while labels still changed.

    Args:
        change: Share of labels that the last refresh changed, in [0, 1], if there were any.
        stop_reason: Why the phase ended.

    Example:
        >>> change_trouble(0.051, "max_steps")[0][:35]
        'Unsettled: 5.1% of the labels chang'
    """
    if change is None or stop_reason == "tolerance" or change <= UNSETTLED_CHANGE:
        return []
    advice = "Try more steps, or a smaller learning rate."
    return [f"Unsettled: {change:.1%} of the labels changed at the last refresh. {advice}"]


def classifier_trouble(settled: bool | None, epochs: int) -> list[str]:
    """Name a classifier that cannot make up its mind about the labels it was taught.

    Seen on digits: a class that clusters split, or two that they joined, keeps it from settling.

    Args:
        settled: Whether its labels settled; ``None`` if there is no classifier, or nobody asked.
        epochs: For how many epochs it was trained.

    Example:
        >>> classifier_trouble(False, 500)[0][:65]
        'Undecided: after 500 epochs the classifier still changes labels. '
    """
    if settled is not False:
        return []
    after = f"{epochs} epoch{'s' * (epochs != 1)}"
    text = f"Undecided: after {after} the classifier still changes labels."
    advice = "compare other seeds, or other starts: consistent_starts=100 of cluster_init."
    return [f"{text} Clusters may split or join classes: {advice}"]


def structure_trouble(agreement: float | None) -> list[str]:
    """Name data in which halves of the samples suggest different clusters.

    Args:
        agreement: Mean adjusted Rand index between clusterings of two halves, before finetuning
            where there is one, see ``centers.agreement``; ``None`` where it was not measured.

    Example:
        >>> structure_trouble(0.31)[0][:70]
        'Unstable: clusters of two halves of the samples agree by 0.31 only (1 '
    """
    if agreement is None or agreement >= UNSTABLE_AGREEMENT:
        return []
    text = f"Unstable: clusters of two halves of the samples agree by {agreement:.2f} only"
    advice = "Compare other n_clusters with scripts/scan.py; photographs need features rather"
    return [f"{text} (1 is the same). {advice} than pixels."]
