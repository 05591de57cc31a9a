"""Samples from arrays: bundled, prepared, or a user's own file."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from clusterlab.data.download import CLASS_NAMES, SHA256, ensure, verify
from clusterlab.data.samples import Samples
from clusterlab.errors import problem

Array = NDArray[Any]

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
    rows: Sequence[int] | None = None,
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
        raise problem(f"one of the sets {', '.join(SHA256)}", source, "use data=npz for a file")
    default = os.environ.get("CLUSTERLAB_DATA") or pooch.os_cache("clusterlab")
    path = Path(root or default).expanduser() / f"{source}.npz"
    ensure(source, path)
    remedy = "delete the file and run again to fetch it"
    arrays = _read(path, remedy)
    verify(source, arrays, str(path), remedy)
    x, y, sha256 = _channels_first(arrays["x"], str(path)), arrays["y"], SHA256[source][0]
    if rows is not None:
        if len(rows) != 2 or not 0 <= rows[0] < rows[1] <= len(x):
            expected = f"data.rows [start, stop] within 0..{len(x)}"
            raise problem(expected, list(rows), "correct them")
        # Copies, not views: the other rows can then be freed.
        x, y, sha256 = x[slice(*rows)].copy(), y[slice(*rows)].copy(), ""
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
    x = as_images(arrays["x"], str(file))
    y, names = _checked_labels(arrays["y"], len(x), file) if "y" in arrays else (None, None)
    return Samples(name or file.stem, torch.from_numpy(x), y, class_names=names)


def as_images(x: Array, where: str) -> Array:
    """Bring an array to the axes and types of stored images, or say why it is none.

    Args:
        x: Shape ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with C 1 or 3, ``uint8`` or
            floating point in [0, 1].
        where: What the message calls the origin of the array.

    Returns:
        Shape ``(N, C, H, W)``, ``uint8`` or ``float32``.

    Raises:
        UserError: If it has other axes or values.
    """
    return _checked_values(_channels_first(x, where), where)


def _read(file: Path, remedy: str) -> dict[str, Array]:
    if not file.is_file():
        got = "a folder" if file.is_dir() else "nothing there"
        raise problem(f"a file {file}", got, "correct data.path")
    if not zipfile.is_zipfile(file):
        raise problem(f"an npz file {file}", f"{file.stat().st_size} bytes of no npz", remedy)
    try:
        with np.load(file) as archive:
            keys = archive.files
            arrays = {key: np.asarray(archive[key]) for key in ("x", "y") if key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise problem(f"plain arrays in {file}", f"the error {error}", remedy) from error
    if "x" not in arrays:
        raise problem(f"an array x in {file}", ", ".join(keys) or "no arrays", remedy)
    return arrays


def _channels_first(x: Array, file: str) -> Array:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim != 4 or x.shape[1] not in (1, 3):
        remedy = "reshape x, for example x.reshape(N, H, W)"
        raise problem(f"{SHAPES} in {file}", f"shape {x.shape}", remedy)
    if x.size == 0:
        raise problem(f"at least one sample in {file}", f"shape {x.shape}", "add images to x")
    return np.ascontiguousarray(x)


def _checked_values(x: Array, file: str) -> Array:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        remedy = "save x as uint8 in 0..255 or as float32 in [0, 1]"
        raise problem(f"uint8 or floating point x in {file}", x.dtype, remedy)
    broken = ~np.isfinite(x)
    if broken.any():
        first = broken.reshape(len(x), -1).any(axis=1).argmax()
        got = f"{broken.sum()} NaN or infinite values, first in sample {first}"
        raise problem(f"finite x in {file}", got, "remove or repair these samples")
    if x.min() < 0 or x.max() > 1:
        got = f"min {x.min()} and max {x.max()}"
        raise problem(f"x in [0, 1] in {file}", got, "scale x to [0, 1] or save it as uint8")
    return x.astype(np.float32, copy=False)


def _checked_labels(y: Array, n: int, file: Path) -> tuple[Tensor, tuple[str, ...]]:
    if y.shape != (n,):
        remedy = "give one label a sample, or leave y out"
        raise problem(f"y of shape ({n},) in {file}", f"shape {y.shape}", remedy)
    odd = y[~np.isfinite(y) | (y != np.rint(y))] if y.dtype.kind in "biuf" else y
    if len(odd):
        remedy = "number the classes, or leave y out"
        raise problem(f"whole numbers as y in {file}", f"{y.dtype} such as {odd[0]}", remedy)
    classes, index = np.unique(y, return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(str(int(label)) for label in classes)
