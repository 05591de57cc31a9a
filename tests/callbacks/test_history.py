"""The embedding of some samples while a phase trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from clusterlab.callbacks import (
    CenterHistory,
    ClusterInit,
    EmbeddingHistory,
    PhaseCheckpoint,
    TargetRefresh,
)
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.models.dcec import DCEC
from clusterlab.training import run
from conftest import LITTLE_IDCEC, KillAt, KilledError

Make = Callable[..., DCEC]
Train = Callable[..., Trainer]


def test_keeps_the_same_samples_at_each_interval(dcec: Make, train: Train, tiny: Samples) -> None:
    model, history = dcec(), EmbeddingHistory(interval=3, n_samples=20)
    before = model.embed_samples(tiny, torch.device("cpu"))
    train(model, tiny, "pretrain", [history], max_steps=7)
    after = model.embed_samples(tiny, torch.device("cpu"))
    assert history.steps == [0, 3, 6]
    assert history.index.tolist() == sorted(set(history.index.tolist()))
    assert torch.equal(history.kept[0], before[history.index])
    assert [z.shape for z in history.kept] == [(20, 10)] * 3
    assert not torch.equal(history.kept[2], after[history.index])  # one step later


def test_a_killed_phase_keeps_what_it_had(
    dcec: Make, train: Train, tiny: Samples, tmp_path: Path
) -> None:
    def callbacks() -> tuple[EmbeddingHistory, list[Any]]:
        history = EmbeddingHistory(interval=3, n_samples=20)
        return history, [ClusterInit(), TargetRefresh(4, 0.0), history]

    straight, kept = callbacks()
    train(dcec(), tiny, "finetune", kept, max_steps=11)
    path = tmp_path / "last.ckpt"
    _, kept = callbacks()
    with pytest.raises(KilledError):
        train(dcec(), tiny, "finetune", [*kept, PhaseCheckpoint(path, 0), KillAt(7)], max_steps=11)
    resumed, kept = callbacks()
    checkpoint = PhaseCheckpoint(path, 0)
    train(dcec(), tiny, "finetune", [*kept, checkpoint], max_steps=11, ckpt_path=path)
    assert resumed.steps == straight.steps == [0, 3, 6, 9]
    assert all(torch.equal(a, b) for a, b in zip(resumed.kept, straight.kept, strict=True))


def test_a_run_leaves_and_draws_it(
    compose: Callable[..., Any], little_npz: Path, tmp_path: Path
) -> None:
    history = "{_target_:clusterlab.callbacks.EmbeddingHistory,interval:5}"
    phases = ("finetune", "retrain")
    asked = [f"+phases.{phase}.callbacks.history={history}" for phase in phases]
    run(compose(*LITTLE_IDCEC, f"data.path={little_npz}", "figures=true", *asked))
    for phase, d in zip(phases, (5, 128), strict=True):
        with np.load(tmp_path / "run" / phase / "embedding.npz") as stored:
            assert stored["step"].tolist()[:3] == [0, 5, 10]
            assert stored["z"].shape[1:] == (200, d)
            assert not np.array_equal(stored["z"][0], stored["z"][1])
            assert stored["index"].tolist() == list(range(200))
        assert (tmp_path / "run" / "figures" / f"history_{phase}.png").exists()


@pytest.mark.parametrize(("interval", "n"), [(0, 5), (3, 0)])
def test_what_cannot_be_is_refused(interval: int, n: int) -> None:
    with pytest.raises(UserError, match="of at least 1, got"):
        EmbeddingHistory(interval, n)


def test_centers_are_decoded_at_each_interval(dcec: Make, train: Train, tiny: Samples) -> None:
    model, history = dcec(), CenterHistory(interval=2)
    train(model, tiny, "finetune", [ClusterInit(), TargetRefresh(4, 0.0), history], max_steps=4)
    assert history.steps == [0, 2, 4]
    assert model.network.training
    model.network.eval()
    assert torch.allclose(history.kept[2], model.network.decode(model.centers))
    assert not torch.equal(history.kept[0], history.kept[1])
