"""How the jobs of a sweep are doing: kept in its folder, so that jobs anywhere can tell."""

import logging
import math
import os
import shlex
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from clusterlab import placement
from clusterlab.errors import exit_on_error
from clusterlab.files import check_paths, read_json, settings_digest, write_json

log = logging.getLogger(__name__)

FOLDER = "CLUSTERLAB_SWEEP"  # names the sweep's folder to its jobs, in whatever process
LOG = "progress.log"  # in it: a line after each job


class Sweep(Callback):
    """Open a folder for the jobs of a sweep before the first of them starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write down how many jobs there will be, where that can be told beforehand."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return  # Lightning starts other ranks with the same command; rank 0 tells
        from clusterlab import launchers  # for the process that starts the jobs

        with exit_on_error():
            check_paths(config)
            launchers.prepare(config)
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
        folder = Path(config.output_dir).resolve() / ".multirun" / name
        folder.mkdir(parents=True, exist_ok=True)
        told = {"jobs": count(config), "places": placement.prepare(config)}
        write_json(folder / "sweep.json", {**told, "program": program(config)})
        os.environ[FOLDER] = str(folder)
        say(folder, quietly=True)
        if not config.hydra.launcher._target_.endswith("BasicLauncher"):
            log.info("How the jobs are doing: tail -f %s", shlex.quote(str(folder / LOG)))


def program(config: DictConfig) -> str:
    """Return the command that these jobs are of, without their overrides.

    Args:
        config: A composed config with its ``hydra`` node.
    """
    words = ["python", sys.argv[0]]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":  # a folder of the user's own configs
            words += ["--config-dir", source.path]
    return shlex.join(words)


def count(config: DictConfig) -> int | None:
    """Return how many jobs a sweep has; ``None`` for a sweeper that chooses as it goes.

    Args:
        config: A composed config with its ``hydra`` node.
    """
    sweeper = config.hydra.sweeper
    if sweeper._target_ != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper":
        return None
    asked = {text.split("=")[0]: text for text in config.hydra.overrides.task}
    asked = {name: f"{name}={v}" for name, v in (sweeper.params or {}).items()} | asked
    jobs = 1
    for override in OverridesParser.create().parse_overrides(list(asked.values())):
        if override.is_sweep_override():
            jobs *= len(list(override.sweep_iterator()))
    return jobs


def objective(record: dict[str, Any], name: str) -> float:
    """Return the score that an optimiser of settings maximises; -inf where there is none.

    Args:
        record: A run's record.
        name: A label-free score, such as ``silhouette``; or ``metrics.accuracy`` and its like,
            which labels decide: then a warning says so.

    Example:
        >>> objective({"label_free": {"silhouette": 0.5}, "metrics": {}}, "silhouette")
        0.5
    """
    group, _, score = name.rpartition(".")
    if group == "metrics":
        text = "LABELS CHOOSE THE SETTINGS: optimize=%s. The scores of the best are no result."
        log.warning(text, name)
    value = record.get(group or "label_free", {}).get(score)
    return float(value) if isinstance(value, int | float) else -math.inf


class Job:
    """One job of the sweep that the environment names; does nothing outside of one.

    Args:
        overrides: What tells it from the others.
    """

    def __init__(self, overrides: list[str]) -> None:
        self.overrides = overrides
        folder = os.environ.get(FOLDER)
        self.folder = Path(folder) if folder and Path(folder).is_dir() else None
        self.name = f"{settings_digest(overrides)[:16]}.json"

    def read(self) -> dict[str, Any]:
        """Return what the job has written; nothing before it began."""
        if self.folder is None or not (self.folder / self.name).exists():
            return {}
        return read_json(self.folder / self.name)

    def write(self, state: str, seconds: float = 0.0, **more: Any) -> None:
        """Write that the job is ``running``, ``done`` or ``failed``.

        Args:
            state: One of these.
            seconds: What its record says that it took; more than it took now if it went on from a
                checkpoint, or was finished before.
            **more: Its ``score``, or ``why`` it failed.
        """
        if self.folder is not None:
            told = {"overrides": self.overrides, "state": state, "time": time.time(), **more}
            with suppress(OSError):  # a full disk is the run's to tell
                if state != "running":
                    passed = told["time"] - self.read().get("time", told["time"])
                    told["seconds"] = max(passed, seconds)
                write_json(self.folder / self.name, told)

    def forget(self) -> None:
        """Make it a job that has not begun."""
        if self.folder is not None:
            (self.folder / self.name).unlink(missing_ok=True)

    def bury(self, why: str) -> float:
        """Return the score of a job whose process is gone; one that had not ended has failed."""
        if self.read().get("state") not in ("done", "failed"):
            self.write("failed", why=why)
            self.say(quietly=True)  # what started it has a last line of its own
        return float(self.read().get("score", -math.inf))

    def take_place(self) -> None:
        """Take a GPU that no other job has, where jobs share this machine's."""
        if self.folder is not None:
            told = read_json(self.folder / "sweep.json")
            placement.take(told["places"])

    def say(self, quietly: bool = False) -> None:
        """Say how many jobs are done, running, failed and left, and for how long."""
        if self.folder is not None:
            say(self.folder, quietly)


def jobs(folder: Path) -> list[dict[str, Any]]:
    """Return what the jobs of a sweep have written, in the order of their last words."""
    found = [read_json(path) for path in folder.glob("*.json")]
    return sorted((job for job in found if "state" in job), key=lambda job: float(job["time"]))


def progress(folder: Path) -> str:
    """Say how many jobs of a sweep are done, running, failed and left, and what is left to wait."""
    found = jobs(folder)
    states = [job["state"] for job in found]
    parts = [f"{states.count(state)} {state}" for state in ("done", "running", "failed")]
    total = read_json(folder / "sweep.json")["jobs"]
    if total is None:
        return f"Sweep: {', '.join(parts)}."
    left = max(total - len(found), 0)
    text = f"Sweep of {total}: {', '.join(parts)}, {left} left"
    took = [job["seconds"] for job in found if job["state"] == "done"]
    running = [time.time() - job["time"] for job in found if job["state"] == "running"]
    if not took or not left + len(running):
        return f"{text}."
    mean = sum(took) / len(took)
    ahead = left * mean + sum(max(mean - seconds, 0) for seconds in running)
    wait = timedelta(seconds=60 * round(ahead / max(len(running), 1) / 60))
    return f"{text}, about {str(wait)[:-3]} h."


def say(folder: Path, quietly: bool = False) -> None:
    """Write a line of progress to the sweep's log, and unless ``quietly`` to the console."""
    line = progress(folder)
    if not quietly:
        print(line, file=sys.stderr)
    with suppress(OSError), (folder / LOG).open("a") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")


def failures(folder: Path) -> list[str]:
    """Return lines that name each failed job, why it failed, and the command that repeats it."""
    lines, command = [], read_json(folder / "sweep.json")["program"]
    for job in jobs(folder):
        if job["state"] == "failed":
            lines += [f"{' '.join(job['overrides'])}: {job['why']}"]
            lines += [f"  again: {command} {shlex.join(job['overrides'])}"]
    return lines
