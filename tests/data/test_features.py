import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clusterlab.data import features
from clusterlab.data.features import DEVIATION, MEAN, SIDE, Photographs
from clusterlab.data.samples import Samples
from clusterlab.data.sources import npz
from clusterlab.errors import UserError


class Corners(nn.Module):
    """Nine features: the mean and two corners of each channel; counts the images it saw."""

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__()
        self.seen = 0
        self.fail_after = fail_after

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, SIDE, SIDE)
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        return torch.cat([x.mean((2, 3)), x[:, :, 0, 0], x[:, :, -1, -1]], 1)


def images(n: int = 7) -> Samples:
    x = np.random.default_rng(0).integers(0, 256, (n, 3, 20, 16), dtype=np.uint8)
    return Samples("some", torch.from_numpy(x), torch.arange(n) % 2)


def test_images_are_prepared_as_in_training() -> None:
    x = torch.tensor([[0, 255], [0, 255]], dtype=torch.uint8).expand(1, 3, 2, 2)
    got = features.features_of(Corners(), x)
    for channel, (mean, deviation) in enumerate(zip(MEAN, DEVIATION, strict=True)):
        expected = [(value - mean) / deviation for value in (0.5, 0, 1)]
        assert got[0, channel::3].tolist() == pytest.approx(expected, abs=1e-5)
    grey = features.features_of(Corners(), torch.rand(2, 1, SIDE, SIDE))
    assert grey.shape == (2, 9)


def test_features_are_scaled_one_by_one(tmp_path: Path) -> None:
    samples, out = images(), tmp_path / "new" / "out.npz"
    features.extract(Corners(), features.of_samples(samples), out, "corners", batch_size=3)
    raw = features.features_of(Corners(), samples.x)
    low, high = raw.amin(0), raw.amax(0)
    got = npz(str(out))
    assert torch.allclose(got.x, (raw - low) / (high - low), atol=1e-5)
    assert got.y is not None
    assert samples.y is not None
    assert got.y.tolist() == samples.y.tolist()
    assert [path.name for path in out.parent.iterdir()] == ["out.npz"]


def test_a_killed_extraction_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 4)
    photographs, whole, out = features.of_samples(images(11)), Corners(), tmp_path / "out.npz"
    features.extract(whole, photographs, tmp_path / "whole.npz", "corners", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        features.extract(Corners(fail_after=6), photographs, out, "corners", batch_size=2)
    assert not out.exists()
    rest = Corners()
    features.extract(rest, photographs, out, "corners", batch_size=2)
    assert (whole.seen, rest.seen) == (11, 7)
    assert torch.equal(npz(str(out)).x, npz(str(tmp_path / "whole.npz")).x)


def test_another_set_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        features.extract(Corners(fail_after=0), features.of_samples(images()), out, "corners")
    for other, made_by in ((images(8), "corners"), (images(), "others")):
        with pytest.raises(UserError, match=r"same images in .*out\.part, got others; delete the"):
            features.extract(Corners(), features.of_samples(other), out, made_by)


def folder(path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("a/1.png", (9, 12)), ("a/2 é.jpg", (30, 8)), ("b/1.png", (12, 12))):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / name)
    return path


def test_a_folder_of_any_sizes(tmp_path: Path) -> None:
    got = features.photographs(str(folder(tmp_path / "in")), labels="folder")
    assert got.read(0, 3).shape == (3, 3, SIDE, SIDE)
    assert got.files == ("a/1.png", "a/2 é.jpg", "b/1.png")
    features.extract(Corners(), got, tmp_path / "out.npz", "corners", batch_size=2)
    samples = npz(str(tmp_path / "out.npz"))
    assert samples.files == got.files
    assert samples.y is not None
    assert samples.y.tolist() == [0, 0, 1]
    assert features.photographs(str(tmp_path / "in")).y is None


def test_vectors_have_no_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.zeros((4, 9)))
    with pytest.raises(UserError, match=r"images in .*, got vectors; use them as they are"):
        features.photographs(str(tmp_path / "v.npz"))


# --- the archives


def packed(path: Path, members: dict[str, Any]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, array in members.items():
            info = tarfile.TarInfo(name)
            info.size = array.size
            tar.addfile(info, io.BytesIO(array.tobytes()))
    return path


def everything(photographs: Photographs) -> tuple[Any, Any]:
    assert photographs.y is not None
    return photographs.read(0, photographs.n).numpy(), photographs.y


def test_stl10_is_upright(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (5, 3, 96, 96), dtype=np.uint8), np.array([3, 1, 10, 2, 9])
    columns = np.ascontiguousarray(x.transpose(0, 1, 3, 2))  # how the archive has them
    members = {
        "stl10_binary/train_X.bin": columns[:3],
        "stl10_binary/train_y.bin": y[:3].astype(np.uint8),
        "stl10_binary/test_X.bin": columns[3:],
        "stl10_binary/test_y.bin": y[3:].astype(np.uint8),
    }
    got = everything(features.stl10(packed(tmp_path / "stl10.tar.gz", members)))
    assert np.array_equal(got[0], x)
    assert got[1].tolist() == [2, 0, 9, 1, 8]


@pytest.mark.parametrize("read", [features.stl10, features.cifar10])
def test_a_broken_archive_is_told(read: Any, tmp_path: Path) -> None:
    page, other = tmp_path / "page.tar.gz", tmp_path / "other.tar.gz"
    page.write_text("<html>Moved</html>")
    with tarfile.open(other, "w:gz") as tar:
        tar.add(page, "readme.txt")
    half = tmp_path / "half.tar.gz"
    half.write_bytes(other.read_bytes()[:40])
    for path in (page, other, half):
        with pytest.raises(UserError, match=rf"whole archive in .*{path.name}, got .*delete it"):
            read(path)


def test_cifar10_is_sampled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 12)
    rows = np.concatenate([y[:, None].astype(np.uint8), x.reshape(12, -1)], 1)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    members = {
        f"cifar-10-batches-bin/{name}.bin": rows[2 * i : 2 * i + 2] for i, name in enumerate(names)
    }
    archive = packed(tmp_path / "cifar.tar.gz", members)
    all_x, all_y = everything(features.cifar10(archive, n_samples=12))
    assert np.array_equal(all_x, x)
    assert all_y.tolist() == y.tolist()
    some_x, some_y = everything(features.cifar10(archive, n_samples=5))
    places = [next(i for i in range(12) if np.array_equal(x[i], image)) for image in some_x]
    assert places == sorted(set(places))
    assert some_y.tolist() == y[places].tolist()


# --- torchvision


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(UserError, match=re.escape("install it with pip install '.[feat")):
        features.resnet50(None)


def test_a_real_network_with_random_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    out = tmp_path / "out.npz"
    features.extract(features.resnet50(None), features.of_samples(images(3)), out, "random", 2)
    got = npz(str(out))
    assert got.x.shape == (3, 2048)
    assert got.x.isfinite().all()
