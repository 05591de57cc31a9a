"""A run inside a program: its Hydra, messages, random states and Ctrl-C stay as they were."""

import logging
import os
import random
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from sklearn.utils import check_random_state

from clusterlab.cli import LIGHTNING, quiet_lightning
from clusterlab.errors import problem
from clusterlab.files import config_folder


def composed(overrides: list[str]) -> DictConfig:
    """Compose a command line's config, and leave Hydra as it is found.

    Raises:
        UserError: If an override names or says what the config does not take.
    """
    program, base = GlobalHydra.instance().hydra, VersionBase.instance().version_base
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        got = re.split(r"\.?\n(?:To append|Config search path)", str(error))[0]  # not what + adds
        raise problem("settings that this model has", got, "correct or omit them") from None
    finally:
        GlobalHydra.instance().hydra = program
        VersionBase.instance().version_base = base


@contextmanager
def messages(verbose: bool) -> Iterator[None]:
    """Keep the package's messages to itself, or give them to the program's logging, else stderr."""
    ours = logging.getLogger("clusterlab")
    shown = verbose and not ours.hasHandlers()
    handler = logging.StreamHandler() if shown else logging.NullHandler()
    loggers = (ours, *map(logging.getLogger, LIGHTNING))
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = ours.propagate and verbose
    try:
        with warnings.catch_warnings():
            quiet_lightning()
            yield
    finally:
        ours.removeHandler(handler)
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def isolated() -> Iterator[None]:
    """Leave the program's random states, Lightning's seed and its Ctrl-C as they are found."""
    seeds = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    legacy = check_random_state(None)  # numpy.random's own
    states, on_interrupt = (random.getstate(), legacy.get_state()), signal.getsignal(signal.SIGINT)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        except SystemExit as stop:  # Lightning makes one of Ctrl-C, and ignores the next ones
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from stop
        finally:
            random.setstate(states[0])
            legacy.set_state(states[1])
            for name, value in seeds.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}
