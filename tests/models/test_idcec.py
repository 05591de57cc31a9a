"""IDCEC: its equations, which parameter learns from what, whole runs, and a kill in each phase."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, interpolate

from clusterlab.callbacks import EmbeddingHistory, PhaseCheckpoint, SelfTraining
from clusterlab.centers import center_samples, kmeans, reliable_samples, renumber
from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import UserError
from clusterlab.losses import kl_divergence, squared_weights
from clusterlab.models.idcec import IDCEC
from clusterlab.networks import Classifier, ConvAutoencoder, PooledAutoencoder
from clusterlab.networks.pooled import UpConv2d
from clusterlab.predict import load
from clusterlab.training import run
from conftest import LITTLE_IDCEC, KillAt, KilledError, composed

Train = Callable[..., Trainer]
Compose = Callable[..., DictConfig]


def idcec(cls: type[IDCEC] = IDCEC, **settings: Any) -> IDCEC:
    """Make a small IDCEC, the same weights each time."""
    torch.manual_seed(0)
    network = PooledAutoencoder((1, 8, 8), 5, filters=(4, 6, 8))
    classifier = Classifier((1, 8, 8), 5, filters=(4, 6), hidden=12)
    defaults = {"divergence": kl_divergence, "alpha": 0.1, "beta": 1e-3, "noise": 0.1, "seed": 0}
    return cls(network, classifier, 5, **{**defaults, "n_init": 3, **settings})


def centered(model: IDCEC, samples: Samples) -> IDCEC:
    """Move the embedding to the origin: before training all samples lie in one direction of it."""
    with torch.no_grad():
        model.network.encoder[-1].bias -= embedding(model, samples).mean(0)
    return model


def embedding(model: IDCEC, samples: Samples) -> Tensor:
    return model.embed_samples(samples, torch.device("cpu"))


def batch_of(n: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.rand(n, 1, 8, 8), "index": torch.arange(n)}


# Networks


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 13), (1, 28, 28), (3, 55, 55), (3, 32, 48)])
def test_any_image_size_comes_back(shape: tuple[int, int, int]) -> None:
    network = PooledAutoencoder(shape, embedding_dim=5, filters=(2, 3, 4))
    z, x_hat = network(torch.rand(2, *shape))
    assert z.shape == (2, 5)
    assert x_hat.shape == (2, *shape)
    assert Classifier(shape, 7, filters=(2, 3))(torch.rand(2, *shape)).shape == (2, 7)


def test_the_autoencoder_is_the_papers() -> None:
    """Six convolutions of stride 1, three poolings, LeakyReLU; embedding and pixels are linear."""
    network = PooledAutoencoder((1, 28, 28), embedding_dim=10)
    layers = [*network.encoder, *network.decoder]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        *((32, 1, 5, 5), (64, 32, 5, 5), (128, 64, 3, 3)),
        *((64, 128, 3, 3), (32, 64, 5, 5), (1, 32, 5, 5)),
    ]
    assert {c.stride for c in convolutions} == {(1, 1)}
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 3
    assert sum(isinstance(layer, nn.LeakyReLU) for layer in layers) == 6  # 5 convolutions, 1 linear
    assert isinstance(network.encoder[-1], nn.Linear)
    assert isinstance(network.decoder[-1], nn.Conv2d)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(8, 8), (14, 10), (7, 9), (8, 9)])
def test_enlarging_and_convolving_at_once_is_the_same(kernel: int, size: tuple[int, int]) -> None:
    """Values and gradients of ``interpolate`` and a plain convolution, in sizes twice and other."""
    torch.manual_seed(0)
    layer = UpConv2d(3, 2, kernel, size).double()
    x = torch.randn(4, 3, size[0] // 2, size[1] // 2, dtype=torch.double, requires_grad=True)
    weight = torch.randn(4, 2, *size, dtype=torch.double)
    enlarged = interpolate(x, size=size, mode="nearest")
    plain = conv2d(enlarged, layer.weight, layer.bias, padding=kernel // 2)
    ours = layer(x)
    torch.testing.assert_close(ours, plain)
    inputs = (x, layer.weight, layer.bias)
    expected = torch.autograd.grad((weight * plain).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((weight * ours).sum(), inputs), expected)


def test_small_images_are_refused() -> None:
    for network in (PooledAutoencoder, Classifier):
        with pytest.raises(UserError, match="Expected images of at least 8x8 pixels, got 7x9"):
            network((1, 7, 9), 5)


def test_filters_that_do_not_fit_are_refused() -> None:
    for network in (PooledAutoencoder, ConvAutoencoder):
        with pytest.raises(UserError, match=r"filters of three convolutions, got \[4, 6\]; set"):
            network((1, 8, 8), 5, filters=(4, 6))
    with pytest.raises(UserError, match=r"halve for each filter, got 8x8 and .*\[4, 4, 4, 4\]"):
        Classifier((1, 8, 8), 5, filters=(4, 4, 4, 4))
    assert Classifier((1, 8, 8), 5, filters=(4, 4, 4))(torch.rand(2, 1, 8, 8)).shape == (2, 5)


def test_dropout_stands_before_the_last_layer() -> None:
    *_, dropout, last = Classifier((1, 8, 8), 5)
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5
    assert isinstance(last, nn.Linear)


# Equations


def test_small_weights_cost_their_square_and_pull_with_beta() -> None:
    model = idcec()
    value = squared_weights(model.network)
    by_hand = sum(float((p.detach().double() ** 2).sum()) for p in model.network.parameters()) / 2
    assert value.item() == pytest.approx(by_hand, rel=1e-5)
    (model.beta * value).backward()
    for parameter in model.network.parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 1e-3 * parameter.detach())


def test_center_samples_and_reliable_samples_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    z, labels = generator.normal(size=(200, 3)), generator.integers(0, 4, 200)
    centers = np.stack([z[labels == k].mean(0) for k in range(4)])
    expected = []
    for k in range(4):
        own = [i for i in range(200) if labels[i] == k]
        expected.append(min(own, key=lambda i: sum((z[i] - centers[k]) ** 2)))
    given = torch.from_numpy(z), torch.from_numpy(labels), torch.from_numpy(centers)
    assert center_samples(*given).tolist() == expected
    for threshold in (-0.5, 0.3, 0.9):
        near = []
        for i in range(200):
            c = z[expected[labels[i]]]
            near.append(z[i] @ c / (z[i] @ z[i]) ** 0.5 / (c @ c) ** 0.5 >= threshold)
        assert 4 < sum(near) < 200
        assert reliable_samples(*given, threshold).tolist() == near


def test_pseudo_labels_are_numbered_as_the_trained_centers() -> None:
    generator = torch.Generator().manual_seed(0)
    like = 10 * torch.randn(6, 3, generator=generator)
    order = torch.randperm(6, generator=generator)
    centers = like[order] + 0.1 * torch.randn(6, 3, generator=generator)
    labels = torch.randint(6, (40,), generator=generator)
    ordered, renumbered = renumber(centers, labels, like)
    assert (ordered - like).norm(dim=1).max() < 1
    assert torch.equal(renumbered, order[labels])
    assert torch.equal(ordered[renumbered], centers[labels])


def test_thresholds_beyond_the_cosine() -> None:
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    z[7] = 0  # no direction
    centers, labels = kmeans(z, 4, seed=0)
    assert reliable_samples(z, labels, centers, -1).all()
    only = reliable_samples(z, labels, centers, 1.01).nonzero().flatten()
    assert sorted(only.tolist()) == sorted(center_samples(z, labels, centers).tolist())


def test_the_terms_of_each_phase() -> None:
    model, batch = idcec(), batch_of()
    torch.manual_seed(7)
    terms = model.pretrain_loss(batch)
    torch.manual_seed(7)
    noisy = batch["x"] + 0.1 * torch.randn_like(batch["x"])
    z, x_hat = model.network(noisy)
    assert terms["reconstruction"].item() == pytest.approx(
        (x_hat - batch["x"]).square().mean().item()
    )
    assert terms["weights"].item() == pytest.approx(1e-3 * squared_weights(model.network).item())
    with torch.no_grad():
        model.centers.copy_(z[:5])
    model.target = torch.rand(6, 5).softmax(1) ** 3
    model.target /= model.target.sum(1, keepdim=True)
    torch.manual_seed(7)
    finetune = model.finetune_loss(batch)
    assert set(finetune) == {"clustering", "reconstruction", "weights"}
    assert finetune["reconstruction"].item() == pytest.approx(terms["reconstruction"].item())
    kernel = 1 / (1 + torch.cdist(z, z[:5]) ** 2)
    q = kernel / kernel.sum(1, keepdim=True)
    kl = (model.target * (model.target / q).log()).sum(1).mean()
    assert finetune["clustering"].item() == pytest.approx(0.1 * kl.item(), rel=1e-3)
    model.pseudo_labels = torch.tensor([0, 1, 2, 3, 4, 0])
    model.classifier.eval()
    expected = cross_entropy(model.classifier(batch["x"]), model.pseudo_labels)
    assert model.retrain_loss(batch)["classification"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("phase", "moves"),
    [
        ("pretrain", {"encoder", "decoder"}),
        ("finetune", {"encoder", "decoder", "centers"}),
        ("retrain", {"classifier"}),
    ],
)
def test_which_part_learns_in_which_phase(phase: str, moves: set[str]) -> None:
    model, batch = idcec(), batch_of()
    with torch.no_grad():
        model.centers.copy_(model.network.encode(batch["x"])[:5])
    model.target = torch.eye(5).repeat(2, 1)[:6]
    model.pseudo_labels = torch.tensor([0, 1, 2, 3, 4, 0])
    model.phase = phase
    model.setup("fit")
    sum(getattr(model, f"{phase}_loss")(batch).values()).backward()
    parts = {
        "encoder": model.network.encoder,
        "decoder": model.network.decoder,
        "classifier": model.classifier,
    }
    moved = {
        name
        for name, part in parts.items()
        if all(p.grad is not None and p.grad.any() for p in part.parameters())
    }
    if model.centers.grad is not None:
        moved.add("centers")
    assert moved == moves


# Module B


class Spy(IDCEC):
    """Keep which samples the classifier learned, and as what."""

    def retrain_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self.pseudo_labels is not None
        self.seen = {**getattr(self, "seen", {}), **dict.fromkeys(batch["index"].tolist())}
        return super().retrain_loss(batch)


def test_the_classifier_learns_reliable_samples_alone(train: Train, tiny: Samples) -> None:
    model, b = centered(idcec(Spy), tiny), SelfTraining(threshold=0.9, tolerance=0, patience=1)
    train(model, tiny, "retrain", [b], max_epochs=2)
    z = embedding(model, tiny)
    centers, labels = renumber(*kmeans(z, 5, 0, 3), like=model.centers.detach())
    expected = reliable_samples(z, labels, centers, 0.9)
    assert 5 < int(expected.sum()) < 203
    assert sorted(model.seen) == expected.nonzero().flatten().tolist()
    assert torch.equal(model.pseudo_labels, labels)
    record = b.record()
    assert record["n_reliable"] == int(expected.sum())
    assert record["reliable_sizes"] == torch.bincount(labels[expected], minlength=5).tolist()


def test_what_is_known_of_reliable_and_rejected_samples(train: Train, tiny: Samples) -> None:
    assert tiny.y is not None
    five = Samples("five", tiny.x[tiny.y < 5], tiny.y[tiny.y < 5])
    b = SelfTraining(threshold=0.9, tolerance=0, patience=1)
    train(centered(idcec(), five), five, "retrain", [b], max_epochs=1)
    record = b.record()
    share = record["n_reliable"] / len(five)
    assert 0.05 < share < 0.95
    parts = share * record["accuracy_reliable"] + (1 - share) * record["accuracy_rejected"]
    assert parts == pytest.approx(record["metrics_of_pseudo_labels"]["accuracy"])
    assert set(record["metrics_at_start"]) == {"accuracy", "nmi", "ari", "f1"}


@pytest.mark.parametrize(
    ("threshold", "n", "told"),
    [
        (-1, 203, "all samples are reliable: the threshold leaves none out"),
        (1.5, 5, "only the center sample is reliable in cluster 0, 1, 2, 3, 4"),
    ],
)
def test_a_threshold_of_no_use_is_told(
    train: Train, tiny: Samples, caplog: Any, threshold: float, n: int, told: str
) -> None:
    b = SelfTraining(threshold, tolerance=0, patience=1)
    train(idcec(), tiny, "retrain", [b], batch_size=5, max_epochs=1)
    assert b.record()["n_reliable"] == n
    assert b.record()["trouble"] == [told]
    assert told in caplog.text


def test_a_cluster_that_k_means_leaves_empty_has_no_reliable_sample() -> None:
    z = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels, centers = torch.tensor([2, 1, 2, 1, 2]), torch.eye(2).repeat(2, 1)
    reliable = reliable_samples(z, labels, centers, 1.01)  # the first nearest of each that is there
    assert reliable.tolist() == [False, True, True, False, False]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_collapsed_embedding_is_told(train: Train, tiny: Samples) -> None:
    model = idcec()
    torch.nn.init.zeros_(model.network.encoder[-1].weight)
    torch.nn.init.ones_(model.network.encoder[-1].bias)
    b = SelfTraining(threshold=0.5, tolerance=0, patience=1)
    train(model, tiny, "retrain", [b], max_epochs=1)
    record = b.record()
    assert record["reliable_sizes"] == [203, 0, 0, 0, 0]
    assert "finds nothing in the embedding for cluster 1, 2, 3, 4" in record["trouble"][0]


def test_labels_of_a_classifier_that_knows_nothing_are_not_settled(
    train: Train, tiny: Samples
) -> None:
    class Blank(IDCEC):
        def retrain_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            terms = super().retrain_loss(batch)
            return {name: 0 * value for name, value in terms.items()}

    model, b = idcec(Blank), SelfTraining(0.5, tolerance=0.5, patience=1)
    nn.init.zeros_(model.classifier[-1].weight)
    trainer = train(model, tiny, "retrain", [b], max_epochs=4)
    assert trainer.current_epoch == 4
    assert b.change == 0
    assert "stop_reason" not in b.record()
    assert b.record()["settled"] is False


def test_settled_labels_stop_the_phase(train: Train, tiny: Samples) -> None:
    class Still(IDCEC):
        def classify(self, x: Tensor) -> Tensor:
            return torch.eye(5)[(x.flatten(1).sum(1) * 16).round().long() % 5]

    b = SelfTraining(0.5, tolerance=0.5, patience=1)
    trainer = train(idcec(Still), tiny, "retrain", [b], max_epochs=9)
    assert trainer.current_epoch == 2
    assert b.record()["stop_reason"] == "tolerance"
    assert b.record()["settled"] is True
    assert b.record()["label_change"] == 0


def test_labels_must_stay_settled_for_so_many_epochs(train: Train, tiny: Samples) -> None:
    """A single quiet epoch between others, or before a kill, does not count as several."""

    class Restless(IDCEC):
        def classify(self, x: Tensor) -> Tensor:
            numbers = (x.flatten(1).sum(1) * 16).round().long()
            return torch.eye(5)[(numbers + (self.current_epoch in (0, 3))) % 5]

    b = SelfTraining(0.5, tolerance=0.5, patience=3)
    trainer = train(idcec(Restless), tiny, "retrain", [b], max_epochs=20)
    # Labels of epochs 0, 3 differ from all others: 2, 5, 6 and 7 are quiet.
    assert trainer.current_epoch == 8
    assert b.record()["stop_reason"] == "tolerance"
    resumed = SelfTraining(0.5, tolerance=0.5, patience=3)
    resumed.load_state_dict(b.state_dict())
    assert resumed.calm == 3


def test_the_record_says_how_many_samples_are_labelled_as_taught(
    train: Train, tiny: Samples
) -> None:
    b = SelfTraining(-1, tolerance=0, patience=1)
    train(idcec(), tiny, "retrain", [b], max_epochs=3)
    assert b.labels is not None
    assert b.pseudo_labels is not None
    expected = float((b.labels == b.pseudo_labels).double().mean())
    assert b.record()["learned"] == pytest.approx(expected)
    assert b.record()["settled"] is None  # a tolerance of 0 never stops


def test_a_history_has_the_hidden_layer_and_leaves_the_training_alone(
    train: Train, tiny: Samples
) -> None:
    model, history = idcec(), EmbeddingHistory(interval=4, n_samples=20)
    train(
        model,
        tiny,
        "retrain",
        [SelfTraining(-1, 0, patience=1), history],
        batch_size=29,
        max_epochs=4,
    )
    assert history.steps == [0, 4, 8, 12, 16, 20, 24, 28]  # 7 an epoch, the last one the end
    seen: list[Tensor] = []
    model.classifier[-1].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    model.classifier.eval()(as_float(tiny.x[history.index]))
    assert history.kept[-1].shape == (20, 12)
    torch.testing.assert_close(history.kept[-1], seen[0])
    assert not torch.equal(history.kept[-1], history.kept[0])
    alone = idcec()
    train(alone, tiny, "retrain", [SelfTraining(-1, 0, patience=1)], batch_size=29, max_epochs=4)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_killed_phase_goes_on_bit_for_bit(train: Train, tiny: Samples, tmp_path: Path) -> None:
    straight, b = idcec(), SelfTraining(0.9, tolerance=0, patience=1)
    train(straight, tiny, "retrain", [b], batch_size=20, max_epochs=4)
    path, killed = tmp_path / "last.ckpt", idcec()
    callbacks = [SelfTraining(0.9, tolerance=0, patience=1), PhaseCheckpoint(path, 0), KillAt(25)]
    with pytest.raises(KilledError):
        train(killed, tiny, "retrain", callbacks, batch_size=20, max_epochs=4)
    resumed, again = idcec(), SelfTraining(0.9, tolerance=0, patience=1)
    train(
        resumed,
        tiny,
        "retrain",
        [again, PhaseCheckpoint(path, 0)],
        batch_size=20,
        max_epochs=4,
        ckpt_path=path,
    )
    for (name, one), other in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert again.record() == b.record()


@pytest.mark.parametrize(
    ("threshold", "tolerance", "patience"),
    [(float("nan"), 0, 1), (3, 0, 1), (0.5, 1, 1), (0.5, -1, 1), (0.5, 0, 0)],
)
def test_what_cannot_be_is_refused(threshold: float, tolerance: float, patience: int) -> None:
    with pytest.raises(UserError, match=r"Expected .*; set phases\.retrain\."):
        SelfTraining(threshold, tolerance, patience)


# Whole runs


@pytest.fixture(scope="module")
def finished(
    little_npz: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictConfig, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("idcec")
    cfg = composed(folder, *LITTLE_IDCEC, f"data.path={little_npz}")
    return cfg, run(cfg)


def test_a_run_says_what_module_b_did(finished: tuple[DictConfig, dict[str, Any]]) -> None:
    record = finished[1]
    assert list(record["phases"]) == ["pretrain", "finetune", "retrain"]
    retrain = record["phases"]["retrain"]
    assert {"n_reliable", "reliable_sizes", "metrics_at_start", "accuracy_reliable"} <= set(retrain)
    assert sum(retrain["reliable_sizes"]) == retrain["n_reliable"]
    with np.load(Path(finished[0].run_dir) / "assignments.npz") as stored:
        assert np.allclose(stored["q"].sum(1), 1)
        assert np.array_equal(stored["q"].argmax(1), stored["label"])
        label, q = stored["label"], stored["q"]
    with np.load(finished[0].data.path) as data:
        labels, predicted = load(finished[0].run_dir).predict(data["x"])
    assert np.array_equal(labels, label)
    assert np.allclose(predicted, q, atol=1e-6)


def test_a_run_whose_classifier_does_not_settle_says_so(
    finished: tuple[DictConfig, dict[str, Any]], compose: Compose, little_npz: Path
) -> None:
    """Three epochs are less than the patience."""
    said = "Undecided: after 3 epochs the classifier still changes labels."
    assert not any(line.startswith("Undecided") for line in finished[1]["label_free"]["trouble"])
    other = compose(*LITTLE_IDCEC, f"data.path={little_npz}", "phases.retrain.tolerance=0.001")
    other.pretrained_dir = finished[0].pretrained_dir
    assert any(line.startswith(said) for line in run(other)["label_free"]["trouble"])


def test_thresholds_share_everything_before_module_b(
    finished: tuple[DictConfig, dict[str, Any]], compose: Compose, little_npz: Path, tmp_path: Path
) -> None:
    """Not so the weights of the loss; and what is shared equals what is made anew."""
    cfg, record = finished
    made = {}
    for name, override in (("lambda", "phases.retrain.threshold=1.5"), ("alpha", "loss.alpha=0.2")):
        other = compose(*LITTLE_IDCEC, f"data.path={little_npz}", override)
        other.run_dir, other.output_dir = str(tmp_path / name), cfg.output_dir
        made[name] = run(other)["phases"]
    reused = {name: [p.get("reused") for p in phases.values()] for name, phases in made.items()}
    assert reused == {"lambda": [True, True, None], "alpha": [True, False, None]}
    assert made["lambda"]["retrain"]["n_reliable"] == 5
    assert record["phases"]["retrain"]["n_reliable"] > 100
    alone = compose(*LITTLE_IDCEC, f"data.path={little_npz}", "pretrained_dir=null")
    alone.run_dir = str(tmp_path / "alone")
    assert run(alone)["metrics"] == record["metrics"]
    for phase in ("pretrain", "finetune", "retrain"):
        one, other = (
            torch.load(Path(folder) / phase / "weights.ckpt")["state_dict"]
            for folder in (cfg.run_dir, alone.run_dir)
        )
        assert all(torch.equal(one[key], other[key]) for key in one), phase


def test_labels_do_not_steer(
    finished: tuple[DictConfig, dict[str, Any]], compose: Compose, tmp_path: Path
) -> None:
    cfg, record = finished
    with np.load(cfg.data.path) as stored:
        x, y = stored["x"], stored["y"]
    np.savez(tmp_path / "little.npz", x=x, y=np.random.default_rng(0).permutation(y))
    other = compose(*LITTLE_IDCEC, f"data.path={tmp_path / 'little.npz'}")
    again = run(other)
    assert again["phases"]["retrain"]["n_reliable"] == record["phases"]["retrain"]["n_reliable"]
    one, two = (
        torch.load(Path(folder) / "retrain" / "weights.ckpt")["state_dict"]
        for folder in (cfg.run_dir, other.run_dir)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_lost_phase_is_made_again(
    finished: tuple[DictConfig, dict[str, Any]], compose: Compose, tmp_path: Path
) -> None:
    cfg, record = finished
    shutil.copytree(cfg.run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "retrain")
    (tmp_path / "run" / "result.json").unlink()
    other = compose(*LITTLE_IDCEC, f"data.path={cfg.data.path}")
    other.output_dir = cfg.output_dir
    again = run(other)
    assert again["metrics"] == record["metrics"]
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["phases"]["finetune"] == record["phases"]["finetune"]
