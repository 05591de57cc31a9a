"""The convolutional autoencoder: sizes, initialisation, and the authors' Keras network."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from clusterlab.errors import UserError
from clusterlab.networks import (
    Autoencoder,
    ConvAutoencoder,
    MLPAutoencoder,
    Pixels,
    PooledAutoencoder,
    ResidualAutoencoder,
)
from clusterlab.networks.residual import ResidualBlock

SHAPES = [
    (1, 8, 8),
    (1, 9, 13),
    (1, 15, 8),
    (1, 16, 16),
    (1, 17, 31),
    (1, 28, 28),
    (3, 32, 32),
    (3, 32, 48),
    (3, 48, 33),
    (3, 55, 55),
    (4, 12, 20),
    (1, 128, 128),
]


def keras_sizes(side: int) -> list[int]:
    """Return a side after each of the authors' convolutions: same, same, and same or valid."""
    sizes = [side, math.ceil(side / 2), math.ceil(math.ceil(side / 2) / 2)]
    last = sizes[-1]
    return [*sizes, math.ceil(last / 2) if side % 8 == 0 else (last - 3) // 2 + 1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_image_size_comes_back(shape: tuple[int, int, int]):
    network = ConvAutoencoder(shape, embedding_dim=5)
    for batch in (1, 3):
        x = torch.rand(batch, *shape)
        z, x_hat = network(x)
        assert z.shape == (batch, 5)
        assert x_hat.shape == x.shape
    assert network.embedding_dim == 5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_inside_are_those_of_the_authors_network(shape: tuple[int, int, int]):
    network = ConvAutoencoder(shape, embedding_dim=5, filters=(2, 3, 4))
    x, sizes = torch.rand(1, *shape), [shape[1:]]
    for layer in network.encoder:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            sizes.append(tuple(x.shape[2:]))
    expected = list(zip(keras_sizes(shape[1]), keras_sizes(shape[2]), strict=True))
    assert sizes == expected
    x, sizes = torch.rand(1, 5), []
    for layer in network.decoder:
        x = layer(x)
        if isinstance(layer, nn.Unflatten | nn.ConvTranspose2d):
            sizes.append(tuple(x.shape[2:]))
    assert sizes == expected[::-1]


def test_forward_is_encode_and_decode():
    network = ConvAutoencoder((1, 28, 28), embedding_dim=10)
    x = torch.rand(2, 1, 28, 28)
    z, x_hat = network(x)
    assert torch.equal(z, network.encode(x))
    assert torch.equal(x_hat, network.decode(z))


def test_parameters_for_mnist_are_the_papers():
    network = ConvAutoencoder((1, 28, 28), embedding_dim=10)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if p.dim() > 1}
    assert list(shapes.values()) == [
        (32, 1, 5, 5),
        (64, 32, 5, 5),
        (128, 64, 3, 3),
        (10, 3 * 3 * 128),
        (3 * 3 * 128, 10),
        (128, 64, 3, 3),  # transposed: in, out
        (64, 32, 5, 5),
        (32, 1, 5, 5),
    ]
    encoder = (25 * 32 + 32) + (32 * 25 * 64 + 64) + (64 * 9 * 128 + 128) + (1152 * 10 + 10)
    decoder = (10 * 1152 + 1152) + (128 * 9 * 64 + 64) + (64 * 25 * 32 + 32) + (32 * 25 + 1)
    assert encoder + decoder == 275_979
    assert sum(p.numel() for p in network.parameters()) == 275_979


def test_embedding_and_output_are_linear_and_the_rest_is_rectified():
    network = ConvAutoencoder((1, 28, 28), embedding_dim=10)
    names = [type(layer).__name__ for layer in network.encoder]
    assert names == [*["Conv2d", "ReLU"] * 3, "Flatten", "Linear"]
    names = [type(layer).__name__ for layer in network.decoder]
    up = "ConvTranspose2d"
    assert names == ["Linear", "ReLU", "Unflatten", up, "ReLU", up, "ReLU", up]


def test_glorot_weights_and_zero_biases():
    torch.manual_seed(0)
    network = ConvAutoencoder((1, 28, 28), embedding_dim=10)
    # Keras: fan = receptive field x channels; the bound is sqrt(6 / (fan_in + fan_out)).
    bounds = {
        "encoder.0": math.sqrt(6 / (25 * 1 + 25 * 32)),
        "encoder.2": math.sqrt(6 / (25 * 32 + 25 * 64)),
        "encoder.4": math.sqrt(6 / (9 * 64 + 9 * 128)),
        "encoder.7": math.sqrt(6 / (1152 + 10)),
        "decoder.0": math.sqrt(6 / (10 + 1152)),
        "decoder.3": math.sqrt(6 / (9 * 128 + 9 * 64)),
        "decoder.5": math.sqrt(6 / (25 * 64 + 25 * 32)),
        "decoder.7": math.sqrt(6 / (25 * 32 + 25 * 1)),
    }
    parameters = dict(network.named_parameters())
    assert len(parameters) == 2 * len(bounds)
    for name, bound in bounds.items():
        weight = parameters[f"{name}.weight"]
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound
        # A uniform distribution of that bound; 800 weights vary by 2 %.
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)
        assert torch.equal(parameters[f"{name}.bias"], torch.zeros_like(parameters[f"{name}.bias"]))


def keras_same(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with stride 2 as Keras' ``padding="same"``: the odd pixel of padding goes last."""
    kernel, pads = weight.shape[-1], []
    for side in (x.shape[3], x.shape[2]):
        total = max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return conv2d(pad(x, pads), weight, stride=2)


@pytest.mark.parametrize("side", [8, 16, 28])
def test_encoder_is_that_of_keras_on_mirrored_images(side: int):
    network = ConvAutoencoder((1, side, side), embedding_dim=4)
    x = torch.rand(2, 1, side, side)
    first, second, third = (c.weight for c in network.encoder if isinstance(c, nn.Conv2d))
    turned = x.flip(2, 3)
    for weight in (first, second):
        turned = keras_same(turned, weight.flip(2, 3)).relu()
    if side % 8 == 0:
        turned = keras_same(turned, third.flip(2, 3)).relu()
    else:
        turned = conv2d(turned, third.flip(2, 3), stride=2).relu()
    features = network.encoder[:6](x)
    torch.testing.assert_close(features, turned.flip(2, 3))


@pytest.mark.parametrize(("size", "named"), [((7, 7), "7x7"), ((28, 7), "28x7"), ((1, 9), "1x9")])
def test_small_images_are_refused(size: tuple[int, int], named: str):
    with pytest.raises(UserError, match=f"Expected images of at least 8x8 pixels, got {named}; "):
        ConvAutoencoder((1, *size), embedding_dim=10)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = ConvAutoencoder((3, 9, 16), embedding_dim=4)
    x = torch.rand(8, 3, 9, 16)
    (network(x)[1] - x).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# The fully connected one, and none at all


def test_mlp_is_the_papers_d_500_500_2000_10():
    network = MLPAutoencoder((1, 16, 16), embedding_dim=10)
    widths = [256, 500, 500, 2000, 10]
    for half, sizes in ((network.encoder, widths), (network.decoder, widths[::-1])):
        layers = [layer for layer in half if isinstance(layer, nn.Linear)]
        assert [layers[0].in_features, *(layer.out_features for layer in layers)] == sizes
        # Keras' Glorot: uniform with variance 2 / (in + out); no bias.
        for layer in layers:
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            assert not layer.bias.any()


def test_mlp_has_linear_ends_and_relus_between():
    network = MLPAutoencoder((2, 3, 5), embedding_dim=4, hidden=(7, 6)).double()
    x = torch.rand(9, 2, 3, 5, dtype=torch.float64)

    def by_hand(h: Tensor, half: nn.Module) -> Tensor:
        layers = [layer for layer in half if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(layers):
            h = h @ layer.weight.T + layer.bias
            h = h * (h > 0) if i < len(layers) - 1 else h
        return h

    z, x_hat = network(x)
    assert torch.allclose(z, by_hand(x.flatten(1), network.encoder))
    assert (z < 0).any()
    assert torch.allclose(x_hat.flatten(1), by_hand(z, network.decoder))
    assert x_hat.shape == x.shape


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_a_scaled_network_trains_as_an_unscaled_one_on_scaled_images(shift: float) -> None:
    """Same gradients, and everything outside stays in the scale of the images."""
    gradients, outputs = [], []
    for scale, factor, zero in ((3.0, 1.0, shift), (1.0, 3.0, 0.0)):
        torch.manual_seed(0)
        network = MLPAutoencoder((1, 4, 4), 3, hidden=(8,), scale=scale, shift=zero).double()
        x = zero + factor * torch.rand(5, 1, 4, 4, dtype=torch.float64)
        z, x_hat = network(x)
        network.reconstruction_loss(x, x_hat).backward()
        gradients.append([p.grad for p in network.parameters()])
        outputs.append((z, (x_hat - zero) / factor))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other)
    assert torch.allclose(outputs[0][0], outputs[1][0])
    assert torch.allclose(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("kind", [ConvAutoencoder, PooledAutoencoder, ResidualAutoencoder])
def test_convolutions_refuse_vectors(kind: type[Autoencoder]) -> None:
    with pytest.raises(UserError, match="images for convolutions, got vectors of 7 numbers"):
        kind((7,), 3)  # type: ignore[arg-type, call-arg]


def test_pixels_are_their_own_embedding():
    network, x = Pixels((3, 4, 5)), torch.rand(2, 3, 4, 5)
    z, x_hat = network(x)
    assert torch.equal(z, x.reshape(2, 60))
    assert torch.equal(x_hat, x)
    assert network.embedding_dim == 60
    assert not list(network.parameters())


def test_fan_in_weights_and_zero_biases():
    """Uniform within 1 / sqrt(inputs): the deviation of a layer is that bound over sqrt(3)."""
    network = MLPAutoencoder((1, 28, 28), 10, init="fan_in")
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            assert 0.99 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            assert not layer.bias.any()


NETWORKS = [
    ConvAutoencoder((1, 9, 13), 5),
    PooledAutoencoder((1, 9, 13), 5),
    ResidualAutoencoder((1, 9, 13), 5, (4, 8)),
    MLPAutoencoder((1, 9, 13), 5, (20,), scale=2.0),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_autocast_ends_at_the_network(network: Autoencoder) -> None:
    x = torch.rand(3, 1, 9, 13)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x)
    for e, r in zip(exact, rounded, strict=True):
        assert r.dtype == torch.float32
        assert 0 < (e - r).norm() < 0.03 * e.norm()  # in bf16 inside: 8 bits


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_a_frozen_decoder_passes_gradients_on(network: Autoencoder) -> None:
    network.eval()  # or batch normalisation would count twice
    z = torch.randn(3, 5, requires_grad=True)
    for parameter in network.parameters():
        parameter.grad = None
    x_hat = network.decode(z, frozen=True)
    assert x_hat.equal(network.decode(z))
    x_hat.square().sum().backward()
    frozen = z.grad
    assert all(parameter.grad is None for parameter in network.parameters())
    z.grad = None
    network.decode(z).square().sum().backward()
    assert frozen is not None
    assert frozen.equal(z.grad)


@pytest.mark.parametrize("network", NETWORKS[:3], ids=lambda network: type(network).__name__)
def test_channels_lie_last_and_no_number_says_so(network: Autoencoder) -> None:
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    x, gradients = torch.rand(3, 1, 9, 13), []
    for same in (network, plain):
        same.zero_grad()
        z, x_hat = same(x)
        (z.square().sum() + x_hat.square().sum()).backward()
        gradients.append([z, x_hat, *(p.grad for p in same.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    kernels = [w for w in network.parameters() if w.dim() == 4 and min(w.shape) > 1]
    assert kernels
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    assert not any(w.is_contiguous() for w in kernels)


def test_a_residual_block_leaves_channels_last_both_ways() -> None:
    block = ResidualBlock(4, 8).to(memory_format=torch.channels_last)
    x = torch.rand(3, 4, 9, 13).to(memory_format=torch.channels_last).requires_grad_()
    y = block(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    for found in (y, gradient):
        assert found.is_contiguous(memory_format=torch.channels_last)
    # The shortcut alone.
    for norm in (block.first_norm, block.second_norm):
        torch.nn.init.zeros_(norm.weight)
    expected = conv2d(x[..., ::2, ::2], block.shortcut.weight, block.shortcut.bias).relu()
    torch.testing.assert_close(block(x), expected)
