import gc
import gzip
import io
import json
import re
import socket
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import md5, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix, csr_matrix

from clusterlab.data import download, sources
from clusterlab.data.download import SHA256
from clusterlab.errors import UserError

Pages = dict[str, tuple[int, dict[str, str], bytes]]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    """Serve pages (status, headers, body by path) as the home of USPS and COIL-20."""
    pages: Pages = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = pages.get(self.path, (404, {}, b"not here"))
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        home = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setitem(download.HOMES, "usps", f"{home}/zip")
        monkeypatch.setitem(download.HOMES, "coil20", f"{home}/coil")
        monkeypatch.setitem(download.HOMES, "reuters21578", f"{home}/text")
        yield pages
        server.shutdown()
        thread.join()
    # pooch leaves the socket of a refused request to the collector: let it not be in a later test.
    gc.collect()


Publish = Callable[..., None]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Make small arrays the published ones of a set."""

    def publish(source: str, *arrays: Any, names: Sequence[str] = ("x", "y")) -> None:
        digests = [sha256(array.tobytes()).hexdigest() for array in arrays]
        monkeypatch.setitem(SHA256, source, dict(zip(names, digests, strict=True)))

    return publish


def contents(root: Path) -> list[str]:
    """Return what a user sees in a folder: all but the hidden lock."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def assert_served_and_stored(source: str, root: Path, x: Any, y: Any) -> None:
    got = sources.prepared(source, root=str(root))
    assert got.y is not None
    assert torch.equal(got.x[:, 0], torch.from_numpy(x))
    assert torch.equal(got.y, torch.from_numpy(y))
    assert contents(root) == [f"{source}.npz"]
    with np.load(root / f"{source}.npz") as stored:
        assert set(stored.files) == {"x", "y"}
        for key, array in {"x": x, "y": y}.items():
            assert stored[key].dtype == array.dtype
            assert np.array_equal(stored[key], array)


# --- USPS


def usps_text(x: Any, y: Any, digit: str, value: str) -> bytes:
    """Write images the way the zip code data is written: a space after every number."""
    thousandths = np.rint(2000 * x.astype(np.float64)).astype(int) - 1000
    lines = (
        "".join([digit % label, " ", *(value % (v / 1000) + " " for v in row)])
        for label, row in zip(y, thousandths.reshape(len(x), -1), strict=True)
    )
    return ("\n".join(lines) + "\n").encode()


def small_usps() -> tuple[Any, Any]:
    thousandths = np.random.default_rng(0).integers(-1000, 1001, size=(7, 16, 16))
    thousandths[0, 0, :2] = -1000, 1000
    return ((thousandths + 1000) / 2000).astype(np.float32), np.array([6, 5, 4, 0, 9, 1, 6])


def serve_usps(site: Pages, x: Any, y: Any, headers: dict[str, str] | None = None) -> None:
    train = usps_text(x[:5], y[:5], "%.4f", "%.4f")
    test = usps_text(x[5:], y[5:], "%d", "%.3f")
    site["/zip/zip.train.gz"] = (200, headers or {}, gzip.compress(train))
    site["/zip/zip.test.gz"] = (200, headers or {}, gzip.compress(test))


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "x-gzip"}])
def test_usps_from_its_home(
    tmp_path: Path, site: Pages, publish: Publish, headers: dict[str, str]
) -> None:
    x, y = small_usps()
    serve_usps(site, x, y, headers)
    publish("usps", x, y)
    assert_served_and_stored("usps", tmp_path / "new" / "root", x, y)


@pytest.mark.parametrize("value", ["%.3f", "%.4f"])
def test_the_text_of_usps_gives_its_very_bits(prepared_root: Path, value: str) -> None:
    path = prepared_root / "usps.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with np.load(path) as file:
        x, y = file["x"], file["y"]
    train = usps_text(x[:7291], y[:7291], "%.4f", value)
    test = usps_text(x[7291:], y[7291:], "%d", value)
    got = download.parse_usps(train, test)
    assert got["x"].dtype == np.float32
    assert got["x"].shape == x.shape
    assert got["x"].tobytes() == x.tobytes()
    assert got["y"].tobytes() == y.tobytes()


def test_progress_is_shown(
    tmp_path: Path, site: Pages, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = small_usps()
    serve_usps(site, x, y)
    publish("usps", x, y)
    sources.prepared("usps", root=str(tmp_path))
    shown = capsys.readouterr()
    assert "100%" in shown.err
    assert shown.out == ""


def test_a_stored_set_is_not_fetched_again(tmp_path: Path, site: Pages, publish: Publish) -> None:
    x, y = small_usps()
    serve_usps(site, x, y)
    publish("usps", x, y)
    sources.prepared("usps", root=str(tmp_path))
    site.clear()
    assert len(sources.prepared("usps", root=str(tmp_path))) == 7


def test_two_jobs_fetch_once(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = small_usps()
    publish("usps", x, y)
    fetched = []

    def slow(source: str, scratch: Path) -> dict[str, Any]:
        fetched.append(source)
        time.sleep(0.2)
        return {"x": x, "y": y}

    monkeypatch.setattr(download, "fetch", slow)
    jobs = [
        threading.Thread(target=download.ensure, args=("usps", tmp_path / "usps.npz"))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert fetched == ["usps"]
    assert contents(tmp_path) == ["usps.npz"]


# --- documents

CSR = ("data", "indices", "indptr", "shape", "y")


def matlab(counts: Any, y: Any) -> bytes:
    """Write documents as MATLAB does: doubles, columns first, classes from 1."""
    file = io.BytesIO()
    savemat(file, {"fea": csc_matrix(counts, dtype=np.float64), "gnd": y[:, None] + 1.0})
    return file.getvalue()


def test_term_counts_from_their_home(tmp_path: Path, site: Pages, publish: Publish) -> None:
    counts = np.random.default_rng(0).poisson(0.4, (9, 30)).astype(np.uint16)
    rows = csr_matrix(counts)
    shape, y = np.array([9, 30]), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    site["/text/Reuters21578.mat"] = (200, {}, matlab(counts, y))
    arrays = (rows.data, rows.indices, rows.indptr, shape, y)
    publish("reuters21578", *arrays, names=CSR)
    got, path = sources.prepared_arrays("reuters21578", str(tmp_path))
    for name, array in zip(CSR, arrays, strict=True):
        assert got[name].dtype == array.dtype
        assert np.array_equal(got[name], array)
    assert contents(tmp_path) == [path.name] == ["reuters21578.npz"]


def test_another_matlab_file_is_refused(tmp_path: Path, site: Pages) -> None:
    file = io.BytesIO()
    savemat(file, {"other": np.zeros(3)})
    site["/text/Reuters21578.mat"] = (200, {}, file.getvalue())
    with pytest.raises(UserError, match=r"no fea and gnd in Reuters21578\.mat"):
        sources.prepared_arrays("reuters21578", str(tmp_path))


@pytest.mark.parametrize("source", ["reuters21578", "newsgroups20"])
def test_the_matlab_file_gives_the_published_bits(
    tmp_path: Path, prepared_root: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    arrays, _ = sources.prepared_arrays(source, str(prepared_root))
    counts = csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), arrays["shape"])
    path = tmp_path / "set.mat"
    path.write_bytes(matlab(counts, arrays["y"]))
    monkeypatch.setattr(download, "retrieve", lambda url, folder: path)
    download.verify(source, download.fetch(source, tmp_path), "the file", "none")


def collection() -> tuple[Any, Any, list[str]]:
    """Return 60 documents of 12 terms with weights, and which of five topics they have."""
    rng = np.random.default_rng(0)
    weights = rng.random((60, 12)) * (rng.random((60, 12)) < np.linspace(0.2, 0.9, 12))
    weights[weights.sum(1) == 0, 0] = 1
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights, rng.random((60, 5)) < 0.3, ["C11", "CCAT", "MCAT", "ECAT", "GCAT"]


def test_reuters10k_from_scikit_learns_rcv1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, topics, names = collection()
    bunch = SimpleNamespace(
        data=csr_matrix(weights), target=csr_matrix(topics.astype(int)), target_names=names
    )
    monkeypatch.setattr(download, "fetch_rcv1", lambda **options: bunch)
    monkeypatch.setattr(
        download, "sample_rcv1", partial(download.sample_rcv1, n_documents=8, n_terms=5)
    )
    got = sources.prepared("reuters10k", root=str(tmp_path))
    order = ["CCAT", "ECAT", "GCAT", "MCAT"]
    assert got.class_names == tuple(order)
    roots = [[name for name in order if topics[i, names.index(name)]] for i in range(60)]
    single = [i for i in range(60) if len(roots[i]) == 1]
    often = [sum(weights[i, j] > 0 for i in single) for j in range(12)]
    terms = sorted(sorted(range(12), key=lambda j: -often[j])[:5])
    assert got.y is not None
    rows = []
    for x, label in zip(got.x.numpy(), got.y.tolist(), strict=True):
        assert np.isclose(np.square(x).sum(), 5)
        fitting = [
            i
            for i in single
            if np.allclose(weights[i, terms] / np.linalg.norm(weights[i, terms]), x / 5**0.5)
        ]
        assert len(fitting) == 1
        assert order.index(roots[fitting[0]][0]) == label
        rows += fitting
    assert rows == sorted(set(rows))
    assert len(rows) == 8


# --- COIL-20


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_coil20_from_its_home(tmp_path: Path, site: Pages, publish: Publish) -> None:
    views = [(1, 0), (1, 1), (1, 2), (1, 10), (2, 0), (10, 0), (20, 71)]
    x = np.random.default_rng(0).integers(0, 256, size=(len(views), 128, 128), dtype=np.uint8)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("coil-20-proc/", b"")
        archive.writestr("coil-20-proc/readme.txt", b"no image")
        archive.writestr("__MACOSX/coil-20-proc/._obj1__0.png", b"no image")
        for index in np.random.default_rng(1).permutation(len(views)):
            number, view = views[index]
            archive.writestr(f"coil-20-proc/obj{number}__{view}.png", png(x[index]))
    site["/coil/coil-20-proc.zip"] = (200, {}, file.getvalue())
    y = np.array([0, 0, 0, 0, 1, 9, 19])
    publish("coil20", x, y)
    assert_served_and_stored("coil20", tmp_path, x, y)


# --- OpenML


class Response(io.BytesIO):
    """What ``urlopen`` returns, as far as scikit-learn looks."""

    def __init__(self, body: bytes) -> None:
        super().__init__(gzip.compress(body))

    def info(self) -> dict[str, str]:
        return {"Content-Encoding": "gzip"}


def openml_pages(name: str, number: int, x: Any, y: Any) -> dict[str, bytes]:
    """Return the five answers of openml.org about one data set."""
    pixels = [f"pixel{index + 1}" for index in range(784)]
    arff = "\n".join(
        [
            "% The data set, as OpenML's own header has it",
            f"@RELATION '{name}'",
            *(f"@ATTRIBUTE {pixel} real" for pixel in pixels),
            "@ATTRIBUTE class {0,1,2,3,4,5,6,7,8,9}",
            "@DATA",
            *(
                ",".join(map(str, [*image.ravel(), label]))
                for image, label in zip(x, y, strict=True)
            ),
        ]
    ).encode()
    arff_url = f"https://api.openml.org/data/v1/download/{number}/{name}.arff"
    features = [
        {
            "index": str(index),
            "name": column,
            "data_type": "nominal" if column == "class" else "numeric",
            "is_target": str(column == "class").lower(),
            "is_ignore": "false",
            "is_row_identifier": "false",
            "number_of_missing_values": "0",
        }
        for index, column in enumerate([*pixels, "class"])
    ]
    description = {
        "id": str(number),
        "name": name,
        "version": "1",
        "description": "Images.",
        "format": "ARFF",
        "url": arff_url,
        "default_target_attribute": "class",
        "status": "active",
        "md5_checksum": md5(arff).hexdigest(),
    }
    found = {"did": number, "name": name, "version": 1, "status": "active", "format": "ARFF"}
    api = "https://www.openml.org/api/v1/json/data"
    qualities = [{"name": "NumberOfInstances", "value": f"{len(x)}.0"}]
    answers = {
        f"{api}/list/data_name/{name.lower()}/limit/2/data_version/1": {
            "data": {"dataset": [found]}
        },
        f"{api}/{number}": {"data_set_description": description},
        f"{api}/features/{number}": {"data_features": {"feature": features}},
        f"{api}/qualities/{number}": {"data_qualities": {"quality": qualities}},
    }
    return {arff_url: arff, **{url: json.dumps(body).encode() for url, body in answers.items()}}


@pytest.fixture
def openml(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], list[str]]:
    """Answer scikit-learn's requests with a function of the address; return the requests."""

    def answer(respond: Callable[[str], Any]) -> list[str]:
        asked: list[str] = []

        def urlopen(request: urllib.request.Request, *_: Any, **__: Any) -> Any:
            asked.append(request.full_url)
            return respond(request.full_url)

        monkeypatch.setattr("sklearn.datasets._openml.urlopen", urlopen)
        return asked

    return answer


@pytest.mark.parametrize(
    ("source", "name", "number"),
    [("mnist", "mnist_784", 554), ("fashion_mnist", "Fashion-MNIST", 40996)],
)
def test_openml_sets_from_their_home(
    tmp_path: Path, publish: Publish, openml: Any, source: str, name: str, number: int
) -> None:
    x = np.random.default_rng(0).integers(0, 256, size=(4, 28, 28), dtype=np.uint8)
    y = np.array([5, 0, 4, 9])
    publish(source, x, y)
    pages = openml_pages(name, number, x, y)
    asked = openml(lambda url: Response(pages[url]))
    assert_served_and_stored(source, tmp_path, x, y)
    assert sorted(asked) == sorted(pages)  # the data came once


def test_a_damaged_answer_of_openml(tmp_path: Path, openml: Any) -> None:
    x = np.zeros((2, 28, 28), dtype=np.uint8)
    pages = openml_pages("mnist_784", 554, x, np.array([0, 1]))
    openml(lambda url: Response(pages[url][:-9] if url.endswith("arff") else pages[url]))
    with pytest.raises(UserError, match=r"ValueError .*md5 checksum") as error:
        sources.prepared("mnist", root=str(tmp_path))
    assert_names_file_and_home(error, "mnist", tmp_path)


# --- failures


def assert_names_file_and_home(
    error: pytest.ExceptionInfo[UserError], source: str, root: Path
) -> None:
    text, path, home = str(error.value), root / f"{source}.npz", download.HOMES[source]
    assert "\n" not in text
    assert text.startswith(f"Expected the file {path}, got ")
    assert text.endswith(
        f" while fetching it from {home}; "
        f"put the prepared file at {path}, or run again where {home} can be reached."
    )
    assert contents(root) == []


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record scikit-learn's pauses between retries instead of waiting."""
    pauses: list[float] = []
    monkeypatch.setattr("sklearn.datasets._openml.time", SimpleNamespace(sleep=pauses.append))
    return pauses


def fail(error: Exception) -> Callable[[str], Any]:
    def respond(url: str) -> Any:
        raise error

    return respond


@pytest.mark.parametrize("source", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize(
    "reason",
    [
        URLError(socket.gaierror(-2, "Name or service not known")),
        URLError(ConnectionRefusedError(111, "Connection refused")),
        TimeoutError("timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=lambda reason: type(reason).__name__,
)
def test_openml_without_a_network(
    tmp_path: Path, openml: Any, slept: list[float], source: str, reason: Exception
) -> None:
    asked = openml(fail(reason))
    with pytest.raises(UserError, match=type(reason).__name__) as error:
        sources.prepared(source, root=str(tmp_path))
    if isinstance(reason, URLError):
        # As long as it can take: a firewall may let every attempt wait for its timeout.
        assert len(asked) * download.TIMEOUT + sum(slept) <= 15
    assert_names_file_and_home(error, source, tmp_path)


@pytest.mark.parametrize("code", [404, 412, 503])
def test_openml_with_an_error_of_the_server(
    tmp_path: Path, openml: Any, slept: list[float], code: int
) -> None:
    def respond(url: str) -> Any:
        raise HTTPError(url, code, "no", {}, io.BytesIO())  # type: ignore[arg-type]

    openml(respond)
    with pytest.raises(UserError, match="Error") as error:
        sources.prepared("mnist", root=str(tmp_path))
    assert_names_file_and_home(error, "mnist", tmp_path)


@pytest.fixture
def silent() -> Iterator[str]:
    """Return the address of a server that takes the call and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_openml(
    tmp_path: Path, openml: Any, slept: list[float], silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    openml(lambda url: urllib.request.urlopen(silent))
    with pytest.raises(UserError, match="TimeoutError") as error:
        sources.prepared("mnist", root=str(tmp_path))
    assert_names_file_and_home(error, "mnist", tmp_path)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("source", ["usps", "coil20"])
def test_a_silent_server(
    tmp_path: Path, source: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setitem(download.HOMES, source, silent)
    with pytest.raises(UserError, match="Timeout") as error:
        sources.prepared(source, root=str(tmp_path))
    assert_names_file_and_home(error, source, tmp_path)


@pytest.mark.parametrize("source", ["usps", "coil20"])
def test_no_server(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again below
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(download.HOMES, source, f"http://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(UserError, match="ConnectionError") as error:
        sources.prepared(source, root=str(tmp_path))
    assert time.monotonic() - start < 5
    assert_names_file_and_home(error, source, tmp_path)


ZIPPED = gzip.compress(b"6.0000 " + b"-1.0000 " * 256)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("source", ["usps", "coil20"])
@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((404, {}, b"not here"), "HTTPError"),
        ((503, {}, b"later"), "HTTPError"),
        ((200, {}, b"<html>Please log in to the hotel's network</html>"), "ValueError|BadZipFile"),
        ((200, {}, ZIPPED[:-9]), "EOFError|BadZipFile"),
        ((200, {}, ZIPPED[:10] + b"\xff" * 20), "error|BadZipFile"),
        ((200, {"Content-Length": "99999"}, ZIPPED), "ConnectionError|ChunkedEncodingError"),
    ],
)
def test_something_else_comes(
    tmp_path: Path, site: Pages, source: str, page: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    for path in ("/zip/zip.train.gz", "/zip/zip.test.gz", "/coil/coil-20-proc.zip"):
        site[path] = page
    with pytest.raises(UserError, match=rf"got \w*({reason}) \(") as error:
        sources.prepared(source, root=str(tmp_path))
    assert_names_file_and_home(error, source, tmp_path)


def test_another_archive_comes(tmp_path: Path, site: Pages) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", b"no images")
    site["/coil/coil-20-proc.zip"] = (200, {}, file.getvalue())
    with pytest.raises(UserError, match="ValueError") as error:
        sources.prepared("coil20", root=str(tmp_path))
    assert_names_file_and_home(error, "coil20", tmp_path)


@pytest.mark.parametrize("source", ["usps", "coil20"])
def test_nothing_comes(tmp_path: Path, site: Pages, source: str) -> None:
    for path in ("/zip/zip.train.gz", "/zip/zip.test.gz", "/coil/coil-20-proc.zip"):
        site[path] = (200, {}, b"")
    with pytest.raises(UserError, match=f"put the prepared file at {tmp_path}/{source}.npz"):
        sources.prepared(source, root=str(tmp_path))
    assert contents(tmp_path) == []


def test_another_set_comes(tmp_path: Path, site: Pages) -> None:
    x, y = small_usps()
    serve_usps(site, x, y)
    got = sha256(x.tobytes()).hexdigest()[:12]
    home, path = download.HOMES["usps"], tmp_path / "usps.npz"
    expected = (
        f"Expected x with SHA-256 {SHA256['usps']['x'][:12]} in what {home} sent, got {got}; "
        f"put the prepared file at {path}, or run again where {home} can be reached."
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        sources.prepared("usps", root=str(tmp_path))
    assert contents(tmp_path) == []


@pytest.mark.parametrize("reason", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path,
    site: Pages,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    reason: BaseException,
) -> None:
    x, y = small_usps()
    serve_usps(site, x, y)
    publish("usps", x, y)

    def interrupted(file: Path, **arrays: Any) -> None:
        file.write_bytes(b"half of it")
        raise reason

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    expected = UserError if isinstance(reason, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        sources.prepared("usps", root=str(tmp_path))
    assert contents(tmp_path) == []
    monkeypatch.undo()


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" / "data"
    with pytest.raises(UserError, match=f"Expected the file {root}/usps.npz, got NotADirectory"):
        sources.prepared("usps", root=str(root))
