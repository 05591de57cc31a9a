"""Freed memory that stays with the process while a phase trains: the system's pages are counted."""

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from clusterlab.data.datamodule import Batch
from clusterlab.memory import MIB, kept_memory
from clusterlab.models.dcec import DCEC
from clusterlab.training import run

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")


def pages_of(n_blocks: int) -> int:
    """Return how many pages the system hands out for blocks of 48 MiB, one after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n_blocks):
        torch.ones(12 * MIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Return the process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@glibc
def test_a_block_that_was_freed_is_taken_again() -> None:
    once = pages_of(1)
    with kept_memory():
        pages_of(2)
        assert pages_of(4) < once / 2
    assert pages_of(4) > 3 * once  # of the system's each time, as before


@glibc
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
def test_it_is_given_back_afterwards() -> None:
    before = resident()
    with kept_memory():
        torch.ones(128 * MIB)
        assert resident() - before > 400 * MIB
    assert resident() - before < 100 * MIB


@glibc
def test_it_is_given_back_after_an_error() -> None:
    once = pages_of(1)
    with pytest.raises(ZeroDivisionError), kept_memory():
        raise ZeroDivisionError
    assert pages_of(4) > 3 * once


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with kept_memory():
        pass


@glibc
def test_a_phase_keeps_it(
    little: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    once, seen = pages_of(1), []
    loss = DCEC.finetune_loss

    def counted(model: DCEC, batch: Batch) -> dict[str, Tensor]:
        seen.append(pages_of(1))
        return loss(model, batch)

    monkeypatch.setattr(DCEC, "finetune_loss", counted)
    run(little())
    assert len(seen) > 5
    assert median(seen) < once / 100  # other tensors may need a piece of the block now and then
    assert pages_of(1) > once / 2
