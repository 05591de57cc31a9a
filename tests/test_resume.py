"""Runs that are killed, for real, and started again: the same bits as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from conftest import LITTLE, LITTLE_IDCEC, Commands

ROOT = Path(__file__).parents[1]

# Every file of a run that must be whole is written beside its place and then put there. This kills
# the process at the n-th replacement of a file: before it, after it, or when half is written.
KILL_AT_REPLACE = """
import os, pathlib, signal
replace, count = pathlib.Path.replace, 0

def killing(self, target):
    global count
    chosen = {name!r} and pathlib.Path(target).match({name!r})
    count += bool(chosen)
    last = chosen and count == {n}
    if last and {when!r} == "half":
        os.truncate(self, os.path.getsize(self) // 2)
    if last and {when!r} != "after":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if {seen!r}:
        with open({seen!r}, "a") as file:
            file.write(f"{{target}}\\n")
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

pathlib.Path.replace = killing
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
    facts = ("epochs", "steps", "stop_reason", "label_change", "refreshes", "metrics_at_start")
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
    before = KILL_AT_REPLACE.format(name="", n=0, when="", seen=str(seen))
    where = [f"data.path={little_npz}", f"output_dir={folder}", f"run_dir={folder / 'run'}"]
    command = _commands.run(*LITTLE, *where, "checkpoint_interval=0", before=before)
    assert command.code == 0, command.stderr
    files = [str(Path(line).relative_to(folder)) for line in seen.read_text().splitlines()]
    return {"outcome": outcome(folder / "run"), "files": files}


def test_a_run_puts_every_file_in_place_at_once(straight: dict[str, Any]) -> None:
    names = [Path(name).name for name in straight["files"]]
    # The points to resume from, one an epoch: 3 and 8 epochs, of which the last of a phase writes
    # none, since what follows it is not training.
    assert names.count("last.ckpt") == 2 + 7
    assert names.count("weights.ckpt") == names.count("phase.json") == 3  # store, two phases
    for name in ("config.yaml", "settings.json", "assignments.npz", "result.json"):
        assert names.count(name) == 1, name
    assert names[-1] == "result.json"


# (file, which replacement of it in that process, when): one process each, then one that finishes.
# A chain of kills makes progress between them and costs little more than one run.
ENTRY, TUNE = "pretrained/*", "run/finetune"
KILLS = {
    "once in pretrain": [(f"{ENTRY}/last.ckpt", 1, "after")],
    "once in finetune": [(f"{TUNE}/last.ckpt", 4, "after")],
    "twice": [(f"{ENTRY}/last.ckpt", 2, "after"), (f"{TUNE}/last.ckpt", 3, "after")],
    "after each kind of file": [
        ("run/settings.json", 1, "after"),
        ("run/config.yaml", 1, "after"),
        (f"{ENTRY}/made_of.json", 1, "after"),
        (f"{ENTRY}/metrics.csv", 1, "after"),
        (f"{ENTRY}/last.ckpt", 1, "after"),
        (f"{ENTRY}/last.ckpt", 1, "after"),
        (f"{ENTRY}/weights.ckpt", 1, "after"),
        (f"{ENTRY}/phase.json", 1, "after"),
        ("run/pretrain/weights.ckpt", 1, "after"),
        ("run/pretrain/phase.json", 1, "after"),
        (f"{TUNE}/metrics.csv", 1, "after"),
        (f"{TUNE}/last.ckpt", 1, "after"),
        (f"{TUNE}/last.ckpt", 2, "after"),
        (f"{TUNE}/last.ckpt", 3, "after"),
        (f"{TUNE}/weights.ckpt", 1, "after"),
        (f"{TUNE}/phase.json", 1, "after"),
        ("run/metrics.csv", 1, "after"),
        ("run/assignments.npz", 1, "after"),
        ("run/assignments.csv", 1, "after"),
        ("run/before.npz", 1, "after"),
        ("run/result.json", 1, "after"),
    ],
    "before files": [
        (f"{ENTRY}/last.ckpt", 2, "before"),
        (f"{ENTRY}/weights.ckpt", 1, "before"),
        ("run/pretrain/phase.json", 1, "before"),
        (f"{TUNE}/last.ckpt", 3, "before"),
        (f"{TUNE}/last.ckpt", 5, "before"),
        (f"{TUNE}/phase.json", 1, "before"),
        ("run/result.json", 1, "before"),
    ],
    "in half-written files": [
        (f"{ENTRY}/last.ckpt", 2, "half"),
        (f"{ENTRY}/phase.json", 1, "half"),
        (f"{TUNE}/last.ckpt", 2, "half"),
        (f"{TUNE}/last.ckpt", 6, "half"),
        (f"{TUNE}/weights.ckpt", 1, "half"),
        ("run/assignments.npz", 1, "half"),
        ("run/result.json", 1, "half"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLS)
def test_killed_and_started_again(
    straight: dict[str, Any],
    asked: Callable[..., list[str]],
    commands: Commands,
    tmp_path: Path,
    where: str,
) -> None:
    arguments = asked("killed", "checkpoint_interval=0")
    for name, n, when in KILLS[where]:
        before = KILL_AT_REPLACE.format(name=name, n=n, when=when, seen="")
        killed = commands.run(*arguments, before=before)
        assert killed.code == -signal.SIGKILL, f"{name} {n}: {killed.code} {killed.stderr}"
    again = commands.run(*arguments)
    assert again.code == 0, again.stderr
    same(straight["outcome"], outcome(tmp_path / "killed" / "run"))
    assert leftovers(tmp_path / "killed") == []


def test_each_kind_of_file_is_killed_once(straight: dict[str, Any]) -> None:
    killed = {name for name, _, _ in KILLS["after each kind of file"]}
    for file in straight["files"]:
        assert any(Path(file).match(name) for name in killed), file


def test_half_a_checkpoint_does_not_stay(
    asked: Callable[..., list[str]], commands: Commands, tmp_path: Path
) -> None:
    """The resumed run may need no checkpoint of its own, which would replace the half one."""
    arguments = asked("killed")
    before = KILL_AT_REPLACE.format(name=f"{TUNE}/last.ckpt", n=2, when="half", seen="")
    killed = commands.run(*arguments, "checkpoint_interval=0", before=before)
    assert killed.code == -signal.SIGKILL
    assert leftovers(tmp_path / "killed") == ["run/finetune/last.ckpt", "run/finetune/last.part"]
    again = commands.run(*arguments, "checkpoint_interval=1000")
    assert again.code == 0, again.stderr
    assert leftovers(tmp_path / "killed") == []


def test_going_on_by_other_code_is_told(
    asked: Callable[..., list[str]], commands: Commands, tmp_path: Path
) -> None:
    """The record names the code that ended the run; each of its phases, the one that began it.

    Of devices, of which a queue may give a run another, a phase names all.
    """
    arguments = asked("killed", "checkpoint_interval=0")
    kill = KILL_AT_REPLACE.format(name=f"{TUNE}/last.ckpt", n=1, when="after", seen="")
    killed = commands.run(*arguments, before=kill)
    assert killed.code == -signal.SIGKILL
    edited = "from clusterlab import phases, record\n"
    edited += "record.code_digest = phases.code_digest = lambda cfg: 'of an edited file'\n"
    edited += "record.device_name = phases.device_name = lambda device: 'another device'\n"
    again = commands.run(*arguments, before=edited)
    assert again.code == 0, again.stderr
    said = "is of other code than this; if the difference matters, start the run over"
    for what in ("The finished pretrain phase", "The begun finetune phase"):
        assert again.stderr.count(f"{what} {said} with restart=true.") == 1, again.stderr
    result = json.loads((tmp_path / "killed" / "run" / "result.json").read_text())
    assert result["code_sha256"] == "of an edited file"
    assert result["device"] == "another device"
    pretrained, finetuned = (phase["device"] for phase in result["phases"].values())
    assert finetuned == f"{pretrained}, then another device"
    begun = {phase["code_sha256"] for phase in result["phases"].values()}
    assert len(begun) == 1
    assert begun != {"of an edited file"}


@pytest.mark.slow
def test_killed_at_a_random_moment(
    asked: Callable[..., list[str]], commands: Commands, tmp_path: Path
) -> None:
    """``python train.py`` as a user starts it, and kill -9 from outside."""
    longer = ("checkpoint_interval=0", "phases.finetune.max_steps=150")
    reference = commands.run(*asked("reference", *longer))
    assert reference.code == 0, reference.stderr
    random = Random(20260)
    rows, pause = random.randint(5, 20), random.uniform(0, 0.05)
    phase, metrics = (tmp_path / "killed" / TUNE / name for name in ("phase.json", "metrics.csv"))
    command = [sys.executable, str(ROOT / "train.py"), *asked("killed", *longer)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") > rows:
                time.sleep(pause)
                process.kill()
                break
            time.sleep(0.002)
        _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    assert not phase.exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming finetune at step" in done.stderr
    folders = [tmp_path / name for name in ("reference", "killed")]
    same(outcome(folders[0] / "run"), outcome(folders[1] / "run"))
    assert leftovers(folders[1]) == []


# Side by side

# Holds the process that trains until another one says that it waits, however busy the machine is.
TRAIN_WHEN_AWAITED = """
import pathlib, time
import clusterlab.training
train_phases, end = clusterlab.training.train_phases, time.monotonic() + 60

def held(*args):
    texts = lambda: [path.read_text() for path in pathlib.Path().glob("*.err")]
    while time.monotonic() < end and not any("waiting for it." in text for text in texts()):
        time.sleep(0.01)
    return train_phases(*args)

clusterlab.training.train_phases = held
"""


def test_two_identical_commands_at_once(
    straight: dict[str, Any],
    asked: Callable[..., list[str]],
    commands: Commands,
    tmp_path: Path,
) -> None:
    """One trains and the other waits for it, says so, and prints the same result."""
    arguments = asked("both", "checkpoint_interval=0")
    pair = [commands.start(*arguments, before=TRAIN_WHEN_AWAITED) for _ in range(2)]
    assert [command.wait() for command in pair] == [0, 0], [c.stderr for c in pair]
    run_dir = tmp_path / "both" / "run"
    waiting = f"Another process is making this run ({run_dir}); waiting for it."
    (waited,) = [c for c in pair if waiting in c.stderr]
    (trained,) = [c for c in pair if "pretrain: 15 steps" in c.stderr]
    assert waited is not trained
    assert "Finished before: nothing to train." in waited.stderr
    assert waited.stdout == trained.stdout
    assert (run_dir / "train.log").read_text().count("finetune: 37 steps") == 1
    same(straight["outcome"], outcome(run_dir))


def test_two_runs_share_one_pretraining(
    asked: Callable[..., list[str]], commands: Commands, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    pair = [
        commands.start(*asked("shared", f"loss.gamma={gamma}", f"run_dir={folder / gamma}"))
        for gamma in ("0.1", "0.5")
    ]
    assert [command.wait() for command in pair] == [0, 0], [c.stderr for c in pair]
    results = [json.loads((folder / g / "result.json").read_text()) for g in ("0.1", "0.5")]
    reused = [result["phases"]["pretrain"]["reused"] for result in results]
    assert sorted(reused) == [False, True]
    for command, again in zip(pair, reused, strict=True):
        assert ("Reusing the pretrained autoencoder" in command.stderr) is again
        assert ("pretrain: 15 steps" in command.stderr) is not again
    assert len(list((folder / "pretrained").iterdir())) == 1
    states = [
        torch.load(folder / gamma / "pretrain" / "weights.ckpt")["state_dict"]
        for gamma in ("0.1", "0.5")
    ]
    same(*states)


# The same for a model of three phases


@pytest.mark.slow
def test_idcec_killed_in_each_phase(commands: Commands, little_npz: Path, tmp_path: Path) -> None:
    """Noise, augmentation, dropout and the choice of reliable samples go on as they were."""

    def arguments(name: str) -> list[str]:
        folder = tmp_path / name
        where = [f"data.path={little_npz}", f"output_dir={folder}", f"run_dir={folder / 'run'}"]
        return [*LITTLE_IDCEC, *where, "checkpoint_interval=0"]

    assert commands.run(*arguments("straight")).code == 0
    expected = outcome(tmp_path / "straight" / "run")
    phases = []
    for n in (1, 3, 5):  # of the checkpoints: 2 in pretrain, 2 in finetune, 2 in retrain
        name = f"killed{n}"
        before = KILL_AT_REPLACE.format(name="last.ckpt", n=n, when="after", seen="")
        assert commands.run(*arguments(name), before=before).code == -signal.SIGKILL
        (left,) = (tmp_path / name).rglob("last.ckpt")
        phases.append(torch.load(left, weights_only=True)["clusterlab"]["phase"])
        again = commands.run(*arguments(name))
        assert again.code == 0, again.stderr
        same(outcome(tmp_path / name / "run"), expected, name)
        assert leftovers(tmp_path / name) == []
    assert phases == ["pretrain", "finetune", "retrain"]
