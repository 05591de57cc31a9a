"""Samples from arrays: bundled, prepared, or a user's own file."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from clusterlab.data.download import CLASS_NAMES, SHA256, ensure, verify
from clusterlab.data.samples import Samples
from clusterlab.errors import problem

Array = NDArray[Any]

SHAPES = "vectors (N,d), or images (N,H,W), (N,H,W,C) or (N,C,H,W) with C 1 or 3"


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
    size: int | None = None,
    balanced: bool = False,
) -> Samples:
    """Load a benchmark set from its prepared file, which is fetched first if it is missing.

    Args:
        name: What the records call the set.
        root: Folder of the prepared files; by default the environment variable ``CLUSTERLAB_DATA``,
            else a folder in the user's cache.
        rows: First row and the row after the last; all rows by default.
        source: The prepared file without ``.npz``, a key of ``SHA256``; ``name`` by default.
        size: Side that the images are brought to by averaging blocks; a divisor of theirs.
        balanced: Whether to keep as many samples of each class as the smallest class has, drawn at
            random but always the same. The labels then choose the data: for experiments on balance.

    Returns:
        Grey images, shape ``(N, 1, H, W)``, ``uint8`` (``usps``: ``float32``), or vectors, shape
        ``(N, d)``, and labels. The digest of a whole set is the published one, which the file was
        just checked against.

    Raises:
        UserError: The set or the rows do not exist, the file is not the published one, or it is
            missing and cannot be fetched.
    """
    source = source or name
    arrays, path = prepared_arrays(source, root)
    x, y, sha256 = _channels_first(arrays["x"], str(path)), arrays["y"], SHA256[source]["x"]
    if rows is not None:
        if len(rows) != 2 or not 0 <= rows[0] < rows[1] <= len(x):
            expected = f"data.rows [start, stop] within 0..{len(x)}"
            raise problem(expected, list(rows), "correct them")
        # Copies, not views: the other rows can then be freed.
        x, y, sha256 = x[slice(*rows)].copy(), y[slice(*rows)].copy(), ""
    if size is not None:
        if x.ndim != 4 or size < 1 or any(side % size for side in x.shape[2:]):
            expected = f"data.size that divides the sides of {source}"
            raise problem(expected, f"{size} for shape {x.shape[1:]}", "correct it")
        blocks = x.reshape(*x.shape[:2], size, x.shape[2] // size, size, x.shape[3] // size)
        mean = blocks.mean(axis=(3, 5), dtype=np.float64)
        x = (mean / (255 if x.dtype == np.uint8 else 1)).astype(np.float32)
        sha256 = ""
    if balanced:
        kept = _balanced(y)
        x, y, sha256 = x[kept], y[kept], ""
    names = CLASS_NAMES.get(source)
    return Samples(name, torch.from_numpy(x), torch.from_numpy(y), None, names, sha256)


def _balanced(y: Array) -> Array:
    order = np.random.default_rng(0).permutation(len(y))
    smallest = np.bincount(y).min()
    kept = [order[y[order] == label][:smallest] for label in range(y.max() + 1)]
    return np.sort(np.concatenate(kept))


def prepared_arrays(source: str, root: str | None = None) -> tuple[dict[str, Array], Path]:
    """Read a prepared file, fetched first if it is missing, and compare it with its digests.

    Args:
        source: The file without ``.npz``, a key of ``SHA256``.
        root: Its folder, see ``prepared``.

    Returns:
        Its arrays, and where it is.

    Raises:
        UserError: As ``prepared``.
    """
    if source not in SHA256:
        raise problem(f"one of the sets {', '.join(SHA256)}", source, "use data=npz for a file")
    default = os.environ.get("CLUSTERLAB_DATA") or pooch.os_cache("clusterlab")
    path = Path(root or default).expanduser() / f"{source}.npz"
    ensure(source, path)
    remedy = "delete the file and run again to fetch it"
    arrays = read_arrays(path, list(SHA256[source]), (), remedy)
    verify(source, arrays, str(path), remedy)
    return arrays, path


def npz(path: str, name: str | None = None) -> Samples:
    """Load a user's ``.npz`` file.

    Two axes are vectors ``(N, d)``, three are grey images ``(N, H, W)``, and four are read as
    ``(N, H, W, C)`` if the last one is 1 or 3 long, and otherwise as ``(N, C, H, W)``.

    Args:
        path: File with ``x``, ``uint8`` or floating point, which for images is in [0, 1], and
            optionally ``y``, shape ``(N,)``, whole numbers of any value, and ``files``, shape
            ``(N,)``, the file that each came from.
        name: What the records call the set; the file's name by default.

    Returns:
        Vectors, shape ``(N, d)``, or images, shape ``(N, C, H, W)``, ``uint8`` or ``float32``;
        labels renumbered 0..k-1 in the order of the original values, which become the class names.

    Raises:
        UserError: The file cannot be read, or its arrays are not as above.
    """
    file = Path(path).expanduser()
    remedy = "save it again with numpy.savez(path, x=x, y=y), or use data=text for term counts"
    arrays = read_arrays(file, ["x"], ["y", "files"], remedy)
    samples = array(arrays["x"], name or file.stem, arrays.get("y"), str(file))
    if "files" not in arrays:
        return samples
    if len(arrays["files"]) != len(samples):
        remedy = "name one a sample, or none"
        raise problem(f"{len(samples)} files in {file}", len(arrays["files"]), remedy)
    return replace(samples, files=tuple(map(str, arrays["files"])))


def array(
    x: ArrayLike | None = None,
    name: str = "array",
    y: ArrayLike | None = None,
    where: str = "the samples",
) -> Samples:
    """Take samples that are in memory; what a source of one's own returns.

    Args:
        x: As ``as_samples`` takes them; ``None`` if there are none, as on the command line.
        name: What the records call the set.
        y: As ``checked_labels`` takes them; ``None`` without labels.
        where: What a message calls their origin.

    Raises:
        UserError: If there are none, or they have other axes or values.

    Example:
        >>> samples = array(np.zeros((3, 8, 8)), y=[5, 7, 5])
        >>> samples.x.shape, samples.y, samples.class_names
        (torch.Size([3, 1, 8, 8]), tensor([0, 1, 0]), ('5', '7'))
    """
    if x is None:
        raise problem("samples from a program", "none", "use data=npz for a file")
    stored = torch.from_numpy(as_samples(np.asarray(x), where))
    labels, names = (None, None) if y is None else checked_labels(np.asarray(y), len(stored), where)
    return Samples(name, stored, labels, class_names=names)


def as_samples(x: Array, where: str) -> Array:
    """Bring an array to the axes and types of stored samples, or say why it is none.

    Args:
        x: Images, shape ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with C 1 or 3,
            ``uint8`` or floating point in [0, 1]; or vectors, shape ``(N, d)``, of any numbers.
        where: What the message calls the origin of the array.

    Returns:
        Shape ``(N, C, H, W)`` or ``(N, d)``, ``uint8`` or ``float32``.

    Raises:
        UserError: If it has other axes or values.
    """
    return _checked_values(_channels_first(x, where), where)


def read_arrays(
    file: Path, needed: Sequence[str], others: Sequence[str], remedy: str
) -> dict[str, Array]:
    """Read arrays of an ``.npz`` file.

    Args:
        file: The file.
        needed: Arrays that it must have.
        others: Arrays to read as well where it has them.
        remedy: What messages say to do.

    Raises:
        UserError: If it is not there or not an ``.npz`` file, an array is missing or no plain one.
    """
    if not file.is_file():
        got = "a folder" if file.is_dir() else "nothing there"
        raise problem(f"a file {file}", got, "correct data.path")
    if not zipfile.is_zipfile(file):
        raise problem(f"an npz file {file}", f"{file.stat().st_size} bytes of no npz", remedy)
    try:
        with np.load(file) as archive:
            keys = archive.files
            wanted = [key for key in (*needed, *others) if key in keys]
            arrays = {key: np.asarray(archive[key]) for key in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise problem(f"plain arrays in {file}", f"the error {error}", remedy) from error
    if missing := [key for key in needed if key not in keys]:
        got = ", ".join(keys) or "no arrays"
        raise problem(f"an array {missing[0]} in {file}", got, remedy)
    return arrays


def _channels_first(x: Array, file: str) -> Array:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim != 2 and (x.ndim != 4 or x.shape[1] not in (1, 3)):
        remedy = "reshape x, for example x.reshape(N, H, W)"
        raise problem(f"{SHAPES} in {file}", f"shape {x.shape}", remedy)
    if x.size == 0:
        raise problem(f"at least one sample in {file}", f"shape {x.shape}", "add samples to x")
    return np.ascontiguousarray(x)


def _checked_values(x: Array, file: str) -> Array:
    if x.dtype == np.uint8:
        return x
    vectors = x.ndim == 2
    if x.dtype.kind not in ("biuf" if vectors else "f"):
        remedy = "save x as uint8 in 0..255 or as float32 in [0, 1]"
        raise problem(f"uint8 or floating point x in {file}", x.dtype, remedy)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    broken = ~np.isfinite(x)
    if broken.any():
        first = broken.reshape(len(x), -1).any(axis=1).argmax()
        got = f"{broken.sum()} NaN or infinite values, first in sample {first}"
        raise problem(f"finite x in {file}", got, "remove or repair these samples")
    if not vectors and (x.min() < 0 or x.max() > 1):
        got = f"min {x.min()} and max {x.max()}"
        raise problem(f"x in [0, 1] in {file}", got, "scale x to [0, 1] or save it as uint8")
    return x


def checked_labels(y: Array, n: int, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Number labels 0..k-1 in the order of their values, and keep those as names.

    Args:
        y: Labels, shape ``(n,)``, whole numbers of any value.
        n: How many there must be.
        where: What a message calls their origin.

    Raises:
        UserError: If they are not as above.
    """
    if y.shape != (n,):
        remedy = "give one label a sample, or leave y out"
        raise problem(f"y of shape ({n},) in {where}", f"shape {y.shape}", remedy)
    odd = y[~np.isfinite(y) | (y != np.rint(y))] if y.dtype.kind in "biuf" else y
    if len(odd):
        remedy = "number the classes, or leave y out"
        raise problem(f"whole numbers as y in {where}", f"{y.dtype} such as {odd[0]}", remedy)
    classes, index = np.unique(y, return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(str(int(label)) for label in classes)
