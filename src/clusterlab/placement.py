"""Which GPU each job of a sweep on one machine has: one of its own, while there are enough."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)

PLACE = "CLUSTERLAB_PLACE"  # set in a process, and those it starts, once it has one
LOCAL = ("JoblibLauncher", "LocalLauncher")  # on Slurm, Slurm gives out the GPUs
_held: list[FileLock] = []  # let go of with the process, however that ends


def places(visible: Sequence[str], devices: int, jobs_per_gpu: int = 1) -> list[str]:
    """Divide GPUs among jobs.

    Args:
        visible: The GPUs, as ``CUDA_VISIBLE_DEVICES`` names them.
        devices: How many a job needs.
        jobs_per_gpu: How many jobs share them.

    Returns:
        For each job that may run at a time, its ``CUDA_VISIBLE_DEVICES``.

    Example:
        >>> places(["0", "1", "2"], devices=1)
        ['0', '1', '2']
        >>> places(["0", "1", "2"], devices=2, jobs_per_gpu=2)
        ['0,1', '0,1']
    """
    whole = len(visible) - len(visible) % devices
    groups = [",".join(visible[i : i + devices]) for i in range(0, whole, devices)]
    return groups * jobs_per_gpu


def visible_gpus() -> list[str]:
    """Name the GPUs of this machine as ``CUDA_VISIBLE_DEVICES`` does."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else list(map(str, range(count)))


def prepare(config: DictConfig) -> list[str]:
    """Find the places of a sweep's jobs, and let no more jobs run at a time than there are.

    Args:
        config: The sweep's composed config with its ``hydra`` node, whose launcher is changed.

    Returns:
        The places; none where jobs do not train on GPUs of this machine.
    """
    launcher, devices = config.hydra.launcher, config.trainer.devices
    on_gpu = config.trainer.accelerator in ("auto", "gpu", "cuda")
    asked = all(isinstance(n, int) and n > 0 for n in (devices, config.jobs_per_gpu))
    if not launcher._target_.endswith(LOCAL) or not on_gpu or not asked:
        return []  # and each job says what is wrong with what was asked
    gpus = visible_gpus()
    found = places(gpus, devices, config.jobs_per_gpu)
    if found and "n_jobs" in launcher and not 1 <= launcher.n_jobs <= len(found):
        text = "%d GPUs: %d jobs at a time. More share a GPU with jobs_per_gpu=2."
        log.info(text, len(gpus), len(found))
        with open_dict(config):
            launcher.n_jobs = len(found)
    return found


def take(folder: Path, found: Sequence[str]) -> None:
    """Take a place for this process until it ends; wait while others have them all.

    To be called before CUDA is: it reads the environment once. A process that has a place keeps it,
    since joblib gives many jobs to one process.

    Args:
        folder: Where the locks are, the same for all jobs.
        found: The places; none for jobs without GPUs.
    """
    if not found or PLACE in os.environ:
        return
    waiting = False
    while True:
        for i, place in enumerate(found):
            lock = FileLock(folder / f"place{i}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            os.environ[PLACE] = os.environ["CUDA_VISIBLE_DEVICES"] = place
            return
        if not waiting:
            log.info("All GPUs have a job; waiting for one.")
            waiting = True
        time.sleep(1)
