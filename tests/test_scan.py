"""How many clusters an embedding has: measures, what they say, and the command."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from clusterlab import curves
from clusterlab.centers import agreement
from clusterlab.checks import network_for
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.measures import bic, measure, one_gaussian, whitened
from clusterlab.scan import main, numbers
from clusterlab.seeding import derive_seed
from clusterlab.verdict import Choice, choices, choose, table, verdict

Scan = Callable[..., tuple[int, str, str]]


def blobs(k: int, n: int = 120, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Draw k blobs of n samples each and of deviation 1, at least 20 apart, and whose they are."""
    generator = torch.Generator().manual_seed(k)
    centers = 40 * torch.rand(200, dim, generator=generator)
    kept = [0]
    for i in range(1, 200):
        if len(kept) < k and float(torch.cdist(centers[i : i + 1], centers[kept]).min()) > 20:
            kept.append(i)
    assert len(kept) == k
    y = torch.arange(k * n) % k
    return centers[kept][y] + torch.randn(k * n, dim, generator=generator), y


def cloud(*scale: float, n: int = 600) -> Tensor:
    """Draw one Gaussian of these deviations."""
    return torch.randn(n, len(scale), generator=torch.Generator().manual_seed(0)) * torch.tensor(
        scale
    )


# Measures


@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_separated_blobs_are_counted_by_every_measure(k: int) -> None:
    rows = measure(blobs(k)[0], range(2, 10), seeds=3, samples=1000, seed=0)
    said = choices(rows)
    assert {name: choice.best for name, choice in said.items()} == dict.fromkeys(said, k)
    sure, best, text = verdict(said)
    assert (sure, best) == ("agree", (k,))
    assert text.startswith(f"Agree on K = {k}: silhouette ({k}), BIC ({k}), agreement ({k})")


@pytest.mark.parametrize("scale", [(1, 1, 1, 1), (9, 1, 1, 1), (5, 4, 3, 2)])
def test_one_gaussian_has_no_clear_number(scale: tuple[float, ...]) -> None:
    """Also one that is longer than wide, whose halves are found again."""
    rows = measure(cloud(*scale), range(2, 9), seeds=5, samples=600, seed=0)
    said = choices(rows)
    assert said["BIC"] == Choice(None)
    assert said["agreement"] == Choice(None)
    sure, _, text = verdict(said)
    assert sure == "unclear"
    assert text.startswith("No clear number: silhouette says ")
    assert text.endswith("; BIC says none; agreement says none.")


def test_agreement_of_separated_blobs_is_complete() -> None:
    z, _ = blobs(5)
    assert agreement(z, 5, n_repeats=4) == [1.0] * 4
    assert max(agreement(z, 6)) < 1
    assert max(agreement(cloud(1, 1, 1), 5)) < 0.9


def test_agreement_against_scikit_learn() -> None:
    z = cloud(2, 1, n=41)
    values = agreement(z, 3, seed=7, n_repeats=3, max_samples=31)
    for repeat, value in enumerate(values):
        own = derive_seed(7, "agreement", repeat)
        order = torch.randperm(41, generator=torch.Generator().manual_seed(own))
        labels = [
            KMeans(3, n_init=5, random_state=derive_seed(own, i)).fit(z[half]).predict(z)
            for i, half in enumerate((order[:15], order[15:30]))
        ]
        assert value == pytest.approx(adjusted_rand_score(*labels), abs=1e-12)
    assert len(set(values)) == 3
    assert values == agreement(z, 3, seed=7, n_repeats=3, max_samples=31)
    assert values != agreement(z, 3, seed=8, n_repeats=3, max_samples=31)


def test_agreement_needs_a_sample_for_each_cluster() -> None:
    with pytest.raises(UserError, match="Expected 6 samples or more in half of them, got 5"):
        agreement(torch.rand(11, 2), 6)


def test_bic_against_its_formula() -> None:
    """Where clusters do not overlap, the best mixture has their own means and covariances."""
    z, y = blobs(3, dim=2)
    x, labels = whitened(z), y.numpy()
    n, d, k = len(x), 2, 3
    likelihood = {1: 0.0, k: 0.0}
    for clusters in ([x], [x[labels == j] for j in range(k)]):
        for c in clusters:
            density = multivariate_normal(c.mean(0), np.cov(c.T, bias=True) + 1e-4 * np.eye(d))
            likelihood[len(clusters)] += density.logpdf(c).sum() + len(c) * np.log(len(c) / n)
    n_parameters = {j: j - 1 + j * d + j * d * (d + 1) / 2 for j in likelihood}
    expected = {j: n_parameters[j] * np.log(n) - 2 * likelihood[j] for j in likelihood}
    assert bic(x, labels) == pytest.approx((expected[k] - expected[1]) / n, abs=1e-6)
    assert bic(x, np.zeros_like(labels)) == 0


def test_bic_does_not_depend_on_the_axes() -> None:
    z, y = blobs(3)
    turned = z @ torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) + 5
    assert bic(whitened(turned), y.numpy()) == pytest.approx(bic(whitened(z), y.numpy()), abs=1e-3)


def test_whitened_leaves_dead_and_minor_axes_out() -> None:
    z = torch.cat([cloud(3, 1), torch.full((600, 1), 7.0), torch.zeros(600, 1)], dim=1)
    x = whitened(z)
    assert x.shape == (600, 2)
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=1e-10)
    assert whitened(torch.rand(100, 30)).shape == (100, 20)
    assert whitened(torch.rand(9, 30)).shape == (9, 8)


@pytest.mark.parametrize("n", [5, 20_000])
def test_one_gaussian_has_the_mean_and_the_covariance(n: int) -> None:
    """Of fewer samples than dimensions, too."""
    z = cloud(3, 2, 1, 0.5, 0.5, 0.1, n=n) @ torch.eye(6).roll(1, 0) + 4
    drawn = one_gaussian(z, seed=1)
    assert drawn.shape == z.shape
    if n > 5:
        np.testing.assert_allclose(drawn.mean(0), z.mean(0), atol=0.1)
        np.testing.assert_allclose(drawn.T.cov(), z.T.cov(), atol=0.2)
    else:
        assert int(torch.linalg.matrix_rank(drawn - z.mean(0))) <= 5
    assert not torch.equal(drawn, one_gaussian(z, seed=2))


# What they say


@pytest.mark.parametrize(
    ("values", "against_one", "expected"),
    [
        ([[1, 5, 4, 0], [1, 7, 6, 0]], True, Choice(3, (3, 4))),  # 6 ± 1.4
        ([[1, 5, 4, 0], [1, 5, 4.9, 0]], True, Choice(3, (3,))),
        ([[9, 9, 9, 0], [9, 9, 9, 0]], True, Choice(4, (2, 3, 4))),  # equal: the largest
        ([[0, 1, 0, 0], [0, 5, 0, 0]], True, Choice(None)),  # 3 ± 2.8
        ([[0, 1, 0, 0], [0, 5, 0, 0]], False, Choice(3, (3,))),
        ([[-2, -1, -3, -4]] * 2, True, Choice(None)),
        ([[4, 3, 2, 1]] * 2, True, Choice(2, (2,))),
        ([[1, 2, 3, 4]] * 2, True, Choice(5, (5,), "or more")),
    ],
)
def test_choose(values: list[list[float]], against_one: bool, expected: Choice) -> None:
    assert choose([2, 3, 4, 5], np.array(values, dtype=float), against_one) == expected


def test_the_lower_end_is_a_bound_unless_it_is_two() -> None:
    assert choose([4, 5, 6], np.array([[3.0, 2, 1]] * 2), True) == Choice(4, (4,), "or fewer")


def test_agreement_is_corrected_for_one_gaussian() -> None:
    """That of two clusters is the higher, and nothing special in a cloud of this shape."""
    columns = {"silhouette": [0.1] * 3, "bic": [-1.0] * 3}
    columns |= {"agreement": [0.95, 0.9, 0.8], "agreement_one_gaussian": [0.94, 0.3, 0.2]}
    rows = [
        {"k": k, "seed": seed, **{name: values[k - 2] for name, values in columns.items()}}
        for k in (4, 2, 3)
        for seed in (1, 0)
    ]
    assert choices(rows)["agreement"].best == 3
    ks, values = table(rows)
    assert ks == [2, 3, 4]
    assert values["agreement"].tolist() == [[0.95, 0.9, 0.8]] * 2


@pytest.mark.parametrize(
    ("silhouette", "likelihood", "stability", "sure", "ks", "text"),
    [
        ((9, 10), (10, 11), (4, 10), "agree", (10,), "(4); each alone allows others, in all 4 to"),
        ((9, 10, 11), (10, 11), (10, 11), "agree", (10, 11), "Agree on K = 10 or 11"),
        (
            (9, 10),
            (10,),
            (4,),
            "lean",
            (10,),
            "(9), BIC (10); but agreement says 4.",
        ),
        ((9,), None, (8, 9), "lean", (9,), ": silhouette (9), agreement (8); but BIC says none."),
        ((9,), (20, "or more"), (9,), "lean", (9,), "but BIC says 20 or more."),
        ((3,), (5,), (8,), "unclear", (3, 5, 8), "No clear number: between 3 and 8;"),
        # Two pairs of them meet, at different K.
        ((4,), (4, 9), (9,), "unclear", (4, 9), "No clear number: between 4 and 9;"),
        # Bounds do not agree, even on the same K.
        ((20, "or more"), (20, "or more"), (9,), "unclear", (9, 20), "between 9 and 20 or more;"),
        ((2,), None, None, "unclear", (2,), "number: silhouette says 2; BIC says none; agree"),
    ],
)
def test_verdict(
    silhouette: tuple[int, ...],
    likelihood: tuple[int | str, ...] | None,
    stability: tuple[int, ...] | None,
    sure: str,
    ks: tuple[int, ...],
    text: str,
) -> None:
    def said(near: tuple[int | str, ...] | None) -> Choice:
        if near is None:
            return Choice(None)
        numbers = tuple(k for k in near if isinstance(k, int))
        return Choice(numbers[0], numbers, "or more" if "or more" in near else "")

    names = ("silhouette", "BIC", "agreement")
    three = map(said, (silhouette, likelihood, stability))
    found = verdict(dict(zip(names, three, strict=True)))
    assert found[:2] == (sure, ks)
    assert text in found[2]


def test_the_figure_marks_what_each_measure_says() -> None:
    rows = measure(blobs(3, n=40)[0], range(2, 6), seeds=2, samples=1000, seed=0)
    said = choices(rows)
    ks, values = table(rows)
    figure = curves.over_clusters(ks, values, said, "a verdict")
    assert figure.get_suptitle() == "a verdict"
    for axes, name in zip(figure.axes, ("silhouette", "bic", "agreement"), strict=True):
        assert axes.get_title("left").endswith("says 3")
        *_, line, near, ring = axes.lines
        np.testing.assert_allclose(line.get_ydata(), values[name].mean(0))
        assert ring.get_xydata().tolist() == [[3, values[name].mean(0)[1]]]
        assert 3 in near.get_xdata()
    (grey,) = [line for line in figure.axes[2].lines if line.get_label() == "one Gaussian"]
    np.testing.assert_allclose(grey.get_ydata(), values["agreement_one_gaussian"].mean(0))


# The command


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch, called: Callable[..., Any], tmp_path: Path) -> Scan:
    """Call the command line in this process; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    z, y = blobs(4, n=30)
    np.savez(tmp_path / "blobs.npz", x=z.numpy())
    np.savez(tmp_path / "labelled.npz", x=z.numpy(), y=y.roll(1).numpy())
    return partial(called, main)


LITTLE = (
    *("data=npz", "data.path=blobs.npz", "data.batch_size=40", "k=2..6", "seeds=2", "trainer=cpu"),
    *("network=mlp", "network.hidden=[20]", "phases.pretrain.max_epochs=2"),
)


def only(pattern: str) -> Path:
    (path,) = Path().glob(pattern)
    return path


def test_a_scan_and_what_it_leaves(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = scan(*LITTLE, "table=scans.csv")
    assert code == 0
    folder = only("runs/scan/cae_kmeans_blobs/*")
    assert folder.name.endswith("seeds=2,seed=0")
    with (folder / "scan.csv").open(newline="") as file:
        rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    measures = ["silhouette", "bic", "agreement", "agreement_one_gaussian"]
    assert list(rows[0]) == ["k", "seed", *measures]
    assert [(row["seed"], row["k"]) for row in rows] == [
        (i, k) for i in (0, 1) for k in range(2, 7)
    ]
    record = json.loads((folder / "scan.json").read_text())
    said = choices(rows)
    sure, ks, text = verdict(said)
    assert (record["sure"], record["k"], record["verdict"]) == (sure, list(ks), text)
    assert record["measures"]["BIC"]["best"] == said["BIC"].best == 4
    assert (record["samples"], record["seeds"], record["scanned"]) == (120, 2, [2, 6])
    assert text in out
    with Image.open(folder / "scan.png") as image:
        assert image.width > 2 * image.height
    z = np.load(Path(record["embedding"]) / "assignments.npz")["z"]
    assert z.shape == (120, 10)  # whatever the fewest clusters
    assert table(measure(torch.from_numpy(z), range(2, 7), 2, 10_000, 0)) == (
        pytest.approx(table(rows)[0]),
        {name: pytest.approx(values) for name, values in table(rows)[1].items()},
    )
    with Path("scans.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert [row["measure"] for row in kept] == list(said)
    assert {row["verdict"] for row in kept} == {text}
    assert kept[1]["best"] == "4"

    def fit(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("clusterlab.phases.fit", fit)
    before = {path.name: path.read_bytes() for path in folder.glob("scan.[cj]*")}
    assert scan(*LITTLE, "table=scans.csv") == (0, out, "")
    assert {path.name: path.read_bytes() for path in folder.glob("scan.[cj]*")} == before
    assert len(Path("scans.csv").read_text().splitlines()) == 4
    # From another K on, the run is another and its pretraining the same.
    assert scan(*LITTLE, "k=3..5")[0] == 0


def test_labels_change_nothing(scan: Scan) -> None:
    scan(*LITTLE)
    assert scan(*LITTLE, "data.path=labelled.npz")[0] == 0
    files = sorted(Path("runs/scan").rglob("scan.csv"))
    assert len(files) == 2
    assert files[0].read_bytes() == files[1].read_bytes()


def test_vectors_keep_the_dimension_that_was_asked_for(
    compose: Callable[..., "object"],
) -> None:
    """Where a fully connected network takes the place of convolutions."""
    samples = Samples("vectors", torch.rand(20, 7))
    for asked, dim in ((("network.embedding_dim=6",), 6), ((), 3)):
        cfg = compose("model=cae_kmeans", "n_clusters=3", *asked)
        assert network_for(cfg.network, samples).embedding_dim == dim  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("k=5",), "a range of K from 2, got k=5; set k=2..20"),
        (("k=5..4",), "a range of K from 2, got k=5..4"),
        (("k=1..4",), "a range of K from 2, got k=1..4"),
        (("k=4..4",), "a range of K from 2, got k=4..4"),
        (("k=2..61",), "K up to 60, half of the samples, got 61"),
        (("seeds=1",), "seeds of 2 or more, got 1"),
        (("seeds=many",), "seeds of 2 or more, got many"),
        (("samples=11",), "samples of 12 or more, got 11"),
        (("n_clusters=4",), "which are scanned, got n_clusters=4; drop it"),
        (("++n_clusters=4",), "which are scanned, got n_clusters=4; drop it"),
        (("model=dcec",), "got dcec, whose phase finetune trains with K; set model=cae_kmeans"),
        (("model=none",), "settings that this model has, got "),
        (("nothing=4",), "settings that this model has, got Could not override 'nothing'"),
        (("data.path=no.npz",), "got nothing there"),
        (("help",), "scan.py data=usps [k=2..20] [seeds=5]"),
    ],
)
def test_what_can_be_wrong(scan: Scan, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = scan(*LITTLE, *arguments)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: Expected ")
    assert said in line
    assert not Path("runs/scan").exists()


def test_data_without_a_path(scan: Scan) -> None:
    code, _, err = scan("data=npz", "k=2..4")
    assert (code, err) == (1, "Error: Expected a value for data.path, got none; set data.path.\n")


def test_numbers_that_nobody_gave() -> None:
    assert numbers({}) == (range(2, 21), 5, 10_000)
