"""Measure what the framework costs: python scripts/benchmark.py, eight minutes on an idle core.

Speed is compared with a bare PyTorch loop and with an ordinary Lightning run on the same network,
optimizer and data. CPU seconds are the process's own: other jobs on the machine lengthen the wall
time and hardly them.
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from clusterlab.checks import build, training_device
from clusterlab.cli import config_folder
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.samples import Samples, as_float
from clusterlab.folders import PhaseFolder
from clusterlab.loggers import write_csv
from clusterlab.networks import Autoencoder
from clusterlab.record import commit, device_name
from clusterlab.training import fit

UPDATE_INTERVAL = 140  # T of the papers
MNIST_SIZE = 70_000


class Clock(Callback):
    """Take wall and CPU time of a training loop.

    As a callback it runs from ``on_train_start`` to ``on_train_end``, which leaves out what happens
    once: the Trainer, the loggers, the loaders. The difference of two fits of different lengths
    would leave it out too, for twice the time and the noise of both.
    """

    def start(self) -> None:
        """Start both clocks."""
        self._wait()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop both clocks."""
        self._wait()
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the first epoch."""
        self.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last."""
        self.stop()

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Case:
    """Describe what is trained: random images, since speed does not depend on what they show."""

    cfg: DictConfig
    n_samples: int
    side: int
    batch_size: int
    epochs: int = 1
    near_empty: bool = False  # a network that costs nothing, to see what the rest costs

    @property
    def shape(self) -> str:
        """Name of the data's shape."""
        return f"{self.n_samples}x1x{self.side}x{self.side}"

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.epochs * -(-self.n_samples // self.batch_size)

    def network(self) -> Autoencoder:
        """Build the autoencoder: DCEC's, or one unit between two linear layers."""
        image_shape = (1, self.side, self.side)
        if not self.near_empty:
            network: Autoencoder = build(self.cfg.network, image_shape=image_shape)
            return network
        pixels = self.side**2
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 1))
        decoder = nn.Sequential(nn.Linear(1, pixels), nn.Unflatten(1, image_shape))
        return Autoencoder(encoder, decoder, embedding_dim=1)

    def samples(self) -> Samples:
        """Draw images and labels."""
        generator = torch.Generator().manual_seed(0)
        size = (self.n_samples, 1, self.side, self.side)
        x = torch.randint(256, size, dtype=torch.uint8, generator=generator)
        return Samples("random", x, torch.arange(self.n_samples) % 10)


def bare(case: Case) -> Clock:
    """Train without a framework."""
    device = training_device(case.cfg.trainer)
    x, network = as_float(case.samples().x).to(device), case.network().to(device)
    optimizer: Optimizer = build(case.cfg.phases.pretrain.optimizer)(network.parameters())
    clock = Clock()
    clock.start()
    for _ in range(case.epochs):
        order = torch.randperm(len(x))
        for i in range(0, len(x), case.batch_size):
            batch = x[order[i : i + case.batch_size]]
            _, x_hat = network(batch)
            loss = mse_loss(x_hat, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    clock.stop()
    return clock


def ours(case: Case) -> Clock:
    """Train the pretrain phase as ``training.fit`` does."""
    return fit_phase(case, "pretrain", max_epochs=case.epochs)[0]


def fit_phase(case: Case, name: str, **settings: Any) -> tuple[Clock, dict[str, Any]]:
    """Fit one phase with changed settings; return its clock and its record."""
    cfg, clock = case.cfg.copy(), Clock()
    cfg.phases[name].update(settings)
    model = build(cfg.model, network=case.network())
    model.configure_callbacks = lambda: [clock]  # so that fit needs no entrance for a benchmark
    data = ClusterData(case.samples(), case.batch_size, cfg.seed)
    with tempfile.TemporaryDirectory() as path:
        record = fit(cfg, cfg.phases[name], name, model, data, PhaseFolder(Path(path)), ())
    return clock, record


class PlainModule(LightningModule):
    """The autoencoder as a tutorial would train it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.network = case.network()
        self.optimizer = build(case.cfg.phases.pretrain.optimizer)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss and log it."""
        _, x_hat = self.network(batch[0])
        loss = mse_loss(x_hat, batch[0])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Build the same optimizer as the others'."""
        optimizer: Optimizer = self.optimizer(self.parameters())
        return optimizer


def plain_lightning(case: Case) -> Clock:
    """Train with Lightning's defaults and a loader that asks for one sample after another."""
    clock, data = Clock(), TensorDataset(as_float(case.samples().x))
    with tempfile.TemporaryDirectory() as path:
        trainer = Trainer(
            max_epochs=case.epochs,
            devices=1,
            callbacks=[clock],
            default_root_dir=path,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        loader = DataLoader(data, batch_size=case.batch_size, shuffle=True)
        trainer.fit(PlainModule(case), loader)
    return clock


VARIANTS: dict[str, Callable[[Case], Clock]] = {
    "bare loop": bare,
    "clusterlab": ours,
    "plain Lightning": plain_lightning,
}
Measured = dict[str, list[Clock]]
Row = dict[str, Any]


def interleave(case: Case, rounds: int) -> Measured:
    """Run the variants in turn; a first round, in which libraries warm up, does not count."""
    clocks: Measured = {name: [] for name in VARIANTS}
    for i in range(rounds + 1):
        for name, variant in VARIANTS.items():
            clock = variant(case)
            if i > 0:
                clocks[name].append(clock)
    return clocks


def speed(case: Case, rounds: int) -> list[Row]:
    """Compare images per second, and their ratios round by round."""
    clocks = interleave(case, rounds)
    images, same = case.n_samples * case.epochs, {"shape": case.shape, "rounds": rounds}
    rows: list[Row] = []
    for name in VARIANTS:
        for kind, unit in (("cpu", "images / CPU s"), ("wall", "images / s")):
            value = median(images / getattr(clock, kind) for clock in clocks[name])
            rows.append({"measure": f"pretrain, {name}", "value": value, "unit": unit, **same})
    for name in list(VARIANTS)[1:]:
        for kind, unit in (("cpu", "of CPU speed"), ("wall", "of speed")):
            pairs = zip(clocks["bare loop"], clocks[name], strict=True)
            value = median(getattr(a, kind) / getattr(b, kind) for a, b in pairs)
            rows.append({"measure": f"{name} / bare loop", "value": value, "unit": unit, **same})
    return rows


def fixed_cost(case: Case, rounds: int) -> list[Row]:
    """Return what a step costs on top of the bare loop's, whatever the network."""
    clocks = interleave(case, rounds)
    rows: list[Row] = []
    for name in list(VARIANTS)[1:]:
        for kind, unit in (("cpu", "CPU ms / step"), ("wall", "ms / step")):
            pairs = zip(clocks["bare loop"], clocks[name], strict=True)
            value = median(getattr(b, kind) - getattr(a, kind) for a, b in pairs) / case.steps
            measure = f"fixed cost, {name}, {case.steps} steps"
            rows.append(
                {"measure": measure, "shape": case.shape, "value": 1000 * value, "unit": unit}
            )
    return [{**row, "rounds": rounds} for row in rows]


def refresh_share(case: Case, steps: int) -> list[Row]:
    """Return the share of a long finetune phase that refreshes take at T = 140.

    A phase has a refresh at step 0 as well, which would count for too much in a short one. So this
    is the time of a refresh over the time of a refresh and T steps, each a mean of what was seen.
    """
    settings = {"max_steps": steps, "update_interval": min(steps, UPDATE_INTERVAL), "tolerance": 0}
    clock, record = fit_phase(case, "finetune", **settings)
    refresh = record["refresh_seconds"] / record["refreshes"]
    # The clock starts after the refresh at step 0: the model's callbacks come last.
    step = (clock.wall - refresh * (record["refreshes"] - 1)) / steps
    share = refresh / (refresh + UPDATE_INTERVAL * step)
    seen = f"from {record['refreshes']} refreshes and {steps} steps"
    values = (
        (f"refreshes of finetune, T = {UPDATE_INTERVAL}, {seen}", 100 * share, "% of the time"),
        (f"one refresh, {seen}", refresh, "s"),
        (f"one finetune step, {seen}", 1000 * step, "ms"),
    )
    names = ("measure", "value", "unit")
    return [{**dict(zip(names, v, strict=True)), "shape": case.shape, "rounds": 1} for v in values]


def train_briefly(cfg: DictConfig) -> None:
    """Hold 70,000 images, pretrain 5 steps, finetune 1 with a refresh; print the peak in MiB."""
    case = Case(cfg, MNIST_SIZE, side=28, batch_size=256)
    fit_phase(case, "pretrain", max_steps=5)
    fit_phase(case, "finetune", max_steps=1)
    unit = 1024 if sys.platform == "linux" else 1024**2  # KiB there, bytes on macOS
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def peak_memory() -> list[Row]:
    """Measure ``train_briefly`` in a process of its own."""
    command = [sys.executable, __file__, "--train-briefly"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = {"measure": "peak memory, pretrain and finetune", "shape": f"{MNIST_SIZE}x1x28x28"}
    return [{**row, "value": float(output), "unit": "MiB", "rounds": 1}]


def main() -> None:
    """Measure everything, print a table and write it to a CSV."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="rounds that count (5, with --quick 1)")
    parser.add_argument("--out", type=Path, help="results/benchmark.csv, with --quick no file")
    parser.add_argument("--quick", action="store_true", help="try it out: a minute, rough numbers")
    parser.add_argument("--train-briefly", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    for name in ("lightning.pytorch", "clusterlab"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", ["data=mnist"])
    if args.train_briefly:
        return train_briefly(cfg)

    quick, rounds = args.quick, args.rounds or (1 if args.quick else 5)
    usps = Case(cfg, 9_298, side=16, batch_size=256, epochs=1 if quick else 2)
    mnist = Case(cfg, 1_280 if quick else 5_120, side=28, batch_size=256)
    tiny = Case(cfg, 4_800 if quick else 16_000, side=8, batch_size=16, near_empty=True)
    all_mnist = Case(cfg, MNIST_SIZE, side=28, batch_size=256)
    console, rows = Console(stderr=True), []
    parts: dict[str, Callable[[], list[Row]]] = {
        # First: a process inherits the peak of the one that starts it.
        "peak memory": peak_memory,
        "speed, USPS": lambda: speed(usps, rounds),
        "speed, MNIST": lambda: speed(mnist, rounds),
        "fixed cost": lambda: fixed_cost(tiny, rounds),
        "refreshes, USPS": lambda: refresh_share(usps, 20 if quick else 2 * UPDATE_INTERVAL),
        "refreshes, MNIST": lambda: refresh_share(all_mnist, 10 if quick else UPDATE_INTERVAL),
    }
    for name, part in parts.items():
        console.print(f"measuring {name} ...", style="dim")
        rows += part()

    device = device_name(training_device(cfg.trainer))
    made = {"device": device, "threads": threads, "commit": commit()}
    rows = [{**row, "value": float(f"{row['value']:.4g}"), **made} for row in rows]
    order = ("measure", "shape", "value", "unit", "rounds", "device", "threads", "commit")
    rows = [{name: row[name] for name in order} for row in rows]
    table = Table(title=f"{device}, {made['commit']}", title_justify="left")
    for column in order[:5]:
        table.add_column(column, justify="right" if column in ("value", "rounds") else "left")
    for row in rows:
        table.add_row(*(f"{row[c]:,}" if c == "value" else str(row[c]) for c in order[:5]))
    Console().print(table)
    out = args.out or (None if quick else Path("results/benchmark.csv"))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(out, rows)


if __name__ == "__main__":
    main()
