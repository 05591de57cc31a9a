"""Runs that are killed, for real, and started again: the same bits as if nothing had happened."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import LITTLE, Commands

ROOT = Path(__file__).parents[1]

# Kills this process right after (or before) its n-th replacement of a file: every file of a run
# that must be whole is written beside its place and then put there. `seen` lists them all.
KILL_AT_REPLACE = """
import os, pathlib, signal
replace, count = pathlib.Path.replace, 0

def killing(self, target):
    global count
    count += 1
    if count == {n} and {when!r} == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if {seen!r}:
        with open({seen!r}, "a") as file:
            file.write(f"{{target}}\\n")
    if count == {n}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

pathlib.Path.replace = killing
"""

# Kills this process when half of a file's bytes are written.
KILL_IN_WRITE = """
import os, pathlib, signal
write_bytes, count = pathlib.Path.write_bytes, 0

def killing(self, content):
    global count
    if {name!r} in self.name:
        count += 1
        if count == {n}:
            write_bytes(self, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    return write_bytes(self, content)

pathlib.Path.write_bytes = killing
"""


def same(one: Any, other: Any, where: str = "") -> None:
    """Assert that two nested structures are bit-equal, naming the first difference."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, torch.Tensor):
        equal = torch.equal(one, other)
        assert equal, f"{where} differs"
    else:
        equal = one == other
        assert equal, f"{where}: {one!r} without, {other!r} with the interruption"


def outcome(run_dir: Path) -> dict[str, Any]:
    """Return all that must not depend on interruptions."""
    result = json.loads((run_dir / "result.json").read_text())
    assert "error" not in result
    facts = ("epochs", "steps", "stop_reason", "label_change", "refreshes", "scores_at_start")
    with np.load(run_dir / "assignments.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {
        "arrays": arrays,
        "weights": {
            phase: torch.load(run_dir / phase / "weights.ckpt")["state_dict"]
            for phase in result["phases"]
        },
        "csv": (run_dir / "metrics.csv").read_text(),
        "scores": {name: result[name] for name in ("metrics", "label_free", "n_samples")},
        "phases": {
            name: {fact: phase.get(fact) for fact in facts}
            for name, phase in result["phases"].items()
        },
    }


def leftovers(folder: Path) -> list[str]:
    """Return files that belong to no finished run."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name in ("last.ckpt", "last.part")
    )


@pytest.fixture
def asked(little_npz: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Make the arguments of a little run with its own store below ``tmp_path/<name>``."""

    def make(name: str, *overrides: str) -> list[str]:
        folder = tmp_path / name
        where = [f"data.path={little_npz}", f"output_dir={folder}", f"run_dir={folder / 'run'}"]
        return [*LITTLE, *where, *overrides]

    return make


@pytest.fixture(scope="module")
def straight(
    little_npz: Path, tmp_path_factory: pytest.TempPathFactory, _commands: Commands
) -> dict[str, Any]:
    """The outcome of the uninterrupted run, and the files that it put in place, in order."""
    folder = tmp_path_factory.mktemp("straight")
    _commands.folder = folder
    seen = folder / "seen"
    before = KILL_AT_REPLACE.format(n=0, when="", seen=str(seen))
    where = [f"data.path={little_npz}", f"output_dir={folder}", f"run_dir={folder / 'run'}"]
    command = _commands.run(*LITTLE, *where, "checkpoint_interval=0", before=before)
    assert command.code == 0, command.stderr
    files = [str(Path(line).relative_to(folder)) for line in seen.read_text().splitlines()]
    return {"outcome": outcome(folder / "run"), "files": files}


def test_a_run_puts_every_file_in_place_at_once(straight: dict[str, Any]) -> None:
    names = [Path(name).name for name in straight["files"]]
    assert names.count("last.ckpt") == 3 + 8  # an epoch each: the points to resume from
    assert names.count("weights.ckpt") == names.count("phase.json") == 3  # store, two phases
    for name in ("config.yaml", "settings.json", "assignments.npz", "result.json"):
        assert names.count(name) == 1, name
    assert names[-1] == "result.json"


@pytest.mark.slow
def test_killed_after_any_file(
    straight: dict[str, Any], asked: Callable[..., list[str]], commands: Commands, tmp_path: Path
) -> None:
    files = straight["files"]
    points = range(1, len(files) + 1)
    different = []
    for n in points:
        arguments = asked(f"kill{n}", "checkpoint_interval=0")
        before = KILL_AT_REPLACE.format(n=n, when="after", seen="")
        killed = commands.run(*arguments, before=before)
        assert killed.code == -signal.SIGKILL, killed.stderr
        again = commands.run(*arguments)
        folder = tmp_path / f"kill{n}"
        try:
            assert again.code == 0, again.stderr
            same(straight["outcome"], outcome(folder / "run"))
            assert leftovers(folder) == []
        except AssertionError as error:
            different.append(f"{n}, {files[n - 1]}: {str(error)[:4000]}")
    assert not different, "killed after\n" + "\n".join(different)
