"""Place the cluster centers before the first finetune step."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from clusterlab.models.base import DeepClustering


class ClusterInit(Callback):
    """Set ``centers`` from the embedding of the whole data set, once per finetune phase.

    Rank 0 computes them and the others receive its bytes: k-means is not bit-equal across
    machines.
    """

    def __init__(self) -> None:
        self.done = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the centers unless a checkpoint brought them."""
        if self.done:
            return
        assert isinstance(pl_module, DeepClustering)
        z = pl_module.embed_dataset()  # (N, d)
        centers = pl_module.initial_centers(z) if trainer.is_global_zero else None
        centers = trainer.strategy.broadcast(centers)
        with torch.no_grad():  # in place: optimizer and DDP keep the same parameter
            pl_module.centers.copy_(centers)  # type: ignore[arg-type]
        self.done = True

    def state_dict(self) -> dict[str, Any]:
        """Remember that it happened."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint remembers."""
        self.done = state_dict["done"]
