"""Convolutions as matrix products, beside PyTorch's own."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from clusterlab.networks import products
from clusterlab.networks.products import Convolution, Doubling

PLAIN = {Convolution: nn.Conv2d, Doubling: nn.ConvTranspose2d}


def values(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what comes out, and the gradients of a loss that weighs each of its pixels."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y.double() * torch.arange(y.numel()).view(y.shape).sin()).sum().backward()
    return [y.detach(), *(p.grad for p in (x, *layer.parameters()) if p.grad is not None)]


def plain(layer: Convolution | Doubling) -> nn.Module:
    """Return PyTorch's layer with the same weights."""
    same = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    settings = {name: getattr(layer, name) for name in same}
    other = PLAIN[type(layer)](**settings, bias=layer.bias is not None)
    other.load_state_dict(layer.state_dict())
    return other.to(next(layer.parameters()).dtype)


SHAPES = [(1, 1), (2, 2), (3, 3), (1, 4), (4, 2), (5, 5), (7, 3)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_convolutions_are_pytorchs(
    size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    layer = Convolution(3, 4, kernel, stride, padding).double()
    x = torch.randn(6, 3, *size, dtype=torch.double)
    for mine, its in zip(values(layer, x), values(plain(layer), x), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SHAPES)
def test_doublings_are_pytorchs(size: tuple[int, int]) -> None:
    layer = Doubling(3, 4).double()
    x = torch.randn(6, 3, *size, dtype=torch.double)
    for mine, its in zip(values(layer, x), values(plain(layer), x), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [Convolution(8, 16, 3, 2, 1, bias=False), Doubling(8, 16)])
def test_bf16_comes_out_of_autocast_in_channels_last(layer: Convolution | Doubling) -> None:
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(6, 8, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        mine, its = values(layer, x), values(plain(layer), x)
    assert mine[0].dtype == its[0].dtype == torch.bfloat16
    assert mine[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0.02, atol=0.02 * float(other.detach().abs().max())
        )


@pytest.mark.parametrize("layer", [Convolution(3, 4, 3, padding=1), Doubling(3, 4)])
def test_no_samples_are_no_samples(layer: Convolution | Doubling) -> None:
    x = torch.zeros(0, 3, 2, 2)
    assert layer(x).shape == plain(layer)(x).shape


def test_only_small_maps_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    conv2d = products.conv2d
    monkeypatch.setattr(products, "conv2d", lambda *args: (taken.append(1), conv2d(*args))[1])
    for side, stride in product(range(1, 9), (1, 2)):
        taken.clear()
        out = Convolution(1, 1, 3, stride, 1)(torch.zeros(1, 1, side, side)).shape[2]
        assert bool(taken) == (out > 3), (side, stride)
