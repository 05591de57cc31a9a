"""Files that are whole or not there, digests, and a lock that dies with its process."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusterlab.errors import UserError
from clusterlab.files import locked, read_json, settings_digest, write_atomically, write_json


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let this process write files of no more than ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writes_and_replaces(tmp_path: Path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_replaced_leaves_nothing(tmp_path: Path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"content")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a.bin", b"content")
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", b"content")
    assert list(tmp_path.iterdir()) == []


def test_write_json(tmp_path: Path):
    value = {"metrics": {"nmi": 0.1, "ari": None}, "sizes": [1, 2], "name": "ö"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_keeps_the_old(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"\x00" * 8, b"\xff\xfe{}"])
def test_damaged_json_is_told_in_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "phase.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        read_json(path)
    line = str(told.value)
    assert line.startswith(f"Expected JSON, got a damaged file, {path} (")
    assert line.endswith(f"; delete {tmp_path} and run again.")
    assert "\n" not in line


def test_digest_depends_on_values_and_not_on_order():
    settings = {"loss": {"gamma": 0.1, "weight": 1.0}, "filters": [32, 64], "seed": 0}
    turned = {"seed": 0, "filters": [32, 64], "loss": {"weight": 1.0, "gamma": 0.1}}
    assert settings_digest(settings) == settings_digest(turned)
    others = [
        {**settings, "seed": 1},
        {**settings, "seed": "0"},
        {**settings, "seed": None},
        {**settings, "filters": [64, 32]},
        {**settings, "loss": {"gamma": 0.1, "weight": 1.5}},
        {**settings, "more": None},
    ]
    assert len({settings_digest(s) for s in [settings, *others]}) == 7


def test_digest_stays_what_it_was():
    # sha256sum of {"a": [1, null], "b": 0.1}: a changed digest would orphan every stored network.
    expected = "1e721d1451e691bc16d796310117ebe9767ed8b0908ef3078c93f0fc7e004fb2"
    assert settings_digest({"b": 0.1, "a": [1, None]}) == expected


HOLDER = """
import sys, time
from pathlib import Path
from clusterlab.files import locked

with locked(Path(sys.argv[1]), "holding"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``tmp_path`` until it is killed."""
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_waits_and_says_so_until_the_first_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
):
    entered = threading.Event()

    def enter() -> None:
        with locked(tmp_path, "making this run"):
            entered.set()

    with caplog.at_level(logging.INFO, logger="clusterlab"):
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.5)
        os.kill(holder.pid, signal.SIGKILL)
        assert entered.wait(10)
        waiting.join()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"Another process is making this run ({tmp_path}); waiting for it."
    )


def test_a_free_folder_is_entered_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="clusterlab"):
        for _ in range(2):
            with locked(tmp_path, "making this run"):
                pass
    assert not caplog.records


def test_an_error_inside_releases_the_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "failing"):
        raise ZeroDivisionError
    with caplog.at_level(logging.INFO, logger="clusterlab"), locked(tmp_path, "going on"):
        pass
    assert not caplog.records
