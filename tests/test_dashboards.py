"""What W&B and TensorBoard show of a run: what real runs wrote, read back from their files."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from clusterlab.loggers import WandbRun, read_csv, replay
from clusterlab.sweep import FOLDER
from conftest import LITTLE, Command, Commands

SCORES = ("accuracy", "nmi", "ari", "f1")
FIGURES = {
    *("learning_curves", "reconstructions", "decoded_centers"),
    *("extreme_samples", "embedding", "confusion"),
}
BLOCK = 32 * 1024
ROOT = Path(__file__).parents[1]


def records(path: Path) -> Iterator[Any]:
    """Read a ``.wandb`` file: a 7-byte header, then records in pieces in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, joined = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # no room for a piece's header: zeros
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        joined += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record()
            record.ParseFromString(joined)
            yield record
            joined = b""


@dataclass
class WandbFile:
    """What one W&B run holds."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    @classmethod
    def read(cls, path: Path) -> "WandbFile":
        def values(items: Any) -> dict[str, Any]:
            return {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items
            }

        one = cls()
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                one.run = record.run
                one.config |= values(record.run.config.update)
            elif kind == "config":
                one.config |= values(record.config.update)
            elif kind == "summary":
                one.summary |= values(record.summary.update)
            elif kind == "metric":
                one.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
            elif kind == "history":
                one.rows.append(values(record.history.item))
            elif kind == "exit":
                one.exit_code = record.exit.exit_code
        return one

    def series(self, name: str, axis: str) -> list[tuple[int, float]]:
        """Return the points of a panel."""
        return [(row[axis], row[name]) for row in self.rows if name in row]


def wandb_runs(folder: Path) -> list[WandbFile]:
    """Read all runs below a folder in the order in which they started."""
    runs = [WandbFile.read(path) for path in folder.glob("**/wandb/offline-run-*/*.wandb")]
    return sorted(runs, key=lambda one: (one.run.start_time.seconds, one.run.start_time.nanos))


def run(
    commands: Commands, folder: Path, npz: Path, *overrides: str, sweep: bool = False
) -> Command:
    """Run with loggers. No environment of the user's W&B, nothing sent."""
    own = {f"WANDB_{name}_DIR": str(folder / "wandb-own") for name in ("CONFIG", "CACHE", "DATA")}
    command = commands.start(
        *(["-m"] if sweep else []),
        *LITTLE,
        f"data.path={npz}",
        "output_dir=.",
        *overrides,
        cwd=folder,
        WANDB_ERROR_REPORTING="false",
        WANDB_API_KEY="",
        before="import os; [os.environ.pop(f'WANDB_{n}', None) for n in ('MODE', 'DIR', 'SILENT')]",
        **own,
    )
    command.wait(timeout=400)  # W&B's service takes its time on a busy machine
    return command


def expected(run_dir: Path, phase: str, name: str) -> list[tuple[int, float]]:
    """Return what the run's own CSV says of a value."""
    rows = read_csv(run_dir / phase / "metrics.csv")
    return [(row["step"], pytest.approx(row[name])) for row in rows if name in row]


def test_the_sweep_file_makes_commands_that_compose(compose: Any) -> None:
    """What an agent makes of it: ${args_no_hyphens} is name=value for each parameter."""
    asked = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())
    assert (ROOT / asked["program"]).exists()
    values = {"loss.gamma": asked["parameters"]["loss.gamma"]["min"], "seed": 2}
    assert values.keys() == asked["parameters"].keys()
    fixed = [part for part in asked["command"] if not part.startswith("${")]
    cfg = compose(*fixed, *(f"{name}={value}" for name, value in values.items()))
    assert (cfg.model_name, cfg.data.name, cfg.model.gamma, cfg.seed) == ("dcec", "usps", 0.01, 2)
    assert cfg.logger.wandb.mode == "online"


def test_the_report_is_a_wandb_table(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    own = {f"WANDB_{name}_DIR": str(tmp_path / "own") for name in ("CONFIG", "CACHE", "DATA")}
    script = str(ROOT / "scripts" / "report.py")
    table = str(ROOT / "results" / "dcec_table1.csv")
    command = [sys.executable, script, table, "--out", "out", "--wandb", "clusterlab"]
    environment = {**os.environ, **own, "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "wandb sync " in done.stderr
    (one,) = wandb_runs(tmp_path)
    assert (one.run.project, one.run.job_type) == ("clusterlab", "report")
    (file,) = tmp_path.glob("**/offline-run-*/files/media/table/*.json")
    stored = json.loads(file.read_text())
    dcec = [row for row in stored["data"] if row[:2] == ["usps", "dcec"]]
    assert len(dcec) == 1
    value = float(dcec[0][stored["columns"].index("accuracy_published")])
    assert value == pytest.approx(0.79)
    refused = subprocess.run(
        command[:3] + command[5:], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.stderr.startswith("Error: Expected --out with --wandb, got none;")


# One run with both


@dataclass
class Shown:
    command: Command
    run_dir: Path
    result: dict[str, Any]

    @property
    def wandb(self) -> WandbFile:
        (one,) = wandb_runs(self.run_dir)
        return one


@pytest.fixture(scope="module")
def shown(_commands: Commands, little_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("shown")
    _commands.folder = folder
    command = run(
        _commands,
        folder,
        little_npz,
        "logger=[wandb,tensorboard]",
        "figures=true",
        "run_dir=run",
        "phases.finetune.optimizer.lr=0.0001",  # the labels must not collapse into one
    )
    assert command.code == 0, command.stderr
    result = json.loads((folder / "run" / "result.json").read_text())
    return Shown(command, folder / "run", result)


def test_wandb_axes(shown: Shown) -> None:
    axes = shown.wandb.axes
    assert axes["pretrain/*"] == "pretrain/step"
    assert axes["finetune/*"] == axes["cluster/*"] == "finetune/step"


def test_wandb_curves(shown: Shown) -> None:
    one = shown.wandb
    panels = [
        ("pretrain", "pretrain/loss"),
        ("pretrain", "pretrain/reconstruction"),
        ("finetune", "finetune/loss"),
        ("finetune", "finetune/clustering"),
        ("finetune", "finetune/reconstruction"),
        ("finetune", "cluster/label_change"),
        ("finetune", "cluster/confidence"),
        *(("finetune", f"cluster/{name}") for name in SCORES),
    ]
    for phase, name in panels:
        points = one.series(name, f"{phase}/step")
        assert points == expected(shown.run_dir, phase, name), name
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), name  # strictly increasing
    at = [step for step, _ in one.series("cluster/nmi", "finetune/step")]
    assert at == [0, 10, 20, 30, 37]  # every T steps, and the final weights
    assert [step for step, _ in one.series("cluster/label_change", "finetune/step")] == at[1:]
    assert [step for step, _ in one.series("pretrain/loss", "pretrain/step")] == [5, 10, 15]
    assert [step for step, _ in one.series("finetune/loss", "finetune/step")][-1] == 37


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_wandb_steps_are_numbers_that_do_not_fall(shown: Shown, phase: str) -> None:
    steps = [row[f"{phase}/step"] for row in shown.wandb.rows if f"{phase}/step" in row]
    assert all(isinstance(step, int) for step in steps), steps
    assert steps == sorted(steps)


def test_wandb_config_is_complete(shown: Shown) -> None:
    config = shown.wandb.config
    assert config["loss"]["gamma"] == 0.1
    assert config["phases"]["finetune"]["update_interval"] == 10
    assert config["phases"]["finetune"]["optimizer"]["lr"] == 0.0001
    assert config["network"]["input_shape"] == [1, 8, 8]
    assert config["n_clusters"] == 5  # resolved
    asked = {key: value for key, value in shown.result["config"].items() if key != "logger"}
    assert {key: config[key] for key in asked} == asked


def test_wandb_name_group_and_tags(shown: Shown) -> None:
    run = shown.wandb.run
    assert run.project == "clusterlab"
    assert run.display_name == "run"  # run_dir=run
    assert run.run_group == "dcec_little"
    assert {"dcec", "little"} <= set(run.tags)


def test_wandb_group_and_tags_of_an_experiment(compose: Any) -> None:
    cfg = compose("experiment=dcec_table1", "logger=wandb", "experiment_name=dcec_table1")
    assert cfg.logger.wandb.group == "dcec_table1"
    assert {"dcec", "usps", "dcec_table1"} <= set(cfg.logger.wandb.tags)


def test_a_resumed_run_goes_on_in_its_own(tmp_path: Path) -> None:
    """Without a server: what it would be asked for, and that nothing is logged twice."""
    pytest.importorskip("wandb")

    def logger(folder: str, resumed: bool) -> tuple[WandbRun, list[dict[str, float]]]:
        one = WandbRun("online", ["pretrain"], str(tmp_path / folder), [])
        logged: list[dict[str, float]] = []
        run: Any = SimpleNamespace(resumed=resumed, log=logged.append)
        run.define_metric = lambda *arguments, **named: None
        one._experiment = run
        return one, logged

    (first, new), (again, kept), (other, _) = (
        logger("a", resumed=False),
        logger("a", resumed=True),
        logger("b", resumed=False),
    )
    assert first._wandb_init["id"] == again._wandb_init["id"] != other._wandb_init["id"]
    assert again._wandb_init["resume"] == "allow"
    replay([{"phase": "pretrain", "step": 3, "pretrain/loss": 0.5}], [first, again])
    assert new == [{"pretrain/loss": 0.5, "pretrain/step": 3}]
    assert kept == []


def test_a_sweep_is_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv(FOLDER, str(tmp_path / "2026-01-02_03-04-05_6"))
    one = WandbRun(
        "offline", [], str(tmp_path / "dcec_usps" / "loss.gamma=1,seed=0"), ["dcec", None]
    )
    assert one._wandb_init["tags"] == ["dcec", "2026-01-02_03-04-05_6"]
    assert one._wandb_init["name"] == "dcec_usps/loss.gamma=1,seed=0"


def test_wandb_images(shown: Shown) -> None:
    (media,) = shown.run_dir.glob("wandb/offline-run-*/files/media/images")
    logged = {
        name.removesuffix("/filenames"): value
        for row in shown.wandb.rows
        for name, value in row.items()
        if name.endswith("/filenames")
    }
    assert logged.keys() == {f"figures/{name}" for name in FIGURES}
    for name in FIGURES:
        (file,) = logged[f"figures/{name}"]
        sent = (media.parents[1] / file).read_bytes()
        assert sent.startswith(b"\x89PNG")
        assert sent == (shown.run_dir / "figures" / f"{name}.png").read_bytes()


def test_wandb_summary_is_the_result(shown: Shown) -> None:
    summary, result = shown.wandb.summary, shown.result
    for name in SCORES:
        assert summary[name] == result["metrics"][name]
        assert summary[f"cluster/{name}"] == pytest.approx(result["metrics"][name])
    for name in ("silhouette", "confidence", "entropy", "cluster_sizes"):
        assert summary[name] == result["label_free"][name]
    assert summary["finetune/step"] == 37
    assert summary["pretrain/step"] == 15
    assert shown.wandb.exit_code == 0


def test_wandb_offline_asks_no_server(shown: Shown) -> None:
    logs = "".join(path.read_text() for path in shown.run_dir.glob("wandb/offline-*/logs/*.log"))
    assert "wandb-core" in logs
    assert not re.search(r"graphql|api\.wandb\.ai|dial tcp|retrying", logs)


def test_the_terminal_stays_the_programs(shown: Shown) -> None:
    said = [line for line in shown.command.stderr.splitlines() if line.startswith("wandb:")]
    assert len(said) <= 3, "\n".join(said)
    assert "wandb" not in shown.command.stdout
    assert "Traceback" not in shown.command.stderr


def test_tensorboard(shown: Shown) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(
        str(shown.run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    board.Reload()
    panels = [
        *(("pretrain", f"pretrain/{name}") for name in ("loss", "reconstruction")),
        *(("finetune", f"finetune/{name}") for name in ("loss", "reconstruction", "clustering")),
        *(("finetune", f"cluster/{name}") for name in (*SCORES, "label_change")),
    ]
    for phase, name in panels:
        points = [(point.step, point.value) for point in board.Scalars(name)]
        wanted = [(s, pytest.approx(v.expected)) for s, v in expected(shown.run_dir, phase, name)]
        assert points == wanted, name
    assert set(board.Tags()["images"]) == {f"figures/{name}" for name in FIGURES}
    for name in FIGURES:
        (picture,) = board.Images(f"figures/{name}")
        assert picture.encoded_image_string.startswith(b"\x89PNG")
        assert picture.width > 100
    for name in SCORES:
        (final,) = board.Scalars(f"final/{name}")
        assert final.value == pytest.approx(shown.result["metrics"][name])


# One of them, and several runs


def test_tensorboard_alone(commands: Commands, little_npz: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    command = run(commands, tmp_path, little_npz, "logger=tensorboard", "run_dir=run")
    assert command.code == 0, command.stderr
    assert list(tmp_path.glob("run/tensorboard/events.*"))
    assert not list(tmp_path.rglob("offline-run-*"))


def test_no_dashboard_unless_asked(commands: Commands, little_npz: Path, tmp_path: Path) -> None:
    command = run(commands, tmp_path, little_npz, "run_dir=run")
    assert command.code == 0, command.stderr
    assert not list(tmp_path.rglob("events.*"))
    assert not list(tmp_path.rglob("offline-run-*"))
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_each_job_of_a_sweep_is_a_run(commands: Commands, little_npz: Path, tmp_path: Path) -> None:
    """A job that fails in the middle neither swallows the next nor counts as finished."""
    pytest.importorskip("wandb")
    rates = "phases.finetune.optimizer.lr=0.001,1e30,0.0001"
    command = run(commands, tmp_path, little_npz, rates, "logger=wandb", sweep=True)
    assert command.code == 1, command.stderr
    assert command.stderr.count("Error: Expected a finite loss") == 1
    first, broken, last = wandb_runs(tmp_path)
    configs = [one.config["phases"]["finetune"] for one in (first, broken, last)]
    assert [config["optimizer"]["lr"] for config in configs] == [0.001, 1e30, 0.0001]
    assert len({one.run.run_id for one in (first, broken, last)}) == 3
    assert len({one.run.display_name for one in (first, broken, last)}) == 3
    assert len(set(first.run.tags) & set(broken.run.tags) & set(last.run.tags)) == 3  # the sweep's
    assert (first.exit_code, broken.exit_code, last.exit_code) == (0, 1, 0)
    curve = first.series("pretrain/loss", "pretrain/step")
    assert [step for step, _ in curve] == [5, 10, 15]
    # The later ones reuse the first one's pretraining, and show its curve.
    assert "Reusing the pretrained autoencoder" in command.stderr
    assert broken.series("pretrain/loss", "pretrain/step") == curve
    assert last.series("pretrain/loss", "pretrain/step") == curve
    for one in (first, last):
        steps = [step for step, _ in one.series("cluster/nmi", "finetune/step")]
        assert steps == [0, 10, 20, 30, 37]
        assert set(SCORES) <= one.summary.keys()
    assert not set(SCORES) & broken.summary.keys()
    assert first.summary["nmi"] != last.summary["nmi"]


def test_without_labels_the_dashboard_has_no_scores(
    commands: Commands, little_npz: Path, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    import numpy as np

    with np.load(little_npz) as stored:
        np.savez(tmp_path / "bare.npz", x=stored["x"])
    bare = tmp_path / "bare.npz"
    command = run(commands, tmp_path, bare, "run_dir=run", "logger=[wandb,tensorboard]")
    assert command.code == 0, command.stderr
    (one,) = wandb_runs(tmp_path)
    assert not [row for row in one.rows if "cluster/accuracy" in row]
    assert len([row for row in one.rows if "cluster/label_change" in row]) == 4
    assert all(one.summary.get(name) is None for name in SCORES)
