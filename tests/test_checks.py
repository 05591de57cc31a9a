"""What a machine can and cannot do, told before hours are spent on it."""

import pytest
import torch

from clusterlab.checks import check_precision
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
