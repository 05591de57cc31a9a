"""Files that are either whole or not there, digests, locks with a message, and the configs."""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from clusterlab.errors import problem, quote

log = logging.getLogger(__name__)

# Functions that the configs call: whoever finds their folder can resolve them.
OmegaConf.register_new_resolver(
    "first_of", lambda *values: next(value for value in values if value is not None), replace=True
)
OmegaConf.register_new_resolver("file_stem", lambda path: Path(str(path)).stem, replace=True)


# Looked at here and not in checks.py, which imports torch: a sweep does before its first job.
PATHS = ("output_dir", "run_dir", "pretrained_dir", "init_from")


def check_paths(cfg: DictConfig) -> None:
    """Refuse a folder or file whose name the command line read as a number.

    It cannot be turned back into the name: 2024_11 is read as 202411, and 1e3 as 1000.0.

    Raises:
        UserError: Naming the first.
    """
    for key in PATHS:
        if not isinstance(cfg[key], str | None):
            raise problem(f"a folder or file as {key}", f"{cfg[key]!r}", quote(key, cfg[key]))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a path to write to, and replace a file by what is there once all of it is.

    Raises:
        OSError: If the folder is read-only or full; then nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole; a reader or a killed writer never leaves half of it.

    Raises:
        OSError: As ``replacing``.
    """
    with replacing(path) as part:
        part.write_bytes(content)


def write_arrays(path: Path, arrays: Mapping[str, Any], compressed: bool = True) -> None:
    """Write an ``.npz`` file, atomically, without a second copy of the arrays in memory.

    Raises:
        OSError: As ``replacing``.
    """
    with replacing(path) as part, part.open("wb") as file:
        save: Any = np.savez_compressed if compressed else np.savez
        save(file, **arrays)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` has written.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        remedy = f"delete {path.parent} and run again"
        raise problem("JSON", f"a damaged file, {path} ({error})", remedy) from None
    return value


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows with the union of their columns; a missing value is an empty cell.

    Example:
        >>> csv_text([{"seed": 0}, {"seed": 1, "nmi": 0.5}]).splitlines()
        ['seed,nmi', '0,', '1,0.5']
    """
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def config_folder() -> Path:
    """Return the folder of the configs: beside ``src`` in a checkout, in the package otherwise."""
    here = Path(__file__).parent
    shipped = here / "conf"
    return shipped if shipped.is_dir() else here.parents[1] / "conf"


def settings_digest(settings: Any) -> str:
    """Return the SHA-256 of a JSON-like value, independent of the order of keys.

    Example:
        >>> settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what the package logs to a file, with times."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("clusterlab")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def locked(folder: Path, waiting_for: str) -> Iterator[None]:
    """Hold a folder for this process; say so when another holds it, and wait.

    The lock is the operating system's: it goes with its process, however that ends.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another process is %s (%s); waiting for it.", waiting_for, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
