"""What is told of a clustering that went wrong, and that nothing is told of a sound one."""

import pytest
import torch

from clusterlab.trouble import (
    change_trouble,
    classifier_trouble,
    kind,
    size_trouble,
    spread_trouble,
    structure_trouble,
)


def test_no_trouble_with_sizes_as_uneven_as_real_data():
    assert size_trouble(torch.tensor([1553, 1269, 929, 824, 708])) == []
    assert size_trouble(torch.tensor([100])) == []  # one cluster was asked for


def test_trouble_names_empty_clusters():
    (message,) = size_trouble(torch.tensor([500, 0, 500, 0]))
    assert message.startswith("Empty: cluster 1, 3. Try fewer")
    assert "n_clusters" in message


def test_trouble_names_nearly_empty_clusters():
    # 1 % of 1,000 / 3 is 3.3 samples.
    (message,) = size_trouble(torch.tensor([3, 497, 500]))
    assert message.startswith("Nearly empty: cluster 0 (3 of 1,000 samples).")
    assert size_trouble(torch.tensor([4, 496, 500])) == []


def test_trouble_names_a_collapse_above_nine_tenths_only():
    assert size_trouble(torch.tensor([90, 10])) == []
    (message,) = size_trouble(torch.tensor([9, 91]))
    assert message.startswith("Collapsed: cluster 1 (91 of 100 samples).")
    assert "weight of the clustering term" in message


def test_a_collapse_is_all_that_is_told() -> None:
    (message,) = size_trouble(torch.tensor([996, 4, 0]))
    assert message.startswith("Collapsed: cluster 0 (996 of 1,000 samples).")
    assert size_trouble(torch.tensor([995, 5]))[0].startswith("Collapsed: cluster 0")
    (message,) = size_trouble(torch.tensor([4, 996]))
    assert message.startswith("Collapsed: cluster 1 (996 of 1,000 samples).")


def test_trouble_names_a_cluster_with_more_than_half_of_many():
    (message,) = size_trouble(torch.tensor([60, 10, 10, 10, 10]))
    assert message.startswith("Dominating: cluster 0 (60 of 100 samples). If no kind of sample")
    assert size_trouble(torch.tensor([50, 10, 10, 10, 20])) == []
    assert size_trouble(torch.tensor([70, 10, 10, 10])) == []  # less than three times its share
    (message,) = size_trouble(torch.tensor([91, 2, 2, 2, 3]))
    assert message.startswith("Collapsed")


def blobs(d: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.randn(4, 1, d, generator=generator)
    return (centers + torch.randn(4, 100, d, generator=generator)).flatten(0, 1)


def test_a_spread_embedding_has_no_trouble():
    assert spread_trouble(blobs()) == []
    assert spread_trouble(blobs(2)) == []
    assert spread_trouble(blobs(1)) == []  # no more was asked for
    assert spread_trouble(torch.nn.functional.normalize(blobs())) == []
    assert spread_trouble(1e-4 * blobs()) == []  # a share of the length, whatever the unit


def test_an_embedding_in_one_place_is_told():
    (message,) = spread_trouble(1 + 0.001 * torch.randn(300, 4))
    assert message.startswith("Spread lost: embeddings differ by 0.10% of their length.")
    assert spread_trouble(1e4 * (1 + 0.001 * torch.randn(300, 4)))
    (message,) = spread_trouble(torch.ones(10, 4))
    assert message.startswith("Spread lost: embeddings differ by 0.00%")
    assert spread_trouble(torch.zeros(10, 4))[0].startswith("Spread lost")


def test_an_embedding_on_a_line_is_told():
    z = torch.linspace(-1, 1, 200)[:, None] * torch.tensor([[1.0, 2.0, -1.0]])
    (message,) = spread_trouble(z + 0.01 * torch.randn(200, 3))
    assert message.startswith("Flat: the embedding uses 1.0 of its 3 dimensions.")
    # Two equal variances are two dimensions: participation ratio (1 + 1)^2 / (1 + 1).
    plane = torch.cartesian_prod(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 20))
    assert spread_trouble(torch.nn.functional.pad(plane, (0, 1))) == []


@pytest.mark.parametrize(
    ("change", "reason", "told"),
    [
        (0.03, "max_steps", True),
        (0.03, "max_epochs", True),
        (0.03, "tolerance", False),  # so little was asked for
        (0.02, "max_steps", False),
        (None, "untrained", False),
    ],
)
def test_labels_that_still_change_are_told(change: float | None, reason: str, told: bool):
    assert bool(change_trouble(change, reason)) == told


def test_a_classifier_that_does_not_settle_is_told():
    assert classifier_trouble(None, 3) == classifier_trouble(True, 3) == []
    assert classifier_trouble(False, 3)[0].startswith("Undecided: after 3 epochs")


def test_unstable_clusters_are_told():
    assert structure_trouble(None) == structure_trouble(0.6) == []
    assert "agree by 0.59 only" in structure_trouble(0.59)[0]


def test_many_dimensions_are_measured_by_the_samples():
    """Of 5 samples in 3,000 dimensions; the same numbers as from the covariance."""
    z = torch.linspace(-1, 1, 5)[:, None] * torch.ones(1, 3000) + 0.001 * torch.randn(5, 3000)
    (message,) = spread_trouble(z)
    assert message.startswith("Flat: the embedding uses 1.0 of its 3000 dimensions.")
    assert spread_trouble(torch.randn(50, 3000)) == []


@pytest.mark.parametrize(
    ("line", "same", "new"),
    [
        (
            "Collapsed: cluster 3 (199 of 203 samples). Try",
            "Collapsed: cluster 3 (1,200 of 1,203 samples). Try",
            "Collapsed: cluster 1 (199 of 203 samples). Try",
        ),
        ("Empty: cluster 0. Try", "Empty: cluster 0. Try", "Empty: cluster 0, 1. Try"),
        (
            "Flat: the embedding uses 1.1 of",
            "Flat: the embedding uses 1.0 of",
            "Spread lost: embed",
        ),
    ],
)
def test_a_finding_is_new_when_its_clusters_are(line: str, same: str, new: str):
    assert kind(line) == kind(same) != kind(new)
