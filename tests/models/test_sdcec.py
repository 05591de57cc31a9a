"""SDCEC: its equations by hand, and what known labels may and may not do."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier

from clusterlab.assignment import soft_assignment, target_distribution
from clusterlab.data.known import known_labels
from clusterlab.data.sources import npz
from clusterlab.errors import UserError
from clusterlab.losses import kl_divergence
from clusterlab.models.sdcec import SDCEC, class_means, complete, with_known_labels
from clusterlab.networks import ConvAutoencoder
from clusterlab.predict import load
from clusterlab.training import run
from conftest import FINISHED, composed

Compose = Callable[..., DictConfig]
Run = tuple[DictConfig, dict[str, Any]]

SDCEC_RUN = (*FINISHED, "model=sdcec", "data.labelled=0.1")


# Equations


def test_known_rows_of_the_target_are_their_labels() -> None:
    torch.manual_seed(0)
    q = torch.rand(50, 5).softmax(1)
    known = torch.randint(-1, 5, (50,))
    p = target_distribution(q)
    found = with_known_labels(p, known)
    for i, label in enumerate(known.tolist()):
        row = [float(k == label) for k in range(5)] if label >= 0 else p[i].tolist()
        assert found[i].tolist() == row
    assert torch.isfinite(kl_divergence(q, found))


def test_centers_are_class_means() -> None:
    torch.manual_seed(0)
    z, known = torch.randn(60, 3), torch.randint(-1, 4, (60,))
    means, counts = class_means(z, known, 6)
    for k in range(6):
        members = z[known == k].numpy()
        assert counts[k] == len(members)
        expected = members.mean(0) if len(members) else np.zeros(3)
        assert np.allclose(means[k], expected, atol=1e-6)


def test_classes_without_labels_get_the_centers_that_are_left() -> None:
    torch.manual_seed(0)
    found = 10 * torch.randn(6, 3)
    order = torch.randperm(6)
    there = torch.tensor([True, False, True, True, False, True])
    means = torch.where(there[:, None], found[order] + 0.01, torch.zeros(6, 3))
    centers = complete(means, there, found)
    assert torch.equal(centers[there], means[there])
    left = {tuple(row) for row in centers[~there].tolist()}
    assert left == {tuple(row) for row in found[order][~there].tolist()}


@pytest.mark.parametrize("labelled_weight", [1.0, 10.0])
def test_the_finetune_loss_is_both_terms(labelled_weight: float) -> None:
    torch.manual_seed(0)
    x, known = torch.rand(12, 1, 8, 8), torch.tensor([0, 1, 2] + 9 * [-1])
    network = ConvAutoencoder((1, 8, 8), 3, (4, 8, 16))
    model = SDCEC(network, 3, kl_divergence, 2.0, 0, labelled_weight=labelled_weight, known=known)
    with torch.no_grad():
        z, x_hat = network(x)
        model.centers.copy_(model.initial_centers(z))
    assert torch.allclose(model.centers, z[:3])  # one of each class
    q = soft_assignment(z, model.centers)
    model.target = model.refresh_target(q)
    terms = model.finetune_loss({"index": torch.arange(12), "x": x})
    assert terms["reconstruction"].item() == pytest.approx(((x - x_hat) ** 2).mean().item())
    p = target_distribution(q).detach().double().numpy()
    p[:3] = np.eye(3)
    q = q.detach().double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * np.log(p / q), 0).sum(1)
    expected = 2 * (labelled_weight * kl[:3].sum() + kl[3:].sum()) / 12
    assert terms["clustering"].item() == pytest.approx(expected, rel=1e-5)


# Whole runs


@pytest.fixture(scope="module")
def finished(little_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    cfg = composed(tmp_path_factory.mktemp("sdcec"), *SDCEC_RUN, f"data.path={little_npz}")
    return cfg, run(cfg)


def beside(finished: Run, folder: Path, *overrides: str) -> DictConfig:
    """Compose a run that shares the finished one's pretraining."""
    cfg = composed(folder, *SDCEC_RUN, f"data.path={finished[0].data.path}", *overrides)
    cfg.pretrained_dir = finished[0].output_dir + "/pretrained"
    return cfg


def weights(cfg: DictConfig) -> dict[str, torch.Tensor]:
    path = Path(cfg.run_dir) / "finetune" / "weights.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def known_of(cfg: DictConfig) -> np.ndarray:
    samples = npz(cfg.data.path)
    known, _ = known_labels(samples, cfg.data.labelled, cfg.data.stratified, 5, cfg.seed)
    return known.numpy()


def test_scores_of_all_samples_and_of_the_unlabelled_ones(finished: Run) -> None:
    cfg, record = finished
    y, known = np.load(cfg.data.path)["y"], known_of(cfg)
    assert record["n_known"] == (known >= 0).sum() == 20
    assert len(record["known_sha256"]) == 64
    labels = np.load(Path(cfg.run_dir) / "assignments.npz")["label"]
    for name, rows in (("metrics", known >= -1), ("metrics_unlabelled", known < 0)):
        table = confusion_matrix(y[rows], labels[rows], labels=range(5))
        accuracy = table[linear_sum_assignment(-table)].sum() / rows.sum()
        assert record[name]["accuracy"] == pytest.approx(accuracy)
        nmi = normalized_mutual_info_score(y[rows], labels[rows])
        assert record[name]["nmi"] == pytest.approx(nmi)
    assert record["metrics_unlabelled"] != record["metrics"]


def test_other_labels_are_never_read(finished: Run, tmp_path: Path) -> None:
    """With all other labels destroyed the weights are the same to the last bit."""
    cfg, record = finished
    with np.load(cfg.data.path) as stored:
        x, y = stored["x"], stored["y"]
    known = known_of(cfg)
    np.save(tmp_path / "known.npy", known)
    wrong = np.where(known >= 0, y, np.random.default_rng(0).permutation(y))
    np.savez(tmp_path / "little.npz", x=x, y=wrong)
    np.savez(tmp_path / "bare.npz", x=x)
    for name in ("little", "bare"):
        other = beside(finished, tmp_path, f"data.labelled={tmp_path / 'known.npy'}")
        other.run_dir, other.data.path = str(tmp_path / name), str(tmp_path / f"{name}.npz")
        again = run(other)
        assert again["phases"]["pretrain"]["reused"]
        assert again["known_sha256"] == record["known_sha256"]
        assert again["metrics_unlabelled"] != record["metrics_unlabelled"]
        for one, two in zip(weights(cfg).values(), weights(other).values(), strict=True):
            assert torch.equal(one, two)
    assert again["metrics_unlabelled"]["accuracy"] is None


def test_without_known_labels_it_is_dcec(finished: Run, tmp_path: Path) -> None:
    none = beside(finished, tmp_path / "none", "data.labelled=0")
    record = run(none)
    assert record["n_known"] == 0
    assert record["metrics_unlabelled"] == record["metrics"]
    dcec = composed(tmp_path / "dcec", *FINISHED, f"data.path={none.data.path}", "loss.gamma=1")
    dcec.pretrained_dir = none.pretrained_dir
    assert run(dcec)["metrics"] == record["metrics"]
    for one, two in zip(weights(none).values(), weights(dcec).values(), strict=True):
        assert torch.equal(one, two)


def test_all_labels_known_leave_nothing_to_score(finished: Run, tmp_path: Path) -> None:
    record = run(beside(finished, tmp_path, "data.labelled=1.0"))
    assert record["n_known"] == record["n_samples"]
    assert set(record["metrics_unlabelled"].values()) == {None}


def test_classes_nobody_labelled_start_from_kmeans(finished: Run, tmp_path: Path) -> None:
    """Two of five classes are known: the other three clusters are found as well."""
    cfg = finished[0]
    y = np.load(cfg.data.path)["y"]
    known = np.where((y < 2) & (np.arange(len(y)) % 4 == 0), y, -1)
    np.save(tmp_path / "known.npy", known)
    some = beside(finished, tmp_path, f"data.labelled={tmp_path / 'known.npy'}")
    record = run(some)
    assert min(record["label_free"]["cluster_sizes"]) > 0
    labels = np.load(Path(some.run_dir) / "assignments.npz")["label"]
    rows = known >= 0
    assert accuracy_score(known[rows], labels[rows]) > 0.8  # numbers are those of the labels


def test_clusters_have_the_names_of_a_files_classes(finished: Run, tmp_path: Path) -> None:
    """In the record, in the table of samples, on the page, and for new images."""
    data = tmp_path / "bare.npz"
    with np.load(finished[0].data.path) as stored:
        x, y = stored["x"], stored["y"]
    np.savez(data, x=x)
    rows = [f"{i},{('owl', 'ant')[y[i]]}" for i in range(0, len(y), 3) if y[i] < 2]
    (tmp_path / "known.csv").write_text("\n".join(["index,label", *rows]))
    labelled = f"data.labelled={tmp_path / 'known.csv'}"
    cfg = composed(tmp_path, *SDCEC_RUN, f"data.path={data}", labelled, "figures=true")
    cfg.pretrained_dir, cfg.n_clusters = finished[0].output_dir + "/pretrained", 5
    assert run(cfg)["class_names"] == ("ant", "owl")
    run_dir = Path(cfg.run_dir)
    assert json.loads((run_dir / "result.json").read_text())["class_names"] == ["ant", "owl"]
    with (run_dir / "assignments.csv").open() as file:
        told = {(int(row["label"]), row["class"]) for row in csv.DictReader(file)}
    assert told == {(0, "ant"), (1, "owl"), (2, ""), (3, ""), (4, "")}
    assert "Cluster 1: owl</h3>" in (run_dir / "report.html").read_text()
    assert load(run_dir).class_names == ["ant", "owl"]


def test_a_run_goes_on_with_its_own_labels_alone(finished: Run, tmp_path: Path) -> None:
    cfg = finished[0].copy()
    shutil.copytree(cfg.run_dir, tmp_path / "run")
    cfg.run_dir = str(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "finetune")
    (tmp_path / "run" / "result.json").unlink()
    assert run(cfg)["metrics"] == finished[1]["metrics"]
    cfg.data.labelled = 0.2
    with pytest.raises(UserError, match=r"data.labelled=0.2 instead of 0.1"):
        run(cfg)
    known = known_of(finished[0])
    np.save(tmp_path / "known.npy", known)
    mine = beside(finished, tmp_path / "mine", f"data.labelled={tmp_path / 'known.npy'}")
    run(mine)
    known[known >= 0] = 4 - known[known >= 0]
    np.save(tmp_path / "known.npy", known)
    with pytest.raises(UserError, match="known_sha256"):
        run(mine)


def test_a_trained_run_labels_new_images_by_class(finished: Run) -> None:
    cfg = finished[0]
    with np.load(cfg.data.path) as stored:
        labels, _ = load(cfg.run_dir).predict(stored["x"])
    assert np.array_equal(labels, np.load(Path(cfg.run_dir) / "assignments.npz")["label"])


# Baselines


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("cae_knn", KNeighborsClassifier(5)),
        ("cae_logistic", LogisticRegression(max_iter=1000)),
    ],
)
def test_classifiers_on_the_same_embedding_and_labels(
    finished: Run, tmp_path: Path, name: str, classifier: Any
) -> None:
    made = (f"data.path={finished[0].data.path}", f"model={name}", "data.labelled=0.1")
    of_others = ("phases.finetune", "model.")
    little = [part for part in FINISHED if not part.startswith(of_others)]
    cfg = composed(tmp_path, *little, *made)
    cfg.pretrained_dir = finished[0].output_dir + "/pretrained"
    record = run(cfg)
    assert record["phases"]["pretrain"]["reused"]
    assert record["known_sha256"] == finished[1]["known_sha256"]
    stored = np.load(Path(cfg.run_dir) / "assignments.npz")
    known = known_of(cfg)
    rows = known >= 0
    expected = classifier.fit(stored["z"][rows], known[rows]).predict(stored["z"])
    assert np.array_equal(stored["label"], expected)
    with pytest.raises(UserError, match="a method that can label new samples"):
        load(cfg.run_dir)
    cfg.run_dir, cfg.data.labelled = str(tmp_path / "none"), 0
    with pytest.raises(UserError, match="enough labelled samples, got 0"):
        run(cfg)


def test_classifiers_start_from_the_same_augmented_pretraining(
    little_npz: Path, tmp_path: Path
) -> None:
    for name in ("sdcec", "cae_knn"):
        asked = ["experiment=sdcec_augmented", f"model={name}", f"data.path={little_npz}"]
        asked += [part for part in FINISHED if name == "sdcec" or "finetune" not in part]
        asked.remove("model.n_init=2")
        cfg = composed(tmp_path, *asked, "data.labelled=0.1", f"run_dir={tmp_path / name}")
        record = run(cfg)
        assert record["config"]["phases"]["pretrain"]["augment"]["degrees"] == 10
        assert record["phases"]["pretrain"]["reused"] == (name != "sdcec")
        second = "finetune" if name == "sdcec" else "cluster"
        assert list(record["config"]["phases"]) == ["pretrain", second]
    cfg = composed(tmp_path, "experiment=sdcec_augmented", "model=cae_logistic")
    assert cfg.phases.finetune is None
