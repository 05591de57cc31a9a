"""Whole runs in this process: what they leave, what they repeat, what they refuse."""

import json
import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from clusterlab.assignment import soft_assignment
from clusterlab.cli import config_folder
from clusterlab.data.sources import digits
from clusterlab.errors import UserError
from clusterlab.folders import PhaseFolder
from clusterlab.loggers import read_csv
from clusterlab.models import base as base_module
from clusterlab.models.dcec import DCEC
from clusterlab.networks import ConvAutoencoder
from clusterlab.predict import load
from clusterlab.training import run
from conftest import FINISHED, LITTLE, composed

Compose = Callable[..., DictConfig]
Finished = tuple[DictConfig, dict[str, Any]]

CONF = config_folder()
FIGURES = {
    "learning_curves",
    "reconstructions",
    "decoded_centers",
    "extreme_samples",
    "embedding",
    "confusion",
}
QUICK = ("phases.pretrain.max_epochs=1", "phases.finetune.max_steps=1")


def weights(run_dir: str | Path, phase: str) -> dict[str, torch.Tensor]:
    state = torch.load(Path(run_dir) / phase / "weights.ckpt")["state_dict"]
    assert isinstance(state, dict)
    return state


def arrays(run_dir: str | Path) -> dict[str, np.ndarray]:
    with np.load(Path(run_dir) / "assignments.npz") as stored:
        return {name: stored[name] for name in stored.files}


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Name the weights that are not bit-equal."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def assert_same_bits(one: str | Path, other: str | Path) -> None:
    for phase in ("pretrain", "finetune"):
        assert different(weights(one, phase), weights(other, phase)) == [], phase
    left, right = arrays(one), arrays(other)
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name]), name


def accuracy(y: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Match clusters to classes, as many as there are of either."""
    table = np.zeros((k, k), dtype=int)
    np.add.at(table, (y, labels), 1)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(y))


def contents(folder: Path) -> dict[str, int]:
    """Return the files below a folder, locks aside, and when each was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def store_of(cfg: DictConfig) -> list[Path]:
    return sorted(Path(cfg.pretrained_dir).iterdir())


@pytest.fixture
def beside(finished: Finished) -> Callable[..., DictConfig]:
    """Change the finished run's config, sharing its data and its store of autoencoders."""

    def make(run_dir: Path, **changes: Any) -> DictConfig:
        cfg = finished[0].copy()
        cfg.run_dir = str(run_dir)
        for key, value in changes.items():
            OmegaConf.update(cfg, key.replace("__", "."), value)
        return cfg

    return make


# The record


def test_the_record_is_the_contract(finished: Finished) -> None:
    cfg, record = finished
    types: dict[str, type | tuple[type, ...]] = {
        "model": str,
        "data": str,
        "seed": int,
        "n_samples": int,
        "n_clusters": int,
        "metrics": dict,
        "label_free": dict,
        "phases": dict,
        "seconds": float,
        "device": str,
        "versions": dict,
        "commit": (str, type(None)),
        "code_sha256": str,
        "data_sha256": str,
        "settings_sha256": str,
        "config": dict,
    }
    for name, kind in types.items():
        assert isinstance(record[name], kind), name
    assert json.loads((Path(cfg.run_dir) / "result.json").read_text()) == record
    asked = {"model": "dcec", "data": "little", "seed": 0, "n_samples": 200, "n_clusters": 5}
    assert {name: record[name] for name in asked} == asked
    assert set(record["metrics"]) == {"accuracy", "nmi", "ari", "f1"}
    for name, value in record["metrics"].items():
        assert isinstance(value, float), name
        assert -0.5 <= value <= 1, name
    assert {"silhouette", "confidence", "entropy", "cluster_sizes"} <= record["label_free"].keys()
    assert list(record["phases"]) == ["pretrain", "finetune"]
    for name, phase in record["phases"].items():
        for key, kind in {
            "seconds": float,
            "epochs": int,
            "steps": int,
            "stop_reason": str,
            "device": str,
        }.items():
            assert isinstance(phase[key], kind), (name, key)
        assert phase["device"] == record["device"]
        assert phase == json.loads((Path(cfg.run_dir) / name / "phase.json").read_text())
    assert record["seconds"] == sum(phase["seconds"] for phase in record["phases"].values())
    assert 0 <= record["phases"]["finetune"]["label_change"] <= 1
    assert {"python", "clusterlab", "torch", "lightning"} <= record["versions"].keys()
    assert re.fullmatch("[0-9a-f]{64}", record["data_sha256"])
    assert re.fullmatch("[0-9a-f]{64}", record["settings_sha256"])
    # what was asked for, with every reference resolved and what the data decided filled in
    assert record["config"]["model"]["n_clusters"] == 5
    assert record["config"]["network"]["input_shape"] == [1, 8, 8]
    assert "${" not in json.dumps(record["config"])
    assert OmegaConf.load(Path(cfg.run_dir) / "config.yaml") == record["config"]


def test_limits_are_exact(finished: Finished) -> None:
    """200 samples in batches of 40: five steps an epoch."""
    phases = finished[1]["phases"]
    facts = ("epochs", "steps", "stop_reason")
    assert [phases["pretrain"][fact] for fact in facts] == [3, 15, "max_epochs"]
    assert [phases["finetune"][fact] for fact in facts] == [8, 37, "max_steps"]
    assert phases["finetune"]["refreshes"] == 5  # at 0, 10, 20, 30, and 37 for the final weights


def test_metrics_csv_tells_the_run(finished: Finished) -> None:
    cfg, record = finished
    rows = read_csv(Path(cfg.run_dir) / "metrics.csv")
    trained = {
        phase: [row["step"] for row in rows if row["phase"] == phase and f"{phase}/loss" in row]
        for phase in ("pretrain", "finetune")
    }
    assert trained == {"pretrain": [5, 10, 15], "finetune": [5, 10, 15, 20, 25, 30, 35, 37]}
    refreshes = [row for row in rows if "cluster/nmi" in row]
    assert [row["step"] for row in refreshes] == [0, 10, 20, 30, 37]
    assert refreshes[-1]["cluster/nmi"] == record["metrics"]["nmi"]
    assert refreshes[-1]["cluster/label_change"] == record["phases"]["finetune"]["label_change"]
    for phase, terms in (("pretrain", []), ("finetune", ["clustering"])):
        losses = record["phases"][phase]["losses"]  # of the last epoch, though it was cut short
        last = [row for row in rows if row["phase"] == phase and f"{phase}/loss" in row][-1]
        assert losses.keys() == {"loss", "reconstruction", *terms}
        assert all(last[f"{phase}/{name}"] == value for name, value in losses.items())
    start = record["phases"]["finetune"]["metrics_at_start"]
    assert {f"cluster/{name}": value for name, value in start.items()}.items() <= refreshes[
        0
    ].items()


def test_assignments_are_those_of_the_result(finished: Finished, little_npz: Path) -> None:
    cfg, record = finished
    stored = arrays(cfg.run_dir)
    assert set(stored) == {"index", "label", "q", "z"}
    assert stored["index"].tolist() == list(range(200))
    assert stored["q"].shape == stored["z"].shape == (200, 5)
    assert np.array_equal(stored["label"], stored["q"].argmax(1))
    np.testing.assert_allclose(stored["q"].sum(1), 1, atol=1e-6)
    centers = weights(cfg.run_dir, "finetune")["centers"]
    q = soft_assignment(torch.from_numpy(stored["z"]), centers)
    np.testing.assert_allclose(stored["q"], q.numpy(), rtol=1e-5, atol=1e-7)
    sizes = np.bincount(stored["label"], minlength=5).tolist()
    assert record["label_free"]["cluster_sizes"] == sizes
    y = np.load(little_npz)["y"]
    assert record["metrics"]["accuracy"] == pytest.approx(accuracy(y, stored["label"], 5))
    nmi = normalized_mutual_info_score(y, stored["label"])
    assert record["metrics"]["nmi"] == pytest.approx(nmi)


def test_reconstruction_is_that_of_clean_images(drawn: Finished, little_npz: Path) -> None:
    """The error after pretraining, from the stored weights and image by image."""
    cfg, record = drawn
    model = load(cfg.run_dir).model
    PhaseFolder(Path(cfg.run_dir) / "pretrain").load(model, "pretrain")
    errors = []
    for x in np.load(little_npz)["x"]:
        with torch.no_grad():
            _, x_hat = model.network(torch.from_numpy(x).reshape(1, 1, 8, 8))
        errors.append(float(((x_hat.squeeze().numpy() - x.squeeze()) ** 2).mean()))
    reported = record["phases"]["pretrain"]["reconstruction"]
    assert reported == pytest.approx(np.mean(errors), rel=1e-4)


def test_without_labels(compose: Compose, little_npz: Path) -> None:
    """Scores that need labels are null and their figure is not there, the others are."""
    cfg = compose(*LITTLE, *QUICK, "data.path=null", "data.name=bare", "figures=true")
    cfg.data.path = str(Path(cfg.output_dir) / "bare.npz")
    np.savez(cfg.data.path, x=np.load(little_npz)["x"][:40])
    record = run(cfg)
    assert record["metrics"] == dict.fromkeys(("accuracy", "nmi", "ari", "f1"))
    assert record["labels_sha256"] is None
    free = record["label_free"]
    assert sum(free["cluster_sizes"]) == record["n_samples"] == 40
    assert 1 / 5 <= free["confidence"] <= 1
    assert free["silhouette"] is None or -1 <= free["silhouette"] <= 1
    assert 0 <= record["phases"]["finetune"]["label_change"] <= 1
    drawn = {path.name for path in (Path(cfg.run_dir) / "figures").iterdir()}
    assert drawn == {f"{name}.png" for name in FIGURES - {"confusion"}}


def test_a_folder_of_images(compose: Compose, little_npz: Path, tmp_path: Path) -> None:
    """Assignments name the file of each sample."""
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    x = (np.load(little_npz)["x"][:40, 0] * 255).astype(np.uint8)
    files = [f"more/{i:02}.png" if i % 2 else f"{i:02}.png" for i in range(40)]
    for file, image in zip(files, x, strict=True):
        Image.fromarray(image).save(pictures / file)
    overrides = [override for override in LITTLE if override != "data=npz"]
    cfg = compose(*overrides, *QUICK, "data=folder", f"data.path={pictures}", "n_clusters=3")
    record = run(cfg)
    stored = arrays(cfg.run_dir)
    assert stored["files"].tolist() == sorted(files)
    assert (
        np.bincount(stored["label"], minlength=3).tolist() == record["label_free"]["cluster_sizes"]
    )


@pytest.fixture(scope="module")
def drawn(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictConfig, dict[str, Any]]:
    """A run of another gamma from the finished run's store, with figures, stopped by delta."""
    cfg = finished[0].copy()
    cfg.run_dir = str(tmp_path_factory.mktemp("drawn") / "run")
    cfg.loss.gamma, cfg.figures = 0.5, True
    cfg.phases.finetune.tolerance = 0.999
    logger = logging.getLogger("clusterlab")
    logger.setLevel(logging.INFO)  # as the command line's
    try:
        return cfg, run(cfg)
    finally:
        logger.setLevel(logging.NOTSET)


def test_figures(drawn: Finished) -> None:
    folder = Path(drawn[0].run_dir) / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in FIGURES}
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 100, path
            low, high = image.convert("L").getextrema()
        assert low != high, f"{path} is blank"


# Why it stops


def test_stops_at_the_tolerance(drawn: Finished) -> None:
    phase = drawn[1]["phases"]["finetune"]
    assert (phase["stop_reason"], phase["steps"], phase["refreshes"]) == ("tolerance", 10, 2)
    assert phase["label_change"] < 0.999


def test_stops_at_the_epochs(beside: Compose, tmp_path: Path) -> None:
    cfg = beside(tmp_path / "run", phases__finetune__max_epochs=2, phases__finetune__max_steps=-1)
    phase = run(cfg)["phases"]["finetune"]
    facts = [phase[fact] for fact in ("epochs", "steps", "stop_reason", "refreshes")]
    assert facts == [2, 10, "max_epochs", 2]


# The same again


def test_one_seed_gives_one_run(finished: Finished, compose: Compose, little_npz: Path) -> None:
    """Made again elsewhere, without the store: the same bits, and nothing outside its folder."""
    cfg = compose(*FINISHED, f"data.path={little_npz}", "pretrained_dir=null")
    record = run(cfg)
    assert_same_bits(finished[0].run_dir, cfg.run_dir)
    texts = [(Path(c.run_dir) / "metrics.csv").read_text() for c in (finished[0], cfg)]
    assert texts[0] == texts[1]
    assert record["metrics"] == finished[1]["metrics"]
    assert record["settings_sha256"] == finished[1]["settings_sha256"]
    assert "reused" not in record["phases"]["pretrain"]
    assert [path.name for path in Path(cfg.output_dir).iterdir()] == ["run"]
    assert (Path(cfg.run_dir) / "pretrain" / "weights.ckpt").is_file()


def test_labels_do_not_steer(finished: Finished, compose: Compose, little_npz: Path) -> None:
    """Random labels, and as many of them as before: the same bits, other scores."""
    with np.load(little_npz) as stored:
        x, y = stored["x"], stored["y"]
    assert set(y) == set(range(5))
    cfg = compose(*FINISHED, "data.path=null", "data.name=little")
    path = Path(cfg.output_dir) / "destroyed.npz"
    np.savez(path, x=x, y=np.random.default_rng(0).permutation(y))
    cfg.data.path = str(path)
    record = run(cfg)
    assert record["labels_sha256"] != finished[1]["labels_sha256"]
    assert record["data_sha256"] == finished[1]["data_sha256"]
    assert finished[1]["metrics"]["nmi"] > 0.1 > record["metrics"]["nmi"]
    assert_same_bits(finished[0].run_dir, cfg.run_dir)


def test_two_seeds_share_nothing(
    compose: Compose, little_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial, order, centers, kmeans_seeds = [], [], [], []
    pretrain_loss, kmeans = DCEC.pretrain_loss, base_module.kmeans

    def spying_loss(self: DCEC, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.global_step == 0:
            initial.append({k: v.clone() for k, v in self.network.state_dict().items()})
            order.append(batch["index"].clone())
        return pretrain_loss(self, batch)

    def spying_kmeans(z: torch.Tensor, k: int, seed: int, n_init: int) -> Any:
        found = kmeans(z, k, seed, n_init)
        centers.append(found[0].clone())
        kmeans_seeds.append(seed)
        return found

    monkeypatch.setattr(DCEC, "pretrain_loss", spying_loss)
    monkeypatch.setattr(base_module, "kmeans", spying_kmeans)
    for seed in (0, 1):
        cfg = compose(*LITTLE, *QUICK, f"data.path={little_npz}", f"seed={seed}")
        cfg.run_dir = f"{cfg.run_dir}{seed}"
        assert run(cfg)["seed"] == seed
    assert len(store_of(cfg)) == 2
    random = [name for name, value in initial[0].items() if value.unique().numel() > 1]
    assert sum(name.endswith("weight") for name in random) >= 6
    assert set(random) <= set(different(*initial))
    assert not torch.equal(order[0], order[1])
    assert kmeans_seeds == [0, 1]
    assert not torch.equal(centers[0].sort(0).values, centers[1].sort(0).values)


# The folder


def test_a_finished_run_trains_nothing(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, record = finished
    before = contents(Path(cfg.run_dir)), contents(Path(cfg.pretrained_dir))
    written = {"settings.json", "config.yaml"}  # those say again what was asked

    def no_training(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(DCEC, "training_step", no_training)
    assert run(cfg.copy()) == record
    after = contents(Path(cfg.run_dir)), contents(Path(cfg.pretrained_dir))
    assert after[1] == before[1]
    assert after[0].keys() == before[0].keys()
    assert {name for name in after[0] if after[0][name] != before[0][name]} <= written
    assert not [name for name in (*after[0], *after[1]) if "last" in name]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss__gamma": 0.25}, "loss.gamma=0.25 instead of 0.1"),
        ({"seed": 1}, "seed=1 instead of 0"),
        ({"phases__finetune__optimizer__lr": 0.5}, "phases.finetune.optimizer.lr=0.5 instead of"),
        ({"trainer__precision": "bf16-mixed"}, "precision=bf16-mixed instead of 32-true"),
    ],
)
def test_other_settings_are_refused(
    finished: Finished, changes: dict[str, Any], named: str
) -> None:
    cfg = finished[0].copy()
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    before = contents(Path(cfg.run_dir))
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        run(cfg)
    assert "restart=true" in str(caught.value)
    assert contents(Path(cfg.run_dir)) == before


def test_other_data_are_refused(finished: Finished, tmp_path: Path, little_npz: Path) -> None:
    cfg = finished[0].copy()
    with np.load(little_npz) as stored:
        np.savez(tmp_path / "little.npz", x=stored["x"][::-1], y=stored["y"])
    cfg.data.path = str(tmp_path / "little.npz")
    with pytest.raises(UserError, match=r"made with, got data"):
        run(cfg)


@pytest.mark.parametrize("restart", [False, True])
def test_foreign_files_are_left_alone(little: Compose, restart: bool) -> None:
    cfg = little()
    cfg.restart = restart
    folder = Path(cfg.run_dir)
    (folder / "pictures").mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    before = contents(folder)
    with pytest.raises(UserError, match="with other files in it"):
        run(cfg)
    assert contents(folder) == before
    assert (folder / "pictures").is_dir()


def test_restart_starts_over(beside: Compose, tmp_path: Path) -> None:
    cfg = beside(tmp_path / "run", phases__finetune__max_steps=2)
    first = run(cfg)
    before, old = contents(tmp_path / "run"), arrays(cfg.run_dir)
    (tmp_path / "run" / "stale.txt").touch()
    cfg.restart = True
    cfg.phases.finetune.max_steps = 3  # other settings are no obstacle to starting over
    second = run(cfg)
    after = contents(tmp_path / "run")
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in after)
    assert [r["phases"]["finetune"]["steps"] for r in (first, second)] == [2, 3]
    assert not np.array_equal(arrays(cfg.run_dir)["q"], old["q"])
    cfg.restart = False
    assert run(cfg) == second


@pytest.mark.parametrize(
    ("phase", "term"), [("pretrain", "reconstruction"), ("finetune", "clustering")]
)
def test_a_run_that_breaks_says_where(
    beside: Compose, tmp_path: Path, phase: str, term: str
) -> None:
    lr = {f"phases__{phase}__optimizer__lr": 1e30}
    cfg = beside(tmp_path / "run", **lr)
    if phase == "pretrain":
        cfg.pretrained_dir = str(tmp_path / "pretrained")
    said = rf"in the term '{term}' at step 1 of {phase}; lower phases\.{phase}\.optimizer\.lr"
    for _ in range(2):  # asking again breaks again: a failed run is not a finished one
        with pytest.raises(UserError, match=said) as caught:
            run(cfg)
        record = json.loads((tmp_path / "run" / "result.json").read_text())
        assert record["error"] == str(caught.value)
        assert record["config"]["phases"][phase]["optimizer"]["lr"] == 1e30
        assert "metrics" not in record
        assert not (tmp_path / "run" / phase / "phase.json").exists()
    if phase == "pretrain":
        (entry,) = store_of(cfg)
        assert not (entry / "phase.json").exists()


# The store


def test_a_sweep_over_gamma_pretrains_once(finished: Finished, drawn: Finished) -> None:
    (cfg, record), (other_cfg, other) = finished, drawn
    pretrain = [r["phases"]["pretrain"] for r in (record, other)]
    assert [phase["reused"] for phase in pretrain] == [False, True]
    entry = Path(cfg.pretrained_dir) / pretrain[0]["store"]
    assert pretrain[1]["store"] == entry.name
    assert {k: v for k, v in pretrain[1].items() if k != "reused"} == {
        k: v for k, v in pretrain[0].items() if k != "reused"
    }
    folders = [weights(c.run_dir, "pretrain") for c in (cfg, other_cfg)]
    assert different(*folders) == []
    assert different(folders[0], weights(entry.parent, entry.name)) == []
    assert different(*(weights(c.run_dir, "finetune") for c in (cfg, other_cfg)))
    rows = [read_csv(Path(c.run_dir) / "pretrain" / "metrics.csv") for c in (cfg, other_cfg)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    log = (Path(other_cfg.run_dir) / "train.log").read_text()
    assert log.count(f"Reusing the pretrained autoencoder in {entry}.") == 1
    assert "of other code" not in log


def test_an_entry_of_other_code_is_told(
    finished: Finished,
    beside: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = beside(tmp_path / "run", phases__finetune__max_steps=1)
    monkeypatch.setattr("clusterlab.phases.code_digest", lambda cfg: "of an edited file")
    phase = run(cfg)["phases"]["pretrain"]
    assert phase["code_sha256"] == finished[1]["code_sha256"]
    entry = Path(cfg.pretrained_dir) / phase["store"]
    said = "The pretrained autoencoder is of other code than this; if the difference matters, "
    assert caplog.messages.count(f"{said}delete {entry}.") == 1


def test_a_network_of_other_shapes_has_another_entry(
    finished: Finished, beside: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code may build another network from the same config; the store has no weights for that."""

    class Wider(ConvAutoencoder):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.unused = torch.nn.Parameter(torch.ones(1))

    monkeypatch.setattr("clusterlab.networks.ConvAutoencoder", Wider)
    cfg = beside(tmp_path / "run", phases__finetune__max_steps=1)
    phase = run(cfg)["phases"]["pretrain"]
    assert not phase["reused"]
    assert phase["store"] != finished[1]["phases"]["pretrain"]["store"]


def test_an_unfinished_entry_is_not_used(finished: Finished, beside: Compose, tmp_path: Path):
    """Weights without a record, as a kill between the two leaves them: made again, the same."""
    name = finished[1]["phases"]["pretrain"]["store"]
    entry = tmp_path / "pretrained" / name
    entry.mkdir(parents=True)
    (entry / "weights.ckpt").write_bytes(b"half of the weights")
    cfg = beside(tmp_path / "run", pretrained_dir=str(entry.parent), phases__finetune__max_steps=1)
    phase = run(cfg)["phases"]["pretrain"]
    assert (phase["reused"], phase["store"]) == (False, name)
    assert (entry / "phase.json").is_file()
    for folder in (tmp_path / "run", entry.parent):
        part = "pretrain" if folder.name == "run" else name
        assert different(weights(folder, part), weights(finished[0].run_dir, "pretrain")) == []


def test_init_from_an_autoencoder(finished: Finished, beside: Compose, tmp_path: Path) -> None:
    path = Path(finished[0].run_dir) / "finetune" / "weights.ckpt"
    cfg = beside(
        tmp_path / "run",
        init_from=str(path),
        pretrained_dir=str(tmp_path / "pretrained"),
        phases__finetune__max_steps=1,
    )
    record = run(cfg)["phases"]["pretrain"]
    untrained = {"seconds": 0.0, "epochs": 0, "steps": 0, "stop_reason": "init_from"}
    assert record == {**untrained, "code_sha256": finished[1]["code_sha256"]}
    given, taken = weights(path.parents[1], "finetune"), weights(cfg.run_dir, "pretrain")
    assert different(given, taken) == ["centers"]  # the network alone is taken
    assert not (tmp_path / "pretrained").exists()


def test_init_from_is_checked_first(finished: Finished, compose: Compose, little_npz: Path) -> None:
    weights_file = Path(finished[0].run_dir) / "pretrain" / "weights.ckpt"
    cfg = compose(*LITTLE, f"data.path={little_npz}")
    folder = Path(cfg.output_dir)
    files = folder.parent / "files"
    files.mkdir(exist_ok=True)
    (files / "half.ckpt").write_bytes(weights_file.read_bytes()[:1000])
    torch.save({"weights": torch.zeros(3)}, files / "other.ckpt")
    refused = {
        files / "none.ckpt": "no file",
        files: "no file",
        files / "half.ckpt": "a file that torch cannot read",
        little_npz: "a file that torch cannot read|another kind of file",
        files / "other.ckpt": "another kind of file",
    }
    for path, said in refused.items():
        cfg.init_from = str(path)
        with pytest.raises(UserError, match=said):
            run(cfg)
    cfg.init_from = str(weights_file)
    cfg.network.embedding_dim = 3
    with pytest.raises(UserError, match=r"of shape \(.*3.*\), got \(.*5.*\)"):
        run(cfg)
    assert not [path for path in folder.iterdir() if path != files]


# What can be chosen


def test_dec_freezes_the_decoder(compose: Compose, finished: Finished, little_npz: Path) -> None:
    """loss=kl: the decoder is of no use to the objective, and stays what pretraining made it."""
    cfg = compose(*LITTLE, "loss=kl", f"data.path={little_npz}", "phases.finetune.max_steps=5")
    cfg.pretrained_dir = finished[0].pretrained_dir
    record = run(cfg)
    assert record["phases"]["pretrain"]["reused"]
    before, after = (weights(cfg.run_dir, phase) for phase in ("pretrain", "finetune"))
    changed = different(before, after)
    decoder = [name for name in before if name.startswith("network.decoder")]
    assert decoder
    assert not set(changed) & set(decoder)
    assert set(changed) == set(before) - set(decoder)
    columns = {name for row in read_csv(Path(cfg.run_dir) / "metrics.csv") for name in row}
    assert "finetune/clustering" in columns
    assert "finetune/reconstruction" not in columns


def names(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found, group
    return found


def targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    return [t for value in node for t in targets(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("data", names("data"))
@pytest.mark.parametrize("model", names("model"))
def test_every_model_composes_with_every_data_set(compose: Compose, model: str, data: str):
    mine = ("npz", "folder", "text")
    given = ["data.path=somewhere/mine.npz"] if data in (*mine, "ytf") else []
    given += ["n_clusters=3"] if data in (*mine, "array") else []
    cfg = compose(f"model={model}", f"data={data}", *given)
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    assert config["model_name"] == model
    assert config["data"]["name"] == ("mine" if data in mine else data)
    assert isinstance(config["n_clusters"], int)
    found = targets(config)
    assert len(found) >= 3
    for target in found:
        assert callable(get_object(target)), target


@pytest.mark.parametrize("name", names("experiment"))
def test_an_experiment_says_what_it_is(compose: Compose, name: str) -> None:
    """Source, command line, what to expect and how long it takes: in the first comment lines."""
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    header = []
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    source, command, expected = header[:3]
    assert re.search(r"\b(Table|Figure|Section) \d+ of .+ (19|20)\d\d: .*\d", source), source
    assert command.startswith("python train.py ")
    overrides = [part for part in shlex.split(command)[2:] if part != "-m"]
    assert f"experiment={name}" in overrides
    assert expected.startswith("Expected here: ")
    assert re.search(r"\d+ (seconds|minutes|hours) on ", " ".join(header[2:])), header
    sweep = [part for part in overrides if OverridesParser.create().parse_override(part)]
    cfg = compose(*sweep)
    own = yaml.safe_load("\n".join(lines))
    bases = [part for part in own["defaults"] if isinstance(part, str) and part != "_self_"]
    chosen = {
        key.split("/")[-1]: value
        for name in [*bases, name]
        for part in yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["defaults"]
        if isinstance(part, dict)
        for key, value in part.items()
    }
    assert cfg.model_name == chosen["model"]
    config = OmegaConf.to_container(cfg, resolve=True)
    del own["defaults"]
    own.pop("hydra", None)  # a sweep

    def asserted(part: Any, whole: Any, where: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                asserted(value, whole[key], f"{where}{key}.")
            else:
                assert whole[key] == value, f"{where}{key}"

    asserted(own, config, "")


# Does it learn?


@pytest.mark.slow
def test_beats_kmeans_on_pixels(tmp_path: Path) -> None:
    """All 1,797 digits, seed 0; a minute of one core. The defaults' full length reaches 0.85."""
    limits = (
        "phases.pretrain.max_epochs=120",
        "phases.finetune.max_steps=600",
        "phases.finetune.tolerance=0",
    )
    record = run(composed(tmp_path, *limits, "trainer=cpu", "figures=false"))
    samples = digits()
    assert samples.y is not None
    y = samples.y.numpy()
    pixels = KMeans(10, n_init=20, random_state=0).fit_predict(samples.x.flatten(1).numpy())
    ours, theirs = record["metrics"]["accuracy"], accuracy(y, pixels, 10)
    start = record["phases"]["finetune"]["metrics_at_start"]["accuracy"]
    assert 0.7 < theirs < 0.81
    assert ours >= theirs + 0.02
    assert ours >= 0.82
    assert ours >= start + 0.02  # clustering it is that gains, not pretraining alone
