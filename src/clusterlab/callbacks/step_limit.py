"""Stop a phase after a number of optimizer steps."""

from typing import Any

from lightning import Callback, LightningModule, Trainer


class StepLimit(Callback):
    """Stop after exactly ``max_steps`` optimizer steps, in the middle of an epoch if need be.

    Lightning's own ``max_steps`` makes it resume from an end-of-epoch checkpoint as if from the
    middle of that epoch: the resumed run sees other batches than the uninterrupted one.

    Args:
        max_steps: The limit; -1 for none.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if this was the last step."""
        if trainer.global_step == self.max_steps:
            trainer.should_stop = True
