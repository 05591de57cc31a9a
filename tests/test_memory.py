"""Freed memory that stays with the process while a phase trains: the system's pages are counted."""

import ctypes
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest.mock import patch

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from clusterlab.data.datamodule import Batch
from clusterlab.memory import MIB, kept_memory
from clusterlab.models.dcec import DCEC
from clusterlab.training import run

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
PR_SET_THP_DISABLE = 41  # of prctl(2)


def pages_of(n_blocks: int) -> int:
    """Return how many pages the system hands out for blocks of 48 MiB, one after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n_blocks):
        torch.ones(12 * MIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Return the process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def ready() -> None:
    """Have pages of 4 KiB alone, where Linux may hand out 2 MiB, and what torch loads at first."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        assert libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
    pages_of(1)


def alone(check: Callable[..., None], *args: object) -> None:
    """Call in a new process: a heap that has a history may hold a free piece of any size."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=ready) as pool:
        pool.submit(check, *args).result()


def kept() -> int:
    """Return how many bytes of a block of 512 MiB are still the process's after it was freed."""
    before = resident()
    torch.ones(128 * MIB)
    return resident() - before


def taken_again() -> None:
    once = pages_of(1)
    with kept_memory():
        # Other objects may need a piece of the block now and then.
        assert median([pages_of(1) for _ in range(9)]) < once / 100


def given_back() -> None:
    before = resident()
    with kept_memory():
        assert kept() > 400 * MIB
    assert resident() - before < 100 * MIB
    assert kept() < 100 * MIB


def given_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), kept_memory():
        raise ZeroDivisionError
    assert kept() < 100 * MIB


def kept_in_a_phase(cfg: DictConfig) -> None:
    once, seen = pages_of(1), []
    loss = DCEC.finetune_loss

    def counted(model: DCEC, batch: Batch) -> dict[str, Tensor]:
        seen.append(pages_of(1))
        return loss(model, batch)

    with patch.object(DCEC, "finetune_loss", counted):
        run(cfg)
    assert len(seen) > 5
    assert median(seen) < once / 100
    assert kept() < 100 * MIB


@glibc
def test_a_block_that_was_freed_is_taken_again() -> None:
    alone(taken_again)


@glibc
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
def test_it_is_given_back_afterwards() -> None:
    alone(given_back)


@glibc
def test_it_is_given_back_after_an_error() -> None:
    alone(given_back_after_an_error)


@glibc
def test_a_phase_keeps_it(little: Callable[..., DictConfig]) -> None:
    alone(kept_in_a_phase, little())


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with kept_memory():
        pass
