"""ICAE: its centers, its losses by double loops, its views, and whole runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from omegaconf import DictConfig, open_dict
from torch import Tensor
from torch.nn.functional import cosine_similarity

from clusterlab.callbacks import PhaseCheckpoint, TargetRefresh
from clusterlab.centers import pedcc
from clusterlab.checks import check_phases
from clusterlab.data.augment import RandomAffine, Views
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import UserError
from clusterlab.models.icae import ICAE, consistency_loss, mmd, sobel_loss
from clusterlab.networks import ResidualAutoencoder
from clusterlab.predict import load
from clusterlab.seeding import derive_seed
from clusterlab.training import run
from conftest import KillAt, KilledError, composed

Train = Callable[..., Trainer]
Compose = Callable[..., DictConfig]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def icae(n_clusters: int = 5, **settings: Any) -> ICAE:
    """Make a small ICAE, the same weights each time."""
    torch.manual_seed(0)
    network = ResidualAutoencoder((1, 8, 8), 6, filters=(4, 6, 8))
    weights = {"consistency": 0.01, "distribution": 1.0, "reconstruction": 1.0, "sobel": 0.05}
    return ICAE(network, n_clusters, **{**weights, "noise": 0.05, "seed": 0, **settings})


# Centers


@pytest.mark.parametrize(("k", "dim"), [(2, 1), (2, 5), (10, 9), (10, 60), (20, 160), (40, 39)])
def test_centers_are_even(k: int, dim: int) -> None:
    centers = pedcc(k, dim, seed=3)
    assert centers.shape == (k, dim)
    assert centers.dtype == torch.float32
    cosines = (centers @ centers.T).numpy()
    expected = np.where(np.eye(k, dtype=bool), 1, -1 / (k - 1))
    assert np.allclose(cosines, expected, rtol=0, atol=1e-6)
    assert centers.sum(0).abs().max() < 1e-5


def test_the_seed_turns_the_frame() -> None:
    assert torch.equal(pedcc(5, 8, seed=1), pedcc(5, 8, seed=1))
    assert not torch.allclose(pedcc(5, 8, seed=1), pedcc(5, 8, seed=2), atol=0.1)


def test_too_few_dimensions() -> None:
    message = r"an embedding of 9 dimensions or more for 10 even centers, got 8; set network\.emb"
    with pytest.raises(UserError, match=message):
        pedcc(10, 8, seed=0)


def test_centers_stay_where_they_are(train: Train, tiny: Samples) -> None:
    model = icae()
    before = model.centers.clone()
    assert torch.equal(before, pedcc(5, 6, derive_seed(0, "pedcc")))
    train(model, tiny, "finetune", [TargetRefresh(3, 0.0)], max_steps=7)
    assert torch.equal(model.centers, before)
    assert not model.centers.requires_grad
    assert "centers" in model.state_dict()


def test_a_sample_belongs_to_the_center_of_the_largest_cosine() -> None:
    model = icae().eval()
    x = rand(20, 1, 8, 8).float()
    z = model.network.encode(x)
    assert torch.allclose(z.norm(dim=1), torch.ones(20))
    cosines = cosine_similarity(z[:, None], model.centers[None], dim=2)
    assert torch.equal(model(x).argmax(1), cosines.argmax(1))


# Losses


def mmd_by_loops(z: np.ndarray, centers: np.ndarray, unbiased: bool) -> float:
    n, k = len(z), len(centers)

    def squared(a: Any, b: Any) -> float:
        return float(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))

    width = np.mean([squared(a, b) for a in z for b in z])
    width += 2 * np.mean([squared(a, b) for a in z for b in centers])
    width = (width + np.mean([squared(a, b) for a in centers for b in centers])) / 4

    def kernel(a: Any, b: Any) -> float:
        return float(sum(np.exp(-squared(a, b) / (width * f)) for f in (0.25, 0.5, 1, 2, 4)))

    own = [kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j or not unbiased]
    theirs = [kernel(centers[i], centers[j]) for i in range(k) for j in range(k)]
    across = [kernel(a, b) for a in z for b in centers]
    return float(np.mean(own) + np.mean(theirs) - 2 * np.mean(across))


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_equals_loops(unbiased: bool) -> None:
    z, centers = rand(9, 4) * 3, rand(3, 4, seed=1)
    expected = mmd_by_loops(z.numpy(), centers.numpy(), unbiased)
    assert mmd(z, centers, unbiased).item() == pytest.approx(expected, rel=1e-9)


def test_mmd_of_equal_distributions_is_zero() -> None:
    """On average over samples of them, and for the biased form where the sample is exact."""
    centers = pedcc(4, 6, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2000):
        z = centers[torch.randint(4, (12,), generator=generator)]
        found.append(mmd(z, centers).item())
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 3 * error
    assert error < 0.005
    assert mmd(centers.repeat(5, 1), centers, unbiased=False).abs() < 1e-12
    assert mmd(centers[:1].repeat(12, 1), centers) > 1


def test_mmd_has_a_gradient_that_a_difference_confirms() -> None:
    centers = pedcc(3, 4, seed=0).double()
    z = rand(7, 4).requires_grad_()
    mmd(z, centers).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.isfinite().all()
    moved = z.detach() - 0.05 * z.grad
    assert mmd(moved, centers) < mmd(z.detach(), centers)
    same = centers[[0, 0, 0]].clone().requires_grad_()
    mmd(same, centers).backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_views_are_chained() -> None:
    chain = rand(4, 6, 3)
    expected = 0.0
    for i in range(6):
        for view in range(3):
            for d in range(3):
                expected += float(chain[view + 1, i, d] - chain[view, i, d]) ** 2
    assert consistency_loss(chain).item() == pytest.approx(expected / 6)


def edges_by_loops(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    g_x = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    height, width = image.shape[0] - 2, image.shape[1] - 2  # without the border
    found = []
    for g in (g_x, g_x.T):
        out = np.zeros((height, width))
        for r in range(height):
            for c in range(width):
                out[r, c] = (g * image[r : r + 3, c : c + 3]).sum()
        found.append(out)
    return found[0], found[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_equals_loops(channels: int) -> None:
    x, x_hat = rand(4, channels, 6, 5), rand(4, channels, 6, 5, seed=1)
    power, place = [], []
    for image, other in zip(x.numpy(), x_hat.numpy(), strict=True):
        edges = [edges_by_loops(channel) for channel in image]
        others = [edges_by_loops(channel) for channel in other]
        strength = sum(np.mean([np.square(e[i]).mean() for e in others]) for i in (0, 1))
        strength -= sum(np.mean([np.square(e[i]).mean() for e in edges]) for i in (0, 1))
        power.append(abs(strength))
        pairs = list(zip(edges, others, strict=True))
        place.append(sum(np.mean([np.square(a[i] - b[i]) for a, b in pairs]) for i in (0, 1)))
    assert sobel_loss(x, x_hat).item() == pytest.approx(np.mean(power))
    assert sobel_loss(x, x_hat, power=False).item() == pytest.approx(np.mean(place))
    assert sobel_loss(x, x.flip(3)).item() == pytest.approx(0)  # as strong, elsewhere
    assert sobel_loss(x, x.flip(3), power=False) > 0.1


def test_the_sum_has_the_weights_of_the_paper() -> None:
    model = icae(consistency=0.3, distribution=0.5, reconstruction=0.7, sobel=0.9, noise=0.0).eval()
    x, views = rand(6, 1, 8, 8).float(), rand(2, 6, 1, 8, 8, seed=1).float()
    terms = model.finetune_loss({"index": torch.arange(6), "x": x, "views": views})
    z = [model.network.encode(image) for image in (x, *views)]
    x_hat = model.network.decode(z[0])
    wide, wide_hat = 2 * x - 1, 2 * x_hat - 1  # what the paper's network sees
    torch.testing.assert_close(4 * sobel_loss(x, x_hat), sobel_loss(wide, wide_hat))
    expected = {
        "consistency": 0.3 * consistency_loss(torch.stack(z)),
        "distribution": 0.5 * mmd(torch.cat(z), model.centers),
        "reconstruction": 0.7 * (wide - wide_hat).square().mean(),
        "sobel": 0.9 * sobel_loss(wide, wide_hat),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_the_noise_is_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = icae(noise=0.2).eval()
    seen = []
    monkeypatch.setattr(
        model.network, "decode", lambda z: seen.append(z) or torch.zeros(400, 1, 8, 8)
    )
    x = rand(400, 1, 8, 8).float()
    model.finetune_loss({"index": torch.arange(400), "x": x})
    length = (seen[0].detach() - model.network.encode(x).detach()).square().sum(1).mean().sqrt()
    assert float(length) == pytest.approx(0.2, rel=0.05)


def test_both_pixels_and_edges_are_of_the_noisy_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = icae(reconstruction=0.7, sobel=0.9, noise=0.5).eval()
    x, decoded = rand(6, 1, 8, 8).float(), []
    decode = model.network.decode
    monkeypatch.setattr(model.network, "decode", lambda z: decoded.append(decode(z)) or decoded[-1])
    terms = model.finetune_loss({"index": torch.arange(6), "x": x})
    (noisy,) = decoded
    assert not torch.allclose(noisy, decode(model.network.encode(x)), atol=1e-3)
    pixels = 0.7 * 4 * (x - noisy).square().mean()
    assert terms["reconstruction"].item() == pytest.approx(pixels.item(), rel=1e-4)
    edges = 0.9 * 4 * sobel_loss(x, noisy)
    assert terms["sobel"].item() == pytest.approx(edges.item(), rel=1e-4)


def test_terms_of_weight_zero_are_left_out() -> None:
    batch = {"index": torch.arange(6), "x": rand(6, 1, 8, 8).float()}
    assert list(icae().finetune_loss(batch)) == ["distribution", "reconstruction", "sobel"]
    batch["views"] = rand(1, 6, 1, 8, 8).float()
    names = ["consistency", "distribution", "reconstruction", "sobel"]
    assert list(icae().finetune_loss(batch)) == names
    bare = icae(reconstruction=0, sobel=0)
    assert list(bare.finetune_loss(batch)) == names[:2]
    assert list(icae(consistency=0, distribution=0).finetune_loss(batch)) == names[2:]
    bare.phase = "finetune"
    bare.setup("fit")
    assert not any(p.requires_grad for p in bare.network.decoder.parameters())


# Network


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 48), (1, 33, 9)])
@pytest.mark.parametrize("filters", [(4, 6), (4, 6, 8, 8), (4, 4, 6, 6, 8)])
def test_any_size_comes_back(shape: tuple[int, ...], filters: tuple[int, ...]) -> None:
    network = ResidualAutoencoder(shape, 7, filters)
    z, x_hat = network(torch.rand(2, *shape))
    assert z.shape == (2, 7)
    assert x_hat.shape == (2, *shape)


def test_the_paper_has_these_sizes() -> None:
    """Table 1, for MNIST: 32 pixels after padding, halved four times, 512 channels at the end."""
    network = ResidualAutoencoder((1, 28, 28), 60)
    sizes = []
    for layer in (*network.encoder, *network.decoder):
        layer.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape[1:])))
    network(torch.rand(2, 1, 28, 28))
    big = [size for size in dict.fromkeys(sizes) if len(size) == 3]
    down = [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert big[:5] == down
    assert sizes[-6:-1] == [*reversed(down)]
    parameters = sum(p.numel() for p in network.parameters())
    small = ResidualAutoencoder((1, 28, 28), 60, (16, 32, 64, 64))
    assert 20 < parameters / sum(p.numel() for p in small.parameters()) < 21


def test_padding_is_black_and_cut_off() -> None:
    network = ResidualAutoencoder((1, 28, 28), 6, (4, 6, 8, 8)).eval()
    seen = []
    network.encoder[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(1, 1, 28, 28)
    network.encode(x)
    assert seen[0].shape == (1, 1, 32, 32)
    assert torch.equal(seen[0][..., 2:30, 2:30], 2 * x - 1)
    assert (seen[0][..., :2] == -1).all()
    with torch.no_grad():
        network.decoder[-1].weight.zero_()
        network.decoder[-1].bias.fill_(-0.5)
    assert network.decode(torch.rand(1, 6)).unique().tolist() == [0.25]


# Views


def test_views_have_their_own_draws_and_leave_the_images(tiny: Samples) -> None:
    data = ClusterData(tiny, batch_size=40, seed=0)
    data.augment = Views([RandomAffine(degrees=30), RandomAffine(degrees=30), RandomAffine(flip=1)])

    def epoch(number: int, size: int) -> dict[int, tuple[Tensor, Tensor]]:
        data.batch_size = size
        data.trainer = type("T", (), {"global_rank": 0, "world_size": 1})()  # type: ignore[assignment]
        data._x = tiny.x
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[union-attr]
        found = {}
        for batch in loader:
            for place, i in enumerate(batch["index"].tolist()):
                found[i] = (batch["x"][place], batch["views"][:, place])
        return found

    first = epoch(0, 40)
    x, views = first[7]
    assert torch.equal(x, as_float(tiny.x[7]))
    assert not torch.allclose(views[0], views[1])
    assert torch.allclose(views[2], x.flip(2), atol=1e-5)
    assert torch.equal(epoch(0, 203)[7][1], views)  # whatever the batch
    assert not torch.equal(epoch(1, 40)[7][1], views)


def test_no_view_is_refused() -> None:
    with pytest.raises(UserError, match="at least one view, got none"):
        Views([])


# Whole runs

LITTLE_ICAE = (
    *("model=icae", "network=residual", "network.filters=[4,6,8]", "network.embedding_dim=6"),
    *("data=npz", "n_clusters=5", "data.batch_size=40", "trainer=cpu", "figures=false"),
    *("phases.finetune.max_epochs=4", "phases.finetune.update_interval=6"),
)


def test_a_run_has_one_phase_and_is_drawn(little_npz: Path, tmp_path: Path) -> None:
    history = "+phases.finetune.callbacks.history"
    cfg = composed(
        tmp_path,
        *LITTLE_ICAE,
        *(f"data.path={little_npz}", "figures=true"),
        *(f"{history}._target_=clusterlab.callbacks.CenterHistory", f"{history}.interval=10"),
    )
    record = run(cfg)
    assert list(record["phases"]) == ["finetune"]
    assert record["phases"]["finetune"]["stop_reason"] == "max_epochs"
    assert record["phases"]["finetune"]["steps"] == 20
    drawn = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"decoded_centers", "centers_finetune", "reconstructions", "embedding"} <= drawn
    with np.load(tmp_path / "run" / "finetune" / "centers.npz") as stored:
        assert stored["step"].tolist() == [0, 10, 20]
        assert stored["images"].shape == (3, 5, 1, 8, 8)
    labels, q = load(tmp_path / "run").predict(np.load(little_npz)["x"])
    with np.load(tmp_path / "run" / "assignments.npz") as stored:
        assert np.array_equal(labels, stored["label"])
        assert np.allclose(np.linalg.norm(stored["z"], axis=1), 1, atol=1e-5)
    assert q.shape == (200, 5)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("icae", {"consistency", "distribution", "reconstruction", "sobel"}),
        ("icae_no_augmentation", {"distribution", "reconstruction", "sobel"}),
        ("icae_no_reconstruction", {"consistency", "distribution", "sobel"}),
        ("icae_no_noise", {"consistency", "distribution", "reconstruction"}),
    ],
)
def test_the_rows_of_tables_4_to_6(
    little_npz: Path, tmp_path: Path, name: str, terms: set[str]
) -> None:
    overrides = [part for part in LITTLE_ICAE if part != "model=icae"]
    cfg = composed(tmp_path, f"model={name}", *overrides, f"data.path={little_npz}")
    record = run(cfg)
    settings = record["config"]["model"]
    assert (settings["noise"], settings["sobel"]) == ((0, 0) if "noise" in name else (0.05, 0.05))
    assert settings["reconstruction"] == (0 if name == "icae_no_reconstruction" else 1)
    head = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    logged = {column.removeprefix("finetune/") for column in head if column.startswith("finetune/")}
    assert logged - {"loss"} == terms


def test_a_killed_run_ends_as_it_would_have(train: Train, tiny: Samples, tmp_path: Path) -> None:
    views = Views([RandomAffine(degrees=10), RandomAffine(translate=0.1)])

    def phase(model: ICAE, *callbacks: Any, **options: Any) -> dict[str, Tensor]:
        train(model, tiny, "finetune", callbacks, max_steps=11, augment=views, **options)
        return model.state_dict()

    straight = phase(icae(), TargetRefresh(4, 0.0))
    path = tmp_path / "last.ckpt"
    with pytest.raises(KilledError):
        phase(icae(), TargetRefresh(4, 0.0), PhaseCheckpoint(path, 0), KillAt(7))
    again = phase(icae(), TargetRefresh(4, 0.0), PhaseCheckpoint(path, 0), ckpt_path=path)
    assert all(torch.equal(again[name], value) for name, value in straight.items())
    assert any("running_mean" in name for name in straight)


@pytest.mark.parametrize("experiment", ["icae_coil20_32", "icae_digits", "icae_fashion_mnist"])
def test_the_row_without_views_has_none_in_any_experiment(tmp_path: Path, experiment: str) -> None:
    asked = (f"experiment={experiment}", "hydra.mode=RUN")
    assert len(composed(tmp_path, *asked).phases.finetune.augment.views) >= 4
    cfg = composed(tmp_path, *asked, "model=icae_no_augmentation")
    assert cfg.phases.finetune.augment is None


@pytest.mark.parametrize(
    ("model", "augment", "said"),
    [
        ("dcec", "views", r"images to change in finetune, got views .* set .*finetune.*=affine"),
        ("icae", "affine", r"views to compare in finetune, got images .* set .*finetune.*=views"),
    ],
)
def test_an_augmentation_that_the_model_does_not_read_is_refused(
    model: str, augment: str, said: str, compose: Compose
) -> None:
    cfg = compose(f"model={model}", f"augment@phases.finetune.augment={augment}")
    with pytest.raises(UserError, match=said):
        check_phases(cfg.phases, cfg.model)


def test_changed_images_are_no_mistake_where_views_have_no_weight(compose: Compose) -> None:
    cfg = compose("model=icae", "augment@phases.finetune.augment=affine", "loss.consistency=0")
    check_phases(cfg.phases, cfg.model)
    with open_dict(cfg.model):  # as that of another method, whose weights have other names
        del cfg.model.consistency
    check_phases(cfg.phases, cfg.model)


def test_one_sample_too_many_for_the_batches(little_npz: Path, compose: Compose) -> None:
    """Batch normalisation needs two of them, and so do pairs."""
    n = len(np.load(little_npz)["x"])
    size = next(size for size in range(4, n) if n % size == 1)
    cfg = compose(
        *("model=icae_no_augmentation", "data=npz", f"data.path={little_npz}", "trainer=cpu"),
        *("network=residual_small", "network.filters=[2,3,4,5]", "figures=false", "n_clusters=5"),
        *(f"data.batch_size={size}", "phases.finetune.max_epochs=1"),
    )
    assert run(cfg)["phases"]["finetune"]["steps"] == n // size
