import re
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clusterlab.data import download, images, samples, sources
from clusterlab.data.download import CLASS_NAMES, SHA256
from clusterlab.errors import UserError

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write arrays to an npz file and return its path."""

    def write(**arrays: Any) -> str:
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


def pixels(n: int = 4, h: int = 5, w: int = 6, dtype: Any = np.uint8) -> Any:
    """Return ``(n, h, w)`` images, all different: 0..255, or [0, 1] for floats."""
    x = np.random.default_rng(0).integers(0, 256, size=(n, h, w), dtype=np.uint8)
    return x if dtype == np.uint8 else (x / 255).astype(dtype)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert re.fullmatch(r"Expected .+, got .+; .+", text)
    return text


def test_digits() -> None:
    got = sources.digits()
    assert (got.name, got.x.shape, got.x.dtype) == ("digits", (1797, 1, 8, 8), torch.float32)
    assert got.y is not None
    assert got.y.dtype == torch.int64
    assert torch.bincount(got.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(got.x * 16, (got.x * 16).round())
    assert (got.x.min().item(), got.x.max().item()) == (0.0, 1.0)


# --- prepared sets


@pytest.mark.parametrize("name", ["usps", "mnist", "fashion_mnist", "coil20"])
def test_prepared_sets_are_the_published_ones(prepared_root: Path, name: str) -> None:
    got = sources.prepared(name, root=str(prepared_root))
    assert got.y is not None
    arrays = {"x": got.x, "y": got.y}
    digests = {key: sha256(a.numpy().tobytes()).hexdigest() for key, a in arrays.items()}
    assert digests == SHA256[name]
    assert got.sha256 == SHA256[name]["x"]
    assert got.name == name
    shapes = {"usps": (9298, 1, 16, 16), "coil20": (1440, 1, 128, 128)}
    assert got.x.shape == shapes.get(name, (70000, 1, 28, 28))
    assert got.x.dtype == (torch.float32 if name == "usps" else torch.uint8)
    assert got.y.dtype == torch.int64
    assert got.class_names == CLASS_NAMES.get(name)


def test_the_digests_are_those_of_the_readme(prepared_root: Path) -> None:
    readme = prepared_root / "README.md"
    if not readme.exists():
        pytest.skip(f"no {readme}")
    rows = readme.read_text().split("\n")
    listed: dict[str, dict[str, str]] = {}
    for row in rows:
        if file := re.match(r"\| `(\w+)\.npz` \| the file \|", row):
            name = file[1]
        elif digest := re.match(r"\| \| `(\w+)\.tobytes\(\)` \| `([0-9a-f]{64})` \|", row):
            listed.setdefault(name, {})[digest[1]] = digest[2]
    assert {name: listed[name] for name in SHA256 if all(SHA256[name].values())} == {
        name: digests for name, digests in SHA256.items() if all(digests.values())
    }
    unpublished = {name for name, digests in SHA256.items() if not all(digests.values())}
    assert unpublished == {"reuters10k", "stl10", "cifar10"}


def test_mnist_test_is_the_last_10000_rows(
    prepared_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERLAB_DATA", str(prepared_root))
    whole = sources.prepared("mnist")
    rows = OmegaConf.create([60000, 70000])  # what Hydra passes
    got = sources.prepared("mnist_test", source="mnist", rows=rows)
    assert got.name == "mnist_test"
    assert torch.equal(got.x, whole.x[60000:])
    assert got.y is not None
    assert whole.y is not None
    assert torch.equal(got.y, whole.y[60000:])
    assert got.sha256 == sha256(whole.x[60000:].numpy().tobytes()).hexdigest()
    assert got.x.untyped_storage().nbytes() == 10000 * 28 * 28


@pytest.fixture
def small_usps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a prepared file of three images and publish its digests."""
    arrays = {"x": pixels(3, 16, 16, np.float32), "y": np.array([0, 2, 1])}
    np.savez_compressed(tmp_path / "usps.npz", **arrays)
    digests = {key: sha256(arrays[key].tobytes()).hexdigest() for key in "xy"}
    monkeypatch.setitem(SHA256, "usps", digests)
    return tmp_path


def test_the_images_are_hashed_once(small_usps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(x: torch.Tensor) -> str:
        raise AssertionError("hashed twice")

    monkeypatch.setattr(samples, "digest", again)
    got = sources.prepared("usps", root=str(small_usps))
    assert got.sha256 == SHA256["usps"]["x"]


def test_the_root_is_argument_then_environment_then_cache(
    small_usps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERLAB_DATA", str(small_usps / "nowhere"))
    assert len(sources.prepared("usps", root=str(small_usps))) == 3
    monkeypatch.setenv("CLUSTERLAB_DATA", str(small_usps))
    assert len(sources.prepared("usps")) == 3
    monkeypatch.delenv("CLUSTERLAB_DATA")
    monkeypatch.setattr("pooch.os_cache", lambda project: small_usps)
    assert len(sources.prepared("usps")) == 3


@pytest.mark.parametrize("key", ["x", "y"])
def test_a_changed_file_is_refused(small_usps: Path, key: str) -> None:
    path = small_usps / "usps.npz"
    arrays = dict(np.load(path))
    arrays[key] = arrays[key][::-1].copy()
    np.savez(path, **arrays)
    got = sha256(arrays[key].tobytes()).hexdigest()[:12]
    with pytest.raises(UserError) as error:
        sources.prepared("usps", root=str(small_usps))
    expected = SHA256["usps"][key][:12]
    text = one_line(error)
    assert text == (
        f"Expected {key} with SHA-256 {expected} in {path}, got {got}; "
        "delete the file and run again to fetch it."
    )


def test_a_prepared_file_without_labels_is_refused(small_usps: Path) -> None:
    path = small_usps / "usps.npz"
    np.savez(path, x=np.load(path)["x"])
    with pytest.raises(UserError, match=r"Expected an array y in .* got x; delete the file"):
        sources.prepared("usps", root=str(small_usps))


def test_a_damaged_prepared_file_is_refused(small_usps: Path) -> None:
    path = small_usps / "usps.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"usps\.npz, got \d+ bytes .*; delete the file and run"):
        sources.prepared("usps", root=str(small_usps))


@pytest.mark.parametrize("rows", [(-1, 2), (0, 4), (2, 2), (2, 1), (0, 1, 2)])
def test_rows_outside_the_set_are_refused(small_usps: Path, rows: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"within 0\.\.3, got \[") as error:
        sources.prepared("usps", root=str(small_usps), rows=rows)
    one_line(error)


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"usps, mnist, .*, got imagenet; use data=npz") as error:
        sources.prepared("imagenet")
    one_line(error)


def test_every_prepared_set_has_a_home_and_a_fetcher() -> None:
    assert set(SHA256) == set(download.HOMES) == {*download._FETCHERS, "stl10", "cifar10"}


def test_features_are_made_by_the_script(tmp_path: Path) -> None:
    command = "python scripts/extract_features.py stl10"
    with pytest.raises(UserError, match=f"got nothing there; make it with: {command}") as error:
        sources.prepared("stl10", root=str(tmp_path))
    one_line(error)


# --- npz: what is accepted


@pytest.mark.parametrize(
    ("axes", "channels"),
    [("NHW", 1), ("NHWC", 1), ("NHWC", 3), ("NCHW", 1), ("NCHW", 3)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_layout_becomes_channels_first(
    save: Save, axes: str, channels: int, dtype: Any
) -> None:
    nchw = pixels(4 * channels, dtype=dtype).reshape(4, channels, 5, 6)
    x = {"NHW": nchw[:, 0], "NHWC": nchw.transpose(0, 2, 3, 1), "NCHW": nchw}[axes]
    got = sources.npz(save(x=x))
    assert got.x.shape == (4, channels, 5, 6)
    assert np.array_equal(got.x.numpy(), nchw)
    assert got.x.dtype == {np.uint8: torch.uint8, np.float32: torch.float32}[dtype]
    assert got.x.is_contiguous()
    assert got.sha256 == sha256(nchw.tobytes()).hexdigest()
    assert got.y is None
    assert got.class_names is None
    assert got.name == "mine"


def test_four_ambiguous_axes_are_channels_last(save: Save) -> None:
    assert sources.npz(save(x=np.zeros((2, 3, 7, 1), np.uint8))).input_shape == (1, 3, 7)


def test_three_axes_are_always_grey(save: Save) -> None:
    assert sources.npz(save(x=np.zeros((2, 7, 3), np.uint8))).input_shape == (1, 7, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint16", "bool"])
def test_two_axes_are_vectors_of_any_numbers(save: Save, dtype: str) -> None:
    x = np.random.default_rng(0).normal(0, 9, (4, 3)).astype(dtype)
    got = sources.npz(save(x=x))
    assert got.input_shape == (3,)
    assert not got.are_images
    assert got.x.dtype == torch.float32
    assert np.array_equal(got.x.numpy(), x.astype(np.float32))


def test_files_are_kept(save: Save) -> None:
    names = ["a.png", "b c.png", "d/é.png", "e.png"]
    assert sources.npz(save(x=pixels(), files=np.array(names))).files == tuple(names)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_other_floats_become_float32(save: Save, dtype: str) -> None:
    x = pixels(dtype=dtype)
    got = sources.npz(save(x=x), name="other")
    assert got.x.dtype == torch.float32
    assert np.array_equal(got.x[:, 0].numpy(), x.astype(np.float32))
    assert got.name == "other"


@pytest.mark.parametrize(
    ("y", "expected", "names"),
    [
        (np.array([7, -3, 7, 20]), [1, 0, 1, 2], ("-3", "7", "20")),
        (np.array([2.0, 0.0, 0.0, 5.0]), [1, 0, 0, 2], ("0", "2", "5")),
        (np.array([9, 10, 9, 8], dtype=np.uint8), [1, 2, 1, 0], ("8", "9", "10")),
        (np.array([True, False, True, True]), [1, 0, 1, 1], ("0", "1")),
    ],
)
def test_labels_are_renumbered(save: Save, y: Any, expected: list[int], names: Any) -> None:
    got = sources.npz(save(x=pixels(), y=y))
    assert got.y is not None
    assert got.y.dtype == torch.int64
    assert got.y.tolist() == expected
    assert got.class_names == names
    assert got.n_classes == len(names)


def test_labels_leave_the_images_alone(save: Save) -> None:
    with_labels = sources.npz(save(x=pixels(), y=np.arange(4)))
    without = sources.npz(save(x=pixels()))
    assert torch.equal(with_labels.x, without.x)
    assert with_labels.sha256 == without.sha256


# --- npz: what is refused


def spoilt(value: float) -> Any:
    x = pixels(dtype=np.float64)
    x[2, 1, 1:3] = value
    x[3, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "array x in .*, got no arrays; save it again"),
        ({"images": pixels(), "y": np.arange(4)}, "array x in .*, got images, y; save it again"),
        ({"x": np.array([pixels(), None], dtype=object)}, "error Object arrays cannot be loaded"),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, r"at least one sample in .*, got shape \(0, 1, 8"),
        ({"x": np.zeros((3, 0, 8), np.uint8)}, r"at least one sample in .*, got shape \(3, 1, 0"),
        ({"x": np.uint8(3)}, r"vectors \(N,d\), or images \(N,H,W\), .* got shape \(\); reshape x"),
        ({"x": np.zeros(9)}, r"images \(N,H,W\), .* got shape \(9,\); reshape x"),
        ({"x": np.zeros((0, 64))}, r"at least one sample in .*, got shape \(0, 64\)"),
        ({"x": np.full((5, 64), 1e300)}, "320 NaN or infinite values, first in sample 0; remove"),
        ({"x": np.full((5, 64), "a")}, "floating point x in .*, got <U1"),
        ({"x": pixels(), "files": np.array(["a.png"])}, "4 files in .*, got 1; name one a sample"),
        ({"x": np.zeros((5, 4, 8, 8))}, r"C 1 or 3 in .*, got shape \(5, 4, 8, 8\)"),
        ({"x": np.zeros((5, 1, 8, 8, 8))}, r"got shape \(5, 1, 8, 8, 8\)"),
        ({"x": pixels().astype(np.int64)}, "uint8 or floating point x in .*, got int64; save x"),
        ({"x": pixels() > 9}, "uint8 or floating point x in .*, got bool; save x"),
        ({"x": spoilt(np.nan)}, "3 NaN or infinite values, first in sample 2; remove"),
        ({"x": spoilt(-np.inf)}, "3 NaN or infinite values, first in sample 2; remove"),
        ({"x": spoilt(255.0)}, r"min 0\.\d+ and max 255\.0; scale x to \[0, 1\] or save it as"),
        ({"x": spoilt(-0.5)}, r"min -0\.5 and max .*; scale x to"),
        ({"x": pixels(), "y": np.arange(3)}, r"y of shape \(4,\) in .*, got shape \(3,\)"),
        ({"x": pixels(), "y": np.eye(4)}, r"y of shape \(4,\) in .*, got shape \(4, 4\)"),
        ({"x": pixels(), "y": np.array([0, 1, 0.5, 1])}, "numbers as y .* float64 such as 0.5;"),
        ({"x": pixels(), "y": np.array([0, 1, np.nan, 1])}, "float64 such as nan;"),
        ({"x": pixels(), "y": np.array([0, 1, np.inf, 1])}, "float64 such as inf;"),
        ({"x": pixels(), "y": np.array(["a", "b", "a", "b"])}, "<U1 such as a; number the"),
    ],
)
def test_bad_arrays_are_refused(save: Save, arrays: dict[str, Any], message: str) -> None:
    path = save(**arrays)
    with pytest.raises(UserError, match=message) as error:
        sources.npz(path)
    assert path in one_line(error)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent.npz"
    with pytest.raises(UserError) as error:
        sources.npz(str(path))
    assert one_line(error) == f"Expected a file {path}, got nothing there; correct data.path."


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a file .*, got a folder; correct data\.path"):
        sources.npz(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x93NUMPY\x01\x00"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"an npz file .*, got {len(content)} bytes of no npz"):
        sources.npz(str(path))


def test_a_corrupt_npz_is_refused(save: Save) -> None:
    path = Path(save(x=pixels(200)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the error Bad CRC-32 .*; save it again") as error:
        sources.npz(str(path))
    one_line(error)


def test_an_npz_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "no array")
    with pytest.raises(UserError):
        sources.npz(str(path))


# --- folder: what is accepted


def picture(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def grey(value: int = 9, h: int = 4, w: int = 6) -> Any:
    x = np.full((h, w), value, np.uint8)
    x[0, 0] = 200
    return x


def test_a_nested_folder_of_grey_images(tmp_path: Path) -> None:
    picture(tmp_path / "b" / "deep" / "2.png", grey(2))
    picture(tmp_path / "b" / "1.BMP", grey(1))
    picture(tmp_path / "a.gif", grey(0))
    picture(tmp_path / "c.TIF", grey(3))
    (tmp_path / "notes.txt").write_text("no image")
    picture(tmp_path / ".thumbnails" / "1.png", grey(7))
    (tmp_path / "._a.png").write_text("no image either")
    got = images.folder(str(tmp_path))
    assert got.files == ("a.gif", "b/1.BMP", "b/deep/2.png", "c.TIF")
    assert got.x.dtype == torch.uint8
    assert np.array_equal(got.x.numpy(), np.stack([grey(v)[None] for v in range(4)]))
    assert got.y is None
    assert got.class_names is None
    assert got.name == tmp_path.name
    assert got.sha256 == sha256(got.x.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("suffix", [s for s in images.IMAGE_SUFFIXES if s != ".gif"])
def test_every_format_is_read_in_colour(tmp_path: Path, suffix: str) -> None:
    rgb = np.full((4, 6, 3), (250, 120, 10), np.uint8)
    options = {"lossless": True} if suffix == ".webp" else {}
    picture(tmp_path / f"a{suffix}", rgb, **options)
    got = images.folder(str(tmp_path)).x.numpy()
    assert got.shape == (1, 3, 4, 6)
    assert np.abs(got[0].astype(int) - rgb.transpose(2, 0, 1)).max() <= 2


def test_one_colour_image_makes_all_rgb_unless_grey_is_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", grey())
    rgb = np.stack([grey(100), grey(50), grey(0)], axis=-1)
    picture(tmp_path / "b.png", rgb)
    got = images.folder(str(tmp_path)).x.numpy()
    assert np.array_equal(got[0], np.stack([grey()] * 3))
    assert np.array_equal(got[1], rgb.transpose(2, 0, 1))
    one = images.folder(str(tmp_path), channels=1, name="grey")
    assert (one.input_shape, one.name) == ((1, 4, 6), "grey")
    assert np.array_equal(one.x[0, 0].numpy(), grey())


def test_grey_images_become_rgb_when_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", grey())
    assert images.folder(str(tmp_path), channels=3).input_shape == (3, 4, 6)


@pytest.mark.parametrize("mode", ["1", "LA"])
def test_other_grey_modes(tmp_path: Path, mode: str) -> None:
    x = np.where(grey() > 100, 255, 0).astype(np.uint8)
    Image.fromarray(x).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(images.folder(str(tmp_path)).x[0].numpy(), x[None])


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_other_colour_modes(tmp_path: Path, mode: str) -> None:
    rgb = np.full((4, 6, 3), (255, 0, 51), np.uint8)
    Image.fromarray(rgb).convert(mode).save(tmp_path / "a.tif")
    got = images.folder(str(tmp_path)).x[0].numpy()
    assert got.shape == (3, 4, 6)
    assert np.abs(got.astype(int) - rgb.transpose(2, 0, 1)).max() <= (0 if mode != "P" else 30)


def test_a_transparent_palette(tmp_path: Path) -> None:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert images.folder(str(tmp_path)).x[0, :, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_become_8(tmp_path: Path, suffix: str) -> None:
    pixels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    picture(tmp_path / f"a.{suffix}", pixels)
    assert images.folder(str(tmp_path)).x.flatten().tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_more_than_16_bits_are_refused(tmp_path: Path, dtype: Any) -> None:
    picture(tmp_path / "a.tif", np.full((4, 6), 70000, dtype=dtype))
    with pytest.raises(UserError, match=r"8 or 16 bits a pixel in .*a\.tif, got mode") as error:
        images.folder(str(tmp_path))
    one_line(error)


@pytest.mark.parametrize(("suffix", "orientation"), [("png", 6), ("jpg", 6), ("png", 3)])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / f"a.{suffix}", pixels, exif=exif)
    upright = {3: np.rot90(pixels, 2), 6: np.rot90(pixels, -1)}[orientation]
    got = images.folder(str(tmp_path)).x[0, 0].numpy()
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() <= 8


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(grey(value)) for value in (5, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(images.folder(str(tmp_path), channels=1).x[0, 0].numpy(), grey(5))


@pytest.mark.parametrize(
    ("size", "shape"), [(8, (8, 8)), ([2, 3], (2, 3)), (OmegaConf.create([2, 3]), (2, 3))]
)
def test_mixed_sizes_are_resized(tmp_path: Path, size: Any, shape: tuple[int, int]) -> None:
    picture(tmp_path / "a.png", np.full((9, 20), 7, np.uint8))
    picture(tmp_path / "b.png", np.full((30, 5), 90, np.uint8))
    got = images.folder(str(tmp_path), size=size).x
    assert got.shape == (2, 1, *shape)
    assert [image.unique().tolist() for image in got] == [[7], [90]]


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    picture(tmp_path / "a.png", stripes)
    got = images.folder(str(tmp_path), size=8).x.numpy().astype(int)
    assert np.abs(got - 127).max() <= 12


def test_folders_as_labels(tmp_path: Path) -> None:
    for index, file in enumerate(["dog/1.png", "cat/x/2.png", "cat/y/3.png", "ant/4.png"]):
        picture(tmp_path / file, grey(index))
    got = images.folder(str(tmp_path), labels="folder")
    assert got.files == ("ant/4.png", "cat/x/2.png", "cat/y/3.png", "dog/1.png")
    assert got.class_names == ("ant", "cat", "dog")
    assert got.y is not None
    assert got.y.dtype == torch.int64
    assert got.y.tolist() == [0, 1, 1, 2]
    assert torch.equal(got.x, images.folder(str(tmp_path)).x)


# --- folder: what is refused


def test_mixed_sizes_that_must_be_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", grey())
    picture(tmp_path / "b" / "c.png", grey(h=7))
    with pytest.raises(UserError) as error:
        images.folder(str(tmp_path), size=None)
    assert one_line(error) == (
        f"Expected images of one size under {tmp_path}, got a.png 4x6 and b/c.png 7x6; "
        "set data.size=32, or another size, to resize them."
    )


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"images \(\.png, .*got none among 1 files") as error:
        images.folder(str(tmp_path))
    one_line(error)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder .*, got nothing there; correct"):
        images.folder(str(tmp_path / "absent"))
    picture(tmp_path / "a.png", grey())
    with pytest.raises(UserError, match=r"a folder .*, got a file; correct"):
        images.folder(str(tmp_path / "a.png"))


def test_no_image_in_an_image_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", grey())
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"an image .*b\.jpg, got the error cannot identify"):
        images.folder(str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("position", [0, 1])
def test_a_truncated_image(tmp_path: Path, suffix: str, position: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    for index in range(3):
        picture(tmp_path / f"{index}.{suffix}", noise)
    broken = tmp_path / f"{position}.{suffix}"
    broken.write_bytes(broken.read_bytes()[:700])
    with pytest.raises(UserError, match=rf"an image .*{position}\.{suffix}, got") as error:
        images.folder(str(tmp_path))
    one_line(error)


def test_an_image_outside_the_class_folders(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png", grey())
    picture(tmp_path / "z.png", grey())
    with pytest.raises(UserError, match=r"class folder .*, got z\.png outside one; move") as error:
        images.folder(str(tmp_path), labels="folder")
    one_line(error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"data\.size as a side, \[height, width\] or auto, got 0"),
        ({"size": [8]}, r"got \[8\]"),
        ({"size": [8, -8]}, r"got \[8, -8\]"),
        ({"size": 8.5}, r"got 8\.5"),
        ({"channels": 4}, r"data\.channels 1, 3 or null, got 4"),
        ({"labels": "csv"}, r"data\.labels=folder or null, got csv"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    picture(tmp_path / "a.png", grey())
    with pytest.raises(UserError, match=message) as error:
        images.folder(str(tmp_path), **settings)
    one_line(error)


# --- prepared sets, changed


def test_images_are_averaged_to_a_smaller_size(prepared_root: Path) -> None:
    root = str(prepared_root)
    whole, small = (sources.prepared("coil20", root=root, size=size) for size in (None, 32))
    assert small.x.shape == (1440, 1, 32, 32)
    assert small.x.dtype == torch.float32
    block = whole.x[700, 0, 40:44, 96:100].double().mean() / 255
    assert small.x[700, 0, 10, 24].item() == pytest.approx(block.item())
    assert small.sha256 != whole.sha256
    with pytest.raises(UserError, match=r"data\.size that divides the sides of coil20, got 30"):
        sources.prepared("coil20", root=root, size=30)


def test_a_balanced_part_has_as_many_of_each_class(prepared_root: Path) -> None:
    root = str(prepared_root)
    whole, part = (sources.prepared("usps", root=root, balanced=b) for b in (False, True))
    assert part.y is not None
    assert whole.y is not None
    assert torch.bincount(part.y).tolist() == [708] * 10
    rows = [torch.nonzero((whole.x == x).flatten(1).all(1)).item() for x in part.x[::500]]
    assert rows == sorted(rows)
    assert whole.y[rows].tolist() == part.y[::500].tolist()
    assert torch.equal(sources.prepared("usps", root=root, balanced=True).x, part.x)


@pytest.mark.parametrize("first", [True, False])
def test_broken_files_are_passed_over_if_asked(
    tmp_path: Path, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b/1.png", "b/2.png", "c/3.png"):
        picture(tmp_path / name, grey())
    whole = (tmp_path / "b" / "1.png").read_bytes()
    cut = "a/0.png" if first else "b/9.png"  # the header is there, the pixels are not
    (tmp_path / "a").mkdir()
    (tmp_path / cut).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c" / "no.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"an image .*(no|0|9)\.png"):
        images.folder(str(tmp_path))
    with caplog.at_level("WARNING", logger="clusterlab"):
        got = images.folder(str(tmp_path), labels="folder", skip_broken=True)
    assert got.files == ("b/1.png", "b/2.png", "c/3.png")
    assert got.skipped == (cut, "c/no.png")
    assert got.class_names == ("b", "c")
    assert got.y is not None
    assert got.y.tolist() == [0, 0, 1]
    assert torch.equal(got.x, images.folder(str(tmp_path), skip_broken=True).x)
    assert all(Path(cut).name in caplog.text for cut in got.skipped)


def test_broken_files_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"an image under .*, got broken files alone; replace"):
        images.folder(str(tmp_path), skip_broken=True)


# --- folder: what is decided for the user, and kept


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(7, 9), (7, 9)], (7, 9)),
        ([(64, 64)], (64, 64)),
        ([(64, 65)], (32, 32)),  # of one size, but large
        ([(7, 9), (9, 7)], (32, 32)),
    ],
)
def test_the_size_that_is_chosen(
    tmp_path: Path, shapes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    for index, (h, w) in enumerate(shapes):
        picture(tmp_path / f"{index}.png", grey(h=h, w=w))
    assert images.folder(str(tmp_path)).input_shape == (1, *expected)


def test_a_photograph_on_its_side_has_the_size_of_the_upright_ones(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", grey(h=7, w=9))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey(h=9, w=7)).save(tmp_path / "b.jpg", exif=exif)
    assert images.folder(str(tmp_path)).input_shape == (1, 7, 9)


def test_the_second_time_nothing_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "in", str(tmp_path / "cache")
    for name in ("b/1.png", "a/2.png"):
        picture(folder / name, grey())
    (folder / "no.png").write_bytes(b"no image")
    first = images.folder(str(folder), skip_broken=True, cache=cache)
    calls: list[Path] = []
    decode = images.decode

    def counted(path: Path, *args: Any) -> Any:
        calls.append(path)
        return decode(path, *args)

    monkeypatch.setattr(images, "decode", counted)
    again = images.folder(str(folder), skip_broken=True, cache=cache)
    assert not calls
    assert torch.equal(first.x, again.x)
    assert (
        (first.files, first.skipped)
        == (again.files, again.skipped)
        == (
            ("a/2.png", "b/1.png"),
            ("no.png",),
        )
    )
    images.folder(str(folder), channels=3, skip_broken=True, cache=cache)
    assert len(calls) == 3  # other pixels: decoded anew, the first file also for its shape
    assert len(list(Path(cache).iterdir())) == 2
    picture(folder / "a" / "3.png", grey())
    assert len(images.folder(str(folder), skip_broken=True, cache=cache)) == 3
    assert len(list(Path(cache).iterdir())) == 2  # one for grey, in place of the older, one for RGB
    picture(folder / "a" / "2.png", grey(h=5))
    with pytest.raises(UserError, match="images of one size"):
        images.folder(str(folder), size=None, skip_broken=True, cache=cache)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "in" / "a.png", grey())
    (tmp_path / "file").write_text("")
    with caplog.at_level("WARNING", logger="clusterlab"):
        got = images.folder(str(tmp_path / "in"), cache=str(tmp_path / "file"))
    assert len(got) == 1
    assert "cannot be kept for the next run" in caplog.text
