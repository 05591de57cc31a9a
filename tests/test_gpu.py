"""Runs on a GPU, as far as a machine without one can tell: see ``pretend_gpu``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from omegaconf import DictConfig

from clusterlab.callbacks import PhaseCheckpoint
from clusterlab.models.base import DeepClustering
from clusterlab.training import run
from conftest import MODELS
from pretend_gpu import CPU, GPU, NAME, pretend_gpu

Compose = Callable[..., DictConfig]


def test_the_pretended_gpu_refuses_what_a_gpu_does() -> None:
    x, layer = torch.rand(3, 4), torch.nn.Linear(4, 2)
    with pretend_gpu() as gpu:
        there, before = x.to("cuda"), gpu.waits
        assert (there.device, x.device, there.cpu().device) == (GPU, CPU, CPU)
        assert there.square().sum().item() == x.square().sum().item()
        assert gpu.waits - before == 2  # for a copy and for a number
        for mixed in (
            lambda: there + x,
            lambda: layer(there),
            lambda: torch.cat([there, x]),
            lambda: x[torch.arange(2, device=there.device)],
        ):
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed()
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device=there.device, generator=torch.Generator())
        made = layer.to("cuda")(there[torch.arange(2)]) * torch.tensor(2.0)
        made.sum().backward()
        assert made.device == layer.weight.grad.device == GPU
        assert torch.equal(made.cpu(), 2 * layer.cpu()(x[:2]))


ALL = ("data=npz", "data.batch_size=40", "n_clusters=5", "figures=false", "progress=false")
PRETRAIN = ("phases.pretrain.max_epochs=2",)
FINETUNE = (
    "phases.finetune.max_steps=12",
    "phases.finetune.update_interval=5",
    "phases.finetune.tolerance=0",
)
BOTH = (*PRETRAIN, *FINETUNE, "model.n_init=2")
HISTORIES = tuple(
    f"+phases.finetune.callbacks.{name}={{_target_:clusterlab.callbacks.{name},interval:5}}"
    for name in ("EmbeddingHistory", "CenterHistory")
)
METHODS = {
    "kmeans": (),
    "spectral": (),
    "sae_kmeans": (*MODELS["cdc"], *PRETRAIN),
    "idec": (*MODELS["cdc"], *BOTH),
    "cae_knn": (*MODELS["sdcec"], *PRETRAIN),
    "dcec": (*MODELS["dcec"], *BOTH),
    "sdcec": (*MODELS["sdcec"], *BOTH),
    "cdc": (*MODELS["cdc"], *BOTH),
    "idcec": (
        *(*MODELS["idcec"], *BOTH, "phases.retrain.max_epochs=2", "phases.retrain.tolerance=0"),
        "+phases.finetune.callbacks.cluster_init.consistent_starts=3",
    ),
    "icae": (*MODELS["icae"], *FINETUNE),
}


@pytest.fixture
def made(
    compose: Compose, little_npz: Path, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Make a run in a folder, and return its record and what it stored of each sample."""

    def make(name: str, method: str, *overrides: str) -> Any:
        folder = tmp_path / name
        where = (f"output_dir={folder}", f"run_dir={folder / 'run'}", f"data.path={little_npz}")
        record = run(compose(f"model={method}", *ALL, *METHODS[method], *overrides, *where))
        with np.load(folder / "run" / "assignments.npz") as stored:
            return record, {key: stored[key] for key in ("label", "q", "z")}

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_a_gpu_is_that_on_a_cpu(method: str, made: Callable[..., Any]) -> None:
    record, stored = made("cpu", method, "trainer=cpu")
    with pretend_gpu():
        other, found = made("gpu", method, "trainer=gpu", "trainer.precision=32-true")
    assert other["device"] == NAME
    assert other["metrics"] == record["metrics"]
    assert other["phases"].keys() == record["phases"].keys()
    for key, array in stored.items():  # of many weights at a time Adam adds in another order
        assert np.allclose(found[key], array, atol=1e-3), key


@pytest.mark.parametrize(
    ("method", "phase"), [("dcec", "pretrain"), ("sdcec", "finetune"), ("idcec", "retrain")]
)
def test_a_run_on_a_gpu_goes_on_where_it_was_stopped(
    method: str,
    phase: str,
    made: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = (method, "trainer=gpu", "trainer.precision=32-true", "checkpoint_interval=0")

    class StoppedError(Exception):
        pass

    save = PhaseCheckpoint.on_train_epoch_end

    def save_and_stop(self: PhaseCheckpoint, trainer: Trainer, model: DeepClustering) -> None:
        save(self, trainer, model)
        if model.phase == phase:
            raise StoppedError

    with pretend_gpu():
        _, straight = made("straight", *asked)
        monkeypatch.setattr(PhaseCheckpoint, "on_train_epoch_end", save_and_stop)
        with pytest.raises(StoppedError):
            made("stopped", *asked)
        monkeypatch.undo()
        caplog.clear()
        _, resumed = made("stopped", *asked)
    assert f"Resuming {phase} at step 5." in caplog.text
    for key, array in straight.items():
        assert np.array_equal(resumed[key], array), key


@pytest.mark.parametrize("method", ["dcec", "sdcec", "cdc", "idcec", "icae"])
def test_no_step_makes_the_cpu_wait_for_the_gpu(method: str, made: Callable[..., Any]) -> None:
    """What waits does so once an epoch or a refresh: twice the steps in these, no more waits."""
    asked = ["trainer=gpu", "trainer.precision=32-true", "phases.finetune.update_interval=1000"]
    asked += ["phases.finetune.max_steps=-1", "phases.finetune.max_epochs=2"]
    waits = []
    for size in (40, 20):
        with pretend_gpu() as gpu:
            before = gpu.waits
            record, _ = made(f"batches of {size}", method, *asked, f"data.batch_size={size}")
            waits.append(gpu.waits - before)
        assert {phase["steps"] for phase in record["phases"].values()} == {2 * 200 // size}
    assert 0 < waits[1] <= waits[0]


def test_a_gpu_trains_in_bf16(made: Callable[..., Any]) -> None:
    _, stored = made("cpu", "dcec", "trainer=cpu", "trainer.precision=bf16-mixed")
    with pretend_gpu():
        other, found = made("gpu", "dcec", "trainer=gpu")
    assert (other["config"]["trainer"]["precision"], other["device"]) == ("bf16-mixed", NAME)
    assert np.allclose(found["z"], stored["z"], atol=0.02)


def test_without_being_asked_a_run_takes_the_gpu_in_float32(made: Callable[..., Any]) -> None:
    with pretend_gpu():
        record, _ = made("auto", "dcec", *HISTORIES, "figures=true")
    assert (record["device"], record["config"]["trainer"]["precision"]) == (NAME, "32-true")
