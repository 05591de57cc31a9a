"""The centers before the first finetune step: from the whole embedding, once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from sklearn.cluster import KMeans
from torch import Tensor

from clusterlab.callbacks import ClusterInit, PhaseCheckpoint, cluster_init
from clusterlab.checks import check_phases
from clusterlab.data.augment import RandomAffine
from clusterlab.data.datamodule import Batch
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.models.dcec import DCEC

Make = Callable[..., DCEC]
Train = Callable[..., Trainer]


class Still(DCEC):
    """Finetune by reconstruction alone, so that the centers stay where they were put."""

    calls = 0

    def finetune_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {**self.pretrain_loss(batch), "clustering": 0 * self.centers.sum()}

    def initial_centers(self, z: Tensor) -> Tensor:
        self.calls += 1
        return super().initial_centers(z)


def test_centers_are_k_means_of_the_pretrained_embedding(dcec: Make, train: Train, tiny: Samples):
    model = dcec(Still, seed=3)
    train(model, tiny, "pretrain", max_epochs=2)
    with torch.no_grad():
        z = model.network.encode(tiny.x)
    parameter = model.centers
    train(model, tiny, "finetune", [ClusterInit()], max_steps=1)
    expected = KMeans(10, n_init=3, random_state=3).fit(z.numpy())
    np.testing.assert_allclose(model.centers.detach(), expected.cluster_centers_, atol=1e-6)
    for k in range(10):  # also without scikit-learn's word for it
        mean = z[expected.labels_ == k].mean(0)
        torch.testing.assert_close(model.centers[k].detach(), mean, rtol=1e-3, atol=1e-4)
    assert model.centers is parameter


def test_centers_are_there_before_the_first_step(dcec: Make, train: Train, tiny: Samples):
    class First(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, DCEC)
            self.centers = pl_module.centers.detach().clone()
            self.optimized = [
                parameter is pl_module.centers
                for group in trainer.optimizers[0].param_groups
                for parameter in group["params"]
            ]

    first = First()
    train(dcec(Still), tiny, "finetune", [ClusterInit(), first], max_steps=1)
    assert len(first.centers.unique(dim=0)) == 10
    assert sum(first.optimized) == 1


def test_a_resumed_phase_keeps_its_centers(dcec: Make, train: Train, tiny: Samples, tmp_path: Any):
    path = tmp_path / "last.ckpt"
    model = dcec(Still)
    train(model, tiny, "finetune", [ClusterInit(), PhaseCheckpoint(path, 0)], max_epochs=2)
    assert model.calls == 1
    resumed, init = dcec(Still), ClusterInit()
    callbacks = [init, PhaseCheckpoint(path, 0)]
    train(resumed, tiny, "finetune", callbacks, ckpt_path=path, max_epochs=3)
    assert init.done
    assert resumed.calls == 0
    assert torch.equal(resumed.centers, model.centers)


@pytest.mark.parametrize("done", [False, True])
def test_state_round_trip(done: bool):
    init, copy = ClusterInit(), ClusterInit()
    init.done = done
    copy.load_state_dict(init.state_dict())
    assert copy.done is done


def test_a_start_is_chosen_by_augmented_images(
    dcec: Make, train: Train, tiny: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function gets the embedding, that of images moved by two pixels, and its settings."""
    seen: list[Any] = []

    def choose(z: Tensor, view: Tensor, *settings: int) -> Tensor:
        seen.append((z, view, settings))
        return z[:10]

    monkeypatch.setattr(cluster_init, "consistent_kmeans", choose)
    model = dcec(Still, seed=3)
    side = tiny.input_shape[2]
    still = RandomAffine(degrees=0, translate=0, scale=0)
    moved = still.maps(1, side, side, torch.Generator())
    moved[:, 0, 2] += 4 / side
    monkeypatch.setattr(still, "maps", lambda n, *_: moved.expand(n, -1, -1))
    init = ClusterInit(consistent_starts=7, skipped_starts=2)
    train(model, tiny, "finetune", [init], max_steps=1, augment=still)
    ((z, view, settings),) = seen
    assert settings == (10, 3, 7, 2)
    shifted = torch.zeros_like(tiny.x)
    shifted[..., :-2] = tiny.x[..., 2:]
    with torch.no_grad():
        pretrained = dcec(Still, seed=3).network
        assert torch.allclose(z, pretrained.encode(tiny.x), atol=1e-5)
        assert torch.allclose(view, pretrained.encode(shifted), atol=1e-4)


def test_a_start_cannot_be_chosen_without_augmentation(compose: Callable[..., DictConfig]) -> None:
    key = "+phases.finetune.callbacks.cluster_init.consistent_starts=7"
    augmented = compose(key, "augment@phases.finetune.augment=affine")
    check_phases(augmented.phases, augmented.model)
    plain = compose(key)
    with pytest.raises(UserError, match=r"an augmentation to choose a start by, got none; set aug"):
        check_phases(plain.phases, plain.model)
    with pytest.raises(UserError, match="a number of starts, or 0, got -1"):
        ClusterInit(consistent_starts=-1)
    with pytest.raises(
        UserError, match=r"a number of starts, or 0, got -1; set .*\.skipped_starts"
    ):
        ClusterInit(consistent_starts=7, skipped_starts=-1)
    with pytest.raises(UserError, match="starts to choose among, got skipped_starts alone; set"):
        ClusterInit(skipped_starts=1)
