"""What every model shares: phases, freezing, sums of terms, the stop at NaN, checkpoints."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import mse_loss

from clusterlab.callbacks import ClusterInit, PhaseCheckpoint, TargetRefresh
from clusterlab.data.datamodule import Batch, EpochShuffle
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.loggers import PhaseCsv, read_csv
from clusterlab.models.base import check_checkpoint, check_shapes
from clusterlab.models.dcec import DCEC

Make = Callable[..., DCEC]
Train = Callable[..., Trainer]


class Steps(Callback):
    """Keep the size, the terms' sum and the running means of every step."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.losses: list[Tensor] = []
        self.running: list[dict[str, float]] = []
        self.index: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DCEC)
        self.sizes.append(len(batch["index"]))
        self.losses.append(outputs["loss"].detach())
        self.running.append(pl_module.running_terms())
        self.index.append(batch["index"])


def weights(model: DCEC) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# Phases


def test_pretrain_equals_a_bare_loop(dcec: Make, train: Train, tiny: Samples, tmp_path: Path):
    model, steps, csv = dcec(), Steps(), PhaseCsv(tmp_path / "metrics.csv", "pretrain")
    train(model, tiny, "pretrain", [steps], max_epochs=2, logger=csv)

    bare = dcec()
    optimizer = torch.optim.Adam(bare.network.parameters())
    sampler, losses = EpochShuffle(torch.arange(203), 64, seed=0), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for index in sampler:
            x = tiny.x[index]
            loss = (bare.network.decode(bare.network.encode(x)) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    torch.testing.assert_close([float(loss) for loss in steps.losses], losses)
    torch.testing.assert_close(weights(model), weights(bare), rtol=1e-4, atol=1e-6)
    rows = read_csv(csv.path)
    assert [row["step"] for row in rows] == [4, 8]
    for row, epoch in zip(rows, (losses[:4], losses[4:]), strict=True):
        # The last batch holds 11 samples and counts as 11.
        mean = sum(n * loss for n, loss in zip((64, 64, 64, 11), epoch, strict=True)) / 203
        assert row["pretrain/reconstruction"] == pytest.approx(mean, rel=1e-5)
        assert row["pretrain/loss"] == pytest.approx(mean, rel=1e-5)


def test_setup_frees_what_the_phase_trains(dcec: Make):
    def trained(model: DCEC) -> set[str]:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return {name.removeprefix("network.").split(".")[0] for name in names}

    model = dcec()
    model.setup("fit")
    assert trained(model) == {"encoder", "decoder"}
    model.phase = "finetune"
    model.setup("fit")
    assert trained(model) == {"encoder", "decoder", "centers"}
    alone = dcec(reconstruction=0.0)
    alone.phase = "finetune"
    alone.setup("fit")
    assert trained(alone) == {"encoder", "centers"}
    alone.phase = "pretrain"
    alone.setup("fit")
    assert trained(alone) == {"encoder", "decoder"}


def test_the_optimizer_gets_what_is_trained(dcec: Make):
    model = dcec()
    model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.5)
    for phase, with_centers in (("pretrain", False), ("finetune", True)):
        model.phase = phase
        model.setup("fit")
        optimizer = model.configure_optimizers()
        assert isinstance(optimizer, torch.optim.SGD)
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        expected = {id(p) for p in model.network.parameters()}
        assert ids == (expected | {id(model.centers)} if with_centers else expected)


def test_epoch_means_weigh_batches_by_size(dcec: Make, train: Train, tiny: Samples, tmp_path: Path):
    model, steps, csv = dcec(), Steps(), PhaseCsv(tmp_path / "metrics.csv", "finetune")
    callbacks = [ClusterInit(), TargetRefresh(4, 0.0), steps]
    trainer = train(model, tiny, "finetune", callbacks, max_steps=6, logger=csv)
    assert steps.sizes == [64, 64, 64, 11, 64, 64]
    rows = [row for row in read_csv(csv.path) if "finetune/loss" in row]
    assert [row["step"] for row in rows] == [4, 6]
    seen = float(trainer.callback_metrics["finetune/loss"])
    assert seen == pytest.approx(rows[1]["finetune/loss"], rel=1e-6)
    for part, logged in zip((slice(0, 4), slice(4, 6)), rows, strict=True):
        sizes, losses = torch.tensor(steps.sizes[part]), torch.stack(steps.losses[part])
        mean = float((sizes * losses).sum() / sizes.sum())
        terms = [logged[f"finetune/{name}"] for name in ("clustering", "reconstruction")]
        assert logged["finetune/loss"] == pytest.approx(mean, rel=1e-5)
        assert sum(terms) == pytest.approx(mean, rel=1e-5)
        assert steps.running[part][-1] == pytest.approx(
            dict(zip(("clustering", "reconstruction"), terms, strict=True))
        )
        assert sum(steps.running[part][0].values()) == pytest.approx(float(losses[0]), rel=1e-5)


def test_nothing_runs_before_the_first_step(dcec: Make):
    assert dcec().running_terms() == {}


class Noisy(DCEC):
    """Pretrain on noisy images, as IDCEC will."""

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        noisy = batch["x"] + 0.1 * torch.randn_like(batch["x"])
        return {"reconstruction": mse_loss(self.network(noisy)[1], batch["x"])}


def test_random_numbers_of_an_epoch_come_from_the_models_seed(
    dcec: Make, train: Train, tiny: Samples
):
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        model = dcec(Noisy, seed=seed)
        torch.manual_seed(global_seed)
        train(model, tiny, "pretrain", max_epochs=2)
        results.append(weights(model)["network.encoder.0.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])


# Using a model


def test_forward_assigns_images(dcec: Make, tiny: Samples):
    model = dcec()
    model.centers.data = torch.randn(10, 10)
    x = tiny.x[:5]
    q = model(x)
    assert q.shape == (5, 10)
    torch.testing.assert_close(q.sum(1), torch.ones(5))
    assert torch.equal(q, model.assign(model.network.encode(x)))


def test_embed_dataset_is_in_order_and_leaves_the_mode(dcec: Make, train: Train, tiny: Samples):
    class Embed(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, DCEC)
            self.modes: list[bool] = []
            hook = pl_module.network.encoder.register_forward_hook(
                lambda module, *_: self.modes.append(module.training)
            )
            self.z = pl_module.embed_dataset()
            hook.remove()
            self.after = pl_module.network.training

    model, embed = dcec(), Embed()
    train(model, tiny, "pretrain", [embed], max_epochs=1)
    assert embed.z.shape == (203, 10)
    assert not embed.z.requires_grad
    torch.testing.assert_close(embed.z, model.network.encode(tiny.x).detach())
    assert embed.modes == [False]
    assert embed.after


# NaN


class Broken(DCEC):
    """Lose one term at one step."""

    at, value = 3, float("nan")

    def finetune_loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = super().finetune_loss(batch)
        if self.global_step == self.at:
            terms["clustering"] = terms["clustering"] * self.value
        return terms


class BrokenAtOnce(Broken):
    at, value = 0, float("inf")


class BrokenInTheSecondEpoch(Broken):
    at = 5


@pytest.mark.parametrize("cls", [Broken, BrokenAtOnce, BrokenInTheSecondEpoch])
def test_stops_at_the_very_step_of_a_nan(
    cls: type[Broken], dcec: Make, train: Train, tiny: Samples
):
    model, steps = dcec(cls), Steps()
    callbacks = [ClusterInit(), TargetRefresh(2, 0.0), steps]
    message = (
        "Expected a finite loss, got NaN or infinity in the term 'clustering' "
        f"at step {cls.at} of finetune; lower phases.finetune.optimizer.lr"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        train(model, tiny, "finetune", callbacks, max_steps=9)
    assert len(steps.losses) == cls.at
    assert all(value.isfinite().all() for value in weights(model).values())


def test_nan_weights_stop_the_first_step(dcec: Make, train: Train, tiny: Samples):
    model = dcec()
    with torch.no_grad():
        model.network.decoder[-1].bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match="in the term 'reconstruction' at step 0 of pretrain"):
        train(model, tiny, "pretrain", max_epochs=1)


# Checkpoints


class Other(DCEC):
    """Another paper."""


@pytest.fixture
def pretrained(dcec: Make, train: Train, tiny: Samples, tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    train(dcec(), tiny, "pretrain", [PhaseCheckpoint(path, 0)], max_epochs=2)
    return path


def test_a_checkpoint_of_another_phase_is_refused(
    dcec: Make, train: Train, tiny: Samples, pretrained: Path
):
    message = "Expected a checkpoint of phase 'finetune', got one of phase 'pretrain'; .*init_from"
    with pytest.raises(UserError, match=message):
        train(dcec(), tiny, "finetune", [ClusterInit()], ckpt_path=pretrained, max_steps=1)


def test_a_checkpoint_of_another_model_is_refused(
    dcec: Make, train: Train, tiny: Samples, pretrained: Path
):
    with pytest.raises(UserError, match="Expected a checkpoint of Other, got one of DCEC; "):
        train(dcec(Other), tiny, "pretrain", ckpt_path=pretrained, max_epochs=3)


def test_a_checkpoint_of_another_shape_is_refused(
    dcec: Make, train: Train, tiny: Samples, pretrained: Path
):
    message = r"Expected weights 'centers' of shape \(7, 10\), got \(10, 10\); .*n_clusters"
    with pytest.raises(UserError, match=message):
        train(dcec(n_clusters=7), tiny, "pretrain", ckpt_path=pretrained, max_epochs=3)


def test_check_checkpoint(dcec: Make):
    model = dcec()
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    with pytest.raises(UserError, match="got one of another program"):
        check_checkpoint(checkpoint, model)
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["clusterlab"] == {"model": "DCEC", "phase": "pretrain"}
    check_checkpoint(checkpoint, model)
    check_checkpoint(checkpoint, model, phase="pretrain")
    with pytest.raises(UserError, match="of phase 'finetune', got one of phase 'pretrain'"):
        check_checkpoint(checkpoint, model, phase="finetune")


def test_check_shapes_names_what_is_missing_or_too_much():
    one, two = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    check_shapes(one, dict(one))
    with pytest.raises(UserError, match=r"Expected weights 'b' of shape none, got \(4,\)"):
        check_shapes(two, one)
    with pytest.raises(UserError, match=r"Expected weights 'b' of shape \(4,\), got none"):
        check_shapes(one, two)


def test_check_shapes_names_the_first_difference():
    expected = {f"layer.{i}": torch.zeros(2) for i in range(64)}
    got = {name: torch.zeros(3) for name in expected}
    with pytest.raises(UserError, match=r"Expected weights 'layer\.0' of shape \(2,\), got \(3,\)"):
        check_shapes(got, expected)


def test_all_samples_are_assigned_as_each_is(dcec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts that do not come out even, and to the bit."""
    model = dcec().requires_grad_(False)
    model.centers.normal_()
    z = torch.randn(203, model.network.embedding_dim)
    monkeypatch.setattr("clusterlab.models.base.AT_A_TIME", 50)
    assert torch.equal(model.assign_all(z), model.assign(z))
