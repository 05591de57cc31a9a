"""Place the cluster centers before the first finetune step."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from clusterlab.centers import consistent_kmeans
from clusterlab.data.augment import RandomAffine
from clusterlab.data.datamodule import ClusterData, in_order
from clusterlab.distributed import full_pass
from clusterlab.errors import problem
from clusterlab.models.base import DeepClustering
from clusterlab.seeding import derive_seed


class ClusterInit(Callback):
    """Set ``centers`` from the embedding of the whole data set, once per finetune phase.

    Rank 0 computes them and the others receive its bytes: k-means is not bit-equal across
    machines.

    Args:
        consistent_starts: Among how many starts of k-means to choose by what an augmented copy of
            the images says of them, see ``consistent_kmeans``; 0 leaves the centers to the model.
        skipped_starts: How many of the best of them to pass over: 1 for the next best.

    Raises:
        UserError: If a number is negative, or none are chosen among and some passed over.
    """

    def __init__(self, consistent_starts: int = 0, skipped_starts: int = 0) -> None:
        self.consistent_starts = consistent_starts
        self.skipped_starts = skipped_starts
        key = "phases.finetune.callbacks.cluster_init"
        for name in ("consistent_starts", "skipped_starts"):
            number = getattr(self, name)
            if number < 0:
                raise problem("a number of starts, or 0", number, f"set {key}.{name}")
        if skipped_starts and not consistent_starts:
            remedy = f"set {key}.consistent_starts=100"
            raise problem("starts to choose among", "skipped_starts alone", remedy)
        self.done = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the centers unless a checkpoint brought them."""
        if self.done:
            return
        assert isinstance(pl_module, DeepClustering)
        z = pl_module.embed_dataset()  # (N, d)
        centers = None
        if trainer.is_global_zero:
            data = trainer.datamodule  # type: ignore[attr-defined]
            centers = self._centers(z, pl_module, data)
        centers = trainer.strategy.broadcast(centers)
        with torch.no_grad():  # in place: optimizer and DDP keep the same parameter
            pl_module.centers.copy_(centers)  # type: ignore[arg-type]
        self.done = True

    def _centers(self, z: Tensor, model: DeepClustering, data: ClusterData) -> Tensor:
        if not self.consistent_starts:
            return model.initial_centers(z)
        assert isinstance(data.augment, RandomAffine)  # checked before the first phase
        augment, (_, height, width) = data.augment, data.samples.input_shape
        generator = torch.Generator().manual_seed(derive_seed(model.seed, "cluster_init"))

        def encode(x: Tensor) -> Tensor:
            maps = augment.maps(len(x), height, width, generator)
            return model.network.encode(augment(x, maps.to(x.device)))

        images = in_order(data.samples.x)
        view = full_pass(encode, model.network, images, model.device)  # (N, d)
        return consistent_kmeans(
            z, view, len(model.centers), model.seed, self.consistent_starts, self.skipped_starts
        )

    def state_dict(self) -> dict[str, Any]:
        """Remember that it happened."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint remembers."""
        self.done = state_dict["done"]
