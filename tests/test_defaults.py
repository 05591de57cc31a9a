"""What ``auto`` stands for, against runs that were published."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from clusterlab.checks import build, network_for
from clusterlab.data.samples import Samples
from clusterlab.defaults import (
    batch_size_for,
    epochs_for,
    fit_to_data,
    standardized,
    update_interval_for,
)

Compose = Callable[..., DictConfig]


def images(n: int) -> Samples:
    return Samples("pictures", torch.zeros(n, 1, 8, 8, dtype=torch.uint8))


def test_the_papers_choices_for_their_data() -> None:
    assert batch_size_for(70_000) == batch_size_for(9_298) == 256
    assert update_interval_for(-(-70_000 // 256)) == pytest.approx(140, abs=5)  # DCEC, MNIST
    assert update_interval_for(-(-9_298 // 256)) == 30  # DEC-DA, USPS
    assert epochs_for(-(-9_298 // 256)) == 200  # DCEC


@pytest.mark.parametrize("n", [2, 15, 16, 100, 2_047, 2_048, 1_000_000])
def test_the_rules_hold_for_any_size(n: int) -> None:
    size = batch_size_for(n)
    assert 1 <= size <= min(n, 256)
    assert n < 128 or 8 * size <= n
    steps = -(-n // size)
    epochs = epochs_for(steps)
    assert epochs * steps <= 50_000 or epochs == 1
    assert epochs * steps >= 2_000
    assert update_interval_for(steps) >= max(30, steps / 2)


def test_own_data_gets_what_fits_it(compose: Compose, caplog: pytest.LogCaptureFixture) -> None:
    cfg = compose("data=npz", "data.path=x.npz", "n_clusters=3")
    with caplog.at_level("INFO", logger="clusterlab"):
        fit_to_data(cfg, images(1_000))
    pretrain, finetune = cfg.phases.pretrain, cfg.phases.finetune
    facts = [cfg.data.batch_size, pretrain.max_epochs, finetune.update_interval]
    assert facts == [64, 200, 30]
    assert finetune.callbacks.target_refresh.update_interval == 30
    assert pretrain.augment._target_ == finetune.augment._target_
    assert pretrain.augment.degrees == 10
    assert "data.batch_size=64 phases.pretrain.max_epochs=200" in caplog.text
    assert "augment@phases.finetune.augment=affine" in caplog.text


def test_what_is_asked_for_wins(compose: Compose) -> None:
    asked = ("data.batch_size=10", "data.augment=null", "phases.finetune.update_interval=7")
    cfg = compose("data=npz", "data.path=x.npz", "phases.pretrain.max_epochs=3", *asked)
    fit_to_data(cfg, images(1_000))
    pretrain, finetune = cfg.phases.pretrain, cfg.phases.finetune
    facts = [cfg.data.batch_size, pretrain.max_epochs, finetune.update_interval]
    assert facts == [10, 3, 7]
    assert "augment" not in pretrain
    assert "augment" not in finetune
    asked = ("augment@phases.finetune.augment=rotate_scale",)
    cfg = compose("data=npz", "data.path=x.npz", *asked)
    fit_to_data(cfg, images(1_000))
    assert cfg.phases.finetune.augment.translate == 0
    assert cfg.phases.pretrain.augment.translate > 0


def test_many_images_vectors_and_methods_without_a_phase(compose: Compose) -> None:
    cfg = compose("data=npz", "data.path=x.npz")
    fit_to_data(cfg, images(20_000))
    assert "augment" not in cfg.phases.finetune
    cfg = compose("data=npz", "data.path=x.npz", "model=sae_kmeans")
    fit_to_data(cfg, Samples("vectors", torch.zeros(500, 3)))
    assert "augment" not in cfg.phases.pretrain
    cfg = compose("data=npz", "data.path=x.npz", "model=kmeans")
    fit_to_data(cfg, images(300))
    assert cfg.data.batch_size == 32
    cfg = compose("data=npz", "data.path=x.npz", "model=icae_no_augmentation")
    fit_to_data(cfg, images(300))
    assert cfg.phases.finetune.augment is None


@pytest.mark.parametrize("data", ["npz", "array"])
def test_own_vectors_are_standardised(compose: Compose, data: str) -> None:
    """Whatever the network's scale; neither images are nor the sets that papers scale their way."""
    x = 50 + 20 * torch.randn(5_000, 8, generator=torch.Generator().manual_seed(0))
    vectors, pictures = Samples("vectors", x), images(30)
    given = (f"data={data}", *(["data.path=x.npz"] if data == "npz" else []))
    for asked, scale in ((["cdc"], 1), (["idec"], 1), (["idec", "network.scale=3"], 3)):
        cfg = compose(*given, "n_clusters=4", f"model={asked[0]}", *asked[1:])
        assert standardized(cfg.data, vectors)
        assert not standardized(cfg.data, pictures)
        node = network_for(cfg.network, vectors, standardize=True)
        seen = build(node).seen(x)
        assert [seen.mean(), seen.std()] == pytest.approx([0, scale], abs=1e-3)
    cfg = compose("model=cdc", *given, "n_clusters=4", "data.standardize=false")
    assert not standardized(cfg.data, vectors)
    assert network_for(cfg.network, vectors).scale == 1
    for name in ("stl10", "reuters10k", "newsgroups20"):
        assert not standardized(compose(f"data={name}").data, vectors)


@pytest.mark.parametrize("experiment", ["dcec_table1", "sdcec_table1", "dec_da_usps"])
def test_experiments_keep_the_papers_numbers(compose: Compose, experiment: str) -> None:
    cfg = compose(f"experiment={experiment}", "hydra.mode=RUN")
    before = cfg.copy()
    fit_to_data(cfg, images(9_298))
    assert cfg == before
    assert cfg.data.batch_size == 256
    expected = {"dec_da_usps": [500, 30]}.get(experiment, [200, 140])
    finetune = cfg.phases.finetune
    assert [cfg.phases.pretrain.max_epochs, finetune.update_interval] == expected


def test_twenty_images_are_enough_to_start(compose: Compose, tmp_path: Path) -> None:
    from clusterlab.training import run

    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    few = ("phases.pretrain.max_epochs=2", "phases.finetune.max_steps=5", "trainer=cpu")
    small = ("network.filters=[2,2,2]", "figures=false", f"data.path={tmp_path / 'x.npz'}")
    record = run(compose("data=npz", "n_clusters=2", *few, *small))
    assert record["phases"]["pretrain"]["steps"] == 4
    assert record["config"]["data"]["batch_size"] == 16
