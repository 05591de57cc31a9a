"""Samples from image files: a folder of them, or one."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pooch import os_cache
from rich.console import Console
from rich.progress import track
from torch import Tensor

from clusterlab.data.samples import Samples
from clusterlab.data.sources import read_arrays
from clusterlab.errors import UserError, problem
from clusterlab.files import settings_digest, write_arrays

log = logging.getLogger(__name__)

T = TypeVar("T")
Size = tuple[int, int]  # height and width
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LARGEST_KEPT, SIDE = 64, 32  # data.size=auto: up to which side images stay, and what others become
ORIENTATION = 0x0112  # the EXIF tag; 5 and more of its values turn an image on its side
FORMAT = 1  # of decoded folders: raise it when decoding changes


def folder(
    path: str,
    size: int | Sequence[int] | str | None = "auto",
    channels: int | None = None,
    labels: str | None = None,
    name: str | None = None,
    skip_broken: bool = False,
    cache: str | None = None,
) -> Samples:
    """Load a folder of images, nested to any depth.

    Hidden files are passed over. EXIF orientation is applied, transparency dropped, 16 bits are
    scaled to 8, and of an animation the first frame is taken. The decoded images are kept in one
    file, and taken from there as long as no file of the folder changes; then another one takes its
    place.

    Args:
        path: Folder of png, jpg, jpeg, bmp, gif, tif, tiff or webp files.
        size: Side, or height and width, to which every image is stretched. ``"auto"`` leaves
            images of one size of up to 64 x 64 as they are and brings others to 32 x 32; with
            ``None`` the images must all have one size.
        channels: 1 for grey, 3 for RGB; by default grey if every image is, else RGB.
        labels: ``"folder"`` makes the first-level subfolders the classes; no labels by default.
        name: What the records call the set; the folder's name by default.
        skip_broken: Whether files that cannot be read are passed over and listed, as ``skipped``.
        cache: Folder for the decoded images; by default one in the user's cache.

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
    kept_in = Path(cache).expanduser() if cache else os_cache("clusterlab") / "folders"
    asked = settings_digest([FORMAT, str(root.resolve()), side, channels, skip_broken])[:16]
    state = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in _stats(root, files)]
    prepared = kept_in / f"{asked}-{settings_digest(state)[:16]}.npz"
    if _is_there(prepared):
        arrays = read_arrays(prepared, ["x", "files"], (), "delete it: it is made again")
        x, kept = arrays["x"], arrays["files"].tolist()
        log.info("The folder's images, decoded before, come from %s.", prepared)
    else:
        x, kept = _read(root, files, side, channels, skip_broken)
        try:
            kept_in.mkdir(parents=True, exist_ok=True)
            write_arrays(prepared, {"x": x, "files": np.array(kept)}, compressed=False)
            for older in kept_in.glob(f"{asked}-*.npz"):
                if older != prepared:  # of the same folder, before a file of it changed
                    older.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The decoded images cannot be kept for the next run: %s.", error)
    skipped = tuple(sorted(set(files) - set(kept)))
    y, names = folder_labels(kept, root) if labels else (None, None)
    return Samples(
        name or root.resolve().name, torch.from_numpy(x), y, tuple(kept), names, skipped=skipped
    )


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # in a folder that may not be entered
        return False


def _stats(root: Path, files: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    return ((file, (root / file).stat()) for file in files)


def _read(
    root: Path, files: list[str], side: Size | str | None, channels: int | None, skip_broken: bool
) -> tuple[NDArray[np.uint8], list[str]]:
    """Look at all files, decide on size and depth, and decode them."""
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(lambda file: _whole(_look, root / file, skip_broken), files))
        seen = [(file, look) for file, look in zip(files, looks, strict=True) if look is not None]
        if side == "auto":
            sizes = {size for _, (_, size) in seen}
            keep = len(sizes) == 1 and max(max(sizes)) <= LARGEST_KEPT
            side = None if keep else (SIDE, SIDE)
            if not keep and sizes:
                largest = _hw(max(sizes))
                text = "Images of up to %s are brought to %dx%d; data.size=64 keeps more."
                log.info(text, largest, SIDE, SIDE)
        assert not isinstance(side, str)
        depth = channels or (1 if all(grey for _, (grey, _) in seen) else 3)
        return _decoded(root, [file for file, _ in seen], depth, side, skip_broken, pool)


def _decoded(
    root: Path,
    files: list[str],
    channels: int,
    size: Size | None,
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


def _checked_size(size: int | Sequence[int] | str | None) -> Size | str | None:
    if size is None or size == "auto":
        return size
    sides: tuple[Any, ...] = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        expected = "data.size as a side, [height, width] or auto"
        raise problem(expected, size, "set data.size=32")
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


def _look(path: Path) -> tuple[bool, Size]:
    """Tell from a file's head whether the image is grey, and its height and width upright."""
    with _opened(path) as image:
        grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
        if image.mode == "P":  # every GIF, and small PNG files
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            grey = bool(np.all(palette == palette[:, :1]))
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        return grey, image.size if turned else image.size[::-1]


def decode(
    path: Path, channels: int, size: Size | None, crop: float | None = None
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
