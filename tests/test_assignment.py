"""q and p against loops over the papers' equations, a case by hand, and their invariants."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from clusterlab.assignment import label_change, soft_assignment, target_distribution
from reference import dec_numpy

SIZES = [(7, 3, 2), (1, 2, 5), (20, 10, 10), (4, 6, 1)]  # N, K, d


def draw(n: int, k: int, d: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + 10 * k + 100 * d)
    z = scale * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z, scale * torch.randn(k, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_equal_to_reference(size: tuple[int, int, int], scale: float):
    z, centers = draw(*size, scale)
    q = soft_assignment(z, centers)
    p = target_distribution(q)
    expected = dec_numpy.soft_assignment(z.numpy(), centers.numpy())
    np.testing.assert_allclose(q.numpy(), expected, rtol=0, atol=1e-12)
    expected = dec_numpy.target_distribution(expected)
    np.testing.assert_allclose(p.numpy(), expected, rtol=0, atol=1e-12)


def test_two_by_two_by_hand():
    # Squared distances 0, 1 and 4, 1; kernels 1, 1/2 and 1/5, 1/2; f = 20/21, 22/21.
    z, centers = torch.tensor([[0.0, 0], [0, 2]]), torch.tensor([[0.0, 0], [0, 1]])
    q = soft_assignment(z, centers)
    torch.testing.assert_close(q, torch.tensor([[2 / 3, 1 / 3], [2 / 7, 5 / 7]]))
    p = target_distribution(q)
    torch.testing.assert_close(p, torch.tensor([[22 / 27, 5 / 27], [22 / 147, 125 / 147]]))


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_distributions(size: tuple[int, int, int]):
    q = soft_assignment(*draw(*size))
    for rows in (q, target_distribution(q)):
        assert (rows > 0).all()
        torch.testing.assert_close(rows.sum(1), torch.ones(size[0], dtype=torch.float64))


def test_nearest_center_has_the_largest_share():
    z, centers = draw(50, 4, 3)
    assert torch.equal(soft_assignment(z, centers).argmax(1), torch.cdist(z, centers).argmin(1))


def test_permuted_centers_permute_columns():
    z, centers = draw(30, 5, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    q, permuted = soft_assignment(z, centers), soft_assignment(z, centers[order])
    torch.testing.assert_close(permuted, q[:, order], rtol=1e-12, atol=0)
    p = target_distribution(q)
    torch.testing.assert_close(target_distribution(permuted), p[:, order], rtol=1e-12, atol=0)


def test_moving_everything_changes_nothing():
    z, centers = draw(30, 5, 4)
    moved = soft_assignment(z + 7, centers + 7)
    torch.testing.assert_close(moved, soft_assignment(z, centers), rtol=1e-10, atol=0)


def entropy(rows: Tensor) -> Tensor:
    return -(rows * rows.log()).sum(1)


def test_target_sharpens_clusters_of_equal_size():
    q = soft_assignment(*draw(12, 4, 3))
    q = torch.cat([q.roll(shift, dims=1) for shift in range(4)])  # every cluster gets the same f
    p = target_distribution(q)
    assert torch.equal(p.argmax(1), q.argmax(1))
    assert (p.max(1).values > q.max(1).values).all()
    assert (entropy(p) < entropy(q)).all()


def test_target_favours_the_smaller_cluster():
    q = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]])
    assert target_distribution(q)[0, 1] > 0.5


def test_target_needs_the_whole_data_set():
    q = soft_assignment(*draw(40, 3, 2))
    assert not torch.allclose(target_distribution(q)[:20], target_distribution(q[:20]), atol=1e-3)


def test_gradients():
    z, centers = draw(5, 3, 2)
    assert gradcheck(soft_assignment, (z.requires_grad_(), centers.requires_grad_()))
    q = soft_assignment(z, centers).detach().requires_grad_()
    assert gradcheck(target_distribution, (q,))


def test_gradient_is_finite_on_a_center():
    z = torch.zeros(1, 2, requires_grad=True)
    centers = torch.tensor([[0.0, 0], [1, 1]], requires_grad=True)
    soft_assignment(z, centers)[0, 0].backward()
    assert z.grad is not None
    assert centers.grad is not None
    assert z.grad.isfinite().all()
    assert torch.equal(centers.grad[0], torch.zeros(2))  # the top of the kernel


@pytest.mark.parametrize("distance", [1e3, 1e8, 1e15])
def test_far_embeddings_stay_finite(distance: float):
    z, centers = torch.randn(8, 3) + distance, torch.randn(4, 3)
    q = soft_assignment(z, centers)
    for rows in (q, target_distribution(q)):
        assert rows.isfinite().all()
        torch.testing.assert_close(rows.sum(1), torch.ones(8))


def test_small_distances_far_from_the_origin_survive_float32():
    # |z|^2 - 2 z.mu + |mu|^2 would be wrong by 1e6 times the precision of float32, that is 0.1.
    generator = torch.Generator().manual_seed(0)
    z = 1000 + 0.1 * torch.randn(20, 3, generator=generator)
    centers = 1000 + 0.1 * torch.randn(4, 3, generator=generator)
    expected = dec_numpy.soft_assignment(z.double().numpy(), centers.double().numpy())
    np.testing.assert_allclose(soft_assignment(z, centers).numpy(), expected, atol=1e-6)


def test_identical_embeddings_have_themselves_as_target():
    # q_ij = q_j gives f_j = N q_j, and q_j^2 / (N q_j) is q_j again.
    q = soft_assignment(torch.ones(6, 3), torch.randn(4, 3))
    assert torch.equal(q, q[:1].expand_as(q))
    torch.testing.assert_close(target_distribution(q), q)


def test_identical_centers_share_equally():
    q = soft_assignment(torch.randn(6, 3), torch.ones(4, 3))
    torch.testing.assert_close(q, torch.full((6, 4), 0.25))
    torch.testing.assert_close(target_distribution(q), q)


@pytest.mark.parametrize(
    ("previous", "labels", "change"),
    [
        ([0, 1, 2, 2], [0, 1, 2, 2], 0.0),
        ([0, 1, 2, 2], [1, 0, 0, 0], 1.0),
        ([0, 1, 2], [0, 2, 2], 1 / 3),
        ([5], [5], 0.0),
    ],
)
def test_label_change_is_the_share_that_differs(
    previous: list[int], labels: list[int], change: float
):
    assert label_change(torch.tensor(previous), torch.tensor(labels)) == pytest.approx(change)


def test_label_change_of_one_in_many():
    # float32 could not tell 1 / 70000 times N from its neighbours.
    previous = torch.zeros(70_000, dtype=torch.int64)
    labels = previous.clone()
    labels[3] = 1
    assert label_change(previous, labels) == pytest.approx(1 / 70_000, rel=1e-12)
