"""What a machine can and cannot do, told before hours are spent on it."""

import pytest
import torch
from omegaconf import OmegaConf

from clusterlab.checks import build, check_precision, check_weights, network_for
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError
from clusterlab.record import device_name


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


def test_a_cpu_is_named_with_its_vectors_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for vectors in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda v=vectors: v)
        names.append(device_name(torch.device("cpu")))
    assert names[0].endswith(", AVX2, 1 thread")
    assert names[1] == names[0].replace("AVX2", "AVX512")


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
