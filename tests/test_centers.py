"""k-means: what it finds, and that the seed alone decides."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clusterlab.centers import consistent_kmeans, kmeans
from clusterlab.errors import UserError


def blobs(k: int = 4, d: int = 3, size: int = 25) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    middle = 10 * torch.eye(k, d + 1)[:, :d]  # the last one at the origin
    z = middle.repeat_interleave(size, 0) + torch.randn(k * size, d, generator=generator) / 10
    return z, torch.arange(k).repeat_interleave(size)


def noise(n: int = 300) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1))


def inertia(z: Tensor, centers: Tensor) -> float:
    return float(torch.cdist(z, centers).min(1).values.square().sum())


def test_finds_obvious_clusters():
    z, truth = blobs()
    centers, labels = kmeans(z, 4, seed=3)
    for k in range(4):
        assert labels[truth == k].unique().numel() == 1
    assert labels.unique().numel() == 4
    for k in range(4):
        torch.testing.assert_close(centers[k], z[labels == k].mean(0))


def test_labels_are_of_the_nearest_center():
    z = noise()
    centers, labels = kmeans(z, 7, seed=0)
    assert torch.equal(torch.cdist(z, centers).argmin(1), labels)


def test_shapes_types_and_no_gradient():
    z = noise().double().requires_grad_()
    centers, labels = kmeans(z, 6, seed=0)
    assert centers.shape == (6, 5)
    assert centers.dtype == torch.float64
    assert labels.shape == (300,)
    assert labels.dtype == torch.int64
    assert not centers.requires_grad


def test_the_seed_decides_and_nothing_else():
    z = noise()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the state that scikit-learn would fall back on
    first, labels = kmeans(z, 8, seed=5, n_init=1)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    again, labels_again = kmeans(z, 8, seed=5, n_init=1)
    assert torch.equal(first, again)
    assert torch.equal(labels, labels_again)
    assert any(not torch.equal(first, kmeans(z, 8, seed, n_init=1)[0]) for seed in range(5))


def test_leaves_global_randomness_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kmeans(noise(), 4, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_keeps_the_best_of_its_starts():
    z = noise()
    one = [inertia(z, kmeans(z, 8, seed, n_init=1)[0]) for seed in range(5)]
    many = [inertia(z, kmeans(z, 8, seed)[0]) for seed in range(5)]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(one, many, strict=True))
    assert max(many) < np.mean(one)


@pytest.mark.parametrize("k", [2, 300])
def test_extreme_numbers_of_clusters(k: int):
    z = noise()
    centers, labels = kmeans(z, k, seed=0, n_init=2)
    assert labels.unique().numel() == k
    if k == 300:  # every sample a cluster of its own
        torch.testing.assert_close(centers[labels], z)


def test_labels_that_a_second_look_confirms_beat_the_least_squares():
    """A long class and two small ones, 4 apart; another look moves samples along the long one."""
    generator = torch.Generator().manual_seed(0)
    n, small = 600, 200
    classes = torch.tensor([0] * n + [1] * small + [2] * small)
    middle = torch.tensor([[0.0, 0.0], [0.0, 8.0], [4.0, 8.0]])[classes]
    narrow = middle + 0.2 * torch.randn(len(classes), 2, generator=generator)
    along = torch.zeros(2, len(classes), 2)
    along[:, :n, 0] = 8 * torch.rand(2, n, generator=generator) - 4
    z, view = narrow + along[0], narrow + along[1]

    def cross(centers: Tensor) -> list[list[int]]:
        labels = torch.cdist(z, centers).argmin(1)
        return [labels[classes == k].unique().tolist() for k in range(3)]

    assert len(cross(kmeans(z, 3, seed=0)[0])[0]) > 1  # least squares: the long class is split
    found = consistent_kmeans(z, view, 3, seed=0, n_starts=30)
    assert sorted(cross(found)) == [[0], [1], [2]]
    assert torch.equal(found, consistent_kmeans(z, view, 3, seed=0, n_starts=30))
    # The next best is of others: it ends where the least squares are.
    second = consistent_kmeans(z, view, 3, seed=0, n_starts=30, n_skipped=1)
    torch.testing.assert_close(
        second.sort(0).values, kmeans(z, 3, seed=0)[0].sort(0).values, rtol=0.01, atol=0.1
    )
    with pytest.raises(UserError, match=r"30 ends of k-means or more, got \d that differ, from"):
        consistent_kmeans(z, view, 3, seed=0, n_starts=30, n_skipped=29)
