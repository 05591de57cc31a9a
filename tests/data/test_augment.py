"""Random affine maps: pixels move by what was asked, and nothing else happens."""

import math

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from clusterlab.data.augment import Draw, RandomAffine, inverse, sources
from clusterlab.errors import UserError


def moved(x: Tensor, **changes: list[float]) -> Tensor:
    """Change images by nothing but what is given."""
    return RandomAffine()(x, inverse(still(len(x), **changes), *x.shape[2:]))


def still(n: int = 1, **changes: list[float]) -> Draw:
    """Make a draw that changes nothing but what is given."""
    fields = {name: torch.zeros(n) for name in Draw._fields}
    fields |= {"scale": torch.ones(n), "flip": torch.ones(n)}
    return Draw(**(fields | {name: torch.tensor(value) for name, value in changes.items()}))


def picture(height: int = 6, width: int = 6, channels: int = 1, n: int = 1) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(n, channels, height, width)


def drawn(augment: RandomAffine, n: int, seed: int = 0) -> Draw:
    return augment.draw(n, torch.Generator().manual_seed(seed))


def test_nothing_asked_nothing_done():
    x = picture(5, 9, channels=3)
    assert torch.allclose(moved(x), x, atol=1e-6)
    maps = RandomAffine().maps(1, 5, 9, torch.Generator())
    assert torch.allclose(RandomAffine()(x, maps), x, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 8)])
def test_a_shift_by_whole_pixels(height: int, width: int):
    x = picture(height, width)
    y = moved(x, right=[2 / width], down=[1 / height])
    assert torch.allclose(y[..., 1:, 2:], x[..., :-1, :-2], atol=1e-5)
    assert y[..., :1, :].abs().max() < 1e-5
    assert y[..., :, :2].abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_a_rotation_by_90_degrees_is_counter_clockwise(channels: int):
    x = picture(channels=channels)
    y = moved(x, angle=[math.pi / 2])
    assert torch.allclose(y, torch.rot90(x, 1, (2, 3)), atol=1e-5)


def test_a_rotation_of_a_wide_image_keeps_right_angles():
    """A square stays a square: 90 degrees turn the middle of a wide image and cut its sides off."""
    x = torch.zeros(1, 1, 4, 8)
    x[..., :, 2:6] = picture(4, 4)
    y = moved(x, angle=[math.pi / 2])
    assert torch.allclose(y[..., 2:6], torch.rot90(x[..., 2:6], 1, (2, 3)), atol=1e-5)


def test_a_flip_and_a_flipped_shift():
    x = picture(5, 7)
    assert torch.allclose(moved(x, flip=[-1.0]), x.flip(3), atol=1e-5)
    y = moved(x, flip=[-1.0], right=[1 / 7])
    assert torch.allclose(y[..., 1:], x.flip(3)[..., :-1], atol=1e-5)


def test_twice_the_size():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 3:5, 3:5] = 1
    y = moved(x, scale=[2.0])
    assert y.sum() == pytest.approx(16, rel=0.2)
    assert torch.allclose(y[..., 3:5, 3:5], torch.ones(2, 2))
    assert not y[..., :1, :].any()


def test_everything_at_once_is_scipys_affine_transform():
    """Against an independent resampler, with the same map written in pixels."""
    angle, shear, scale, right, down = 0.3, 0.2, 1.2, 0.1, -0.05
    height, width = 24, 32
    x = torch.zeros(1, 1, height, width)
    x[..., 6:18, 8:24] = picture(12, 16)
    x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)  # smooth, so that resamplers agree
    y = moved(x, angle=[angle], shear=[shear], scale=[scale], right=[right], down=[down])
    # Columns are (x, y), y down: rotate, then shear, then scale, then shift about the middle.
    rotate = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    lean = torch.tensor([[1.0, -math.tan(shear)], [0.0, 1.0]])
    back = torch.linalg.inv(scale * lean @ rotate).flip(0, 1).double()  # to (row, column)
    middle = torch.tensor([(height - 1) / 2, (width - 1) / 2]).double()
    shifted = middle + torch.tensor([down * height, right * width]).double()
    expected = ndimage.affine_transform(
        x[0, 0].double().numpy(), back.numpy(), (middle - back @ shifted).numpy(), order=1
    )
    assert torch.allclose(y[0, 0].double(), torch.from_numpy(expected), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (3, 8), (8, 3), (1, 2)])
def test_where_pixels_come_from_is_pytorchs_own_grid(height: int, width: int):
    torch.manual_seed(0)
    maps = torch.randn(4, 2, 3)
    expected = torch.nn.functional.affine_grid(maps, [4, 1, height, width], align_corners=False)
    torch.testing.assert_close(sources(maps, height, width), expected, atol=1e-6, rtol=1e-5)


def test_each_image_has_its_own_draw_and_leaves_the_others_alone():
    augment = RandomAffine(degrees=10, translate=0.1, scale=0.1, shear=5, flip=0.5)
    x, maps = picture(8, 8, n=4), augment.maps(4, 8, 8, torch.Generator().manual_seed(0))
    y = augment(x, maps)
    for i in range(4):
        assert torch.allclose(augment(x[i : i + 1], maps[i : i + 1]), y[i : i + 1], atol=1e-6)
    same = x[:1].expand(4, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in augment(same, maps)}) == 4


def test_draws_fill_their_range_and_follow_the_seed():
    augment = RandomAffine(degrees=20, translate=0.2, scale=0.3, shear=10, flip=0.25)
    draw = drawn(augment, 10_000)
    for field, low, high in (
        (draw.angle.rad2deg(), -20, 20),
        (draw.shear.rad2deg(), -10, 10),
        (draw.scale, 0.7, 1.3),
        (draw.right, -0.2, 0.2),
        (draw.down, -0.2, 0.2),
    ):
        assert field.min() == pytest.approx(low, abs=0.01 * (high - low))
        assert field.max() == pytest.approx(high, abs=0.01 * (high - low))
        assert field.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert (draw.flip == -1).float().mean() == pytest.approx(0.25, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([draw.right, draw.down]))[0, 1]) < 0.05
    again, other = drawn(augment, 10_000), drawn(augment, 10_000, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(draw, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draw, other, strict=True))


def test_padding():
    x = torch.ones(1, 1, 4, 4)
    for padding, value in (("zeros", 0.0), ("border", 1.0)):
        y = RandomAffine(padding=padding)(x, inverse(still(right=[0.5]), 4, 4))
        assert y[0, 0, 0, 0].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"degrees": -1}, {"scale": 1}, {"flip": 2}, {"translate": float("nan")}, {"padding": "x"}],
)
def test_what_cannot_be_is_refused(wrong: dict):
    remedy = f"set {next(iter(wrong))} in the phase's augment"
    with pytest.raises(UserError, match=rf"Expected .* got .*; {remedy}\.$"):
        RandomAffine(**wrong)


def test_what_is_drawn_for_an_image_is_drawn_apart() -> None:
    """A turned image is no more often a leaning, larger or shifted one."""
    augment = RandomAffine(degrees=10, translate=0.1, scale=0.1, shear=10, flip=0.5)
    draw = augment.draw(4000, torch.Generator().manual_seed(0))
    correlations = torch.corrcoef(torch.stack(draw))
    assert (correlations - torch.eye(len(draw))).abs().max() < 0.1  # six deviations of chance
