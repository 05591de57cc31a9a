"""What a sweep tells of its jobs: how many, how long, which failed and how to repeat them."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from clusterlab import sweep
from clusterlab.cli import share_cores
from clusterlab.files import config_folder, write_json


def asked(*overrides: str, **groups: str) -> DictConfig:
    """Compose what Hydra hands to a callback when a sweep starts."""
    chosen = [f"{name}={value}" for name, value in groups.items()]
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = hydra.compose("train", chosen, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.overrides.task = [*chosen, *overrides]
    return cfg


@pytest.mark.parametrize(
    ("overrides", "groups", "jobs"),
    [
        (("seed=0,1,2",), {}, 3),
        (("seed=range(4)", "loss.gamma=choice(0.1,1)"), {}, 8),
        ((), {"sweep": "seeds"}, 5),
        ((), {"sweep": "table"}, 24),
        ((), {"experiment": "dcec_table1"}, 40),
        (("model=dec,idec", "seed=3"), {"experiment": "dcec_table1"}, 2),
        (("data.labelled=0.1", "network.filters=[1,2,3]"), {}, 1),
    ],
)
def test_jobs_are_counted(overrides: tuple[str, ...], groups: dict[str, str], jobs: int) -> None:
    assert sweep.count(asked(*overrides, **groups)) == jobs


def test_another_sweeper_is_not_counted() -> None:
    cfg = asked("seed=0,1")
    with open_dict(cfg):
        cfg.hydra.sweeper = OmegaConf.create({"_target_": "hydra_plugins.Optuna"})
    assert sweep.count(cfg) is None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of five jobs, whose clock stands at 10,000 seconds."""
    write_json(tmp_path / "sweep.json", {"jobs": 5})
    monkeypatch.setenv(sweep.FOLDER, str(tmp_path))
    monkeypatch.setattr("time.time", lambda: 10_000.0)
    return tmp_path


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("time.time", lambda: seconds)


def test_the_wait_is_that_of_the_jobs_that_worked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 0)
    jobs = [sweep.Job([f"seed={seed}"]) for seed in range(4)]
    jobs[0].write("running")
    assert jobs[0].progress() == "Sweep of 5: 0 done, 1 running, 0 failed, 4 left."
    at(monkeypatch, 3600)
    jobs[0].write("done", worked=True)
    for job in jobs[1:3]:
        job.write("running")
    jobs[3].write("running")
    jobs[3].write("done", worked=False)  # a second: it had been there
    at(monkeypatch, 3600 + 1200)
    # Two running with 40 minutes to go, one left of 60 minutes, two at a time: 70 minutes.
    text = "Sweep of 5: 2 done, 2 running, 0 failed, 1 left, about 1:10 h."
    assert sweep.progress(folder) == text
    told = json.loads((folder / "sweep.json").read_text())
    write_json(folder / "sweep.json", {**told, "jobs": None})
    assert sweep.progress(folder) == "Sweep: 2 done, 2 running, 0 failed."


def test_a_failure_is_told_with_its_command(folder: Path) -> None:
    overrides = ["data.path=my pictures", "seed=1"]
    job = sweep.Job(overrides)
    job.write("running")
    job.write("failed", why="Expected a file, got none; look.")
    why, again = sweep.failures(folder, "python train.py")
    assert why == "data.path=my pictures seed=1: Expected a file, got none; look."
    assert shlex.split(again) == ["again:", "python", "train.py", *overrides]
    job.write("running")  # somebody repeats it in the same sweep
    job.write("done", worked=True)
    assert sweep.failures(folder, "python train.py") == []


def test_a_run_alone_has_no_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in (None, str(tmp_path / "gone")):
        if value is None:
            monkeypatch.delenv(sweep.FOLDER, raising=False)
        else:
            monkeypatch.setenv(sweep.FOLDER, value)
        job: Any = sweep.Job(["seed=0"])
        job.write("running")
        assert job.progress() == ""
    assert list(tmp_path.iterdir()) == []


RECORD = {"label_free": {"silhouette": 0.5, "sizes": [1]}, "metrics": {"nmi": 0.7, "ari": None}}


def test_what_is_maximised_needs_no_labels(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="clusterlab"):
        assert sweep.objective(RECORD, "silhouette") == 0.5
        assert not caplog.records
        assert sweep.objective(RECORD, "metrics.nmi") == 0.7
        assert "LABELS CHOOSE THE SETTINGS" in caplog.text
    for name in ("metrics.ari", "sizes", "none_such", "other.silhouette"):
        assert sweep.objective(RECORD, name) == -math.inf  # NaN ends Optuna's sweep


@pytest.mark.parametrize(
    ("n_jobs", "environment", "threads"),
    [
        (2, {}, 4),
        (3, {}, 2),
        (16, {}, 1),
        (-1, {}, 1),
        (2, {"OMP_NUM_THREADS": "7"}, 7),
        (1, {}, 7),
    ],
)
def test_parallel_jobs_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, n_jobs: int, environment: dict[str, str], threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    set_to = [7]
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    share_cores(OmegaConf.create({"n_jobs": n_jobs}))
    assert set_to[-1] == threads
