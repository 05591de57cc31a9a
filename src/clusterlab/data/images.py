"""Samples from image files: a folder of them, or one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from clusterlab.data.samples import Samples
from clusterlab.errors import UserError, problem

log = logging.getLogger(__name__)

T = TypeVar("T")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def folder(
    path: str,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    labels: str | None = None,
    name: str | None = None,
    skip_broken: bool = False,
) -> Samples:
    """Load a folder of images, nested to any depth.

    Hidden files are passed over. EXIF orientation is applied, transparency dropped, 16 bits are
    scaled to 8, and of an animation the first frame is taken.

    Args:
        path: Folder of png, jpg, jpeg, bmp, gif, tif, tiff or webp files.
        size: Side, or height and width, to which every image is stretched; by default the images
            must all have one size.
        channels: 1 for grey, 3 for RGB; by default grey if every image is, else RGB.
        labels: ``"folder"`` makes the first-level subfolders the classes; no labels by default.
        name: What the records call the set; the folder's name by default.
        skip_broken: Whether files that cannot be read are passed over and listed, as ``skipped``.

    Returns:
        Images sorted by relative path, shape ``(N, C, H, W)``, ``uint8``; the relative paths.

    Raises:
        UserError: The folder has no images, one cannot be read, or their sizes differ.
    """
    root = Path(path).expanduser()
    side = _checked_size(size)
    if channels not in (None, 1, 3):
        raise problem("data.channels 1, 3 or null", channels, "correct it")
    if labels not in (None, "folder"):
        raise problem("data.labels=folder or null", labels, "correct it")
    files = image_files(root)
    if labels:
        folder_labels(files, root)  # says what is wrong before hours of decoding
    with ThreadPoolExecutor() as pool:
        grey = list(pool.map(lambda file: _whole(_is_grey, root / file, skip_broken), files))
        depth = channels or (1 if all(value is not False for value in grey) else 3)
        kept = [file for file, value in zip(files, grey, strict=True) if value is not None]
        x, kept = _decoded(root, kept, depth, side, skip_broken, pool)
    skipped = tuple(sorted(set(files) - set(kept)))
    y, names = folder_labels(kept, root) if labels else (None, None)
    return Samples(
        name or root.resolve().name, torch.from_numpy(x), y, tuple(kept), names, skipped=skipped
    )


def _decoded(
    root: Path,
    files: list[str],
    channels: int,
    size: tuple[int, int] | None,
    skip_broken: bool,
    pool: Executor,
) -> tuple[NDArray[np.uint8], list[str]]:
    """Decode files side by side, into one array, and name those that could be."""

    def image_of(file: str) -> NDArray[np.uint8] | None:
        return _whole(lambda path: decode(path, channels, size), root / file, skip_broken)

    first = None
    while files and (first := image_of(files[0])) is None:
        files = files[1:]
    if first is None:
        raise problem(f"an image under {root}", "broken files alone", "replace them")
    x = np.empty((len(files), *first.shape), dtype=np.uint8)
    broken = np.zeros(len(files), dtype=bool)

    def fill(index: int) -> None:
        image = image_of(files[index])
        if image is None:
            broken[index] = True
        elif image.shape != first.shape:
            sizes = [f"{files[0]} {_hw(first.shape)}", f"{files[index]} {_hw(image.shape)}"]
            raise problem(
                f"images of one size under {root}",
                " and ".join(sizes),
                "set data.size=32, or another size, to resize them",
            )
        else:
            x[index] = image

    done = pool.map(fill, range(len(files)))
    console = Console(stderr=True)
    for _ in track(done, "Decoding", len(files), console=console, disable=not console.is_terminal):
        pass
    if not broken.any():
        return x, files
    return x[~broken], [file for file, bad in zip(files, broken, strict=True) if not bad]


def _whole(read: Callable[[Path], T], path: Path, skip_broken: bool) -> T | None:
    """Read a file; ``None`` for a broken one, where those are passed over."""
    try:
        return read(path)
    except UserError as error:
        if not skip_broken:
            raise
        log.warning("Passed over: %s", error)
        return None


def _checked_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise problem("data.size as a side or [height, width]", size, "set data.size=32")
    return sides[0], sides[1]


def image_files(root: Path) -> list[str]:
    """Return the relative paths of a folder's images, sorted.

    Raises:
        UserError: If there is no folder, or none in it.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise problem(f"a folder {root}", got, "correct data.path")
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    files = sorted(
        path.as_posix()
        for path in found
        # Hidden files are other programs' leftovers; macOS names them after the images.
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(p.startswith(".") for p in path.parts)
    )
    if not files:
        expected = f"images ({', '.join(IMAGE_SUFFIXES)}) under {root}"
        raise problem(expected, f"none among {len(found)} files", "correct data.path")
    return files


def folder_labels(files: list[str], root: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels that first-level folders give, shape ``(N,)``, and the folders' names.

    Raises:
        UserError: If a file lies outside of them.
    """
    for file in files:
        if "/" not in file:
            expected = f"every image in a class folder under {root}"
            raise problem(expected, f"{file} outside one", "move it, or set data.labels=null")
    classes, index = np.unique([file.split("/")[0] for file in files], return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(classes.tolist())


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    # Every format's plugin has its own errors: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        remedy = "delete or replace it"
        raise problem(f"an image {path}", f"the error {error}", remedy) from error


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        if image.mode == "P":  # every GIF, and small PNG files
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            return bool(np.all(palette == palette[:, :1]))
        return image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")


def decode(
    path: Path, channels: int, size: tuple[int, int] | None, crop: float | None = None
) -> NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: The file.
        channels: 1 for grey, 3 for RGB.
        size: Height and width to stretch it to; its own by default.
        crop: Share of the shorter side to keep before, a square in the middle; all by default.

    Returns:
        Shape ``(C, H, W)``, ``uint8``.

    Raises:
        UserError: If it is not an image, or one of more than 16 bits.
    """
    with _opened(path) as opened:
        image = _eight_bit(ImageOps.exif_transpose(opened), path)
        image = image.convert("L" if channels == 1 else "RGB")
        if crop is not None:
            side = max(1, round(crop * min(image.size)))
            left, top = ((whole - side) // 2 for whole in image.size)
            image = image.crop((left, top, left + side, top + side))
        if size is not None:
            # Pillow wants (width, height); its bilinear filter widens when shrinking: no aliases.
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in ("P", "PA"):
        return image.convert("RGBA")  # straight to RGB, Pillow warns of transparent palettes
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    # 16 bit grey is mode I;16 or, from older versions of Pillow, I.
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        got = f"mode {image.mode} with values {values.min()}..{values.max()}"
        raise problem(f"8 or 16 bits a pixel in {path}", got, "convert it to 8 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _hw(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
