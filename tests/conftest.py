"""Fixtures shared by the tests."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from clusterlab.callbacks import StepLimit
from clusterlab.cli import config_folder
from clusterlab.data.augment import RandomAffine
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.samples import Samples
from clusterlab.data.sources import digits
from clusterlab.losses import kl_divergence
from clusterlab.models.base import DeepClustering
from clusterlab.models.dcec import DCEC
from clusterlab.networks import ConvAutoencoder
from clusterlab.training import run


def pytest_configure() -> None:
    """Keep to one thread: on tensors this small several only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def prepared_root() -> Path:
    """The folder of the prepared data sets; tests that need it are skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("CLUSTERLAB_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no prepared data in {root}; set CLUSTERLAB_DATA")
    return root


@pytest.fixture(scope="session")
def tiny() -> Samples:
    """203 digits, 7 x 29: neither batches nor ranks come out even."""
    samples = digits()
    assert samples.y is not None
    return Samples("tiny", samples.x[:203], samples.y[:203])


@pytest.fixture
def dcec() -> Callable[..., DCEC]:
    """Make a small DCEC, the same weights each time; keyword arguments replace settings."""

    def make(cls: type[DCEC] = DCEC, embedding_dim: int = 10, **settings: Any) -> DCEC:
        torch.manual_seed(0)
        network = ConvAutoencoder((1, 8, 8), embedding_dim, filters=(4, 8, 16))
        defaults = {
            "n_clusters": 10,
            "divergence": kl_divergence,
            "gamma": 0.1,
            "reconstruction": 1.0,
            "seed": 0,
            "n_init": 3,
        }
        return cls(network, **(defaults | settings))

    return make


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trainer]:
    """Train one phase as ``clusterlab.phases.fit`` does, and return the trainer."""

    def train(
        model: DeepClustering,
        samples: Samples,
        phase: str,
        callbacks: Sequence[Callback] = (),
        batch_size: int = 64,
        max_steps: int = -1,
        max_epochs: int = -1,
        ckpt_path: Path | None = None,
        augment: RandomAffine | None = None,
        **kwargs: Any,
    ) -> Trainer:
        model.phase = phase
        trainer = Trainer(
            **{"logger": False, **kwargs},
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            callbacks=[*callbacks, StepLimit(max_steps)],
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )
        data = ClusterData(samples, batch_size, seed=0)
        data.augment = augment
        trainer.fit(model, data, ckpt_path=ckpt_path)
        return trainer

    return train


# What a figure is of, and what it shows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def suptitle(figure: Figure) -> str:
    return figure.get_suptitle()


def draw(figure: Figure) -> None:
    """Render, which is where overfull layouts and missing glyphs warn; warnings are errors."""
    figure.canvas.draw()


# Whole runs: from a config in this process, or as commands in processes of their own

# A second for both phases; 37 steps are no multiple of T, so that the last refresh is an extra one.
LITTLE = (
    "data=npz",
    "data.batch_size=40",
    "data.augment=null",
    "n_clusters=5",
    "network.filters=[4,8,16]",
    "model.n_init=2",
    "phases.pretrain.max_epochs=3",
    "phases.finetune.update_interval=10",
    "phases.finetune.max_steps=37",
    "phases.finetune.tolerance=0",
    "trainer=cpu",
    "figures=false",
)
# So that its clusters do not collapse after that little pretraining: labels differ, scores tell.
FINISHED = (*LITTLE, "phases.finetune.optimizer.lr=0.0001")


# The same for a model of three phases; each writes two checkpoints if it may write at every epoch.
LITTLE_IDCEC = (
    *("model=idcec", "data=npz", "data.batch_size=40", "n_clusters=5", "trainer=cpu"),
    *("network.filters=[4,6,8]", "model.classifier.filters=[4,6]", "model.n_init=2"),
    *("phases.pretrain.max_epochs=3", "phases.finetune.max_steps=14", "figures=false"),
    *("phases.finetune.update_interval=4", "phases.finetune.tolerance=0"),
    *("phases.retrain.max_epochs=3", "phases.retrain.tolerance=0"),
)


# The papers' methods with networks as small
SMALL = ("network.filters=[4,6,8]",)
MODELS = {
    "dcec": SMALL,
    "sdcec": (*SMALL, "data.labelled=5"),
    "idcec": (*SMALL, "model.classifier.filters=[4,6]", "phases.retrain.max_epochs=3"),
    "cdc": ("network.hidden=[20,30]",),
    "icae": (*SMALL, "network.embedding_dim=6"),
}


@pytest.fixture(scope="session")
def little_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sorts of digits, 200 images of 8 x 8, with their labels."""
    samples = digits()
    assert samples.y is not None
    kept = torch.nonzero(samples.y < 5).flatten()[:200]
    path = tmp_path_factory.mktemp("data") / "little.npz"
    np.savez(path, x=samples.x[kept].numpy(), y=samples.y[kept].numpy())
    return path


def composed(folder: Path, *overrides: str) -> DictConfig:
    """Compose a command line's config; its run folder is ``folder/run`` unless overridden."""
    where = (f"output_dir={folder}", f"run_dir={folder / 'run'}")
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return hydra.compose("train", [*where, *overrides])


def script_module(name: str) -> ModuleType:
    """Return a program of ``scripts/`` as a module."""
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose a command line's config; its run folder is ``tmp_path/run`` unless overridden."""
    return partial(composed, tmp_path)


@pytest.fixture(scope="session")
def finished(
    little_npz: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictConfig, dict[str, Any]]:
    """The config and the record of a finished little run; change nothing in its folders."""
    folder = tmp_path_factory.mktemp("finished")
    cfg = composed(folder, *FINISHED, f"data.path={little_npz}")
    return cfg, run(cfg)


@pytest.fixture
def little(compose: Callable[..., DictConfig], little_npz: Path) -> Callable[..., DictConfig]:
    """Compose the config of a run that takes a second."""

    def make(*overrides: str) -> DictConfig:
        return compose(*LITTLE, f"data.path={little_npz}", *overrides)

    return make


def own_method(folder: Path) -> Path:
    """Write the methods of one's own that the README and the results show into ``folder/mine``."""
    pages = [Path(__file__).parents[1] / page for page in ("README.md", "docs/results.md")]
    shown = "".join(page.read_text() for page in pages)
    for text in re.findall(r"^```\w+\n(#.*?)^```$", shown, re.DOTALL | re.MULTILINE):
        (name,) = re.findall(r"^# (mine/\S+)$", text, re.MULTILINE)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "mine"


# Imports once and forks a process per command: five seconds less each than a new interpreter.
FORKER = """
import json, os, signal, sys, traceback
import sklearn.cluster
import clusterlab.cli, clusterlab.predict, clusterlab.training

for line in sys.stdin:
    order = json.loads(line)
    if "poll" in order:
        pid, status = os.waitpid(order["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.argv = order["argv"]
    try:
        exec(order["before"], {})
        {"train": clusterlab.cli.main, "predict": clusterlab.predict.main}[order["program"]]()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@dataclass
class Command:
    """One process of the command line, with what it printed so far in files."""

    commands: "Commands"
    pid: int
    out: Path
    err: Path
    code: int | None = None

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; -9 if it was killed."""
        if self.code is None:
            self.code = self.commands.ask(poll=self.pid)
        return self.code

    def wait(self, timeout: float = 120) -> int:
        """Wait for the exit code."""
        self.until(lambda: False, timeout)
        assert self.code is not None, f"still running after {timeout} s: {self.stderr}"
        return self.code

    def until(self, happened: Callable[[], bool], timeout: float = 60) -> bool:
        """Wait until something happened or the process ended; tell whether it happened."""
        end = time.monotonic() + timeout
        while not (met := happened()) and self.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        return met

    def kill(self) -> None:
        """Kill -9."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.wait()


class Commands:
    """Start ``train.py`` and ``predict.py`` in processes of their own.

    Args:
        folder: Where their output goes, and where they run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = 0
        self.forker = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    def ask(self, **order: Any) -> Any:
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        self.forker.stdin.write(json.dumps(order) + "\n")
        self.forker.stdin.flush()
        return json.loads(self.forker.stdout.readline())

    def start(
        self,
        *argv: str | Path,
        program: str = "train",
        cwd: Path | None = None,
        before: str = "",
        **env: str,
    ) -> Command:
        """Start a command; ``before`` is Python that its process executes first."""
        self.started += 1
        out, err = (self.folder / f"{self.started}.{name}" for name in ("out", "err"))
        pid = self.ask(
            program=program,
            argv=[f"{program}.py", *map(str, argv)],
            cwd=str(cwd or self.folder),
            env=env,
            before=before,
            stdout=str(out),
            stderr=str(err),
        )
        return Command(self, pid, out, err)

    def run(self, *argv: str | Path, **kwargs: Any) -> Command:
        """Start a command and wait for its end."""
        command = self.start(*argv, **kwargs)
        command.wait()
        return command


@pytest.fixture(scope="session")
def _commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    assert commands.forker.stdin is not None
    assert commands.forker.stdout is not None
    commands.forker.stdin.close()
    commands.forker.stdout.close()
    commands.forker.wait()


@pytest.fixture
def commands(_commands: Commands, tmp_path: Path) -> Commands:
    """Start commands in processes of their own, from ``tmp_path``."""
    _commands.folder = tmp_path
    return _commands


@pytest.fixture
def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call a program in this process; return its exit code and what it printed."""

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


class KilledError(Exception):
    """Stands for the end of a process."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            raise KilledError
