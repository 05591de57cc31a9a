"""What a machine can and cannot do, told before hours are spent on it."""

import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from clusterlab import page, predict, scan
from clusterlab.checks import (
    build,
    build_one,
    check_network,
    check_precision,
    check_weights,
    class_of,
    network_for,
)
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.models.base import check_terms
from clusterlab.networks import Autoencoder, MLPAutoencoder, Pixels
from clusterlab.record import device_name
from conftest import composed


@pytest.mark.parametrize(
    ("vectors", "precision", "device", "told"),
    [
        ("AVX2", "bf16-mixed", "cpu", True),
        ("AVX2", "32-true", "cpu", False),
        ("AVX2", "bf16-mixed", "cuda", False),
        ("AVX512", "bf16-mixed", "cpu", False),
    ],
)
def test_bf16_on_a_cpu_that_is_slower_with_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    vectors: str,
    precision: str,
    device: str,
    told: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    check_precision(precision, torch.device(device))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * told
    assert all("trainer.precision=32-true is faster" in line for line in caplog.messages)


def test_a_cpu_is_named_with_its_vectors_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr("clusterlab.record.CPUINFO", info)
    names = []
    for vectors, flag in (("AVX2", ""), ("AVX512", "amx_int8"), ("AVX512", "amx_bf16")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda v=vectors: v)
        info.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t: fpu {flag} avx\n" * 2)
        names.append(device_name(torch.device("cpu")))
    assert names == [f"A CPU, {v}, 1 thread" for v in ("AVX2", "AVX512", "AVX512 and AMX")]


def test_weights_are_numbers_and_what_is_built_is_none() -> None:
    loss = OmegaConf.create({"gamma": 0, "eta": 0.75, "divergence": {"_target_": "builtins.dict"}})
    check_weights(loss)
    for weight in ("0.1", None, True, -1e-9, float("nan"), float("inf"), [1.0]):
        loss.eta = weight
        with pytest.raises(
            UserError, match=r"a weight from 0 on as loss\.eta, got .+; set loss\.eta"
        ):
            check_weights(loss)


def test_a_scale_is_a_number() -> None:
    samples = Samples("little", torch.zeros(4, 1, 8, 8))
    mlp = {"_target_": "clusterlab.networks.MLPAutoencoder", "embedding_dim": 2}
    node = OmegaConf.create({"network": {**mlp, "scale": "abc"}})
    with pytest.raises(UserError, match=r"a number as network\.scale, got 'abc'"):
        network_for(node.network, samples)


def test_what_a_class_does_not_take_is_told_with_its_place() -> None:
    config = OmegaConf.create({"a": {"b": {"_target_": "datetime.timedelta", "days": "abc"}}})
    with pytest.raises(UserError) as told:
        build(config.a)
    assert "'datetime.timedelta'" in str(told.value)
    assert "full_key: a.b" in str(told.value)
    assert "\n" not in str(told.value)


def test_what_cannot_be_imported_is_told_with_its_name() -> None:
    config = OmegaConf.create({"callbacks": {"mine": {"_target_": "no_such_module.Mine"}}})
    with pytest.raises(UserError, match=r"'no_such_module'.+; install what is missing") as told:
        build(config.callbacks)
    assert "no_such_module.Mine" in str(told.value)


def test_what_is_of_another_kind_is_told_with_the_kind() -> None:
    node = OmegaConf.create({"_target_": "datetime.timedelta", "days": 3})
    assert build_one(timedelta, node).days == 3
    told = (
        "Samples from datetime.timedelta, got a timedelta; make it one of clusterlab.data.samples"
    )
    with pytest.raises(UserError, match=told):
        build_one(Samples, node)


@pytest.mark.parametrize("method", ["dec", "idec", "dcec", "idcec", "sdcec", "cdc", "icae"])
@pytest.mark.parametrize("name", ["cae", "mlp", "mlp_cdc", "pooled_cae", "residual_small"])
def test_each_method_goes_with_each_network(method: str, name: str, tmp_path: Path) -> None:
    cfg = composed(tmp_path, f"model={method}", f"network={name}", "n_clusters=5")
    samples = Samples("eight", torch.rand(4, 3, 8, 8))
    network = build_one(Autoencoder, network_for(cfg.network, samples))
    check_network(network, samples)
    if method == "icae" and name != "residual_small":
        told = f"length 1 from {type(network).__name__}, got .*; set network=residual"
        with pytest.raises(UserError, match=told):
            check_network(network, samples, class_of(cfg.model).unit_length)
    else:
        check_network(network, samples, class_of(cfg.model).unit_length)


IN, OUT = nn.Flatten(), nn.Unflatten(1, (1, 4, 4))


@pytest.mark.parametrize(
    ("encoder", "decoder", "told"),
    [
        (
            nn.Linear(16, 3),
            nn.Linear(3, 16),
            r"layers of Autoencoder .* \(1, 4, 4\), got the error",
        ),
        (nn.Sequential(IN, nn.Linear(16, 2)), OUT, "layers of Autoencoder .* got the error"),
        (
            nn.Sequential(IN, nn.Linear(16, 2)),
            nn.Sequential(nn.Linear(2, 16), OUT),
            r"embeddings of shape \(3,\) from Autoencoder, got \(2,\); correct its layers",
        ),
        (  # mse_loss would broadcast these
            nn.Sequential(IN, nn.Linear(16, 3)),
            nn.Sequential(nn.Linear(3, 1), nn.Unflatten(1, (1, 1, 1))),
            r"reconstructions of shape \(1, 4, 4\) from Autoencoder, got \(1, 1, 1\); correct",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    encoder: nn.Module, decoder: nn.Module, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        check_network(Autoencoder(encoder, decoder, 3), Samples("four", torch.rand(5, 1, 4, 4)))


def test_a_network_without_weights_is_for_methods_that_train_none() -> None:
    samples = Samples("four", torch.rand(5, 1, 4, 4))
    check_network(Pixels((1, 4, 4)), samples, trained=False)
    with pytest.raises(UserError, match="weights to train, got Pixels, which has none; set netw"):
        check_network(Pixels((1, 4, 4)), samples)


def test_a_network_that_fits_is_left_as_it_is() -> None:
    x = torch.rand(5, 16) - 0.5
    samples, generator = Samples("vectors", x.clone()), torch.get_rng_state()
    network = MLPAutoencoder((16,), 3, [8])
    inner = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(), nn.BatchNorm1d(16), network.encoder)
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    torch.set_rng_state(generator)
    check_network(Autoencoder(inner, network.decoder, 3), samples)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(samples.x, x)
    assert inner.training
    assert all(torch.equal(value, before[name]) for name, value in inner.state_dict().items())


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (torch.tensor(1.0), "a dict of terms from finetune_loss, got a Tensor;"),
        ({}, r"a dict of terms from finetune_loss, got \{\};"),
        (
            {"clustering": torch.tensor(1.0), "mine": torch.zeros(7)},
            r"one number as the term 'mine' of finetune_loss, got a Tensor of shape \(7,\); return",
        ),
        ({"mine": 0.5}, "as the term 'mine' of finetune_loss, got a float; return"),
    ],
)
def test_a_loss_is_a_dict_of_scalars(terms: object, told: str) -> None:
    check_terms({"clustering": torch.tensor(1.0)}, "finetune_loss")
    with pytest.raises(UserError, match=told):
        check_terms(terms, "finetune_loss")


@pytest.mark.parametrize("program", [page, predict, scan])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_programs_say_how_they_are_called(
    program: ModuleType,
    flag: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", flag])
    program.main()
    assert capsys.readouterr() == (f"usage: {program.USAGE}\n", "")
