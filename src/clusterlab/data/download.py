"""The prepared sets: their public homes, their digests, and how their files come to be."""

import gzip
import hashlib
import http.client
import io
import re
import socket
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pooch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from sklearn.datasets import fetch_openml

from clusterlab.errors import UserError, problem

Arrays = dict[str, NDArray[Any]]

HOMES = {
    "mnist": "https://www.openml.org/d/554",
    "fashion_mnist": "https://www.openml.org/d/40996",
    "usps": "https://hastie.su.domains/ElemStatLearn/datasets",
    "coil20": "http://www.cs.columbia.edu/CAVE/databases/SLAM_coil-20_coil-100/coil-20",
}

# SHA-256 of x.tobytes() and y.tobytes() of each prepared file.
SHA256 = {
    "usps": (
        "f2a139910def0d5a73b00d24fdfb401319627a165dd7ebd3af8103dc0645a9c9",
        "fa8db5b29cb00257466bd31ef08fb4b4b104b74b490598b12b9681b766253c80",
    ),
    "mnist": (
        "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96",
        "818800b46032126b329f9306cb69a6842cc53ea30318374769bb6f46cc861467",
    ),
    "fashion_mnist": (
        "0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab",
        "138bc5cbc39ee06b83e673e3675e93334169ceae7849de38016fa7ef57c6ffba",
    ),
    "coil20": (
        "7274cbacb79ea6c57340827c9f9301745a8e9b3173dea4aa828e00b49c42946c",
        "35049b23ee21c3eac769e31734e51a64b8072276517170093a3fddccd6b9e358",
    ),
}

CLASS_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
}

# Seconds without an answer. OpenML is tried twice: two of these and a pause still end in 15 s.
TIMEOUT = 7.0

# What a fetch raises for want of a network, or when something other than the file came back (a
# login page, half an archive). URLError and the exceptions of requests and Pillow are OSErrors.
FAILURES = (
    OSError,
    ValueError,
    EOFError,
    http.client.HTTPException,
    zipfile.BadZipFile,
    zlib.error,
)


def ensure(source: str, path: Path) -> None:
    """Fetch a set and write its prepared file, unless it is there.

    Args:
        source: A key of ``HOMES``.
        path: The prepared file, ``<root>/<source>.npz``; its folder is made if need be.

    Raises:
        UserError: The set cannot be fetched or written, or what came is not the published set.
    """
    if path.exists():
        return
    home = HOMES[source]
    remedy = f"put the prepared file at {path}, or run again where {home} can be reached"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            # One job of a sweep fetches, the others wait.
            FileLock(path.with_name(f".{source}.lock")),
            # In the same folder, so that the last step is a rename: all of the file or none.
            TemporaryDirectory(dir=path.parent, prefix=f".{source}-") as scratch,
        ):
            if path.exists():
                return
            arrays = fetch(source, Path(scratch))
            verify(source, arrays, f"what {home} sent", remedy)
            part = Path(scratch, "prepared.npz")
            np.savez_compressed(part, x=arrays["x"], y=arrays["y"])
            part.replace(path)
    except UserError:
        raise
    except FAILURES as error:
        reason = " ".join(f"{type(error).__name__} ({error}) while fetching it from {home}".split())
        raise problem(f"the file {path}", reason, remedy) from error


def verify(source: str, arrays: Arrays, where: str, remedy: str) -> None:
    """Compare arrays with the published ones.

    Args:
        source: A key of ``SHA256``.
        arrays: ``x`` and ``y``, any shapes.
        where: What the message calls the origin of the arrays.
        remedy: What the message says to do.

    Raises:
        UserError: An array is missing or its bytes are others.
    """
    for key, expected in zip("xy", SHA256[source], strict=True):
        array = arrays.get(key)
        got = "none" if array is None else hashlib.sha256(array.tobytes()).hexdigest()
        if got != expected:
            raise problem(f"{key} with SHA-256 {expected[:12]} in {where}", f"{got[:12]}", remedy)


def fetch(source: str, scratch: Path) -> Arrays:
    """Fetch one set from its public home; maintained downloaders do the network's part.

    Args:
        source: A key of ``HOMES``.
        scratch: Existing folder for what is downloaded; the caller removes it.

    Returns:
        ``x``, shape ``(N, H, W)``, ``uint8`` (``usps``: ``float32`` in [0, 1]), and ``y``, shape
        ``(N,)``, ``int64``.

    Raises:
        OSError: No network. All of ``FAILURES`` can come when something else was sent.
    """
    with warnings.catch_warnings():
        # scikit-learn warns of each retry and NumPy of an empty text: the exception or the digest
        # that follows says it once.
        warnings.simplefilter("ignore")
        return _FETCHERS[source](scratch)


def parse_usps(*texts: bytes) -> Arrays:
    """Read the zip code data's text: the digit, then 256 values in [-1, 1], one image a line.

    Args:
        texts: ``zip.train`` and ``zip.test``, unpacked.

    Returns:
        ``x``, shape ``(N, 16, 16)``, ``float32``, multiples of 0.0005 in [0, 1], and ``y``, shape
        ``(N,)``, ``int64``.

    Example:
        >>> arrays = parse_usps(b"6.0000 " + b"-1.0000 0.5000 " * 128)
        >>> arrays["x"].shape, arrays["x"][0, 0, :2].tolist(), arrays["y"].tolist()
        ((1, 16, 16), [0.0, 0.75], [6])
    """
    rows = np.concatenate([np.loadtxt(io.BytesIO(text), ndmin=2) for text in texts])
    # Thousandths are whole numbers: rounding them first gives the same bits whatever the number of
    # printed decimals.
    x = (np.rint(1000 * rows[:, 1:]) + 1000) / 2000
    return {
        "x": x.astype(np.float32).reshape(-1, 16, 16),
        "y": rows[:, 0].astype(np.int64),
    }


def _usps(scratch: Path) -> Arrays:
    files = [
        _download(f"{HOMES['usps']}/{name}", scratch) for name in ("zip.train.gz", "zip.test.gz")
    ]
    return parse_usps(*(_unpacked(path.read_bytes()) for path in files))


def _unpacked(data: bytes) -> bytes:
    # A server may declare the .gz an encoding of the text, and the client then unpacks it.
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def _coil20(scratch: Path) -> Arrays:
    path = _download(f"{HOMES['coil20']}/coil-20-proc.zip", scratch)
    with zipfile.ZipFile(path) as archive:
        found = sorted(
            (int(match[1]), int(match[2]), member)
            for member in archive.namelist()
            if (match := re.fullmatch(r"obj(\d+)__(\d+)\.png", Path(member).name))
        )
        # The list is empty for another archive; np.stack then raises ValueError.
        x = np.stack([_grey_image(archive.read(member)) for _, _, member in found])
    return {"x": x, "y": np.array([number - 1 for number, _, _ in found], dtype=np.int64)}


def _grey_image(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


def _download(url: str, scratch: Path) -> Path:
    # No known_hash: the caller checks the arrays, and pooch's line about the file's hash is noise.
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    name = url.rsplit("/", 1)[-1]
    return Path(pooch.retrieve(url, None, fname=name, path=scratch, downloader=downloader))


def _openml(name: str, scratch: Path) -> Arrays:
    console = Console(stderr=True)
    with (
        console.status(f"Fetching {name} from openml.org (about 15 MB, then a minute of parsing)"),
        _socket_timeout(TIMEOUT),
    ):
        bunch = fetch_openml(
            name,
            version=1,
            data_home=scratch,
            as_frame=False,
            n_retries=1,
            parser="liac-arff",  # the other one needs pandas
        )
    return {
        "x": bunch.data.astype(np.uint8).reshape(-1, 28, 28),
        "y": bunch.target.astype(np.int64),
    }


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # scikit-learn passes no timeout on: behind a firewall that drops packets it would wait minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_FETCHERS: dict[str, Callable[[Path], Arrays]] = {
    "mnist": partial(_openml, "mnist_784"),
    "fashion_mnist": partial(_openml, "Fashion-MNIST"),
    "usps": _usps,
    "coil20": _coil20,
}
