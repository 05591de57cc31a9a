"""Save a phase between epochs, so that a killed run loses seconds and no bits."""

import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class PhaseCheckpoint(Checkpoint):
    """Write ``last.ckpt`` at the end of an epoch, at most once per ``interval`` seconds.

    Lightning's own checkpoint can save every n epochs or every n seconds, but the latter in the
    middle of an epoch, where a resumed run would see some samples twice and others not at all.
    An epoch of a small data set takes less time than a file, hence the interval. How often it
    saves does not change what is trained.

    Args:
        path: The file; replaced as a whole.
        interval: Least time between two files, in seconds.
        code_sha256: Digest of the code; the file keeps that of the code that began the phase.
        device: What the phase is trained on; the file keeps all that it was, in turn.
    """

    def __init__(
        self, path: Path, interval: float, code_sha256: str | None = None, device: str = ""
    ) -> None:
        self.path = path
        self.interval = interval
        self.code_sha256 = code_sha256
        self.devices = [device]
        self.seconds_before = 0.0  # spent in this phase before it was resumed
        self._started = self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent in this phase up to now, including what a resumed run had spent."""
        return self.seconds_before + time.perf_counter() - self._started

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = self._saved = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the last file is old enough; rank 0's clock decides for all.

        Not at the end of the phase: what remains to be done there, a last refresh and the record,
        is not training, and a run killed before it is done trains its last seconds again.
        """
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            return
        due = time.perf_counter() - self._saved >= self.interval
        if trainer.strategy.broadcast(due):
            part = self.path.with_suffix(".part")
            try:
                trainer.save_checkpoint(part)
                if trainer.is_global_zero:
                    part.replace(self.path)
            finally:
                if trainer.is_global_zero:  # the others are here before rank 0 has moved it
                    part.unlink(missing_ok=True)
            self._saved = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Remember the time spent, by which code the phase was begun, and on which devices."""
        kept = {"code_sha256": self.code_sha256, "devices": self.devices}
        return {"seconds": self.seconds, **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.seconds_before = state_dict["seconds"]
        self.code_sha256 = state_dict.get("code_sha256")  # not in a file of before it was kept
        before = state_dict.get("devices", [])
        self.devices = before if before[-1:] == self.devices else [*before, *self.devices]
