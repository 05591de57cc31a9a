"""CDC: its losses by double loops, and which parameter gets which gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clusterlab.assignment import soft_assignment, target_distribution
from clusterlab.checks import build
from clusterlab.files import config_folder
from clusterlab.loggers import read_csv
from clusterlab.losses import kl_divergence
from clusterlab.models.cdc import CDC, affinity_loss, correlation_loss, similarities
from clusterlab.networks import MLPAutoencoder
from clusterlab.predict import load
from clusterlab.training import run
from conftest import composed

Array = np.ndarray[Any, np.dtype[np.float64]]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarities_by_loops(x: Array, over_rows: bool) -> Array:
    n = len(x)
    kernel = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            kernel[i, j] = 1 / (1 + sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)))
    total = sum(kernel[i, j] for i in range(n) for j in range(n) if i != j)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if over_rows:
                found[i, j] = kernel[i, j] / sum(kernel[i])
            elif i != j:
                found[i, j] = kernel[i, j] / total
    return found


def sharpened_by_loops(c: Array) -> Array:
    n = len(c)
    found = np.zeros((n, n))
    for i in range(n):
        weights = [c[i, j] ** 2 / sum(c[k, j] for k in range(n)) for j in range(n)]
        found[i] = [weight / sum(weights) for weight in weights]
    return found


def divergence_by_loops(p: Array, q: Array, over_rows: bool) -> float:
    n = len(p)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if p[i, j] > 0:
                total += p[i, j] * np.log(p[i, j] / q[i, j])
    return total / n if over_rows else total


@pytest.mark.parametrize("over_rows", [True, False])
def test_losses_equal_double_loops(over_rows: bool) -> None:
    x, z, q = rand(9, 20), rand(9, 3, seed=1), rand(9, 4, seed=2).softmax(1)
    c_x, c_z, c_q = (similarities_by_loops(t.numpy(), over_rows) for t in (x, z, q))
    assert np.allclose(similarities(x, over_rows), c_x, atol=1e-9)
    assert c_x.sum() == pytest.approx(9 if over_rows else 1)
    target = sharpened_by_loops(c_z) if over_rows else c_z
    expected = divergence_by_loops(target, c_x, over_rows)
    assert correlation_loss(z, x, over_rows).item() == pytest.approx(expected, rel=1e-6)
    target = sharpened_by_loops(c_q) / (1 if over_rows else 9)
    expected = divergence_by_loops(target, c_z, over_rows)
    assert affinity_loss(q, z, over_rows).item() == pytest.approx(expected, rel=1e-6)


def test_images_are_compared_pixel_by_pixel() -> None:
    x = rand(5, 1, 4, 4)
    assert torch.equal(similarities(x), similarities(x.flatten(1)))


@pytest.mark.parametrize("over_rows", [True, False])
def test_gradients_are_those_of_the_losses(over_rows: bool) -> None:
    x, z, q = rand(6, 8), rand(6, 3, seed=1), rand(6, 4, seed=2).softmax(1)
    for tensor in (x, z, q):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: correlation_loss(a, b, over_rows), (z, x))
    assert torch.autograd.gradcheck(lambda a, b: affinity_loss(a, b, over_rows), (q, z))
    affinity_loss(q, z, over_rows, gradient=False).backward()  # type: ignore[no-untyped-call]
    assert q.grad is None
    assert z.grad is not None


def test_duplicates_and_far_samples_are_safe() -> None:
    """Gradients are finite where samples are the same, and small distances far away survive."""
    x = rand(4, 3).float()[[0, 0, 1, 2, 2, 3]].requires_grad_()
    z = torch.zeros(6, 2, requires_grad=True)
    loss = correlation_loss(z, x) + affinity_loss(torch.full((6, 4), 0.25), z)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    far = 1000 + torch.tensor([[0.0], [0.5], [3.0]])
    assert torch.allclose(similarities(far), similarities(far - 1000), atol=1e-6)
    assert similarities(torch.tensor([[0.0], [1e9]])).min() > 0  # they are divided by


@pytest.mark.parametrize("over_rows", [True, False])
def test_a_last_batch_of_one_sample_teaches_nothing(over_rows: bool) -> None:
    z, q = rand(1, 3).requires_grad_(), rand(1, 4).softmax(1)
    loss = correlation_loss(z, rand(1, 9), over_rows) + affinity_loss(q, z, over_rows)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert z.grad is not None
    assert not z.grad.any()


def model(**changes: Any) -> CDC:
    torch.manual_seed(0)
    network = MLPAutoencoder((1, 4, 4), 3, (10, 12))
    weights = {"lambda_": 0.3, "eta": 0.75, "beta": 0.2, "seed": 0}
    made = CDC(network, 4, kl_divergence, **{**weights, **changes}).double()
    with torch.no_grad():
        made.centers.copy_(rand(4, 3, seed=5))
    return made


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("changes", [{}, {"over_rows": False}, {"affinity_gradient": False}])
def test_each_parameter_follows_the_loss_of_algorithm_1(changes: dict[str, Any]) -> None:
    """Against three losses, each differentiated by itself with respect to its own parameters."""
    cdc = model(**changes)
    x = rand(8, 1, 4, 4, seed=3).sigmoid()
    rows = cdc.over_rows
    z, x_hat = cdc.network(x)
    q = soft_assignment(z, cdc.centers)
    cdc.target = target_distribution(rand(8, 4, seed=4).softmax(1))
    l_c = kl_divergence(q, cdc.target)
    l_a = affinity_loss(q, z, rows, cdc.affinity_gradient)
    l_cr = correlation_loss(z, x, rows) + correlation_loss(z, x_hat, rows)
    l_r = (x - x_hat).square().mean()
    own: dict[str, tuple[Tensor, list[Tensor]]] = {
        "centers": (l_c + 0.75 * l_a, [cdc.centers]),
        "decoder": (l_r + 0.3 * l_cr, list(cdc.network.decoder.parameters())),
        "encoder": (l_c + 0.75 * l_a + 0.2 * l_cr, list(cdc.network.encoder.parameters())),
    }
    total = sum(cdc.finetune_loss({"index": torch.arange(8), "x": x}).values())
    assert isinstance(total, Tensor)
    for name, (loss, parameters) in own.items():
        expected = gradients(loss, parameters)
        assert max(float(g.abs().max()) for g in expected) > 1e-6, name
        for one, two in zip(gradients(total, parameters), expected, strict=True):
            assert torch.allclose(one, two, rtol=1e-8, atol=1e-12), name


def test_pretraining_weighs_the_correlation_by_lambda() -> None:
    """Eq. (7), with weights that are neither 0 nor 1."""
    cdc = model(lambda_=0.3)
    x = rand(8, 1, 4, 4, seed=3).sigmoid()
    z, x_hat = cdc.network(x)
    expected = (x - x_hat).square().mean()
    expected += 0.3 * (correlation_loss(z, x) + correlation_loss(z, x_hat))
    terms = cdc.pretrain_loss({"index": torch.arange(8), "x": x})
    assert sum(term.item() for term in terms.values()) == pytest.approx(expected.item(), rel=1e-10)


def test_terms_of_weight_zero_are_left_out() -> None:
    """The ablation of Table 3; without correlation the pretraining is everybody's."""
    cdc = model(lambda_=0.0, eta=0.0, beta=0.0)
    batch: Any = {"index": torch.arange(8), "x": rand(8, 1, 4, 4).sigmoid()}
    assert list(cdc.pretrain_loss(batch)) == ["reconstruction"]
    assert cdc.pretrain_objective == {"reconstruction": "mse"}
    cdc.target = target_distribution(rand(8, 4).softmax(1))
    assert list(cdc.finetune_loss(batch)) == ["clustering", "reconstruction"]
    full = model()
    full.target = cdc.target
    assert list(full.pretrain_loss(batch)) == ["reconstruction", "correlation"]
    assert full.pretrain_objective != cdc.pretrain_objective
    every = ["clustering", "affinity", "correlation", "reconstruction", "decoded"]
    assert list(full.finetune_loss(batch)) == every


def test_affinity_draws_together_what_is_assigned_alike() -> None:
    """As all are at a diffuse start, where it can outweigh L_c: it is what to suspect."""
    z, q = rand(6, 3).requires_grad_(), torch.full((6, 4), 0.25, dtype=torch.float64)
    affinity_loss(q, z).backward()
    assert z.grad is not None
    assert torch.pdist(z - z.grad).mean() < torch.pdist(z).mean()
    assert model().suspect == "the affinity term, loss.eta"
    assert model(eta=0.0).suspect == "the clustering term"


def test_pairs_cost_no_tensor_of_pairs_and_pixels() -> None:
    """Nothing is larger than the samples or the pairs, forwards and backwards."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
            self.numel = max(self.numel, *(t.numel() for t in tensors), 0)
            return made

    x, z, q = (torch.rand(64, d, requires_grad=True) for d in (784, 100, 80))
    for loss, of, to in ((correlation_loss, z, x), (affinity_loss, q, z)):
        for over_rows in (True, False):
            with Largest() as largest:
                loss(of, to, over_rows).backward()  # type: ignore[no-untyped-call]
            assert 64 * 64 <= largest.numel <= 64 * 784, (loss, over_rows)
    with Largest() as naive:
        (z[:, None] - z[None]).square().sum(2)
    assert naive.numel == 64 * 64 * 100 > 64 * 784


def test_a_whole_run(little_npz: Path, tmp_path: Path) -> None:
    """The authors' settings are composed, every term is logged, the run can label new images."""
    cfg = composed(
        tmp_path,
        *("model=cdc", "data=npz", f"data.path={little_npz}", "n_clusters=5", "trainer=cpu"),
        *("network.hidden=[20,30]", "phases.pretrain.max_epochs=8", "phases.finetune.max_steps=20"),
        *("phases.finetune.update_interval=10", "figures=false"),
    )
    phases = cfg.phases
    rates = [(phase.optimizer.lr, phase.optimizer.momentum) for phase in phases.values()]
    assert rates == [(0.1, 0.9), (0.01, 0.9)]
    assert (cfg.data.batch_size, cfg.network.scale, phases.finetune.tolerance) == (64, 1, 0)
    record = run(cfg)
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    for phase, terms in (
        ("pretrain", ("reconstruction", "correlation")),
        ("finetune", ("clustering", "affinity", "correlation", "reconstruction", "decoded")),
    ):
        losses = [[row.get(f"{phase}/{term}") for term in terms] for row in rows]
        assert [all(isinstance(v, float) for v in loss) for loss in losses].count(True) > 1, phase
    first, last = (row["pretrain/reconstruction"] for row in (rows[0], rows[7]))
    assert last < first
    labels, _ = load(tmp_path / "run").predict(np.load(little_npz)["x"])
    sizes = np.bincount(labels, minlength=5).tolist()
    assert sizes == record["label_free"]["cluster_sizes"]


def test_losses_are_those_of_what_the_network_sees() -> None:
    """Where the network shifts and scales, as if the samples came like this."""
    x = rand(8, 1, 4, 4, seed=3)
    inside, outside = model(), model()
    inside.network.scale, inside.network.shift = 0.01, 500.0
    target = target_distribution(rand(8, 4, seed=4).softmax(1))
    for cdc, samples in ((inside, 500 + 100 * x), (outside, x)):
        cdc.target = target
        batch = {"index": torch.arange(8), "x": samples}
        for loss in (cdc.pretrain_loss, cdc.finetune_loss):
            sum(loss(batch).values()).backward()  # type: ignore[union-attr]
    pairs = list(zip(inside.parameters(), outside.parameters(), strict=True))
    for one, two in pairs:
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, rtol=1e-6, atol=1e-9)


def test_vectors_of_any_numbers_train(tmp_path: Path) -> None:
    """Far from zero, with the authors' learning rates: as they are they end in NaN at once."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = 100 + rng.normal(0, 1, (4, 30))[y] + rng.normal(0, 0.1, (400, 30))
    np.savez(tmp_path / "vectors.npz", x=x, y=y)
    cfg = composed(
        tmp_path,
        *("model=cdc", "data=npz", f"data.path={tmp_path / 'vectors.npz'}", "trainer=cpu"),
        *("network.hidden=[50,50]", "phases.pretrain.max_epochs=20", "figures=false"),
        "phases.finetune.max_steps=100",
    )
    assert cfg.phases.pretrain.optimizer.lr == 0.1
    record = run(cfg)
    assert record["metrics"]["accuracy"] == 1
    assert record["label_free"]["confidence"] > 0.5


TABLE_3 = {  # lambda of the others, initial weights
    "cdc_fashion_mnist": (0.001, "fan_in"),
    "cdc_reuters10k": (0.001, "fan_in"),
    "cdc_text": (0.001, "fan_in"),
    "cdc_stl10": (0.001, "glorot"),
    "cdc_cifar10": (0.000001, "glorot"),
}


@pytest.mark.parametrize(("name", "expected"), TABLE_3.items())
def test_each_experiment_has_the_rows_of_table_3(
    tmp_path: Path, name: str, expected: tuple[float, str]
) -> None:
    lambda_, init = expected
    own = yaml.safe_load((config_folder() / "experiment" / f"{name}.yaml").read_text())
    swept = own["hydra"]["sweeper"]["params"]["model"].split(",")
    rows = {
        "cdc_ae_kmeans": (0, 0.75, 0.001),  # without a finetune phase to use the last two
        "cdc_ae_star_kmeans": (lambda_, 0.75, 0.001),
        "cdc_c": (lambda_, 0, 0),
        "cdc_ca": (lambda_, 0.75, 0),
        "cdc": (lambda_, 0.75, 0.001),
    }
    assert swept == ["kmeans", *rows]
    for row, weights in rows.items():
        cfg = composed(tmp_path, f"experiment={name}", f"model={row}")
        assert cfg.model_name == row
        assert (cfg.model.lambda_, cfg.model.eta, cfg.model.beta) == weights
        assert (cfg.network.init, cfg.network.scale) == (init, 1)
    cfg = composed(tmp_path, f"experiment={name}", "model=kmeans")  # the first panel of Figure 3
    cfg.network.input_shape = [7]
    assert build(cfg.model, network=build(cfg.network)).network.embedding_dim == 7


def test_the_rows_of_table_3(little_npz: Path, tmp_path: Path) -> None:
    """What each leaves out; four of them start from one pretraining, and k-means from nothing."""
    rows = {
        "cdc_ae_kmeans": (0, None),
        "cdc_ae_star_kmeans": (0.001, None),
        "cdc_c": (0.001, (0, 0)),
        "cdc_ca": (0.001, (0.75, 0)),
        "cdc": (0.001, (0.75, 0.001)),
    }
    entries: dict[str, str] = {}
    for name, (lambda_, weights) in rows.items():
        cfg = composed(
            tmp_path,
            *(f"model={name}", "data=npz", f"data.path={little_npz}", "n_clusters=5"),
            *("trainer=cpu", "figures=false", "network.hidden=[20]", "model.n_init=2"),
            *("per_data.pretrain_epochs=2", f"run_dir={tmp_path / name}"),
            *(() if weights is None else ("phases.finetune.max_steps=3",)),
        )
        record = run(cfg)
        model = record["config"]["model"]
        assert model["lambda_"] == lambda_
        phases = list(record["phases"])
        assert phases == ["pretrain", "cluster" if weights is None else "finetune"]
        if weights is not None:
            assert (model["eta"], model["beta"]) == weights
        entries[name] = record["phases"]["pretrain"]["store"]
        assert record["phases"]["pretrain"]["reused"] == (name not in list(rows)[:2])
    assert len(set(entries.values())) == 2
    assert entries["cdc_ae_kmeans"] not in [entries[name] for name in list(rows)[1:]]
