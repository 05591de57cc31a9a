"""The scikit-learn estimator: its conventions, and that it is the command line's training."""

import io
import json
import logging
import pickle
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import clusterlab
from clusterlab.errors import UserError
from clusterlab.estimator import DeepClusterer
from clusterlab.models.dcec import DCEC
from clusterlab.predict import load
from clusterlab.training import run
from conftest import composed

SMALL = ("network.filters=[4,8,16]", "model.n_init=2")
SMALL_MLP = ("network=mlp", "network.hidden=[32]", "model.n_init=2")
ONE_CLUSTER = "asks for one cluster, which nothing can be learned from; run below with two"
EXPECTED_FAILED_CHECKS = {
    "check_dont_overwrite_parameters": ONE_CLUSTER,
    "check_fit2d_1feature": ONE_CLUSTER,
    "check_fit2d_predict1d": ONE_CLUSTER,
    "check_methods_subset_invariance": ONE_CLUSTER,
}


def quick(**changes: Any) -> DeepClusterer:
    """A second's training; keyword arguments replace settings."""
    settings: dict[str, Any] = {
        "n_clusters": 5,
        "random_state": 0,
        "pretrain_epochs": 1,
        "max_steps": 2,
        "overrides": SMALL,
    }
    return DeepClusterer(**(settings | changes))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """300 images of 8 x 8."""
    return load_digits().images[:300] / 16


@pytest.fixture(scope="module")
def fitted(x: np.ndarray) -> DeepClusterer:
    return quick().fit(x)


# scikit-learn's conventions


@parametrize_with_checks(
    [DeepClusterer(pretrain_epochs=1, max_steps=2, overrides=SMALL_MLP)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILED_CHECKS,
)
def test_scikit_learns_checks(estimator: DeepClusterer, check: Callable[..., None]) -> None:
    check(estimator)


@pytest.mark.parametrize("check", EXPECTED_FAILED_CHECKS)
def test_scikit_learns_checks_of_one_cluster_with_two(check: str) -> None:
    overrides = (*SMALL_MLP, "n_clusters=2")
    estimator = DeepClusterer(pretrain_epochs=1, max_steps=2, overrides=overrides)
    getattr(estimator_checks, check)("DeepClusterer", estimator)


def test_a_clone_and_a_pickle_are_the_same(fitted: DeepClusterer, x: np.ndarray) -> None:
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    assert not hasattr(again, "labels_")
    assert np.array_equal(again.fit_predict(x), fitted.labels_)
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.predict(x), fitted.labels_)
    assert np.array_equal(copy.transform(x), fitted.embedding_)


def test_in_a_pipeline() -> None:
    """The fully connected network takes the place of the convolutions, without being asked."""
    vectors = load_digits().data[:200]
    last = quick(overrides=("model.n_init=2",))
    pipeline = make_pipeline(StandardScaler(), last)
    labels = pipeline.fit_predict(vectors)
    alone = clone(last).fit(StandardScaler().fit_transform(vectors))
    assert np.array_equal(labels, alone.labels_)
    assert np.array_equal(pipeline.predict(vectors), labels)
    assert pipeline.transform(vectors).shape == (200, 5)
    assert list(pipeline.get_feature_names_out()) == [f"deepclusterer{i}" for i in range(5)]


def test_random_states(x: np.ndarray, fitted: DeepClusterer) -> None:
    """A number gives the same result each time; a generator moves on from fit to fit."""
    assert np.array_equal(quick().fit(x).soft_labels_, fitted.soft_labels_)
    state = np.random.RandomState(3)
    first, second = (quick(random_state=state).fit(x).soft_labels_ for _ in range(2))
    assert not np.array_equal(first, second)
    seed = np.random.RandomState(3).randint(2**31 - 1)
    assert np.array_equal(quick(random_state=seed).fit(x).soft_labels_, first)


def test_importing_the_package_alone_brings_no_torch() -> None:
    code = "import sys, clusterlab; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert clusterlab.DeepClusterer is DeepClusterer
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = clusterlab.Nothing


# The command line's training


def test_the_labels_are_those_of_the_command_line(tmp_path: Path) -> None:
    asked = ("loss.gamma=0.2", *SMALL)
    config = composed(
        tmp_path,
        *("model=dcec", "data=digits", "seed=3", "figures=false", *asked),
        *("phases.pretrain.max_epochs=2", "phases.finetune.max_steps=9"),
        *("phases.finetune.update_interval=4", "phases.finetune.tolerance=0"),
    )
    phases = run(config)["phases"]
    clusterer = DeepClusterer(
        "dcec",
        n_clusters=10,
        random_state=3,
        pretrain_epochs=2,
        max_steps=9,
        update_interval=4,
        tolerance=0,
        overrides=(*asked, "data.batch_size=256", "data.augment=null"),  # as data=digits has
    ).fit(load_digits().images / 16)
    with np.load(tmp_path / "run" / "assignments.npz") as stored:
        assert np.array_equal(clusterer.labels_, stored["label"])
        assert np.array_equal(clusterer.soft_labels_, stored["q"])
        assert np.array_equal(clusterer.embedding_, stored["z"])
    assert len(set(clusterer.labels_)) > 1
    assert clusterer.n_iter_ == phases["finetune"]["steps"] == 9
    assert clusterer.stop_reason_ == "max_steps"
    centers = torch.load(tmp_path / "run" / "finetune" / "weights.ckpt")["state_dict"]["centers"]
    assert np.array_equal(clusterer.cluster_centers_, centers)


@pytest.mark.parametrize("model", ["sdcec", "cae_knn"])
def test_known_labels_are_those_of_a_file(model: str, tmp_path: Path) -> None:
    """Half of the samples have none; classes that no sample has start from k-means."""
    digits = load_digits()
    x, y = digits.images[:300] / 16, digits.target[:300]
    y = np.where((np.arange(300) % 2 == 0) | (y > 7), -1, y)
    np.save(tmp_path / "known.npy", y)
    np.savez(tmp_path / "images.npz", x=x)
    asked = (*SMALL[: 1 if model == "cae_knn" else 2], "phases.pretrain.max_epochs=1")
    asked += ("phases.finetune.max_steps=5",) if model == "sdcec" else ()
    file = (f"data.path={tmp_path / 'images.npz'}", f"data.labelled={tmp_path / 'known.npy'}")
    config = composed(
        tmp_path, f"model={model}", "data=npz", *file, "n_clusters=10", "figures=false", *asked
    )
    record = run(config)
    clusterer = DeepClusterer(model, n_clusters=10, random_state=0, overrides=asked)
    assert np.array_equal(clusterer.fit_predict(x, y.astype(float)), clusterer.labels_)
    with np.load(tmp_path / "run" / "assignments.npz") as stored:
        assert np.array_equal(clusterer.soft_labels_, stored["q"])
    kept = DeepClusterer(
        model, n_clusters=10, random_state=0, overrides=asked, output_dir=tmp_path / "kept"
    )
    kept.fit(x, y)
    (result,) = (tmp_path / "kept").rglob("result.json")
    told = json.loads(result.read_text())
    assert told["known_sha256"] == record["known_sha256"]
    assert told["n_known"] == (y >= 0).sum()
    assert told["config"]["data"]["labelled"] is None
    with pytest.raises(UserError, match="known_sha256="):  # the folder is of other labels
        kept.fit(x, np.roll(y, 1))


@pytest.mark.parametrize("override", ["data.labelled=0.1", "++data.labelled=0.1"])
def test_known_labels_come_from_one_place(x: np.ndarray, override: str) -> None:
    asked = quick(model="sdcec", overrides=(override,))
    told = rf"from one place, got y and {re.escape(override)}; leave one"
    with pytest.raises(UserError, match=told):
        asked.fit(x, np.zeros(len(x), int))


def test_other_methods_never_read_y(x: np.ndarray, fitted: DeepClusterer) -> None:
    assert np.array_equal(quick().fit(x, "no labels").soft_labels_, fitted.soft_labels_)


RETRAIN = ("phases.retrain.max_epochs=1", "model.classifier.filters=[4,6]")
METHODS = {
    "dcec": {},
    "idcec": {"overrides": (*SMALL, *RETRAIN)},  # its labels are a classifier's
    "icae": {"pretrain_epochs": None, "overrides": ("network=residual_small",)},
    "kmeans": {"pretrain_epochs": None, "max_steps": None, "overrides": ()},
}


@pytest.mark.parametrize("model", METHODS)
def test_the_training_data_get_their_own_labels(model: str, x: np.ndarray) -> None:
    """In any layout of the images, 8-bit ones too."""
    clusterer = quick(model=model, **METHODS[model]).fit(x)
    steps = 0 if model == "kmeans" else 2
    reason = "max_steps" if steps else "untrained"
    assert (clusterer.n_iter_, clusterer.stop_reason_) == (steps, reason)
    assert clusterer.n_features_in_ == 64
    assert clusterer.cluster_centers_.shape == (5, clusterer.embedding_.shape[1])
    for images in (x, x[..., None], x[:, None], x.astype(np.float32)):
        assert np.array_equal(clusterer.predict(images), clusterer.labels_)
        assert np.array_equal(clusterer.predict_proba(images), clusterer.soft_labels_)
        assert np.array_equal(clusterer.transform(images), clusterer.embedding_)
    assert np.array_equal(clusterer.soft_labels_.argmax(1), clusterer.labels_)
    assert {clusterer.embedding_.dtype, clusterer.soft_labels_.dtype} == {np.dtype(np.float32)}
    coarse = clusterer.predict((x * 255).round().astype(np.uint8))
    assert (coarse == clusterer.labels_).mean() > 0.95


def test_a_method_without_a_rule_for_new_samples(x: np.ndarray) -> None:
    connected = ("model.n_neighbors=50",)
    clusterer = DeepClusterer("spectral", n_clusters=5, random_state=0, overrides=connected)
    assert len(set(clusterer.fit_predict(x))) == 5
    assert clusterer.embedding_.shape == (300, 5)
    for method in (clusterer.predict, clusterer.predict_proba, clusterer.transform):
        with pytest.raises(UserError, match=r"can label new samples, got model=spectral; take lab"):
            method(x)


def test_a_tolerance_ends_it(x: np.ndarray) -> None:
    clusterer = quick(max_steps=50, update_interval=3, tolerance=0.999).fit(x)
    assert (clusterer.n_iter_, clusterer.stop_reason_) == (3, "tolerance")


def test_a_batch_fits_the_data(x: np.ndarray, tmp_path: Path) -> None:
    """The method's batches, what fits the samples where it has none, or what was asked for."""
    sizes = {}
    small = {"overrides": ("network=residual_small",), "pretrain_epochs": None, "max_steps": 1}
    for name, n, changes in [
        ("dcec", 300, {}),
        ("fewer", 60, {}),
        ("icae", 300, {"model": "icae", **small}),
        ("asked", 300, {"batch_size": 32}),
    ]:
        quick(output_dir=tmp_path / name, **changes).fit(x[:n])
        (result,) = (tmp_path / name).glob("*_array/*/result.json")
        sizes[name] = json.loads(result.read_text())["config"]["data"]["batch_size"]
    assert sizes == {"dcec": 32, "fewer": 16, "icae": 100, "asked": 32}


def test_a_kept_run_is_a_run_folder(
    x: np.ndarray, fitted: DeepClusterer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same fit reads it; other samples are refused, since they would not be that run."""
    kept = quick(output_dir=tmp_path / "a b").fit(x)
    (result,) = tmp_path.rglob("result.json")
    assert result.parent.parent == tmp_path / "a b" / "dcec_array"
    assert result.parent.name.endswith(",phases.pretrain.max_epochs=1,seed=0")
    assert not (result.parent / "figures").exists()
    assert np.array_equal(load(result.parent).predict(x)[0], kept.labels_)
    monkeypatch.setattr(DCEC, "pretrain_loss", None)  # nothing is trained
    again = clone(kept).fit(x)
    assert np.array_equal(again.soft_labels_, fitted.soft_labels_)
    with pytest.raises(UserError, match="data_sha256="):
        clone(kept).fit(x[::-1])


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dcecc"}, r"Could not find 'model/dcecc' Available options .* dcec "),
        ({"model": "kmeans"}, r"Could not override 'phases\.pretrain\.max_epochs'; correct"),
        ({"overrides": ("loss.gama=1",)}, r"got Could not override 'loss\.gama'; correct or omit"),
        ({"overrides": "loss.gamma=1"}, r"a list .*; set overrides=\['loss.gamma=1'\]"),
        ({"overrides": ("checkpoint_interval=abc",)}, "seconds from 0 on, got 'abc'; set check"),
        ({"overrides": ("restart=fasle",)}, "true or false as restart, got 'fasle'; set restart"),
        ({"n_clusters": 1}, "n_clusters from 2 to the 300 samples"),
        ({"n_clusters": 301}, "n_clusters from 2 to the 300 samples"),
        ({"batch_size": 301}, "a batch size from 1 to the 300 samples"),
        ({"random_state": -1}, "a seed from 0"),
        ({"max_steps": 0}, r"a limit of 1 or more, .*finetune\.max_steps"),
        ({"model": "sdcec"}, "y for model=sdcec, the class of each sample .*, got none; pass it"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str, x: np.ndarray) -> None:
    with pytest.raises(UserError, match=message) as caught:
        quick(**changes).fit(x)
    assert len(str(caught.value).splitlines()) == 1


def test_samples_that_cannot_be(x: np.ndarray, fitted: DeepClusterer) -> None:
    for samples in (x * 2, x[:, None, None], x.astype(int)):
        with pytest.raises(UserError, match="the samples"):
            quick().fit(samples)
    with pytest.raises(ValueError, match="81 features, but DeepClusterer is expecting 64"):
        fitted.predict(np.zeros((3, 9, 9)))
    with pytest.raises(UserError, match="images of 8x8 pixels, 1 channel, got vectors of 64"):
        fitted.predict(np.zeros((3, 64)))


def test_the_command_line_has_no_samples_in_memory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="samples from a program, got none; use data=npz"):
        run(composed(tmp_path, "data=array", "n_clusters=2"))


# The program around it


def test_hydra_is_left_as_it_was(x: np.ndarray, tmp_path: Path) -> None:
    """Outside of a Hydra program, and inside of one with configs of its own."""
    assert not GlobalHydra.instance().is_initialized()
    quick().fit(x)
    assert not GlobalHydra.instance().is_initialized()
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        base = VersionBase.instance().getbase()
        quick().fit(x)
        with pytest.raises(UserError):
            quick(model="none").fit(x)
        assert VersionBase.instance().getbase() == base
        assert hydra.compose("theirs") == {"a": 1}
    assert not GlobalHydra.instance().is_initialized()


def test_random_generators_are_left_as_they_were(x: np.ndarray) -> None:
    def drawn() -> tuple[float, float, float]:
        legacy = np.random.mtrand._rand
        return random.random(), legacy.rand(), float(torch.rand(1))

    def seed() -> None:
        random.seed(1)
        np.random.mtrand._rand.seed(1)
        torch.manual_seed(1)

    seed()
    expected = drawn()
    seed()
    quick().fit(x)
    with pytest.raises(UserError):
        quick(batch_size=301).fit(x)
    assert drawn() == expected


def test_what_is_shown(
    x: np.ndarray, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, or the run's messages: on stderr, unless the program has handlers of its own."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without pytest's
    loggers = [logging.getLogger(name) for name in ("clusterlab", "lightning.pytorch")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    with monkeypatch.context() as patched:
        patched.setattr("clusterlab.phases.Progress", None)  # no bar either, on a terminal
        quick().fit(x)
    assert capfd.readouterr() == ("", "")
    quick(verbose=True).fit(x)
    out, err = capfd.readouterr()
    assert out == ""
    stops = [line.split(":")[0] for line in err.splitlines() if "stopped by" in line]
    assert stops == ["pretrain", "finetune"]
    theirs = io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(theirs)])
    quick().fit(x)
    assert theirs.getvalue() == ""
    quick(verbose=True).fit(x)
    assert theirs.getvalue().count("finetune: 2 steps") == 1
    assert capfd.readouterr() == ("", "")
    assert before == [(log.level, log.propagate, list(log.handlers)) for log in loggers]


def test_an_interrupt_is_an_interrupt(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would end the program, and ignore Ctrl-C from then on."""

    def interrupt(self: DCEC, batch: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DCEC, "pretrain_loss", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick().fit(x)
    assert signal.getsignal(signal.SIGINT) == before
