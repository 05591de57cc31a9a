"""Serve a data set from memory, in shuffled batches or in order."""

from collections.abc import Iterator

import torch
from lightning import LightningDataModule
from torch import Tensor

from clusterlab.data.augment import RandomAffine, Views
from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import problem
from clusterlab.seeding import derive_seed

Batch = dict[str, Tensor]


class EpochShuffle:
    """Yield the index slices of one epoch for one rank.

    The order is a function of seed and epoch alone, so a resumed epoch is the epoch it would have
    been. ``batch_size`` counts the samples of all ranks together, as the papers' does.

    Args:
        indices: The samples of an epoch, shape ``(n,)``, ``int64``.
        batch_size: Samples a step, over all ranks; the last batch of an epoch may be smaller, but a
            rest of one sample joins the batch before it: one has no variance to normalise by, and
            no pairs.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 1 or full == 0)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield ``(B / world_size,)`` ``int64`` indices."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = self.indices[torch.randperm(len(self.indices), generator=generator)]
        cuts = [self.batch_size * i for i in range(1, len(self))]
        for batch in torch.tensor_split(order, cuts):
            # Ranks must hold equally many samples, or their averaged gradient is not the batch's.
            short = -len(batch) % self.world_size
            yield torch.cat([batch, order[:short]])[self.rank :: self.world_size]


class InOrder:
    """Yield the index slices of one pass in order: rank r takes r, r + W, r + 2W, ...

    Every rank gets equally many, as a gather demands; indices past the end wrap around.
    """

    def __init__(self, n_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        padded = -(-n_samples // world_size) * world_size
        self.indices = (torch.arange(padded) % n_samples)[rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield ``(B,)`` ``int64`` indices."""
        return iter(torch.split(self.indices, self.batch_size))


class Batches:
    """Cut batches out of a tensor, a whole slice at a time.

    A loader that asks for one sample after another costs 0.7 to 1.1 ms a step more; Lightning
    finds ``sampler`` here and tells it the epoch.

    Args:
        x: Stored images, shape ``(N, C, H, W)``.
        sampler: Yields the indices of each batch.
        augment: Changes the images of a shuffled epoch. What it does to a sample is a function of
            seed, epoch and index: not of the batch, nor of the rank.
    """

    def __init__(
        self,
        x: Tensor,
        sampler: EpochShuffle | InOrder,
        augment: RandomAffine | Views | None = None,
    ) -> None:
        self.x = x
        self.sampler = sampler
        self.augment = augment

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield ``{"index": (B,), "x": (B, C, H, W)}`` on the data's device, with views if any."""
        maps = None  # of all samples, so that a sample's is the same on every rank
        if self.augment is not None and isinstance(self.sampler, EpochShuffle):
            seed = derive_seed(self.sampler.seed, "augment", self.sampler.epoch)
            generator = torch.Generator().manual_seed(seed)
            n_samples, _, height, width = self.x.shape
            maps = self.augment.maps(n_samples, height, width, generator).to(self.x.device)
        cuts = list(self.sampler)
        # All at once: a GPU's work would stop for every one that comes from the CPU.
        indices = torch.cat(cuts).to(self.x.device)
        for index in torch.split(indices, [len(cut) for cut in cuts]):
            batch = {"index": index, "x": as_float(self.x[index])}
            if maps is not None and self.augment is not None:
                batch |= self.augment.change(batch["x"], maps[index])
            yield batch


def in_order(x: Tensor) -> Batches:
    """Return batches of all images ``(N, C, H, W)`` in order, on one process."""
    return Batches(x, InOrder(len(x), ClusterData.encode_batch_size))


class ClusterData(LightningDataModule):
    """Hold the samples and hand out loaders; a batch never contains a label.

    Args:
        samples: The data set.
        batch_size: Samples a step, over all ranks.
        seed: Seed of the order.

    Attributes:
        augment: What is done to the images of a shuffled batch; a phase's to set.
        subset: Indices to train on, shape ``(n,)``, where a phase leaves samples out; ``None``
            for all. Full passes are over all samples in any case.

    Raises:
        UserError: If the batch size does not fit the data or the number of devices.
    """

    encode_batch_size = 512  # on a CPU 256 to 512 encode fastest, 4096 take twice as long

    def __init__(self, samples: Samples, batch_size: int, seed: int) -> None:
        super().__init__()
        if not isinstance(batch_size, int) or not 1 <= batch_size <= len(samples):
            raise problem(
                f"a batch size from 1 to the {len(samples)} samples of {samples.name}",
                batch_size,
                "set data.batch_size",
            )
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.augment: RandomAffine | Views | None = None
        self.subset: Tensor | None = None
        self._x: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Return the stored images, on the device of the training where they fit there."""
        if self._x is None:
            self._x = self.samples.x
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            if device.type == "cuda" and self._x.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
                self._x = self._x.to(device)
        return self._x

    def train_dataloader(self) -> Batches:
        """Return shuffled batches of this rank."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if self.batch_size % world_size:
            lower = self.batch_size - self.batch_size % world_size
            raise problem(
                f"a batch size divisible by {world_size} devices",
                self.batch_size,
                f"set data.batch_size={max(lower, world_size)}",
            )
        indices = torch.arange(len(self.samples)) if self.subset is None else self.subset
        sampler = EpochShuffle(indices, self.batch_size, self.seed, rank, world_size)
        return Batches(self.x, sampler, self.augment)

    def ordered_dataloader(self) -> Batches:
        """Return this rank's share of the data set in order, for full passes."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = InOrder(len(self.samples), self.encode_batch_size, rank, world_size)
        return Batches(self.x, sampler)
