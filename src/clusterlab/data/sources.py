"""Where samples come from: bundled, prepared, or a user's own file or folder."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor

from clusterlab.data.download import CLASS_NAMES, SHA256, ensure, verify
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError

Array = NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SHAPES = "images (N,H,W), (N,H,W,C) or (N,C,H,W) with C 1 or 3"


def digits() -> Samples:
    """Load the digits that come with scikit-learn.

    Returns:
        1797 grey 8 x 8 images, ``float32``, and their digits.

    Example:
        >>> digits().x.shape
        torch.Size([1797, 1, 8, 8])
    """
    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[:, None]
    return Samples("digits", torch.from_numpy(x), torch.from_numpy(bunch.target.astype(np.int64)))


def prepared(
    name: str,
    root: str | None = None,
    rows: tuple[int, int] | None = None,
    source: str | None = None,
) -> Samples:
    """Load a benchmark set from its prepared file, which is fetched first if it is missing.

    Args:
        name: What the records call the set.
        root: Folder of the prepared files; by default the environment variable ``CLUSTERLAB_DATA``,
            else a folder in the user's cache.
        rows: First row and the row after the last; all rows by default.
        source: The prepared file without ``.npz``, a key of ``SHA256``; ``name`` by default.

    Returns:
        Grey images, shape ``(N, 1, H, W)``, ``uint8`` (``usps``: ``float32``), and labels. The
        digest of a whole set is the published one, which the file was just checked against.

    Raises:
        UserError: The set or the rows do not exist, the file is not the published one, or it is
            missing and cannot be fetched.
    """
    source = source or name
    if source not in SHA256:
        raise _problem(f"one of the sets {', '.join(SHA256)}", source, "use data=npz for a file")
    default = os.environ.get("CLUSTERLAB_DATA") or pooch.os_cache("clusterlab")
    path = Path(root or default).expanduser() / f"{source}.npz"
    ensure(source, path)
    remedy = "delete the file and run again to fetch it"
    arrays = _read(path, remedy)
    verify(source, arrays, str(path), remedy)
    x, y, sha256 = _channels_first(arrays["x"], path), arrays["y"], SHA256[source][0]
    if rows is not None:
        start, stop = rows
        if not 0 <= start < stop <= len(x):
            expected = f"data.rows [start, stop] within 0..{len(x)}"
            raise _problem(expected, f"[{start}, {stop}]", "correct them")
        # Copies, not views: the other rows can then be freed.
        x, y, sha256 = x[start:stop].copy(), y[start:stop].copy(), ""
    names = CLASS_NAMES.get(source)
    return Samples(name, torch.from_numpy(x), torch.from_numpy(y), None, names, sha256)


def npz(path: str, name: str | None = None) -> Samples:
    """Load a user's ``.npz`` file.

    Four axes are read as ``(N, H, W, C)`` if the last one is 1 or 3 long, and otherwise as
    ``(N, C, H, W)``; three axes are always grey images ``(N, H, W)``.

    Args:
        path: File with ``x``, ``uint8`` or floating point in [0, 1], and optionally ``y``, shape
            ``(N,)``, whole numbers of any value.
        name: What the records call the set; the file's name by default.

    Returns:
        Images, shape ``(N, C, H, W)``, ``uint8`` or ``float32``; labels renumbered 0..k-1 in the
        order of the original values, which become the class names.

    Raises:
        UserError: The file cannot be read, or its arrays are not as above.
    """
    file = Path(path).expanduser()
    arrays = _read(file, "save it again with numpy.savez(path, x=x, y=y)")
    x = _checked_values(_channels_first(arrays["x"], file), file)
    y, names = _checked_labels(arrays["y"], len(x), file) if "y" in arrays else (None, None)
    return Samples(name or file.stem, torch.from_numpy(x), y, class_names=names)


def folder(
    path: str,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    labels: str | None = None,
    name: str | None = None,
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

    Returns:
        Images sorted by relative path, shape ``(N, C, H, W)``, ``uint8``; the relative paths.

    Raises:
        UserError: The folder has no images, one cannot be read, or their sizes differ.
    """
    root = Path(path).expanduser()
    side = _checked_size(size)
    if channels not in (None, 1, 3):
        raise _problem("data.channels 1, 3 or null", channels, "correct it")
    if labels not in (None, "folder"):
        raise _problem("data.labels=folder or null", labels, "correct it")
    files = _image_files(root)
    paths = [root / file for file in files]
    y, names = _folder_labels(files, root) if labels else (None, None)
    with ThreadPoolExecutor() as pool:
        depth = channels or (1 if all(pool.map(_is_grey, paths)) else 3)
        shape = _decode(paths[0], depth, side).shape
        x = np.empty((len(paths), *shape), dtype=np.uint8)

        def fill(index: int) -> None:
            image = _decode(paths[index], depth, side)
            if image.shape != shape:
                sizes = [f"{files[0]} {_hw(shape)}", f"{files[index]} {_hw(image.shape)}"]
                raise _problem(
                    f"images of one size under {root}",
                    " and ".join(sizes),
                    "set data.size=32, or another size, to resize them",
                )
            x[index] = image

        for _ in pool.map(fill, range(len(paths))):
            pass
    return Samples(name or root.resolve().name, torch.from_numpy(x), y, tuple(files), names)


def _problem(expected: str, got: object, remedy: str) -> UserError:
    # An error quoted in `got` may have several lines.
    return UserError(" ".join(f"Expected {expected}, got {got}; {remedy}".split()))


def _read(file: Path, remedy: str) -> dict[str, Array]:
    if not file.is_file():
        got = "a folder" if file.is_dir() else "nothing there"
        raise _problem(f"a file {file}", got, "correct data.path")
    if not zipfile.is_zipfile(file):
        raise _problem(f"an npz file {file}", f"{file.stat().st_size} bytes of no npz", remedy)
    try:
        with np.load(file) as archive:
            keys = archive.files
            arrays = {key: np.asarray(archive[key]) for key in ("x", "y") if key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _problem(f"plain arrays in {file}", f"the error {error}", remedy) from error
    if "x" not in arrays:
        raise _problem(f"an array x in {file}", ", ".join(keys) or "no arrays", remedy)
    return arrays


def _channels_first(x: Array, file: Path) -> Array:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim != 4 or x.shape[1] not in (1, 3):
        remedy = "reshape x, for example x.reshape(N, H, W)"
        raise _problem(f"{SHAPES} in {file}", f"shape {x.shape}", remedy)
    if x.size == 0:
        raise _problem(f"at least one sample in {file}", f"shape {x.shape}", "add images to x")
    return np.ascontiguousarray(x)


def _checked_values(x: Array, file: Path) -> Array:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        remedy = "save x as uint8 in 0..255 or as float32 in [0, 1]"
        raise _problem(f"uint8 or floating point x in {file}", x.dtype, remedy)
    broken = ~np.isfinite(x)
    if broken.any():
        first = broken.reshape(len(x), -1).any(axis=1).argmax()
        got = f"{broken.sum()} NaN or infinite values, first in sample {first}"
        raise _problem(f"finite x in {file}", got, "remove or repair these samples")
    if x.min() < 0 or x.max() > 1:
        got = f"min {x.min()} and max {x.max()}"
        raise _problem(f"x in [0, 1] in {file}", got, "scale x to [0, 1] or save it as uint8")
    return x.astype(np.float32, copy=False)


def _checked_labels(y: Array, n: int, file: Path) -> tuple[Tensor, tuple[str, ...]]:
    if y.shape != (n,):
        remedy = "give one label a sample, or leave y out"
        raise _problem(f"y of shape ({n},) in {file}", f"shape {y.shape}", remedy)
    odd = y[~np.isfinite(y) | (y != np.rint(y))] if y.dtype.kind in "biuf" else y
    if len(odd):
        remedy = "number the classes, or leave y out"
        raise _problem(f"whole numbers as y in {file}", f"{y.dtype} such as {odd[0]}", remedy)
    classes, index = np.unique(y, return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(str(int(label)) for label in classes)


def _checked_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise _problem("data.size as a side or [height, width]", size, "set data.size=32")
    return sides[0], sides[1]


def _image_files(root: Path) -> list[str]:
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise _problem(f"a folder {root}", got, "correct data.path")
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    files = sorted(
        path.as_posix()
        for path in found
        # Hidden files are other programs' leftovers; macOS names them after the images.
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(p.startswith(".") for p in path.parts)
    )
    if not files:
        expected = f"images ({', '.join(IMAGE_SUFFIXES)}) under {root}"
        raise _problem(expected, f"none among {len(found)} files", "correct data.path")
    return files


def _folder_labels(files: list[str], root: Path) -> tuple[Tensor, tuple[str, ...]]:
    for file in files:
        if "/" not in file:
            expected = f"every image in a class folder under {root}"
            raise _problem(expected, f"{file} outside one", "move it, or set data.labels=null")
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
        raise _problem(f"an image {path}", f"the error {error}", remedy) from error


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        if image.mode == "P":  # every GIF, and small PNG files
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            return bool(np.all(palette == palette[:, :1]))
        return image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")


def _decode(path: Path, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return one image, shape ``(C, H, W)``."""
    with _opened(path) as opened:
        image = _eight_bit(ImageOps.exif_transpose(opened), path)
        image = image.convert("L" if channels == 1 else "RGB")
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
        raise _problem(f"8 or 16 bits a pixel in {path}", got, "convert it to 8 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _hw(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
