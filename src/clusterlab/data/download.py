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
from scipy.io import loadmat
from scipy.sparse import csr_matrix
from sklearn.datasets import fetch_openml, fetch_rcv1
from sklearn.preprocessing import normalize

from clusterlab.errors import UserError, problem

Arrays = dict[str, NDArray[Any]]

HOMES = {
    "mnist": "https://www.openml.org/d/554",
    "fashion_mnist": "https://www.openml.org/d/40996",
    "usps": "https://hastie.su.domains/ElemStatLearn/datasets",
    "coil20": "http://www.cs.columbia.edu/CAVE/databases/SLAM_coil-20_coil-100/coil-20",
    # Deng Cai's matrices, of which these are copies
    "reuters21578": "https://github.com/Saeidhoseinipour/NMTFcoclust/raw/6c12fd90/Datasets",
    "newsgroups20": "https://github.com/Saeidhoseinipour/NMTFcoclust/raw/6c12fd90/Datasets",
    "stl10": "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "reuters10k": "https://www.jmlr.org/papers/volume5/lewis04a/lyrl2004_rcv1v2_README.htm",
}

# SHA-256 of the bytes of each array of a prepared file, as x.tobytes() gives them; empty where
# nobody published one.
SHA256: dict[str, dict[str, str]] = {
    "usps": {
        "x": "f2a139910def0d5a73b00d24fdfb401319627a165dd7ebd3af8103dc0645a9c9",
        "y": "fa8db5b29cb00257466bd31ef08fb4b4b104b74b490598b12b9681b766253c80",
    },
    "mnist": {
        "x": "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96",
        "y": "818800b46032126b329f9306cb69a6842cc53ea30318374769bb6f46cc861467",
    },
    "fashion_mnist": {
        "x": "0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab",
        "y": "138bc5cbc39ee06b83e673e3675e93334169ceae7849de38016fa7ef57c6ffba",
    },
    "coil20": {
        "x": "7274cbacb79ea6c57340827c9f9301745a8e9b3173dea4aa828e00b49c42946c",
        "y": "35049b23ee21c3eac769e31734e51a64b8072276517170093a3fddccd6b9e358",
    },
    "reuters21578": {
        "data": "93179eb576e85b91a9e0ed5f492d2334a6f97b31071d6d9d0e7fb3e9626a9d25",
        "indices": "d2e22cd8b285310d646d079cdacc9313ae077bb5d5351a96da014e7c76b3e23a",
        "indptr": "583c43bed2ba14902d86a286f114bc1a1dd5c6d62e656755f2c9f4cd92452644",
        "shape": "0c8e866cb35d50544d64015cce3912f9d4edc0c3d76533f74fad7254b5ee8d39",
        "y": "1f56cb649470f81ee3b61cfd8c1c1e8a75369cab92941498fb87ce27a56399ce",
    },
    "newsgroups20": {
        "data": "32fa60d6404f01716e56abae8aaeac04c86e58b5ae3098565cfe5156671e0909",
        "indices": "02d7be1f36d09a18e16f62cf26f3e5447180ca983f6d82e361ac189d33138a1f",
        "indptr": "09f2106b567cc062a9b6e96b72cf0ed99d80af7dc63906295fca7a057d61e04f",
        "shape": "ba80f1b95e6e96f24f8eccd2684d830010ed5ff59a79ffa5bcdd5d9d104b29cb",
        "y": "c1d915e9796bc52599f0f1a5a1ec0ede9356f87672c263c8c1211441b9e5cedd",
    },
    "reuters10k": {"x": "", "y": ""},
    "stl10": {"x": "", "y": ""},
    "cifar10": {"x": "", "y": ""},
}

CLASS_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "newsgroups20": (
        *("alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware"),
        *("comp.sys.mac.hardware", "comp.windows.x", "misc.forsale", "rec.autos"),
        *("rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey", "sci.crypt"),
        *("sci.electronics", "sci.med", "sci.space", "soc.religion.christian"),
        *("talk.politics.guns", "talk.politics.mideast", "talk.politics.misc"),
        "talk.religion.misc",
    ),
    "reuters10k": ("CCAT", "ECAT", "GCAT", "MCAT"),
    "stl10": (
        *("airplane", "bird", "car", "cat", "deer"),
        *("dog", "horse", "monkey", "ship", "truck"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
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
    if source not in _FETCHERS:
        remedy = f"make it with: python scripts/extract_features.py {source} {path}"
        raise problem(f"the file {path}", "nothing there", remedy)
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
            np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
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
        arrays: The set's, any shapes.
        where: What the message calls the origin of the arrays.
        remedy: What the message says to do.

    Raises:
        UserError: An array is missing or its bytes are others.
    """
    for key, expected in SHA256[source].items():
        array = arrays.get(key)
        if array is None:
            raise problem(f"an array {key} in {where}", "none", remedy)
        got = hashlib.sha256(array.tobytes()).hexdigest()
        if expected not in ("", got):
            raise problem(f"{key} with SHA-256 {expected[:12]} in {where}", got[:12], remedy)


def fetch(source: str, scratch: Path) -> Arrays:
    """Fetch one set from its public home; maintained downloaders do the network's part.

    Args:
        source: A key of ``HOMES``.
        scratch: Existing folder for what is downloaded; the caller removes it.

    Returns:
        ``x``, shape ``(N, H, W)``, ``uint8`` (``usps``: ``float32`` in [0, 1]), or ``(N, d)``, and
        ``y``, shape ``(N,)``, ``int64``. Of documents ``data``, ``indices``, ``indptr`` and
        ``shape``, the term counts in CSR form, in place of ``x``.

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
        retrieve(f"{HOMES['usps']}/{name}", scratch) for name in ("zip.train.gz", "zip.test.gz")
    ]
    return parse_usps(*(_unpacked(path.read_bytes()) for path in files))


def _unpacked(data: bytes) -> bytes:
    # A server may declare the .gz an encoding of the text, and the client then unpacks it.
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def _coil20(scratch: Path) -> Arrays:
    path = retrieve(f"{HOMES['coil20']}/coil-20-proc.zip", scratch)
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


def retrieve(url: str, folder: Path) -> Path:
    """Fetch a file into a folder, unless it is there; a progress bar shows how far it is.

    Raises:
        OSError: No network.
    """
    # No known_hash: the caller checks the arrays, and pooch's line about the file's hash is noise.
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    name = url.rsplit("/", 1)[-1]
    return Path(pooch.retrieve(url, None, fname=name, path=folder, downloader=downloader))


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


def _term_counts(name: str, scratch: Path) -> Arrays:
    content = loadmat(retrieve(f"{HOMES[name]}/{_MATLAB[name]}", scratch))
    if not {"fea", "gnd"} <= content.keys():
        raise ValueError(f"no fea and gnd in {_MATLAB[name]}")
    counts = csr_matrix(content["fea"])
    counts.sort_indices()
    return {
        "data": counts.data.astype(np.uint16),
        "indices": counts.indices.astype(np.int32),
        "indptr": counts.indptr.astype(np.int32),
        "shape": np.array(counts.shape, dtype=np.int64),
        "y": content["gnd"].ravel().astype(np.int64) - 1,
    }


def _reuters10k(scratch: Path) -> Arrays:
    console = Console(stderr=True)
    with (
        console.status("Fetching RCV1 (about 660 MB, then minutes of reading and sorting)"),
        _socket_timeout(TIMEOUT),
    ):
        bunch = fetch_rcv1(data_home=scratch, n_retries=1)
    return sample_rcv1(bunch.data, bunch.target, list(bunch.target_names))


def sample_rcv1(
    documents: csr_matrix,
    topics: csr_matrix,
    names: list[str],
    n_documents: int = 10_000,
    n_terms: int = 2000,
    seed: int = 0,
) -> Arrays:
    """Make what papers call Reuters-10K, as far as scikit-learn's RCV1 allows.

    Documents of one root category alone, a random sample of them, and the most frequent terms of
    all of them. Differs from the file that DEC's authors made: another sample; stop words are out
    and words stemmed; frequent are terms in many documents, since counts are not there; the idf is
    that of the collection's training part and not smoothed. As there, a term's weight grows with
    the logarithm of its count, and a vector has the length sqrt(n_terms).

    Args:
        documents: Weights ``(1 + log tf) log(N / df)``, shape ``(N, M)``, rows of length 1.
        topics: 1 where a document has a topic, shape ``(N, T)``.
        names: Names of the topics.
        n_documents: How many are drawn.
        n_terms: How many terms are kept.
        seed: Of the draw.

    Returns:
        ``x``, shape ``(n_documents, n_terms)``, ``float32``, in the order of the collection, and
        ``y``, ``int64``, in the order CCAT, ECAT, GCAT, MCAT.
    """
    roots = topics.tocsc()[:, [names.index(name) for name in CLASS_NAMES["reuters10k"]]].toarray()
    single = np.flatnonzero(roots.sum(axis=1) == 1)
    frequency = documents[single].getnnz(axis=0)
    kept = np.sort(np.argsort(-frequency, kind="stable")[:n_terms])
    drawn = np.sort(np.random.default_rng(seed).choice(single, n_documents, replace=False))
    x = normalize(documents[drawn][:, kept]).toarray() * n_terms**0.5
    return {"x": x.astype(np.float32), "y": roots[drawn].argmax(axis=1).astype(np.int64)}


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # scikit-learn passes no timeout on: behind a firewall that drops packets it would wait minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_MATLAB = {"reuters21578": "Reuters21578.mat", "newsgroups20": "20Newsgroups.mat"}
_FETCHERS: dict[str, Callable[[Path], Arrays]] = {
    "mnist": partial(_openml, "mnist_784"),
    "fashion_mnist": partial(_openml, "Fashion-MNIST"),
    "usps": _usps,
    "coil20": _coil20,
    "reuters21578": partial(_term_counts, "reuters21578"),
    "newsgroups20": partial(_term_counts, "newsgroups20"),
    "reuters10k": _reuters10k,
}
