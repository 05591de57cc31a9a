"""Two processes: the ordered pass, both phases, and the command line, as on one.

Started as a script, this file trains on the ranks that Lightning starts for it.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from sklearn.metrics import accuracy_score, adjusted_rand_score, normalized_mutual_info_score

from clusterlab.assignment import soft_assignment, target_distribution
from clusterlab.callbacks import ClusterInit, StepLimit, TargetRefresh
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.samples import Samples
from clusterlab.data.sources import digits
from clusterlab.losses import kl_divergence
from clusterlab.metrics import contingency, match
from clusterlab.models.dcec import DCEC
from clusterlab.networks import ConvAutoencoder
from clusterlab.training import run
from conftest import MODELS, composed
from reference import dec_numpy

ROOT = Path(__file__).parents[1]


class Embed(Callback):
    """Take the ordered pass before the first step, and the weights that it was made with."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DCEC)
        assert pl_module.target is not None
        self.z, self.target = pl_module.embed_dataset(), pl_module.target.clone()
        self.weights = {k: v.clone() for k, v in pl_module.state_dict().items()}


def part(n: int) -> Samples:
    samples = digits()
    assert samples.y is not None
    return Samples("part", samples.x[:n], samples.y[:n])


def make_trainer(devices: int, max_epochs: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def two_phases(devices: int) -> tuple[int, dict[str, Any]]:
    """Train both phases in batches that two ranks share evenly; return the rank and its state."""
    torch.manual_seed(0)
    network = ConvAutoencoder((1, 8, 8), embedding_dim=10, filters=(4, 8, 16))
    model = DCEC(network, 10, kl_divergence, gamma=1.0, reconstruction=1.0, seed=0, n_init=3)
    # 300 samples are 5 batches of 60. The 203 of the finetune phase do not divide by two; its
    # steps end before the batch that does not either.
    trainer = make_trainer(devices, 2)
    trainer.fit(model, ClusterData(part(300), 60, seed=0))
    losses = [float(trainer.callback_metrics["pretrain/loss"])]
    model.phase = "finetune"
    embed, refresh = Embed(), TargetRefresh(2, 0.0)
    trainer = make_trainer(devices, -1, ClusterInit(), refresh, embed, StepLimit(3))
    trainer.fit(model, ClusterData(part(203), 60, seed=0))
    losses.append(float(trainer.callback_metrics["finetune/loss"]))
    settled = TargetRefresh(2, 0.9)  # at the second refresh fewer labels than that have changed
    stopped = make_trainer(devices, -1, settled, StepLimit(50))
    state = {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "target": refresh.target,
        "first_target": embed.target,
        "labels": refresh.labels,
        "z": embed.z,
        "embedded_with": embed.weights,
        "losses": torch.tensor(losses),
        "scores": refresh.scores,
        "steps": [trainer.global_step, refresh.refreshes],
    }
    stopped.fit(model, ClusterData(part(203), 60, seed=0))
    state["stopped"] = [stopped.global_step, settled.converged]
    return trainer.global_rank, state


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The states of two processes after both phases."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    """The state of one process after both phases."""
    return two_phases(1)[1]


@pytest.mark.distributed
def test_ranks_end_with_the_same_bits(ranks: list[dict[str, Any]]):
    first, second = ranks
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    for name in ("z", "target", "labels", "losses"):
        assert torch.equal(first[name], second[name]), name
    assert first["steps"] == second["steps"] == [3, 3]


@pytest.mark.distributed
def test_the_pass_is_that_of_one_process(ranks: list[dict[str, Any]]):
    """203 samples on two ranks: in order, without the padding, to the last bit."""
    torch.manual_seed(0)
    network = ConvAutoencoder((1, 8, 8), embedding_dim=10, filters=(4, 8, 16))
    weights = ranks[0]["embedded_with"]
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in weights.items() if k != "centers"}
    )
    with torch.no_grad():
        z = network.encode(part(203).x)
    assert ranks[0]["z"].shape == (203, 10)
    torch.testing.assert_close(ranks[0]["z"], z, rtol=0, atol=1e-6)
    assert torch.equal(ranks[0]["z"], z)


@pytest.mark.distributed
def test_the_first_refresh_is_that_of_one_process(ranks: list[dict[str, Any]]):
    """From the same embedding and centers the same target, to the last bit."""
    z, centers = ranks[0]["z"], ranks[0]["embedded_with"]["centers"]
    target = target_distribution(soft_assignment(z, centers))
    assert torch.equal(ranks[0]["first_target"], target)
    expected = dec_numpy.target_distribution(dec_numpy.soft_assignment(z.numpy(), centers.numpy()))
    np.testing.assert_allclose(target.numpy(), expected, atol=1e-5)


@pytest.mark.distributed
def test_ranks_agree_on_stopping(ranks: list[dict[str, Any]], single: dict[str, Any]):
    for state in (*ranks, single):
        assert state["stopped"] == [2, True]


@pytest.mark.distributed
def test_two_ranks_train_what_one_trains(ranks: list[dict[str, Any]], single: dict[str, Any]):
    two = ranks[0]
    torch.testing.assert_close(two["losses"], single["losses"], rtol=1e-4, atol=0)
    for name, value in single["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two["target"], single["target"], rtol=1e-3, atol=1e-4)
    assert (two["labels"] == single["labels"]).double().mean() > 0.99


@pytest.mark.distributed
def test_scores_count_each_sample_once(ranks: list[dict[str, Any]]):
    """Every rank holds all labels: summed over ranks they would shift ARI, which counts pairs."""
    y = part(203).y
    for state in ranks:
        expected = adjusted_rand_score(y, state["labels"])
        assert state["scores"]["ari"] == pytest.approx(expected, abs=1e-12)
        expected = normalized_mutual_info_score(y, state["labels"])
        assert state["scores"]["nmi"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.distributed
def test_the_command_line_on_two_processes(tmp_path: Path):
    overrides = [
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "phases.pretrain.max_epochs=2",
        "phases.finetune.max_steps=20",
        "phases.finetune.update_interval=10",
        "checkpoint_interval=0",
        "figures=false",
        "output_dir=out",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (result_file,) = tmp_path.rglob("result.json")
    run_dir = result_file.parent
    assert len(list(tmp_path.rglob("phase.json"))) == 3  # two phases, and the shared pretraining
    assert not [*tmp_path.rglob("last.*"), *tmp_path.rglob("*.part"), *tmp_path.rglob(".*.json.*")]
    assert done.stdout.count("result.json") == 1
    assert (run_dir / "train.log").read_text().count("finetune: 20 steps") == 1

    result = json.loads(result_file.read_text())
    assert "error" not in result
    assert result["phases"]["pretrain"]["steps"] == 2 * 8
    assert result["phases"]["finetune"]["steps"] == 20
    assert result["phases"]["finetune"]["refreshes"] == 3
    y = digits().y
    assert y is not None
    with np.load(run_dir / "assignments.npz") as stored:
        index, labels, q = stored["index"], stored["label"], stored["q"]
    assert index.tolist() == list(range(1797))
    assert np.array_equal(labels, q.argmax(1))
    s = torch.from_numpy(labels)
    matched = match(contingency(y, s, 10, 10))[s]
    expected = {
        "accuracy": accuracy_score(y, matched),
        "nmi": normalized_mutual_info_score(y, labels),
        "ari": adjusted_rand_score(y, labels),
    }
    for name, value in expected.items():
        assert result["metrics"][name] == pytest.approx(value, abs=1e-9), name

    with (run_dir / "metrics.csv").open() as file:
        rows = [(row["phase"], int(row["step"])) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(
        [("pretrain", s) for s in (8, 16)] + [("finetune", s) for s in (0, 8, 10, 16, 20, 20)]
    )
    with (run_dir / "metrics.csv").open() as file:
        *_, last = (row for row in csv.DictReader(file) if row["cluster/ari"])
    assert float(last["cluster/ari"]) == pytest.approx(expected["ari"], abs=1e-9)


# Each model on two processes


class KeepRank(Callback):
    """Leave what a rank ends a phase with; kill the second's process at a step, if asked."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        where = f"{pl_module.phase} {trainer.global_step}"
        if trainer.global_rank == 1 and where == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {"target": pl_module.target, **pl_module.state_dict()}
        torch.save(state, self.folder / f"{pl_module.phase}{trainer.global_rank}.pt")


def overrides_of(model: str, folder: Path, npz: Path, *more: str) -> list[str]:
    last = ("phases.finetune.max_epochs=6", "phases.finetune.update_interval=6")
    if model != "icae":
        last = (*last, "phases.pretrain.max_epochs=4", "phases.finetune.tolerance=0")
    where = (f"output_dir={folder / 'out'}", f"run_dir={folder / 'out' / 'run'}")
    data = ("data=npz", f"data.path={npz}", "data.batch_size=40", "n_clusters=5")
    return [f"model={model}", *data, *where, *MODELS[model], *last, "figures=false", *more]


def start(
    model: str, folder: Path, npz: Path, *more: str, die_at: str = ""
) -> subprocess.CompletedProcess[str]:
    phases = {"idcec": ("pretrain", "finetune", "retrain"), "icae": ("finetune",)}
    keep = []
    for phase in phases.get(model, ("pretrain", "finetune")):
        name = f"+phases.{phase}.callbacks.keep"
        keep += [f"{name}._target_=test_distributed.KeepRank", f"{name}.folder={folder}"]
    trainer = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py")),
            *overrides_of(model, folder, npz, *trainer, *keep, *more),
        ],
        env={**environment(), "PYTHONPATH": f"{ROOT / 'tests'}", "DIE_AT": die_at},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("model", MODELS)
def test_each_model_on_two_processes(model: str, little_npz: Path, tmp_path: Path) -> None:
    """Weights, centers and targets of both ranks to the bit; scores as of one process, nearly."""
    done = start(model, tmp_path, little_npz)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "run" / "result.json").read_text())
    for phase in record["phases"]:
        first, second = (torch.load(tmp_path / f"{phase}{rank}.pt") for rank in (0, 1))
        for name, value in first.items():
            same = value is second[name] if value is None else torch.equal(value, second[name])
            assert same, (phase, name)
    (tmp_path / "one").mkdir()
    cfg = composed(tmp_path / "one", *overrides_of(model, tmp_path / "one", little_npz))
    cfg.trainer.accelerator = "cpu"
    single = run(cfg)
    for phase, told in single["phases"].items():
        assert told["steps"] == record["phases"][phase]["steps"], phase
    # Noise, pairs and batch normalisation are each rank's own; the rest adds up otherwise.
    tolerance = 0.02 if model in ("dcec", "sdcec") else 0.25
    for score in ("accuracy", "nmi"):
        assert record["metrics"][score] == pytest.approx(single["metrics"][score], abs=tolerance)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_dies_takes_the_run_down(little_npz: Path, tmp_path: Path) -> None:
    """Soon, with a message; the same command then ends as a run that nobody killed."""
    often = "checkpoint_interval=0"
    straight = tmp_path / "straight"
    straight.mkdir()
    begin = time.monotonic()
    assert start("dcec", straight, little_npz, often).returncode == 0
    whole = time.monotonic() - begin
    begin = time.monotonic()
    died = start("dcec", tmp_path, little_npz, often, die_at="finetune 17")
    assert time.monotonic() - begin < whole + 60
    assert died.returncode == 1
    last = died.stderr.splitlines()[-1]
    assert last.startswith("Error: Expected all processes of the run, got one that is gone (")
    assert last.endswith("; repeat the command, which goes on from the last checkpoint.")
    assert not (tmp_path / "finetune0.pt").exists()
    again = start("dcec", tmp_path, little_npz, often)
    assert again.returncode == 0, again.stderr
    assert "Resuming finetune at step" in again.stderr
    one, other = (torch.load(folder / "finetune0.pt") for folder in (tmp_path, straight))
    assert all(torch.equal(one[name], value) for name, value in other.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, state = two_phases(2)
    torch.save(state, Path(sys.argv[1]) / f"{rank}.pt")
