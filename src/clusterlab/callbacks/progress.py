"""A live display of a phase: steps, time left, loss terms, label change."""

import logging
import time
from collections.abc import Iterable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from clusterlab.callbacks.target_refresh import TargetRefresh
from clusterlab.models.base import DeepClustering

log = logging.getLogger(__name__)


class Bar(RichProgress):
    """Draw the bar, and the loss terms on a line of their own: both fit into 80 columns."""

    terms = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the two lines."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.terms, style="dim")


class Progress(Callback):
    """Show a phase on two lines of a terminal, or as a log line now and then where there is none.

    Lightning's bars restart every epoch: two hundred of them for a pretrain phase.

    Args:
        max_steps: The phase's limit, -1 for none.
        interval: Seconds between two updates on a terminal.
        log_interval: Seconds between two log lines elsewhere.
    """

    def __init__(self, max_steps: int, interval: float = 0.25, log_interval: float = 30.0) -> None:
        console = Console(stderr=True)
        self.max_steps = max_steps
        self.interval = interval if console.is_terminal else log_interval
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.live = console.is_terminal
        self._shown = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        assert isinstance(pl_module, DeepClustering)
        if not trainer.is_global_zero:
            return
        assert trainer.max_epochs is not None
        limits = [self.max_steps, trainer.max_epochs * int(trainer.num_training_batches)]
        self._total = min(limit for limit in limits if limit > 0)
        self.bar.start()
        self._task = self.bar.add_task(
            pl_module.phase, total=self._total, completed=trainer.global_step
        )
        self._shown = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar if it is time."""
        if trainer.is_global_zero and time.perf_counter() - self._shown >= self.interval:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last state and close the bar."""
        if trainer.is_global_zero:
            self._show(trainer, pl_module)
            self.bar.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self.bar.stop()

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DeepClustering)
        terms = [f"{name} {value:.4f}" for name, value in pl_module.running_terms().items()]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TargetRefresh) and callback.change is not None:
                terms.append(f"changed {callback.change:.2%}")
        step, text = trainer.global_step, "  ".join(terms)
        self.bar.terms = text
        self.bar.update(self._task, completed=step)
        if not self.live:
            log.info("%s: step %d of at most %d  %s", pl_module.phase, step, self._total, text)
        self._shown = time.perf_counter()
