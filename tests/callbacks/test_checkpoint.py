"""The file of an unfinished phase: when it is written, that it is whole, and what it restores."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from clusterlab.callbacks import PhaseCheckpoint, checkpoint
from clusterlab.data.samples import Samples
from clusterlab.models.dcec import DCEC
from conftest import KillAt, KilledError

Make = Callable[..., DCEC]
Train = Callable[..., Trainer]


class Seen(Callback):
    """Read the step in the file after every batch; 4 batches are an epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[int | None] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        there = self.path.exists()
        self.steps.append(torch.load(self.path)["global_step"] if there else None)
        assert not there or list(self.path.parent.iterdir()) == [self.path]


class Clock(Callback):
    """Time that passes only at the start of an epoch."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.now += self.seconds

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(4.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "pretrain").mkdir()
    return tmp_path / "pretrain" / "last.ckpt"


def test_saves_at_ends_of_epochs_only(dcec: Make, train: Train, tiny: Samples, path: Path):
    seen = Seen(path)
    train(dcec(), tiny, "pretrain", [seen, PhaseCheckpoint(path, interval=0)], max_epochs=3)
    assert seen.steps == [None] * 4 + [4] * 4 + [8] * 4
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("limits", "saved"),
    [({"max_epochs": 2}, 4), ({"max_steps": 6}, 4), ({"max_steps": 8}, 4), ({"max_steps": 9}, 8)],
)
def test_the_end_of_a_phase_is_no_point_to_resume_from(
    dcec: Make, train: Train, tiny: Samples, path: Path, limits: dict[str, int], saved: int
):
    """A last refresh and the record are still to come; resumed there, they would not."""
    train(dcec(), tiny, "pretrain", [PhaseCheckpoint(path, interval=0)], **limits)
    assert torch.load(path)["global_step"] == saved


def test_saves_at_most_once_per_interval(
    dcec: Make, train: Train, tiny: Samples, path: Path, clock: Clock
):
    seen = Seen(path)
    callbacks = [clock, seen, PhaseCheckpoint(path, interval=10)]
    train(dcec(), tiny, "pretrain", callbacks, max_epochs=7)
    # Epochs end at 4, 8, 12, ... seconds: saved at 12 (step 12) and at 24 (step 24).
    assert seen.steps == [None] * 12 + [12] * 12 + [24] * 4


def test_a_short_phase_writes_no_file(dcec: Make, train: Train, tiny: Samples, path: Path):
    train(dcec(), tiny, "pretrain", [PhaseCheckpoint(path, interval=1000)], max_epochs=2)
    assert list(path.parent.iterdir()) == []


def test_time_adds_up_over_interruptions(
    dcec: Make, train: Train, tiny: Samples, path: Path, clock: Clock
):
    first = PhaseCheckpoint(path, interval=0)
    train(dcec(), tiny, "pretrain", [clock, first], max_epochs=3)
    assert first.seconds == 12
    assert torch.load(path)["global_step"] == 8  # at 8 seconds
    clock.now += 1000  # the night between two runs
    second = PhaseCheckpoint(path, interval=0)
    train(dcec(), tiny, "pretrain", [clock, second], ckpt_path=path, max_epochs=5)
    assert second.seconds == 20  # the third epoch once more


class FullDisk(TorchCheckpointIO):
    """Break off in the middle of the second file."""

    files = 0

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        self.files += 1
        if self.files == 2:
            Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        super().save_checkpoint(checkpoint, path, storage_options)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    dcec: Make, train: Train, tiny: Samples, path: Path
):
    callbacks = [PhaseCheckpoint(path, interval=0)]
    with pytest.raises(OSError, match="No space left"):
        train(dcec(), tiny, "pretrain", callbacks, plugins=[FullDisk()], max_epochs=3)
    assert torch.load(path)["global_step"] == 4
    assert list(path.parent.iterdir()) == [path]


def test_other_ranks_leave_the_file_to_rank_0(path: Path):
    """Lightning writes on rank 0 and lets all go on; only then does rank 0 put it in place."""
    trainer = SimpleNamespace(
        should_stop=False,
        current_epoch=0,
        max_epochs=9,
        is_global_zero=False,
        strategy=SimpleNamespace(broadcast=lambda due: due),
        save_checkpoint=lambda part: part.write_bytes(b"written by rank 0"),
    )
    PhaseCheckpoint(path, interval=0).on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert list(path.parent.iterdir()) == [path.with_suffix(".part")]


def test_a_killed_phase_goes_on_bit_for_bit(dcec: Make, train: Train, tiny: Samples, path: Path):
    straight = dcec()
    train(straight, tiny, "pretrain", max_epochs=4)
    callbacks = [KillAt(10), PhaseCheckpoint(path, interval=0)]
    with pytest.raises(KilledError):
        train(dcec(), tiny, "pretrain", callbacks, max_epochs=4)
    torch.manual_seed(123)
    resumed = dcec(seed=0)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.normal_()
    callbacks = [PhaseCheckpoint(path, interval=0)]
    trainer = train(resumed, tiny, "pretrain", callbacks, ckpt_path=path, max_epochs=4)
    assert trainer.current_epoch == 4
    assert trainer.global_step == 16
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_state_round_trip(path: Path, clock: Clock):
    first, second = PhaseCheckpoint(path, interval=10), PhaseCheckpoint(path, interval=10)
    clock.now = 7.0
    second.load_state_dict(first.state_dict())
    assert second.seconds_before == 7.0
