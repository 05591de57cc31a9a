"""Features of photographs from a pretrained network, which cluster where their pixels do not."""

import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from sklearn.preprocessing import MinMaxScaler
from torch import Tensor, nn
from torch.nn.functional import interpolate

from clusterlab.data.images import decode, folder_labels, image_files
from clusterlab.data.samples import Samples, as_float
from clusterlab.data.sources import npz
from clusterlab.errors import problem
from clusterlab.files import locked, read_json, settings_digest, write_arrays, write_json

# What torchvision's ResNet-50 was trained on: side, and mean and deviation of each channel
SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_SAMPLES = 30_000  # half of them, as in CDC, though not the same half
CHUNK = 512  # images between two saves


@dataclass(frozen=True)
class Photographs:
    """Hand out images a few at a time: those of a folder need not fit into memory.

    Args:
        read: Returns the images from one number to the one before another, shape
            ``(B, C, H, W)``, ``uint8`` or ``float32`` in [0, 1].
        n: How many there are.
        made_of: What tells them from others.
        y: Labels, shape ``(N,)``, ``int64``, where they are known.
        files: File names, where they came from files.
    """

    read: Callable[[int, int], Tensor]
    n: int
    made_of: str
    y: NDArray[Any] | None = None
    files: tuple[str, ...] | None = None


def photographs(path: str, labels: str | None = None) -> Photographs:
    """Open a folder of images, or an ``.npz`` file of them.

    Args:
        path: The folder, searched to any depth, or the file.
        labels: ``"folder"`` makes the first-level subfolders the classes.

    Raises:
        UserError: If there are no images.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        samples = npz(path)
        if not samples.are_images:
            raise problem(f"images in {path}", "vectors", "use them as they are, with data=npz")
        return of_samples(samples)
    files = image_files(root)
    y = folder_labels(files, root)[0].numpy() if labels else None

    def read(start: int, stop: int) -> Tensor:
        images = [decode(root / file, 3, (SIDE, SIDE)) for file in files[start:stop]]
        return torch.from_numpy(np.stack(images))

    sizes = [(root / file).stat().st_size for file in files]
    return Photographs(read, len(files), settings_digest([files, sizes]), y, tuple(files))


def of_samples(samples: Samples) -> Photographs:
    """Open images that are in memory."""
    y = None if samples.y is None else samples.y.numpy()
    return Photographs(lambda i, j: samples.x[i:j], len(samples), samples.sha256, y)


def stl10(archive: Path) -> Photographs:
    """Read the 13,000 labelled images of STL-10, those for training first.

    Args:
        archive: ``stl10_binary.tar.gz``.

    Raises:
        UserError: If it is broken, or another archive.
    """
    x, y = [], []
    with _opened(archive) as tar:
        for part in ("train", "test"):
            pixels = _member(tar, f"stl10_binary/{part}_X.bin").reshape(-1, 3, 96, 96)
            x.append(pixels.transpose(0, 1, 3, 2))  # stored column by column
            y.append(_member(tar, f"stl10_binary/{part}_y.bin") - 1)
    return _of_arrays("stl10", np.concatenate(x), np.concatenate(y))


def cifar10(archive: Path, n_samples: int = CIFAR10_SAMPLES, seed: int = 0) -> Photographs:
    """Read a random part of the 60,000 images of CIFAR-10.

    Args:
        archive: ``cifar-10-binary.tar.gz``.
        n_samples: How many.
        seed: Of the choice.

    Raises:
        UserError: If it is broken, or another archive.
    """
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    with _opened(archive) as tar:
        rows = [_member(tar, f"cifar-10-batches-bin/{name}").reshape(-1, 3073) for name in names]
    every = np.concatenate(rows)
    drawn = np.sort(np.random.default_rng(seed).choice(len(every), n_samples, replace=False))
    every = every[drawn]
    return _of_arrays("cifar10", every[:, 1:].reshape(-1, 3, 32, 32), every[:, 0])


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive, and say of one that is broken, or another, what to do."""
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, KeyError, EOFError, ValueError, zlib.error) as error:
        remedy = "delete it and run again, or give another with --archive"
        raise problem(f"the whole archive in {archive}", f"the error {error}", remedy) from error


def _member(tar: tarfile.TarFile, name: str) -> NDArray[np.uint8]:
    file = tar.extractfile(name)
    assert file is not None
    return np.frombuffer(file.read(), np.uint8)


def _of_arrays(name: str, x: NDArray[np.uint8], y: NDArray[np.uint8]) -> Photographs:
    x = np.ascontiguousarray(x)
    return of_samples(Samples(name, torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))))


def resnet50(weights: str | None) -> nn.Module:
    """Build torchvision's ResNet-50 up to its average pooling: 2,048 features.

    CDC's authors take the weights of Keras, trained on the same images by other people.

    Args:
        weights: Name of torchvision's weights, which are fetched; ``None`` for random ones.

    Raises:
        UserError: If torchvision is not installed, or has no such weights.
    """
    try:
        from torchvision.models import resnet50 as build
    except ImportError as error:
        remedy = "install it with pip install '.[features]'"
        raise problem("torchvision", error, remedy) from error
    try:
        network: nn.Module = build(weights=weights)
    except (KeyError, ValueError) as error:
        remedy = "give --weights IMAGENET1K_V1, IMAGENET1K_V2 or none"
        raise problem("torchvision's weights", f"'{weights}'", remedy) from error
    network.fc = nn.Identity()
    return network


@torch.no_grad()
def features_of(network: nn.Module, x: Tensor) -> Tensor:
    """Return a network's features of images of any size.

    Args:
        network: Takes ``(B, 3, 224, 224)``, channels normalised as in ImageNet's training.
        x: Images, shape ``(B, C, H, W)`` with C 1 or 3, ``uint8`` or ``float32`` in [0, 1].

    Returns:
        Shape ``(B, d)``.
    """
    x = as_float(x).expand(-1, 3, -1, -1)
    if x.shape[2:] != (SIDE, SIDE):
        x = interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, DEVIATION))
    features: Tensor = network((x - mean) / deviation)
    return features


def extract(
    network: nn.Module, images: Photographs, out: Path, made_by: str, batch_size: int = 64
) -> None:
    """Write the features of images to a file that ``data=npz`` takes, each scaled to [0, 1].

    What is done is kept in a folder beside it until all is: a killed extraction goes on there.

    Args:
        network: See ``features_of``; moved to a GPU where there is one.
        images: The images.
        out: The ``.npz`` file to write.
        made_by: What tells the network from others.
        batch_size: Images at a time.

    Raises:
        UserError: If the folder beside it is of other images or another network.
    """
    part = out.with_name(f"{out.stem}.part")
    part.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).eval()
    with locked(part, "extracting the same features"):
        made_of = {"images": images.made_of, "network": made_by, "chunk": CHUNK}
        note = part / "made_of.json"
        if note.exists() and read_json(note) != made_of:
            remedy = "delete the folder, or write to another file"
            raise problem(f"features of the same images in {part}", "others", remedy)
        write_json(note, made_of)
        starts = range(0, images.n, CHUNK)
        for start in track(starts, "Extracting features", console=Console(stderr=True)):
            chunk = part / f"{start:09d}.npz"
            if chunk.exists():
                continue
            stop = min(start + CHUNK, images.n)
            edges = [(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)]
            rows = [features_of(network, images.read(i, j).to(device)).cpu() for i, j in edges]
            write_arrays(chunk, {"z": torch.cat(rows).numpy()}, compressed=False)
        x = np.concatenate([np.load(part / f"{start:09d}.npz")["z"] for start in starts])
        arrays: dict[str, Any] = {"x": MinMaxScaler().fit_transform(x).astype(np.float32)}
        arrays |= {} if images.y is None else {"y": images.y}
        arrays |= {} if images.files is None else {"files": np.array(images.files)}
        write_arrays(out, arrays)
    shutil.rmtree(part)
