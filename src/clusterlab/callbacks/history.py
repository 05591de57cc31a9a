"""Keep how the embedding of some samples moves while a phase trains."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from clusterlab.data.datamodule import in_order
from clusterlab.distributed import full_pass
from clusterlab.errors import problem
from clusterlab.files import write_atomically
from clusterlab.models.base import DeepClustering

FILE = "embedding.npz"  # beside a phase's weights


class EmbeddingHistory(Callback):
    """Embed the same samples before the first step and after every ``interval`` of them.

    Args:
        interval: Optimizer steps between two embeddings.
        n_samples: How many samples, drawn by the run's seed; all if there are fewer.

    Raises:
        UserError: If one of them is not a whole number of at least 1.
    """

    def __init__(self, interval: int, n_samples: int = 1000) -> None:
        for name, value in (("interval", interval), ("n_samples", n_samples)):
            if not isinstance(value, int) or value < 1:
                raise problem(f"{name} of at least 1", value, f"correct the history's {name}")
        self.interval = interval
        self.n_samples = n_samples
        self.steps: list[int] = []
        self.z: list[Tensor] = []  # (n, d) each
        self.index: Tensor | None = None  # (n,)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed before the first step."""
        if not self.steps:
            self._embed(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Embed after every interval."""
        if trainer.global_step % self.interval == 0 and trainer.global_step != self.steps[-1]:
            self._embed(trainer, pl_module)

    def _embed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DeepClustering)
        x = trainer.datamodule.samples.x  # type: ignore[attr-defined]
        if self.index is None:
            generator = torch.Generator().manual_seed(pl_module.seed)
            chosen = torch.randperm(len(x), generator=generator)[: self.n_samples]
            self.index = chosen.sort().values
        network, batches = pl_module.network, in_order(x[self.index])
        z = full_pass(network.encode, network, batches, pl_module.device)
        self.steps.append(trainer.global_step)
        self.z.append(z.cpu())

    def save(self, folder: Path) -> None:
        """Write ``index`` (n,), ``step`` (S,) and ``z`` (S, n, d) into a phase's folder."""
        assert self.index is not None
        content = io.BytesIO()
        z = torch.stack(self.z).numpy()
        np.savez_compressed(content, index=self.index.numpy(), step=np.array(self.steps), z=z)
        write_atomically(folder / FILE, content.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept so far."""
        return {"steps": self.steps, "z": self.z, "index": self.index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint remembers."""
        for name, value in state_dict.items():
            setattr(self, name, value)
