"""Scores against scikit-learn, brute force and hand-made tables."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from torch import Tensor

from clusterlab import metrics

SHAPES = [(4, 4), (4, 2), (2, 4), (5, 3), (3, 6), (1, 3), (3, 1), (1, 1)]
SCORES = (metrics.accuracy, metrics.nmi, metrics.ari, metrics.macro_f1)


def draw(seed: int, n_classes: int, n_clusters: int, n: int = 60) -> tuple[Tensor, Tensor]:
    """Draw classes, and clusters that know them in part."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(n_classes, (n,), generator=generator)
    noise = torch.randint(n_clusters, (n,), generator=generator)
    return y, torch.where(torch.rand(n, generator=generator) < 0.5, y % n_clusters, noise)


def tables(n_classes: int, n_clusters: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    pairs = [draw(seed, n_classes, n_clusters, n) for seed in range(10) for n in (5, 60)]
    return [(y, s, metrics.contingency(y, s, n_classes, n_clusters)) for y, s in pairs]


def brute_force_accuracy(y: Tensor, labels: Tensor, n_classes: int, n_clusters: int) -> float:
    """Try every one-to-one map of clusters to classes; classes >= n_classes mean "none"."""
    maps = permutations(range(max(n_classes, n_clusters)), n_clusters)
    return max(float((torch.tensor(m)[labels] == y).double().mean()) for m in maps)


def test_contingency_counts_pairs():
    y, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([1, 1, 0, 1, 0, 1])
    table = metrics.contingency(y, labels, n_classes=4, n_clusters=2)
    assert table.dtype == torch.int64
    assert table.tolist() == [[0, 2], [1, 0], [1, 2], [0, 0]]


def test_contingency_takes_small_integers_without_overflow():
    y, labels = torch.full((3,), 19, dtype=torch.uint8), torch.full((3,), 19, dtype=torch.uint8)
    assert metrics.contingency(y, labels, 20, 20)[19, 19] == 3


@pytest.mark.parametrize(
    ("y", "labels", "message"),
    [
        ([0, 2], [0, 0], r"Expected y in 0\.\.1, got 2"),
        ([0, -1], [0, 0], r"Expected y in 0\.\.1, got -1"),
        ([0, 0], [0, 3], r"Expected labels in 0\.\.2, got 3"),
        ([0, 0], [1], r"Expected as many y as labels, got 2 and 1"),
    ],
)
def test_contingency_rejects_what_it_would_miscount(y, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.contingency(torch.tensor(y), torch.tensor(labels), 2, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy_is_the_best_over_all_one_to_one_maps(shape):
    for y, labels, table in tables(*shape):
        expected = brute_force_accuracy(y, labels, *shape)
        assert metrics.accuracy(table) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_nmi_and_ari_equal_scikit_learn(shape):
    for y, labels, table in tables(*shape):
        nmi = normalized_mutual_info_score(y.numpy(), labels.numpy())
        assert metrics.nmi(table) == pytest.approx(nmi, abs=1e-12)
        ari = adjusted_rand_score(y.numpy(), labels.numpy())
        assert metrics.ari(table) == pytest.approx(ari, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_macro_f1_equals_scikit_learn_after_the_matching(shape):
    for y, labels, table in tables(*shape):
        mapped = metrics.match(table)[labels]
        expected = f1_score(
            y.numpy(),
            mapped.numpy(),
            labels=np.unique(y.numpy()),  # the classes that occur
            average="macro",
            zero_division=0,
        )
        assert metrics.macro_f1(table) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_match_is_one_to_one(shape):
    n_classes, n_clusters = shape
    for _, _, table in tables(*shape):
        matched = metrics.match(table)
        partners = matched[matched >= 0].tolist()
        assert matched.shape == (n_clusters,)
        assert len(set(partners)) == len(partners) == min(n_classes, n_clusters)


def test_match_leaves_the_surplus_cluster_without_a_class():
    table = torch.tensor([[0, 7, 2], [8, 0, 3]])
    assert metrics.match(table).tolist() == [1, 0, -1]
    assert metrics.accuracy(table) == 15 / 20
    assert metrics.macro_f1(table) == pytest.approx((14 / 16 + 16 / 19) / 2)


def test_equal_counts_are_matched_where_the_rest_is_less() -> None:
    """The first two clusters hold four of class 0 each; the second has others in it too."""
    assert metrics.match(torch.tensor([[4, 4, 0], [0, 3, 9]])).tolist() == [0, -1, 1]


def test_a_class_without_samples_has_no_shares() -> None:
    clusters, shares = metrics.by_class(torch.tensor([[0, 3], [0, 0]]))
    assert clusters == [1, 0]
    assert shares.tolist() == [[0, 1], [0, 0]]


def test_a_class_without_a_cluster_has_f1_zero():
    table = torch.tensor([[10, 0], [0, 10], [0, 5]])
    assert metrics.macro_f1(table) == pytest.approx((1 + 20 / 25 + 0) / 3)


def test_a_class_that_does_not_occur_is_not_averaged():
    table = torch.tensor([[10, 0, 0], [0, 0, 0], [0, 0, 10]])
    assert [score(table) for score in SCORES] == [1, 1, 1, 1]


@pytest.mark.parametrize("score", SCORES)
def test_scores_do_not_depend_on_the_numbering(score):
    # Five samples in a table of twelve cells: many matchings tie.
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        table = metrics.contingency(*draw(seed, 3, 4, n=5), 3, 4)
        rows, columns = (torch.randperm(size, generator=generator) for size in table.shape)
        assert score(table[rows][:, columns]) == pytest.approx(score(table), abs=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_a_renumbered_truth_scores_one(score):
    y = torch.arange(5).repeat(7)
    labels = torch.tensor([3, 1, 4, 0, 2])[y]
    assert score(metrics.contingency(y, labels, 5, 5)) == pytest.approx(1, abs=1e-12)


def test_one_cluster_for_everything():
    table = torch.tensor([[6, 0], [2, 0]])
    assert metrics.accuracy(table) == 6 / 8
    assert metrics.nmi(table) == 0
    assert metrics.ari(table) == 0
    assert metrics.macro_f1(table) == pytest.approx((12 / 14) / 2)


def test_independent_partitions_have_no_information():
    table = torch.full((3, 3), 7)
    assert metrics.nmi(table) == pytest.approx(0, abs=1e-15)
    assert metrics.ari(table) < 0


def test_ari_survives_more_pairs_than_int64_holds():
    # 3 million samples: the product of two pair counts is about 1e25.
    table = torch.tensor([[1_000_000, 0, 0], [0, 1_000_000, 0], [0, 100_000, 900_000]])
    same = sum(m * m for m in (1_000_000, 1_000_000, 100_000, 900_000)) - 3_000_000
    a, b = 3 * 10**12 - 3_000_000, 10**12 + 1_100_000**2 + 900_000**2 - 3_000_000
    chance = a * b / (9 * 10**12 - 3_000_000)
    assert metrics.ari(table) == pytest.approx((same - chance) / ((a + b) / 2 - chance), rel=1e-12)


def test_no_samples_at_all():
    table = torch.zeros(3, 4, dtype=torch.int64)
    assert metrics.accuracy(table) == metrics.macro_f1(table) == 0
    assert metrics.nmi(table) == normalized_mutual_info_score([], [])
    assert metrics.ari(table) == adjusted_rand_score([], [])


def test_collection_has_the_four_keys_and_the_scores_of_the_table():
    y, labels = draw(3, 4, 5)
    scores = metrics.clustering_scores(4, 5)
    scores.update(labels, y)
    table = metrics.contingency(y, labels, 4, 5)
    expected = dict(zip(("accuracy", "nmi", "ari", "f1"), [s(table) for s in SCORES], strict=True))
    assert {name: value.item() for name, value in scores.compute().items()} == expected


def test_batches_add_up_to_one_update():
    y, labels = draw(0, 4, 4)
    whole, batched = metrics.clustering_scores(4, 4), metrics.clustering_scores(4, 4)
    whole.update(labels, y)
    for index in torch.arange(len(y)).split(7):
        batched.update(labels[index], y[index])
    assert whole.compute() == batched.compute()


def test_collection_counts_every_batch_once(monkeypatch):
    calls = []
    count = metrics.contingency
    monkeypatch.setattr(metrics, "contingency", lambda *a: calls.append(1) or count(*a))
    scores = metrics.clustering_scores(3, 3)
    for _ in range(2):
        scores.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    assert len(calls) == 2
    states = [metric.table for metric in scores.values(copy_state=False)]
    assert all(state is states[0] for state in states)
    assert states[0].sum() == 6


def test_reset_forgets():
    scores = metrics.clustering_scores(2, 2)
    scores.update(torch.tensor([0, 0]), torch.tensor([0, 1]))
    scores.compute()
    scores.reset()
    scores.update(torch.tensor([1, 0]), torch.tensor([0, 1]))
    assert scores.compute()["accuracy"] == 1


def test_two_processes_sum_their_tables():
    y, labels = draw(1, 4, 4)
    halves = [metrics.ClusterAccuracy(4, 4) for _ in range(2)]
    halves[0].update(labels[:25], y[:25])
    halves[1].update(labels[25:], y[25:])
    # What torchmetrics does after gathering: stack the state of every rank and reduce it.
    gathered = torch.stack([half.table for half in halves])
    merged = halves[0]._reductions["table"](gathered)
    assert torch.equal(merged, metrics.contingency(y, labels, 4, 4))


def test_silhouette_equals_scikit_learn():
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    labels = (z[:, 0] > 0).long()
    expected = silhouette_score(z.numpy(), labels.numpy())
    assert metrics.silhouette(z, labels) == pytest.approx(expected, abs=1e-6)


def test_silhouette_sample_is_seeded():
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    labels = (z[:, 0] > 0).long()
    first = metrics.silhouette(z, labels, max_samples=50, seed=1)
    assert first == metrics.silhouette(z, labels, max_samples=50, seed=1)
    assert first != metrics.silhouette(z, labels, max_samples=50, seed=2)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_silhouette_is_none_where_undefined(labels):
    assert metrics.silhouette(torch.randn(3, 2), torch.tensor(labels)) is None


def test_cluster_sizes_include_empty_clusters():
    assert metrics.cluster_sizes(torch.tensor([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]


def test_entropy_and_confidence_of_the_extremes():
    assert metrics.assignment_entropy(torch.eye(5)) == 0
    assert metrics.mean_confidence(torch.eye(5)) == 1
    uniform = torch.full((3, 5), 0.2)
    assert metrics.assignment_entropy(uniform) == pytest.approx(math.log(5))
    assert metrics.mean_confidence(uniform) == pytest.approx(0.2)
