"""Recompute the target distribution every T steps and stop when labels settle."""

import logging
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from clusterlab.assignment import label_change
from clusterlab.errors import problem
from clusterlab.metrics import (
    assignment_entropy,
    cluster_sizes,
    mean_confidence,
    score,
)
from clusterlab.models.base import DeepClustering
from clusterlab.trouble import kind, size_trouble, spread_trouble

log = logging.getLogger(__name__)


class TargetRefresh(Callback):
    """Refresh p over the whole data set every T optimizer steps; stop below the tolerance.

    Section 3.4 of DCEC. One pass serves p, labels, label change and scores. Labels of ground truth
    are read for the scores alone. A last pass at the step limit makes the reported labels those
    of the final weights.

    Args:
        update_interval: T, in optimizer steps.
        tolerance: delta, the share of changed labels below which training stops; 0 never stops.

    Raises:
        UserError: If T or delta is out of range.
    """

    def __init__(self, update_interval: int, tolerance: float) -> None:
        if update_interval < 1:
            raise problem(
                "an update interval of at least 1 step",
                update_interval,
                "set phases.finetune.update_interval",
            )
        if not 0 <= tolerance < 1:
            raise problem(
                "a tolerance in [0, 1)",
                tolerance,
                "set phases.finetune.tolerance, 0.001 is 0.1% of the labels",
            )
        self.update_interval = update_interval
        self.tolerance = tolerance
        self.target: Tensor | None = None  # (N, K), p of the last refresh
        self.labels: Tensor | None = None  # (N,)
        self.refreshed_at = -1
        self.converged = False
        self.change: float | None = None
        self.refreshes = 0
        self.seconds = 0.0
        self.first: dict[str, float] = {}  # scores at step 0: k-means on the pretrained embedding
        self.scores: dict[str, float] = {}
        self.trouble: list[str] = []
        self.told: list[str] = []  # kinds of trouble

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute p before the first step, or take it from the checkpoint."""
        assert isinstance(pl_module, DeepClustering)
        if self.target is None:
            self.refresh(trainer, pl_module)
            self.first = dict(self.scores)
        else:
            pl_module.target = self.target = self.target.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh after every T-th optimizer step, and decide whether to stop."""
        step = trainer.global_step  # counts optimizer steps: the same over accumulated batches
        if step % self.update_interval or step == self.refreshed_at:
            return
        assert isinstance(pl_module, DeepClustering)
        self.refresh(trainer, pl_module)
        settled = self.change is not None and self.change < self.tolerance
        self.converged = trainer.strategy.reduce_boolean_decision(settled, all=True)
        trainer.should_stop = trainer.should_stop or self.converged

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring labels and scores up to the final weights."""
        if self.refreshed_at != trainer.global_step:
            assert isinstance(pl_module, DeepClustering)
            self.refresh(trainer, pl_module)

    def refresh(self, trainer: Trainer, pl_module: DeepClustering) -> None:
        """Pass over the data set once: p, labels, label change, scores."""
        start = time.perf_counter()
        with torch.no_grad():
            z = pl_module.embed_dataset()  # (N, d)
            q = pl_module.assign_all(z)  # (N, K)
            pl_module.target = self.target = pl_module.refresh_target(q)
        previous, self.labels = self.labels, q.argmax(1)
        self.refreshed_at = trainer.global_step
        self.refreshes += 1

        y = trainer.datamodule.samples.y  # type: ignore[attr-defined]
        labels, n_clusters = self.labels.cpu(), q.shape[1]
        scores = {"confidence": mean_confidence(q), "entropy": assignment_entropy(q)}
        if y is not None:
            scores |= score(labels, y, n_clusters)
        if previous is not None:
            self.change = label_change(previous.to(self.labels.device), self.labels)
            scores["label_change"] = self.change
        self.scores = scores
        sizes, suspect = cluster_sizes(labels, n_clusters), pl_module.suspect
        # Before the first step labels by centers that nothing was ever fitted to say nothing.
        if self.refreshed_at or pl_module.centers.requires_grad:
            self._tell(size_trouble(sizes, suspect) + spread_trouble(z, suspect))
        self.seconds += time.perf_counter() - start
        pl_module.log_now({f"cluster/{name}": value for name, value in scores.items()})

    def record(self) -> dict[str, Any]:
        """Return what the phase's record says of the refreshes."""
        record = {
            "label_change": self.change,
            "refreshes": self.refreshes,
            "refresh_seconds": self.seconds,
            "metrics_at_start": self.first,
            "trouble": self.trouble,
        }
        return {**record, "stop_reason": "tolerance"} if self.converged else record

    def _tell(self, trouble: list[str]) -> None:
        """Warn once of each kind: counts change at each refresh, small clusters come and go."""
        for line in trouble:
            if kind(line) not in self.told:
                self.told.append(kind(line))
                log.warning("step %d: %s", self.refreshed_at, line)
        self.trouble = trouble

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed phase needs: p belongs to the last refresh, not to the weights."""
        return {
            "target": self.target,
            "labels": self.labels,
            "refreshed_at": self.refreshed_at,
            "change": self.change,
            "refreshes": self.refreshes,
            "seconds": self.seconds,
            "first": self.first,
            "scores": self.scores,
            "trouble": self.trouble,
            "told": self.told,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint remembers."""
        for name, value in state_dict.items():
            setattr(self, name, value)
