"""Keep how embeddings, or images of the cluster centers, change while a phase trains."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from clusterlab.data.datamodule import in_order
from clusterlab.data.samples import Samples
from clusterlab.distributed import full_pass
from clusterlab.errors import problem
from clusterlab.files import write_arrays
from clusterlab.models.base import DeepClustering


class History(Callback):
    """Look at the model before the first step and after every ``interval`` of them.

    A subclass names its file in ``FILE`` and says in ``look`` what it keeps.

    Args:
        interval: Optimizer steps between two looks.

    Raises:
        UserError: If it is not a whole number of at least 1.
    """

    FILE: str  # beside a phase's weights

    def __init__(self, interval: int) -> None:
        self.interval = _at_least_1("interval", interval)
        self.steps: list[int] = []
        self.kept: list[Tensor] = []

    def look(self, model: DeepClustering, samples: Samples) -> Tensor:
        """Return what is kept of this step, on the CPU."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Any]:
        """Return what the file holds besides the steps."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the first step."""
        if not self.steps:
            self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after every interval."""
        if trainer.global_step % self.interval == 0 and trainer.global_step != self.steps[-1]:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DeepClustering)
        self.kept.append(self.look(pl_module, trainer.datamodule.samples))  # type: ignore[attr-defined]
        self.steps.append(trainer.global_step)

    def save(self, folder: Path) -> None:
        """Write ``step`` (S,) and what was kept into a phase's folder."""
        write_arrays(folder / self.FILE, {"step": np.array(self.steps), **self.arrays()})

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept so far."""
        return {"steps": self.steps, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint remembers."""
        for name, value in state_dict.items():
            setattr(self, name, value)


class EmbeddingHistory(History):
    """Embed the same samples: ``index`` (n,) and ``z`` (S, n, d) in ``embedding.npz``.

    As the phase learns to: a phase that trains a classifier has that one's hidden layer.

    Args:
        interval: Optimizer steps between two embeddings.
        n_samples: How many samples, drawn by the run's seed; all if there are fewer.

    Raises:
        UserError: If one of them is not a whole number of at least 1.
    """

    FILE = "embedding.npz"

    def __init__(self, interval: int, n_samples: int = 1000) -> None:
        super().__init__(interval)
        self.n_samples = _at_least_1("n_samples", n_samples)
        self.index = torch.arange(0)

    def look(self, model: DeepClustering, samples: Samples) -> Tensor:
        """Return the embeddings, shape ``(n, d)``."""
        generator = torch.Generator().manual_seed(model.seed)
        chosen = torch.randperm(len(samples), generator=generator)[: self.n_samples]
        self.index = chosen.sort().values
        batches = in_order(samples.x[self.index])
        return full_pass(model.learned_embedding, model, batches, model.device).cpu()

    def arrays(self) -> dict[str, Any]:
        """Return the samples' numbers and their embeddings."""
        return {"index": self.index.numpy(), "z": torch.stack(self.kept).numpy()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept so far."""
        return {**super().state_dict(), "index": self.index}


class CenterHistory(History):
    """Decode the cluster centers: ``images`` (S, K, C, H, W) in ``centers.npz``."""

    FILE = "centers.npz"

    def look(self, model: DeepClustering, samples: Samples) -> Tensor:
        """Return an image of each center, shape ``(K, C, H, W)``."""
        training = model.network.training
        model.network.eval()
        with torch.no_grad():
            images: Tensor = model.network.decode(model.centers).cpu()
        model.network.train(training)
        return images

    def arrays(self) -> dict[str, Any]:
        """Return the images."""
        return {"images": torch.stack(self.kept).numpy()}


def _at_least_1(name: str, value: int) -> int:
    if value < 1:
        raise problem(f"{name} of at least 1", value, f"correct the history's {name}")
    return value
