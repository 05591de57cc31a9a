"""Batches: every sample once an epoch, in an order of seed and epoch, shared evenly by ranks."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from clusterlab.data.augment import RandomAffine
from clusterlab.data.datamodule import Batches, ClusterData, EpochShuffle, InOrder
from clusterlab.data.samples import Samples, as_float
from clusterlab.distributed import interleave
from clusterlab.errors import UserError
from clusterlab.models.dcec import DCEC

N = 203


def shuffled(
    epoch: int = 0, seed: int = 0, batch_size: int = 60, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    sampler = EpochShuffle(torch.arange(N), batch_size, seed, rank, world_size)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(list(sampler))
    return [index.tolist() for index in sampler]


@pytest.mark.parametrize(
    ("n", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (8, [4, 4]), (5, [5]), (1, [1])]
)
def test_a_rest_of_one_sample_joins_the_batch_before(n: int, sizes: list[int]) -> None:
    sampler = EpochShuffle(torch.arange(n), 4, seed=0)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == sizes
    assert len(sampler) == len(sizes)
    assert sorted(torch.cat(batches).tolist()) == list(range(n))


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def attached(data: ClusterData, rank: int = 0, world_size: int = 1) -> ClusterData:
    """Give a data module the part of a trainer that it reads, for any number of ranks."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
    return data


# Shuffled batches


@pytest.mark.parametrize(("batch_size", "last"), [(60, 23), (203, 203), (29, 29), (1, 1)])
def test_an_epoch_holds_each_sample_once(batch_size: int, last: int):
    for epoch in (0, 1, 7):
        batches = shuffled(epoch, batch_size=batch_size)
        assert sorted(flat(batches)) == list(range(N))
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        assert len(batches[-1]) == last


def test_seed_and_epoch_decide_the_order():
    orders = [flat(shuffled(epoch, seed)) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    torch.manual_seed(5)
    assert flat(shuffled(2, 1)) == orders[7]
    assert all(order != list(range(N)) for order in orders)


def test_the_order_is_uniform():
    # Over 400 epochs every sample comes first some 2 times; a biased shuffle repeats a few.
    first = [shuffled(epoch, batch_size=N)[0][0] for epoch in range(400)]
    assert len(set(first)) > 160
    assert abs(sum(first) / 400 - 101) < 4 * 58.6 / 400**0.5


def test_the_batch_size_does_not_change_the_order():
    assert flat(shuffled(batch_size=60)) == flat(shuffled(batch_size=7))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_batch_of_one_device(world_size: int):
    together = shuffled(3, batch_size=60)
    ranks = [shuffled(3, batch_size=60, rank=r, world_size=world_size) for r in range(world_size)]
    order = flat(together)
    for batch, *shares in zip(together, *ranks, strict=True):
        sizes = {len(share) for share in shares}
        assert sizes == {-(-len(batch) // world_size)}  # equal, or averaging gradients is wrong
        joined = sorted(i for share in shares for i in share)
        padding = -len(batch) % world_size
        assert joined == sorted(batch + order[:padding])


def test_a_last_batch_smaller_than_the_ranks():
    shares = [
        list(EpochShuffle(torch.arange(62), 60, 0, rank, 3))[-1].tolist() for rank in range(3)
    ]
    order = torch.cat(list(EpochShuffle(torch.arange(62), 60, 0))).tolist()
    assert shares == [[order[60]], [order[61]], [order[0]]]


# Batches in order


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("n", [N, 1, 2, 6])
def test_interleaved_ranks_are_in_order(world_size: int, n: int):
    x = torch.arange(n)
    shares = []
    for rank in range(world_size):
        sampler = InOrder(n, 50, rank, world_size)
        parts = [x[index] for index in sampler]
        assert len(parts) == len(sampler)
        assert max(len(part) for part in parts) <= 50
        shares.append(torch.cat(parts)[:, None])
    assert len({len(share) for share in shares}) == 1  # as a gather demands
    assert interleave(torch.stack(shares), n).flatten().tolist() == list(range(n))


# Batches of the data module


@pytest.fixture
def bytes_of() -> Samples:
    x = torch.arange(6 * 8 * 8).remainder(256).to(torch.uint8).view(6, 1, 8, 8)
    return Samples("bytes", x, torch.tensor([0, 1, 0, 1, 0, 1]))


def test_a_batch_holds_its_index_and_images_only(tiny: Samples):
    data = attached(ClusterData(tiny, 60, seed=0))
    for loader in (data.train_dataloader(), data.ordered_dataloader()):
        assert isinstance(loader, Batches)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            assert batch.keys() == {"index", "x"}
            assert batch["index"].dtype == torch.int64
            assert batch["x"].dtype == torch.float32
            assert torch.equal(batch["x"], tiny.x[batch["index"]])


def test_ordered_batches_follow_the_data(tiny: Samples):
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            data = attached(ClusterData(tiny, 60, seed=0), rank, world_size)
            data.encode_batch_size = 40
            index = torch.cat([batch["index"] for batch in data.ordered_dataloader()]).tolist()
            assert index == [(rank + i * world_size) % N for i in range(-(-N // world_size))]


def test_bytes_become_fractions(bytes_of: Samples):
    (batch,) = attached(ClusterData(bytes_of, 6, seed=0)).ordered_dataloader()
    expected = [value / 255 for value in bytes_of.x.flatten().tolist()]
    assert batch["x"].flatten().tolist() == pytest.approx(expected, abs=1e-7)
    assert batch["x"].max() == 1
    assert bytes_of.x.dtype == torch.uint8  # the stored images stay small


def test_floats_are_served_as_they_are():
    x = torch.rand(4, 1, 8, 8)
    assert as_float(x) is x


@pytest.mark.parametrize("batch_size", [0, -1, 204])
def test_a_batch_size_that_does_not_fit_the_data(tiny: Samples, batch_size: int):
    message = f"Expected a batch size from 1 to the 203 samples of tiny, got {batch_size}; set data"
    with pytest.raises(UserError, match=message):
        ClusterData(tiny, batch_size, seed=0)


@pytest.mark.parametrize(("world_size", "instead"), [(2, 62), (4, 60), (64, 64)])
def test_a_batch_size_that_does_not_fit_the_devices(tiny: Samples, world_size: int, instead: int):
    data = attached(ClusterData(tiny, 63, seed=0), world_size=world_size)
    message = f"Expected a batch size divisible by {world_size} devices, got 63; "
    with pytest.raises(UserError, match=f"{message}set data.batch_size={instead}"):
        data.train_dataloader()


# In training


def test_training_sees_each_sample_once_an_epoch_in_a_new_order(
    dcec: Callable[..., DCEC], train: Callable[..., Trainer], tiny: Samples
):
    class Indices(Callback):
        def __init__(self) -> None:
            self.epochs: dict[int, list[Tensor]] = {}

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self.epochs.setdefault(trainer.current_epoch, []).append(batch["index"])

    indices = Indices()
    train(dcec(), tiny, "pretrain", [indices], batch_size=60, max_epochs=3)
    assert indices.epochs.keys() == {0, 1, 2}
    for epoch, batches in indices.epochs.items():
        assert [batch.tolist() for batch in batches] == shuffled(epoch)


# Augmentation and subsets


def epoch_of(
    x: torch.Tensor, epoch: int = 0, indices: torch.Tensor | None = None, **ranks: int
) -> dict[int, torch.Tensor]:
    """Return each sample's augmented image of an epoch, by index."""
    everyone = torch.arange(len(x)) if indices is None else indices
    sampler = EpochShuffle(everyone, 30, 0, **ranks)
    sampler.set_epoch(epoch)
    batches = Batches(x, sampler, RandomAffine(degrees=30, translate=0.1))
    return {
        int(i): image
        for batch in batches
        for i, image in zip(batch["index"], batch["x"], strict=True)
    }


def test_augmentation_is_a_function_of_seed_epoch_and_sample(tiny: Samples) -> None:
    """The same on one process and on two, and for a part of the samples; new in each epoch."""
    one = epoch_of(tiny.x)
    shared: dict[int, torch.Tensor] = {}
    for rank in range(2):
        shared |= epoch_of(tiny.x, rank=rank, world_size=2)
    some = epoch_of(tiny.x, indices=torch.tensor([3, 77, 5]))
    assert sorted(one) == sorted(shared) == list(range(203))
    assert sorted(some) == [3, 5, 77]
    for images in (shared, some):
        for index, image in images.items():
            assert torch.allclose(image, one[index], atol=1e-6)
    later = epoch_of(tiny.x, epoch=1)
    assert not any(torch.allclose(image, later[index]) for index, image in one.items())
    assert not any(torch.allclose(image, tiny.x[index] / 16) for index, image in one.items())


def test_full_passes_see_clean_images_and_all_of_them(tiny: Samples) -> None:
    data = attached(ClusterData(tiny, 60, seed=0))
    clean = torch.cat([batch["x"] for batch in data.ordered_dataloader()])
    data.augment, data.subset = RandomAffine(degrees=30), torch.tensor([8, 2, 5])
    assert torch.equal(torch.cat([batch["x"] for batch in data.ordered_dataloader()]), clean)
    (batch,) = data.train_dataloader()
    assert sorted(batch["index"].tolist()) == [2, 5, 8]
    assert not torch.allclose(batch["x"], clean[batch["index"]])
