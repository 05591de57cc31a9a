"""What a sweep tells of its jobs: how many, how long, which failed and how to repeat them."""

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from clusterlab import launchers, sweep
from clusterlab.cli import share_cores
from clusterlab.errors import UserError
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
    write_json(tmp_path / "sweep.json", {"jobs": 5, "program": "python train.py"})
    monkeypatch.setenv(sweep.FOLDER, str(tmp_path))
    monkeypatch.setattr("time.time", lambda: 10_000.0)
    return tmp_path


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("time.time", lambda: seconds)


def test_the_wait_is_what_the_jobs_took_by_their_records(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at(monkeypatch, 0)
    jobs = [sweep.Job([f"seed={seed}"]) for seed in range(4)]
    jobs[0].write("running")
    jobs[0].say()
    line = "Sweep of 5: 0 done, 1 running, 0 failed, 4 left."
    assert capsys.readouterr().err == f"{line}\n"
    jobs[0].say(quietly=True)
    assert [told[20:] for told in (folder / "progress.log").read_text().splitlines()] == [line] * 2
    assert capsys.readouterr().err == ""
    at(monkeypatch, 3600)
    jobs[0].write("done", seconds=3590.0)  # figures took the rest
    for job in jobs[1:3]:
        job.write("running")
    jobs[3].write("running")
    jobs[3].write("done", seconds=3600.0)  # at once: it had been there
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
    why, again = sweep.failures(folder)
    assert why == "data.path=my pictures seed=1: Expected a file, got none; look."
    assert shlex.split(again) == ["again:", "python", "train.py", *overrides]
    job.write("running")  # somebody repeats it in the same sweep
    job.write("done")
    assert sweep.failures(folder) == []


def test_a_job_whose_process_is_gone_has_failed(folder: Path) -> None:
    never, midway, done = (sweep.Job([f"seed={seed}"]) for seed in range(3))
    for job in (midway, done):
        job.write("running")
    done.write("done", score=0.25)
    assert done.bury("killed") == 0.25
    assert sweep.failures(folder) == []
    assert [job.bury("killed") for job in (never, midway)] == [-math.inf] * 2
    assert "1 done, 0 running, 2 failed" in sweep.progress(folder)
    assert sum("killed" in line for line in sweep.failures(folder)) == 2


def test_a_run_alone_has_no_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (None, str(tmp_path / "gone")):
        if value is None:
            monkeypatch.delenv(sweep.FOLDER, raising=False)
        else:
            monkeypatch.setenv(sweep.FOLDER, value)
        job: Any = sweep.Job(["seed=0"])
        job.write("running")
        job.say()
    assert capsys.readouterr().err == ""
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


def test_other_ranks_tell_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(sweep.FOLDER, raising=False)
    cfg = asked("seed=0,1")
    cfg.output_dir = str(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    sweep.Sweep().on_multirun_start(cfg)
    assert sweep.FOLDER not in os.environ
    assert list(tmp_path.iterdir()) == []


# What launchers and Optuna have by default


def prepared(*overrides: str, **groups: str) -> DictConfig:
    """Compose a sweep's config, and change what a launcher or Optuna would get wrong."""
    for node, name in groups.items():
        if node.startswith("hydra/"):
            plugin = f"{name.split('_')[0]}_{node.removeprefix('hydra/')}"
            pytest.importorskip(f"hydra_plugins.hydra_{plugin}")
    cfg = asked(*overrides, **groups)
    with open_dict(cfg):
        cfg.hydra.overrides.hydra = [text for text in overrides if text.startswith("hydra")]
        for text in overrides:
            OmegaConf.update(cfg, *text.split("="))
    launchers.prepare(cfg)
    return cfg


@pytest.mark.parametrize(
    ("launcher", "name", "typed", "expected"),
    [
        ("submitit_local", "timeout_min", None, 525_600),
        ("submitit_local", "timeout_min", 30, 30),
        ("submitit_local", "timeout_min", 60, 60),
        ("submitit_slurm", "timeout_min", None, 60),
        ("submitit_slurm", "max_num_timeout", None, 100),
        ("submitit_slurm", "max_num_timeout", 0, 0),
        ("submitit_slurm", "max_num_timeout", 3, 3),
    ],
)
def test_no_time_limit_ends_a_job(
    monkeypatch: pytest.MonkeyPatch, launcher: str, name: str, typed: int | None, expected: int
) -> None:
    monkeypatch.setattr(launchers, "outlast_submitted_jobs", lambda: None)
    monkeypatch.setattr("clusterlab.slurm.watch_the_queue", lambda: None)
    overrides = () if typed is None else (f"hydra.launcher.{name}={typed}",)
    cfg = prepared(*overrides, **{"hydra/launcher": launcher})
    assert int(cfg.hydra.launcher[name]) == expected


def test_optuna_maximises() -> None:
    cfg = prepared(**{"hydra/sweeper": "optuna"})
    assert cfg.hydra.sweeper.direction == "maximize"
    asked_for = "hydra.sweeper.direction=minimize"
    with pytest.raises(UserError, match=r"direction=maximize, got minimize; leave it out\.$"):
        prepared(asked_for, **{"hydra/sweeper": "optuna"})


@pytest.mark.parametrize(
    "group", ["hydra/launcher=joblib", "hydra/launcher=submitit_local", "hydra/sweeper=optuna"]
)
def test_jobs_of_several_devices_run_one_after_the_other(group: str) -> None:
    node, _, name = group.partition("=")
    expected = f"Expected trainer.devices=1 with {group}, got 2; .* leave out {group}"
    with pytest.raises(UserError, match=expected):
        prepared(**{node: name, "trainer": "ddp"})
    prepared(trainer="ddp")


# A sweep whose job 1 is killed by the first or by each process that runs it.
PROGRAM = """
import os, signal, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from clusterlab import cli, sweep
from clusterlab.files import config_folder

@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def job(cfg):
    told = sweep.Job(list(HydraConfig.get().overrides.task))
    told.write("running")
    time.sleep(0.5)
    if cfg.seed == 1 and not Path("killed").exists():
        Path("killed").touch() if os.environ["KILL"] == "once" else None
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    told.write("done", score=cfg.seed)
    return cfg.seed

if __name__ == "__main__":
    cli.job = job
    cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "kill"), [("joblib", "once"), ("joblib", "always"), ("submitit_local", "once")]
)
def test_a_killed_job_does_not_stop_a_sweep(tmp_path: Path, launcher: str, kill: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    (tmp_path / "program.py").write_text(PROGRAM)
    overrides = [f"hydra/launcher={launcher}", "trainer=cpu", "seed=0,1,2,3"]
    if launcher == "joblib":
        overrides.append("hydra.launcher.n_jobs=2")
    done = subprocess.run(
        [sys.executable, "program.py", "-m", *overrides],
        cwd=tmp_path,
        env={**os.environ, "KILL": kill},
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    (folder,) = (path.parent for path in tmp_path.glob("runs/.multirun/*/sweep.json"))
    assert f"tail -f {folder / 'progress.log'}" in printed
    states = {job["overrides"][-1]: job["state"] for job in sweep.jobs(folder)}
    assert len(states) == 4
    if (launcher, kill) == ("joblib", "once"):  # it has been run again
        assert set(states.values()) == {"done"}
        assert done.returncode == 0, printed
        return
    assert done.returncode == 1
    # With joblib seed 0 is killed along with it, both times.
    assert states["seed=1"] == "failed"
    assert (states["seed=2"], states["seed=3"]) == ("done", "done")
    assert "seed=1: its process ended" in done.stderr
    assert "  again: python program.py trainer=cpu seed=1" in done.stderr
