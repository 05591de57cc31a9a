"""The clustering loss against its equation, torch's own, and the closed-form gradients of IDCEC."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import kl_div

from clusterlab.assignment import soft_assignment, target_distribution
from clusterlab.losses import kl_divergence, squared_distances
from clusterlab.models.cdc import correlation_loss
from clusterlab.models.icae import mmd, sobel_loss
from reference import dec_numpy

SIZES = [(6, 3), (1, 2), (20, 10)]


def distributions(b: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(b * k)
    logits = 2 * torch.randn(2, b, k, generator=generator, dtype=torch.float64)
    q, p = logits.softmax(2)
    return q, p


@pytest.mark.parametrize("size", SIZES)
def test_kl_is_the_mean_of_the_papers_sum(size: tuple[int, int]):
    q, p = distributions(*size)
    expected = dec_numpy.kl_divergence(p.numpy(), q.numpy()) / size[0]
    assert kl_divergence(q, p).item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(kl_divergence(q, p), kl_div(q.log(), p, reduction="batchmean"))


def test_kl_by_hand():
    q = torch.tensor([[2 / 3, 1 / 3], [2 / 7, 5 / 7]])
    p = torch.tensor([[22 / 27, 5 / 27], [22 / 147, 125 / 147]])
    first = 22 / 27 * math.log(11 / 9) + 5 / 27 * math.log(5 / 9)
    second = 22 / 147 * math.log(11 / 21) + 125 / 147 * math.log(25 / 21)
    assert kl_divergence(q, p).item() == pytest.approx((first + second) / 2, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_kl_is_zero_for_equal_and_positive_for_different(size: tuple[int, int]):
    q, p = distributions(*size)
    assert kl_divergence(p, p).item() == pytest.approx(0, abs=1e-15)
    assert kl_divergence(q, p) > 1e-3
    assert kl_divergence(p, q) > 1e-3


def test_kl_is_not_symmetric():
    q, p = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert abs(kl_divergence(q, p) - kl_divergence(p, q)) > 0.1


def test_zeros_in_the_target_count_nothing():
    q = torch.tensor([[0.25, 0.75], [0.4, 0.6]], requires_grad=True)
    loss = kl_divergence(q, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.4)) / 2)
    torch.testing.assert_close(q.grad, -0.5 * torch.tensor([[0, 1 / 0.75], [1 / 0.4, 0]]))


def test_no_gradient_into_the_target():
    q, p = (t.requires_grad_() for t in distributions(4, 3))
    kl_divergence(q, p).backward()
    assert p.grad is None
    # Also where the target was made from the same q: the gradient is that of a constant.
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(3, 2, dtype=torch.float64)
    q = soft_assignment(z, centers)
    (attached,) = torch.autograd.grad(kl_divergence(q, target_distribution(q)), z)
    q = soft_assignment(z, centers)
    (constant,) = torch.autograd.grad(kl_divergence(q, target_distribution(q).detach()), z)
    assert torch.equal(attached, constant)


def test_gradcheck():
    q, p = distributions(4, 3)
    assert gradcheck(lambda q: kl_divergence(q, p), (q.requires_grad_(),))


@pytest.mark.parametrize("size", [(5, 3, 2), (1, 2, 4), (16, 10, 10)])
def test_gradients_are_those_of_idcec(size: tuple[int, int, int]):
    b, k, d = size
    generator = torch.Generator().manual_seed(d)
    z = torch.randn(b, d, generator=generator, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(k, d, generator=generator, dtype=torch.float64, requires_grad=True)
    _, p = distributions(b, k)
    (b * kl_divergence(soft_assignment(z, centers), p)).backward()  # eq. (9), (10): of the sum
    inputs = (z.detach().numpy(), centers.detach().numpy(), p.numpy())
    assert z.grad is not None
    assert centers.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), dec_numpy.gradient_z(*inputs), atol=1e-12)
    np.testing.assert_allclose(
        centers.grad.numpy(), dec_numpy.gradient_centers(*inputs), atol=1e-12
    )


def test_does_not_depend_on_the_batch_size():
    q, p = distributions(6, 3)
    twice = kl_divergence(torch.cat([q, q]), torch.cat([p, p]))
    torch.testing.assert_close(twice, kl_divergence(q, p))


def test_float32_stays_finite_for_certain_assignments():
    z = torch.tensor([[0.0], [1e6]], requires_grad=True)
    q = soft_assignment(z, torch.tensor([[0.0], [1e6]]))  # off the diagonal 1e-12
    loss = kl_divergence(q, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1e12), rel=1e-3)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_small_distances_survive_autocast() -> None:
    """The Gram form subtracts numbers near 1: of 1e-4 bf16 would leave 0."""
    a = torch.tensor([[1.0, 0.0]])
    b = torch.tensor([[1.01, 0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert squared_distances(a, b).item() == pytest.approx(1e-4, rel=1e-2)


def test_losses_of_pairs_and_edges_are_those_outside_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    z, x = (torch.randn(20, d, generator=generator) for d in (4, 30))
    images, others = torch.rand(2, 5, 1, 9, 9, generator=generator)

    def losses() -> list[float]:
        values = [correlation_loss(z, x), mmd(z, z[:4]), sobel_loss(images, others)]
        return [value.item() for value in values]

    outside = losses()
    with torch.autocast("cpu", torch.bfloat16):
        assert losses() == outside
