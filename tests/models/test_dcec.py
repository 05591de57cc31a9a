"""DCEC: its objectives in numbers, and which parameters each phase moves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from sklearn.cluster import KMeans
from torch import Tensor

from clusterlab.callbacks import ClusterInit, TargetRefresh
from clusterlab.data.datamodule import Batch
from clusterlab.data.samples import Samples
from clusterlab.models.dcec import DCEC
from reference import dec_numpy

Make = Callable[..., DCEC]
Train = Callable[..., Trainer]

INDEX = [17, 3, 202, 58, 101]


@pytest.fixture
def batch(tiny: Samples) -> Batch:
    return {"index": torch.tensor(INDEX), "x": tiny.x[INDEX]}


def ready(model: DCEC) -> DCEC:
    """Give a model centers and a target, in float64 so that numbers can be compared to 1e-10."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        model.centers.copy_(0.3 * torch.randn(10, 10, generator=generator))
    model.target = torch.rand(203, 10, generator=generator, dtype=torch.float64).softmax(1)
    model.phase = "finetune"
    return model.double()


def numbers(model: DCEC, batch: Batch) -> tuple[float, float]:
    """Return L_r as a mean over pixels and L_c as a mean over the batch, from the equations."""
    x = batch["x"].double()
    with torch.no_grad():
        z, x_hat = model.network(x)
    pixels = zip(x.flatten().tolist(), x_hat.flatten().tolist(), strict=True)
    errors = [(a - b) ** 2 for a, b in pixels]
    q = dec_numpy.soft_assignment(z.numpy(), model.centers.detach().numpy())
    assert model.target is not None
    p = model.target.numpy()[INDEX]
    return sum(errors) / len(errors), dec_numpy.kl_divergence(p, q) / len(p)


def as_double(batch: Batch) -> Batch:
    return {"index": batch["index"], "x": batch["x"].double()}


def test_pretrain_loss(dcec: Make, batch: Batch):
    model = ready(dcec())
    reconstruction, _ = numbers(model, batch)
    terms = model.pretrain_loss(as_double(batch))
    assert list(terms) == ["reconstruction"]
    assert terms["reconstruction"].item() == pytest.approx(reconstruction, rel=1e-10)


@pytest.mark.parametrize(("gamma", "weight"), [(0.1, 1.0), (1.0, 0.5), (1.0, 0.0)])
def test_finetune_loss(dcec: Make, batch: Batch, gamma: float, weight: float):
    model = ready(dcec(gamma=gamma, reconstruction=weight))
    reconstruction, clustering = numbers(model, batch)
    expected = {"clustering": gamma * clustering}
    if weight:
        expected["reconstruction"] = weight * reconstruction
    terms = {name: term.item() for name, term in model.finetune_loss(as_double(batch)).items()}
    assert terms == pytest.approx(expected, rel=1e-10)


def test_the_step_minimises_the_sum(dcec: Make, batch: Batch, train: Train, tiny: Samples):
    """In training, too: what the optimizer sees is the sum of the terms."""

    class Watch(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, DCEC)
            with torch.no_grad():
                self.expected = sum(pl_module.finetune_loss(batch).values())

        def on_before_backward(
            self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
        ) -> None:
            self.loss = loss.detach()

    watch = Watch()
    callbacks = [ClusterInit(), TargetRefresh(1, 0.0), watch]
    train(dcec(gamma=2.0), tiny, "finetune", callbacks, max_steps=3)
    torch.testing.assert_close(watch.loss, watch.expected)


def test_gradient_of_the_centers_is_eq_10_of_idcec(dcec: Make, batch: Batch):
    model = ready(dcec(gamma=0.7))
    sum(model.finetune_loss(as_double(batch)).values()).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        z = model.network.encode(batch["x"].double()).numpy()
    assert model.target is not None
    p = model.target.numpy()[INDEX]
    expected = 0.7 / len(INDEX) * dec_numpy.gradient_centers(z, model.centers.detach().numpy(), p)
    assert model.centers.grad is not None
    np.testing.assert_allclose(model.centers.grad.numpy(), expected, atol=1e-12)
    assert model.target.grad is None


def test_the_divergence_is_replaceable(dcec: Make, batch: Batch):
    seen: list[tuple[Tensor, Tensor]] = []

    def first_column(q: Tensor, p: Tensor) -> Tensor:
        seen.append((q, p))
        return q[:, 0].mean()

    model = ready(dcec(divergence=first_column, gamma=3.0))
    terms = model.finetune_loss(as_double(batch))
    (q, p), target = seen[0], model.target
    assert target is not None
    assert torch.equal(p, target[INDEX])
    torch.testing.assert_close(terms["clustering"], 3 * q[:, 0].mean())


# Which parameters move


def parts(model: DCEC) -> dict[str, list[Tensor]]:
    return {
        "encoder": [p.detach().clone() for p in model.network.encoder.parameters()],
        "decoder": [p.detach().clone() for p in model.network.decoder.parameters()],
        "centers": [model.centers.detach().clone()],
    }


def moved(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> dict[str, list[bool]]:
    return {
        name: [not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True)]
        for name in before
    }


def test_pretraining_moves_the_autoencoder_alone(dcec: Make, train: Train, tiny: Samples):
    model = dcec()
    with torch.no_grad():
        model.centers.normal_()
    before = parts(model)
    train(model, tiny, "pretrain", max_epochs=1)
    change = moved(before, parts(model))
    assert change == {"encoder": [True] * 8, "decoder": [True] * 8, "centers": [False]}
    assert model.centers.grad is None


class AfterInit(Callback):
    """Keep the parameters as the first step finds them: k-means has placed the centers."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DCEC)
        self.parts = parts(pl_module)


def test_one_finetune_step_moves_everything(dcec: Make, train: Train, tiny: Samples):
    model, start = dcec(), AfterInit()
    train(model, tiny, "pretrain", max_epochs=2)
    callbacks = [ClusterInit(), TargetRefresh(5, 0.0), start]
    trainer = train(model, tiny, "finetune", callbacks, max_steps=1)
    assert trainer.global_step == 1
    change = moved(start.parts, parts(model))
    assert change == {"encoder": [True] * 8, "decoder": [True] * 8, "centers": [True]}
    assert model.target is not None
    assert not model.target.requires_grad
    assert model.target.grad is None


def test_without_reconstruction_the_decoder_is_frozen(dcec: Make, train: Train, tiny: Samples):
    model, start = dcec(reconstruction=0.0, gamma=1.0), AfterInit()
    train(model, tiny, "pretrain", max_epochs=2)
    callbacks = [ClusterInit(), TargetRefresh(5, 0.0), start]
    train(model, tiny, "finetune", callbacks, max_steps=2)
    change = moved(start.parts, parts(model))
    assert change == {"encoder": [True] * 8, "decoder": [False] * 8, "centers": [True]}
    assert not any(p.requires_grad for p in model.network.decoder.parameters())
    # Free again for a new pretrain phase.
    start.parts = parts(model)
    train(model, tiny, "pretrain", max_epochs=1)
    assert moved(start.parts, parts(model))["decoder"] == [True] * 8


def test_gamma_weighs_the_pull_on_the_centers(dcec: Make, train: Train, tiny: Samples):
    """With SGD a step of the centers is proportional to gamma."""
    steps = []
    for gamma in (0.1, 0.2):
        model, start = dcec(gamma=gamma), AfterInit()
        model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        callbacks = [ClusterInit(), TargetRefresh(5, 0.0), start]
        train(model, tiny, "finetune", callbacks, max_steps=1)
        steps.append(model.centers.detach() - start.parts["centers"][0])
    torch.testing.assert_close(2 * steps[0], steps[1], rtol=1e-3, atol=1e-7)


# Centers and target


def test_initial_centers_are_k_means_of_the_embedding(dcec: Make):
    z = torch.randn(203, 10, generator=torch.Generator().manual_seed(0))
    model = dcec(seed=5, n_init=4)
    expected = KMeans(10, n_init=4, random_state=5).fit(z.numpy()).cluster_centers_
    np.testing.assert_array_equal(model.initial_centers(z).numpy(), expected)


def test_the_target_is_eq_8_over_all_rows(dcec: Make):
    q = torch.rand(50, 10, dtype=torch.float64).softmax(1)
    expected = dec_numpy.target_distribution(q.numpy())
    np.testing.assert_allclose(dcec().refresh_target(q).numpy(), expected, atol=1e-12)


def test_methods_with_the_same_autoencoder_share_pretraining(dcec: Make):
    variants = [dcec(gamma=g, reconstruction=r, seed=s) for g, r, s in ((0.1, 1.0, 0), (1, 0, 3))]
    assert variants[0].pretrain_objective == variants[1].pretrain_objective


# Learning


def bars() -> Samples:
    """90 noisy images of a bright left, upper or middle part: clusters that no one can miss."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(90, 1, 8, 8, generator=generator)
    y = torch.arange(3).repeat_interleave(30)
    x[y == 0, :, :, :3] += 0.8
    x[y == 1, :, :3] += 0.8
    x[y == 2, :, 2:6, 2:6] += 0.8
    return Samples("bars", x, y)


def test_finds_and_sharpens_obvious_clusters(dcec: Make, train: Train):
    model, refresh = dcec(n_clusters=3, gamma=1.0), TargetRefresh(5, 0.0)
    train(model, bars(), "pretrain", batch_size=30, max_epochs=30)
    train(model, bars(), "finetune", [ClusterInit(), refresh], batch_size=30, max_steps=30)
    assert refresh.scores["accuracy"] == 1
    assert refresh.scores["confidence"] > refresh.first["confidence"] + 0.03
    assert refresh.scores["entropy"] < refresh.first["entropy"] - 0.03
