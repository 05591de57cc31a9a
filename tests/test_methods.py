"""The eight methods of DCEC's Table 1: what they share, and baselines against scikit-learn."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from omegaconf import DictConfig
from scipy.linalg import block_diag
from scipy.sparse import csr_array
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from clusterlab.errors import UserError
from clusterlab.loggers import read_csv
from clusterlab.models.baselines import normalised_cut
from clusterlab.predict import load
from clusterlab.training import run
from conftest import composed

ROOT = Path(__file__).parents[1]
Compose = Callable[..., DictConfig]

DATA = ("data=npz", "data.batch_size=40", "n_clusters=5", "trainer=cpu", "figures=false")
CAE = ("network.filters=[4,8,16]", "phases.pretrain.max_epochs=3")
SAE = ("network.hidden=[20,30]", "phases.pretrain.max_epochs=3")
FINETUNE = (
    "phases.finetune.max_steps=20",
    "phases.finetune.update_interval=10",
    "phases.finetune.tolerance=0",
)
OVERRIDES = {
    "kmeans": (),
    "spectral": (),
    "sae_kmeans": SAE,
    "dec": (*SAE, *FINETUNE),
    "idec": (*SAE, *FINETUNE),
    "cae_kmeans": CAE,
    "dec_conv": (*CAE, *FINETUNE),
    "dcec": (*CAE, *FINETUNE),
}
Methods = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def methods(little_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Methods:
    """Each method's run folder and record; change nothing in them."""
    folder, made = tmp_path_factory.mktemp("methods"), {}
    # Not in the table's order: who comes first must not matter.
    for name in sorted(OVERRIDES, reverse=True):
        where = (f"run_dir={folder / name}", f"output_dir={folder}", f"data.path={little_npz}")
        made[name] = (
            folder / name,
            run(composed(folder, *DATA, *OVERRIDES[name], f"model={name}", *where)),
        )
    return made


@pytest.fixture
def pixels(little_npz: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(little_npz) as stored:
        x, y = stored["x"], stored["y"]
    return x.reshape(len(x), -1).astype(np.float32) / (255 if x.dtype == np.uint8 else 1), y


def arrays(methods: Methods, name: str) -> dict[str, np.ndarray]:
    with np.load(methods[name][0] / "assignments.npz") as stored:
        return {key: stored[key] for key in stored.files}


def weights(methods: Methods, name: str, phase: str) -> dict[str, torch.Tensor]:
    state = torch.load(methods[name][0] / phase / "weights.ckpt")["state_dict"]
    return {key: value for key, value in state.items() if key.startswith("network.")}


# Baselines


def test_kmeans_is_scikit_learns_on_the_pixels(
    methods: Methods, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = pixels
    expected = KMeans(5, n_init=20, random_state=0).fit(x)
    stored, record = arrays(methods, "kmeans"), methods["kmeans"][1]
    assert np.array_equal(stored["label"], expected.labels_)
    assert np.allclose(stored["z"], x)
    assert record["metrics"]["nmi"] == pytest.approx(
        normalized_mutual_info_score(y, expected.labels_)
    )
    assert list(record["phases"]) == ["cluster"]
    phase = record["phases"]["cluster"]
    assert (phase["steps"], phase["stop_reason"]) == (0, "untrained")
    assert record["seconds"] == phase["seconds"] > 0


def test_spectral_is_scikit_learns(methods: Methods, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = pixels
    expected = SpectralClustering(
        5, affinity="nearest_neighbors", n_neighbors=10, n_init=20, random_state=0
    ).fit_predict(x)
    stored = arrays(methods, "spectral")
    assert adjusted_rand_score(expected, stored["label"]) == 1
    assert stored["z"].shape == (200, 5)
    assert stored["z"].std() > 0.1  # unscaled it would be 1 / sqrt(N), and q flat
    assert methods["spectral"][1]["metrics"]["nmi"] > 0.5
    assert np.array_equal(stored["q"].argmax(1), stored["label"])


@pytest.mark.parametrize("sizes", [(60,), (30, 20, 10), (12, 12, 12, 12, 12)])
def test_normalised_cut_has_the_eigenvectors_of_every_part(sizes: tuple[int, ...]) -> None:
    """Against a dense solver, also where the eigenvalue 1 occurs several times."""
    generator = np.random.default_rng(0)
    blocks = [generator.random((size, size)) for size in sizes]
    w = block_diag(*(block + block.T for block in blocks))
    order = generator.permutation(60)
    w = w[np.ix_(order, order)]
    np.fill_diagonal(w, 0)
    degree = w.sum(0)
    values, vectors = np.linalg.eigh(w / np.sqrt(np.outer(degree, degree)))
    assert (values > 1 - 1e-9).sum() == len(sizes)
    got = np.sqrt(degree)[:, None] * normalised_cut(csr_array(w), 5, seed=0)
    expected = vectors[:, -5:]
    # Eigenvectors of one eigenvalue are any basis: what they span is told by their projection.
    assert np.allclose(got @ got.T, expected @ expected.T, atol=1e-8)


def test_the_largest_of_too_many_parts_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    w = block_diag(*(np.ones((size, size)) for size in (2, 5, 3)))
    z = normalised_cut(csr_array(w), 2, seed=0)
    assert "falls into 3 parts, of which the 2 largest are told apart" in caplog.text
    assert (z[:, 0] > 0).nonzero()[0].tolist() == [2, 3, 4, 5, 6]
    assert (z[:, 1] > 0).nonzero()[0].tolist() == [7, 8, 9]
    assert not z[:2].any()


@pytest.mark.parametrize(("baseline", "method"), [("cae_kmeans", "dcec"), ("sae_kmeans", "dec")])
def test_autoencoder_and_kmeans_is_where_the_method_starts(
    methods: Methods, baseline: str, method: str
) -> None:
    start = methods[method][1]["phases"]["finetune"]["metrics_at_start"]
    ours = methods[baseline][1]["metrics"]
    assert ours == {name: start[name] for name in ours}
    stored = arrays(methods, baseline)
    expected = KMeans(5, n_init=20, random_state=0).fit_predict(stored["z"])
    assert np.array_equal(stored["label"], expected)


# One implementation, composed; one pretraining a network


def test_methods_that_share_a_network_share_its_pretraining(methods: Methods) -> None:
    stores: dict[str, set[str]] = {}
    reused: dict[str, list[bool]] = {}
    for name in OVERRIDES:
        pretrain = methods[name][1]["phases"].get("pretrain")
        if pretrain:
            network = "sae" if name in ("sae_kmeans", "dec", "idec") else "cae"
            stores.setdefault(network, set()).add(pretrain["store"])
            reused.setdefault(network, []).append(pretrain["reused"])
    assert {network: len(found) for network, found in stores.items()} == {"sae": 1, "cae": 1}
    assert stores["sae"] != stores["cae"]
    assert {network: sorted(found) for network, found in reused.items()} == {
        "sae": [False, True, True],
        "cae": [False, True, True],
    }
    for names in (("sae_kmeans", "dec", "idec"), ("cae_kmeans", "dec_conv", "dcec")):
        first, *others = (weights(methods, name, "pretrain") for name in names)
        for other in others:
            assert first.keys() == other.keys()
            assert all(torch.equal(first[key], other[key]) for key in first)
    store = methods["dcec"][0].parent / "pretrained"
    assert {path.name for path in store.iterdir()} == stores["sae"] | stores["cae"]


@pytest.mark.parametrize("name", ["dec", "idec", "dec_conv", "dcec"])
def test_reconstruction_is_dropped_or_kept(methods: Methods, name: str) -> None:
    dropped = name in ("dec", "dec_conv")
    before, after = (weights(methods, name, phase) for phase in ("pretrain", "finetune"))
    for key in before:
        same = torch.equal(before[key], after[key])
        assert same == (dropped and ".decoder." in key), key
    rows = read_csv(methods[name][0] / "finetune" / "metrics.csv")
    columns = {column for row in rows for column in row}
    assert "finetune/clustering" in columns
    assert ("finetune/reconstruction" in columns) == (not dropped)
    config = json.loads((methods[name][0] / "result.json").read_text())["config"]
    assert config["loss"]["gamma"] == (1.0 if dropped else 0.1)
    assert config["model"]["_target_"] == "clusterlab.models.dcec.DCEC"


def test_the_mlp_sees_pixels_of_mean_square_one(
    methods: Methods, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    config = methods["idec"][1]["config"]
    mean_square = float((pixels[0].astype(np.float64) ** 2).mean())
    assert config["network"]["scale"] == pytest.approx(mean_square**-0.5, rel=1e-6)
    assert "scale" not in methods["dcec"][1]["config"]["network"]
    optimizer = config["phases"]["pretrain"]["optimizer"]
    assert (optimizer["_target_"], optimizer["lr"], optimizer["momentum"]) == (
        *("torch.optim.SGD", 0.01),
        0.9,
    )


def test_sgd_has_the_momentum_of_each_method(compose: Compose) -> None:
    phases = ("pretrain", "finetune")
    momenta = {
        name: [compose(f"model={name}").phases[phase].optimizer.momentum for phase in phases]
        for name in ("dec", "idec")
    }
    assert momenta == {"dec": [0.9, 0.9], "idec": [0.9, 0.99]}


def test_pretraining_lasts_as_long_as_the_paper_says(compose: Compose) -> None:
    epochs = {name: compose(f"model={name}").phases.get("pretrain") for name in OVERRIDES}
    assert {name: phase and phase.max_epochs for name, phase in epochs.items()} == {
        **dict.fromkeys(("kmeans", "spectral")),
        **dict.fromkeys(("sae_kmeans", "dec", "idec"), 400),
        **dict.fromkeys(("cae_kmeans", "dec_conv", "dcec"), 200),
    }


# What users do with a run


def test_a_finished_baseline_is_left_alone_and_a_lost_phase_made_again(
    methods: Methods, compose: Compose, little_npz: Path, tmp_path: Path
) -> None:
    shutil.copytree(methods["cae_kmeans"][0], tmp_path / "run")
    cfg = compose(*DATA, *CAE, "model=cae_kmeans", f"data.path={little_npz}")
    cfg.output_dir = str(methods["cae_kmeans"][0].parent)
    assert run(cfg) == methods["cae_kmeans"][1]
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "cluster")
    again = run(cfg)
    assert again["metrics"] == methods["cae_kmeans"][1]["metrics"]
    with np.load(tmp_path / "run" / "assignments.npz") as stored:
        assert np.array_equal(stored["q"], arrays(methods, "cae_kmeans")["q"])


@pytest.mark.parametrize("name", ["kmeans", "cae_kmeans", "dec"])
def test_new_images_are_labelled(methods: Methods, little_npz: Path, name: str) -> None:
    with np.load(little_npz) as stored:
        labels, q = load(methods[name][0]).predict(stored["x"])
    assert np.array_equal(labels, arrays(methods, name)["label"])
    assert np.allclose(q, arrays(methods, name)["q"], atol=1e-6)


def test_spectral_clustering_cannot_label_new_images(methods: Methods) -> None:
    with pytest.raises(UserError, match=r"can label new samples, got a run of spectral; .*npz"):
        load(methods["spectral"][0])


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("kmeans", {"extreme_samples", "embedding", "confusion", "decoded_centers"}),
        ("spectral", {"extreme_samples", "embedding", "confusion"}),
    ],
)
def test_baselines_are_drawn(
    compose: Compose, little_npz: Path, tmp_path: Path, name: str, drawn: set[str]
) -> None:
    run(compose(*DATA, f"model={name}", f"data.path={little_npz}", "figures=true"))
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == drawn


def test_without_labels(compose: Compose, little_npz: Path, tmp_path: Path) -> None:
    with np.load(little_npz) as stored:
        np.savez(tmp_path / "bare.npz", x=stored["x"])
    record = run(compose(*DATA, "model=kmeans", f"data.path={tmp_path / 'bare.npz'}"))
    assert set(record["metrics"].values()) == {None}
    assert record["label_free"]["silhouette"] is not None


def script(name: str, *argv: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True)


def test_figure_3_has_the_same_samples_side_by_side(methods: Methods, tmp_path: Path) -> None:
    runs = [methods[name][0] for name in ("cae_kmeans", "dec_conv", "dcec")]
    asked = ("--by", "class", "cluster", "--out", tmp_path / "figure.png", "--samples", 50)
    done = script("maps", *runs, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'figure.png'}\n"
    height, width, _ = imread(tmp_path / "figure.png").shape
    assert 1.3 * height < width < 2 * height  # three columns, two rows
    done = script("maps", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: Expected the clusters of a finished run, got no assi")


def test_trials_over_steps_and_runs(methods: Methods, tmp_path: Path) -> None:
    runs = [methods[name][0] for name in ("dec_conv", "dcec")]
    done = script("trials", *runs, "--out", tmp_path / "figure.png", "--score", "NMI")
    assert done.returncode == 0, done.stderr
    assert imread(tmp_path / "figure.png").size
    for argv, message in (
        ((runs[0], runs[0]), "Error: Expected one run per seed, got seed 0 twice; drop one."),
        ((methods["kmeans"][0],), "Error: Expected ACC at each refresh, got none in "),
        ((tmp_path,), "Error: Expected a finished run, got no result.json in "),
    ):
        done = script("trials", *argv)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(message)
