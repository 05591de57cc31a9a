"""Which GPU each job of a sweep on one machine has: one of its own, while there are enough."""

import getpass
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)

PLACE = "CLUSTERLAB_PLACE"  # set in a process, and those it starts, once it has one
LOCAL = ("JoblibLauncher", "LocalLauncher")  # on Slurm, Slurm gives out the GPUs
_held: list[FileLock] = []  # let go of with the process, however that ends


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
        The places: for each job that may run at a time, its GPU; none where jobs do not train on
        GPUs of this machine.
    """
    launcher, shared = config.hydra.launcher, config.jobs_per_gpu
    on_gpu = config.trainer.accelerator in ("auto", "gpu", "cuda")
    asked = isinstance(shared, int) and shared > 0
    if not launcher._target_.endswith(LOCAL) or not on_gpu or not asked:
        return []  # and each job says what is wrong with what was asked
    gpus = visible_gpus()
    found: list[str] = gpus * shared
    if found and "n_jobs" in launcher and not 1 <= launcher.n_jobs <= len(found):
        text = "%d GPUs: %d jobs at a time. More share a GPU with jobs_per_gpu=2."
        log.info(text, len(gpus), len(found))
        with open_dict(config):
            launcher.n_jobs = len(found)
    return found


def take(found: Sequence[str]) -> None:
    """Take a place for this process until it ends; wait while others have them all.

    To be called before CUDA is: it reads the environment once. A process that has a place keeps it,
    since joblib gives many jobs to one process. The locks are the same for all of a user's sweeps
    on this machine.

    Args:
        found: The places; none for jobs without GPUs.
    """
    if not found or PLACE in os.environ:
        return
    user = getattr(os, "getuid", getpass.getuser)()
    folder = Path(tempfile.gettempdir(), f"clusterlab-{user}")
    folder.mkdir(exist_ok=True)
    waiting = False
    while True:
        for i, place in enumerate(found):
            name = f"gpu{place}-{found[:i].count(place)}.lock"
            lock = FileLock(folder / name.replace("/", "-"))  # slashes are in names of parts
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
