"""The finetune phase's loop: when p is refreshed, what it is, when training stops, what is told."""

import copy
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from clusterlab.callbacks import ClusterInit, PhaseCheckpoint, TargetRefresh
from clusterlab.data.datamodule import EpochShuffle
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.models.base import DeepClustering
from clusterlab.models.dcec import DCEC
from clusterlab.trouble import size_trouble
from conftest import KillAt, KilledError
from reference import dec_numpy

Make = Callable[..., DCEC]
Train = Callable[..., Trainer]


class Watched(TargetRefresh):
    """Keep, at every refresh, what the equations give for the weights of that moment."""

    def __init__(self, update_interval: int, tolerance: float = 0.0) -> None:
        super().__init__(update_interval, tolerance)
        self.steps: list[int] = []
        self.expected: list[np.ndarray] = []  # q of the whole data set, by loops
        self.targets: list[Tensor] = []
        self.all_labels: list[Tensor] = []
        self.changes: list[float | None] = []
        self.all_scores: list[dict[str, float]] = []

    def refresh(self, trainer: Trainer, pl_module: DeepClustering) -> None:
        with torch.no_grad():
            z = pl_module.network.encode(trainer.datamodule.samples.x)  # type: ignore[attr-defined]
            q = dec_numpy.soft_assignment(z.double().numpy(), pl_module.centers.double().numpy())
        super().refresh(trainer, pl_module)
        self.steps.append(trainer.global_step)
        self.expected.append(q)
        assert self.target is not None
        assert self.labels is not None
        self.targets.append(self.target.clone())
        self.all_labels.append(self.labels.clone())
        self.changes.append(self.change)
        self.all_scores.append(self.scores)


@pytest.fixture
def pretrained(dcec: Make, train: Train, tiny: Samples) -> DCEC:
    model = dcec(gamma=1.0)
    train(model, tiny, "pretrain", max_epochs=3)
    return model


# When


def test_refreshes_at_every_interval_and_at_the_end(pretrained: DCEC, train: Train, tiny: Samples):
    refresh = Watched(4)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=14)
    assert refresh.steps == [0, 4, 8, 12, 14]
    assert refresh.refreshes == 5


def test_no_second_refresh_where_the_limit_is_a_multiple(
    pretrained: DCEC, train: Train, tiny: Samples
):
    refresh = Watched(3)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=9)
    assert refresh.steps == [0, 3, 6, 9]


def test_counts_optimizer_steps_not_batches(pretrained: DCEC, train: Train, tiny: Samples):
    refresh = Watched(2)
    callbacks = [ClusterInit(), refresh]
    train(pretrained, tiny, "finetune", callbacks, accumulate_grad_batches=3, max_steps=7)
    assert refresh.steps == [0, 2, 4, 6, 7]


def test_every_step_uses_the_target_of_the_last_refresh(
    pretrained: DCEC, train: Train, tiny: Samples
):
    class Targets(Callback):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, DCEC)
            assert pl_module.target is not None
            self.seen.append(pl_module.target.clone())

    refresh, targets = Watched(3), Targets()
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh, targets], max_steps=8)
    assert len(targets.seen) == 8
    for step, target in enumerate(targets.seen):
        assert torch.equal(target, refresh.targets[step // 3]), step


# What


def test_target_and_labels_are_those_of_the_equations(
    pretrained: DCEC, train: Train, tiny: Samples
):
    refresh = Watched(4)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=14)
    for q, p, labels in zip(refresh.expected, refresh.targets, refresh.all_labels, strict=True):
        np.testing.assert_allclose(p.numpy(), dec_numpy.target_distribution(q), atol=1e-5)
        assert p.dtype == torch.float32
        assert not p.requires_grad
        assert labels.tolist() == q.argmax(1).tolist()
    assert not torch.allclose(refresh.targets[0], refresh.targets[-1], atol=1e-3)


def test_label_change_is_counted_by_hand(pretrained: DCEC, train: Train, tiny: Samples):
    refresh = Watched(2)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=12)
    labels = [part.tolist() for part in refresh.all_labels]
    counts = [sum(a != b for a, b in zip(old, new, strict=True)) for old, new in pairwise(labels)]
    assert refresh.changes[0] is None
    assert refresh.changes[1:] == pytest.approx([count / 203 for count in counts])
    assert max(counts) > 0
    assert [s["label_change"] for s in refresh.all_scores[1:]] == refresh.changes[1:]
    assert "label_change" not in refresh.all_scores[0]


def test_scores_are_those_of_the_labels(pretrained: DCEC, train: Train, tiny: Samples):
    refresh = Watched(4)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=4)
    assert tiny.y is not None
    for q, scores in zip(refresh.expected, refresh.all_scores, strict=True):
        labels = q.argmax(1)
        assert scores["ari"] == pytest.approx(adjusted_rand_score(tiny.y, labels))
        assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(tiny.y, labels))
        assert scores["confidence"] == pytest.approx(q.max(1).mean(), rel=1e-4)
        assert scores["entropy"] == pytest.approx(-(q * np.log(q)).sum(1).mean(), rel=1e-4)
    assert refresh.first == refresh.all_scores[0]


def test_final_labels_are_those_of_the_final_weights(pretrained: DCEC, train: Train, tiny: Samples):
    refresh = TargetRefresh(100, 0.0)  # no refresh between the first and the last
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=13)
    assert refresh.refreshed_at == 13
    assert refresh.refreshes == 2
    with torch.no_grad():
        labels = pretrained(tiny.x).argmax(1)
    assert refresh.labels is not None
    assert torch.equal(refresh.labels, labels)


def test_the_phase_equals_algorithm_1_in_a_bare_loop(pretrained: DCEC, train: Train, tiny: Samples):
    class Centers(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, DCEC)
            self.first = pl_module.centers.detach().clone()

    bare, start = copy.deepcopy(pretrained.network), Centers()
    train(pretrained, tiny, "finetune", [ClusterInit(), TargetRefresh(3, 0.0), start], max_steps=8)

    centers = start.first.requires_grad_()
    optimizer = torch.optim.Adam([*bare.parameters(), centers])
    order = [i for epoch in (0, 1) for i in batches(epoch)]

    for step, index in enumerate(order):
        if step % 3 == 0:
            with torch.no_grad():
                q = shares(bare.encode(tiny.x), centers)
                p = q**2 / q.sum(0, keepdim=True)
                p = p / p.sum(1, keepdim=True)
        x = tiny.x[index]
        z = bare.encode(x)
        q = shares(z, centers)
        clustering = (p[index] * (p[index] / q).log()).sum() / len(index)
        loss = clustering + (bare.decode(z) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(pretrained.centers, centers, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(pretrained.network.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def batches(epoch: int) -> list[Tensor]:
    sampler = EpochShuffle(torch.arange(203), 64, seed=0)
    sampler.set_epoch(epoch)
    return list(sampler)


def shares(z: Tensor, centers: Tensor) -> Tensor:
    kernel = 1 / (1 + ((z[:, None] - centers[None]) ** 2).sum(2))
    return kernel / kernel.sum(1, keepdim=True)


# When it stops


def test_stops_at_the_step_where_labels_settle(dcec: Make, train: Train, tiny: Samples):
    long, short = Watched(3), Watched(3)
    train(dcec(gamma=1.0), tiny, "finetune", [ClusterInit(), long], max_steps=30)
    assert not long.converged
    # A tolerance that the first interval does not meet, and a later one does.
    changes = [change for change in long.changes if change is not None]
    tolerance = changes[0]
    first = next(i for i, change in enumerate(changes) if change < tolerance)
    assert first > 0
    short.tolerance = tolerance
    trainer = train(dcec(gamma=1.0), tiny, "finetune", [ClusterInit(), short], max_steps=30)
    assert trainer.global_step == 3 * (first + 1)
    assert short.steps == long.steps[: first + 2]
    assert short.changes == long.changes[: first + 2]
    assert short.converged
    assert short.record()["stop_reason"] == "tolerance"
    assert "stop_reason" not in long.record()


def still(model: DCEC) -> DCEC:
    model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    return model


def test_unchanged_labels_stop_at_the_first_interval(dcec: Make, train: Train, tiny: Samples):
    refresh = Watched(5, tolerance=1e-9)
    callbacks = [ClusterInit(), refresh]
    trainer = train(still(dcec()), tiny, "finetune", callbacks, max_steps=20)
    assert trainer.global_step == 5
    assert refresh.steps == [0, 5]
    assert refresh.record()["label_change"] == 0


def test_tolerance_zero_never_stops(dcec: Make, train: Train, tiny: Samples):
    refresh = Watched(5, tolerance=0.0)
    callbacks = [ClusterInit(), refresh]
    trainer = train(still(dcec()), tiny, "finetune", callbacks, max_steps=20)
    assert trainer.global_step == 20
    assert not refresh.converged
    assert refresh.changes[1:] == [0.0] * 4


@pytest.mark.parametrize("interval", [0, -140])
def test_intervals_out_of_range_are_refused(interval: int):
    with pytest.raises(UserError, match=r"Expected an update interval .* got .*; set phases\."):
        TargetRefresh(interval, 0.001)


@pytest.mark.parametrize("tolerance", [-0.001, 1, 1.5, float("nan")])
def test_tolerances_out_of_range_are_refused(tolerance: float):
    with pytest.raises(UserError, match=r"Expected a tolerance in \[0, 1\), got .*; set phases\."):
        TargetRefresh(140, tolerance)


@pytest.mark.parametrize(("interval", "tolerance"), [(1, 0), (140, 0.001), (140, 0.999)])
def test_values_in_range_are_taken(interval: int, tolerance: float):
    refresh = TargetRefresh(interval, tolerance)
    assert (refresh.update_interval, refresh.tolerance) == (interval, tolerance)


# Ground truth


def test_labels_of_ground_truth_do_not_steer(dcec: Make, train: Train, tiny: Samples):
    assert tiny.y is not None
    order = torch.randperm(203, generator=torch.Generator().manual_seed(0))
    results = []
    for y in (tiny.y, tiny.y[order], None):
        samples, model, refresh = replace(tiny, y=y), dcec(gamma=1.0), Watched(2, tolerance=0.02)
        train(model, samples, "pretrain", max_epochs=1)
        trainer = train(model, samples, "finetune", [ClusterInit(), refresh], max_steps=10)
        results.append((model.state_dict(), refresh, trainer.global_step))
    (weights, refresh, steps), *others = results
    assert len({str(other.first.get("accuracy")) for _, other, _ in results}) == 3
    for other_weights, other, other_steps in others:
        assert other_steps == steps
        assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
        assert refresh.changes == other.changes
        assert torch.equal(refresh.targets[-1], other.targets[-1])
    assert "accuracy" not in results[2][1].scores
    assert results[2][1].scores.keys() == {"confidence", "entropy", "label_change"}


# Resume


class KillAtTheEnd(Callback):
    """Die when all is done but the record."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise KilledError


def same(a: TargetRefresh, b: TargetRefresh) -> None:
    """Compare all that a record or a resumed phase would use, but the time spent."""
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name
        elif name != "seconds":
            assert value == other[name], name


def test_a_killed_phase_goes_on_bit_for_bit(
    dcec: Make, train: Train, tiny: Samples, tmp_path: Path
):
    # Refreshes at 0, 3, 6, ... 15, 16; the checkpoint of step 8 holds the target of step 6.
    straight, straight_refresh = dcec(gamma=1.0), TargetRefresh(3, 0.0)
    callbacks: list[Callback] = [ClusterInit(), straight_refresh]
    train(straight, tiny, "finetune", callbacks, max_epochs=4)
    path = tmp_path / "last.ckpt"
    callbacks = [ClusterInit(), TargetRefresh(3, 0.0), KillAt(11), PhaseCheckpoint(path, 0)]
    with pytest.raises(KilledError):
        train(dcec(gamma=1.0), tiny, "finetune", callbacks, max_epochs=4)
    assert torch.load(path)["global_step"] == 8
    resumed, refresh = dcec(gamma=1.0), TargetRefresh(3, 0.0)
    callbacks = [ClusterInit(), refresh, PhaseCheckpoint(path, 0)]
    train(resumed, tiny, "finetune", callbacks, ckpt_path=path, max_epochs=4)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    same(straight_refresh, refresh)


@pytest.mark.parametrize("limits", [{"max_steps": 14}, {"max_steps": 16}, {"max_epochs": 4}])
def test_a_phase_killed_after_its_last_step_ends_the_same(
    dcec: Make, train: Train, tiny: Samples, tmp_path: Path, limits: dict[str, int]
):
    straight, straight_refresh = dcec(gamma=1.0), TargetRefresh(3, 0.0)
    callbacks: list[Callback] = [ClusterInit(), straight_refresh, KillAtTheEnd()]
    path = tmp_path / "last.ckpt"
    callbacks = [*callbacks, PhaseCheckpoint(path, 0)]
    with pytest.raises(KilledError):
        train(straight, tiny, "finetune", callbacks, **limits)
    resumed, refresh = dcec(gamma=1.0), TargetRefresh(3, 0.0)
    callbacks = [ClusterInit(), refresh, PhaseCheckpoint(path, 0)]
    trainer = train(resumed, tiny, "finetune", callbacks, ckpt_path=path, **limits)
    assert trainer.global_step == limits.get("max_steps", 16)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    same(straight_refresh, refresh)


def test_a_settled_phase_settles_again_when_resumed(
    dcec: Make, train: Train, tiny: Samples, tmp_path: Path
):
    path, first = tmp_path / "last.ckpt", TargetRefresh(5, 1e-9)
    model = still(dcec())
    callbacks = [ClusterInit(), first, PhaseCheckpoint(path, 0)]
    train(model, tiny, "finetune", callbacks, max_steps=20)
    resumed, second = still(dcec()), TargetRefresh(5, 1e-9)
    callbacks = [ClusterInit(), second, PhaseCheckpoint(path, 0)]
    trainer = train(resumed, tiny, "finetune", callbacks, ckpt_path=path, max_steps=20)
    assert trainer.global_step == 5
    assert second.converged
    same(first, second)
    assert torch.equal(resumed.centers, model.centers)


def test_state_round_trip(pretrained: DCEC, train: Train, tiny: Samples):
    refresh, copied = TargetRefresh(3, 0.01), TargetRefresh(3, 0.01)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=5)
    copied.load_state_dict(refresh.state_dict())
    same(refresh, copied)
    assert copied.seconds == refresh.seconds
    assert copied.refreshed_at == 5
    assert copied.record() == refresh.record()


# What it says


def collapsed(model: DCEC) -> DCEC:
    """Put one center among the embeddings, the others far away."""
    with torch.no_grad():
        model.centers.fill_(100.0)
        model.centers[3] = 0.0
    return still(model)


def test_a_collapse_is_told_once_and_recorded(
    dcec: Make, train: Train, tiny: Samples, caplog: pytest.LogCaptureFixture
):
    refresh, model = TargetRefresh(2, 0.0), collapsed(dcec())
    model.suspect = "the term it suspects"
    with caplog.at_level(logging.WARNING, logger="clusterlab"):
        train(model, tiny, "finetune", [refresh], max_steps=6)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("clusterlab")]
    assert len(told) == 1  # four refreshes found the same
    assert any("step 0: Collapsed: cluster 3 (203 of 203 samples)" in line for line in told)
    assert any("Try a smaller weight of the term it suspects," in line for line in told)
    trouble = refresh.record()["trouble"]
    assert [f"step 0: {line}" for line in trouble] == told


def test_centers_that_nothing_was_fitted_to_are_looked_at_after_the_first_steps(
    dcec: Make, train: Train, tiny: Samples, caplog: pytest.LogCaptureFixture
):
    class Given(DCEC):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.centers.requires_grad_(False)

    refresh = TargetRefresh(2, 0.0)
    with caplog.at_level(logging.WARNING, logger="clusterlab"):
        train(collapsed(dcec(Given)), tiny, "finetune", [refresh], max_steps=4)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("clusterlab")]
    assert [line.partition(".")[0] for line in told] == [
        "step 2: Collapsed: cluster 3 (203 of 203 samples)"
    ]


def test_what_comes_and_goes_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    refresh = TargetRefresh(2, 0.0)
    with caplog.at_level(logging.WARNING, logger="clusterlab"):
        for size in (0, 1, 0, 2, 300, 0, 1):
            refresh._tell(size_trouble(torch.tensor([size, 500, 400])))
    assert [re.split(r"[.(]", line)[0].strip() for line in caplog.messages] == [
        "step -1: Empty: cluster 0",
        "step -1: Nearly empty: cluster 0",
    ]
    assert refresh.state_dict()["told"] == ["Empty: cluster 0", "Nearly empty: cluster 0"]


def test_a_sound_clustering_has_no_trouble(
    pretrained: DCEC, train: Train, tiny: Samples, caplog: pytest.LogCaptureFixture
):
    refresh = TargetRefresh(2, 0.0)
    with caplog.at_level(logging.WARNING, logger="clusterlab"):
        train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=2)
    assert refresh.record()["trouble"] == []
    assert not [r for r in caplog.records if r.name.startswith("clusterlab")]


def test_the_record(pretrained: DCEC, train: Train, tiny: Samples):
    refresh = Watched(2)
    train(pretrained, tiny, "finetune", [ClusterInit(), refresh], max_steps=5)
    record = refresh.record()
    assert record["refreshes"] == 4
    assert record["label_change"] == refresh.changes[-1]
    assert record["metrics_at_start"] == refresh.all_scores[0]
    assert 0 < record["refresh_seconds"] < 60
