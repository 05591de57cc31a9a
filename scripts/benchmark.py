"""Measure what the framework costs: python scripts/benchmark.py, minutes on an idle core.

The measure is a bare PyTorch loop with the same network, optimizer and data. CPU seconds are the
process's own: other jobs on the machine disturb them less than wall time.
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
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from clusterlab.callbacks import TargetRefresh
from clusterlab.checks import build, network_for, training_device
from clusterlab.cli import config_folder
from clusterlab.data.augment import RandomAffine
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.samples import Samples, as_float
from clusterlab.folders import PhaseFolder
from clusterlab.loggers import Row, write_csv
from clusterlab.networks import Autoencoder
from clusterlab.phases import fit
from clusterlab.record import commit, device_name
from clusterlab.results import read_records

T = 140  # steps between two refreshes in the papers


class Clock(Callback):
    """Take the seconds from ``on_train_start`` to ``on_train_end``, which leaves set-up out."""

    # The difference of two fits, a short and a long one, would too, for twice the time and noise.
    record: dict[str, Any]  # of the phase, where there is one
    _last = (0.0, 0.0)

    def tick(self) -> None:
        """Set ``seconds`` to what went by since the last tick."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = (time.process_time(), time.perf_counter())
        self.seconds = {"CPU": now[0] - self._last[0], "wall": now[1] - self._last[1]}
        self._last = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the first epoch, after the refresh at step 0."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.refreshed = sum(c.seconds for c in callbacks if isinstance(c, TargetRefresh))
        self.tick()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last."""
        self.tick()


@dataclass(frozen=True)
class Case:
    """Say what is trained: random images, since speed does not depend on what they show."""

    cfg: DictConfig
    n_samples: int
    side: int
    batch_size: int = 256
    near_empty: bool = False  # a network that costs nothing, to see what the rest costs

    def network(self) -> Autoencoder:
        """Build the autoencoder: the method's, or one unit between two linear layers."""
        if self.near_empty:
            shape, pixels = (1, self.side, self.side), self.side**2
            encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 1))
            decoder = nn.Sequential(nn.Linear(1, pixels), nn.Unflatten(1, shape))
            return Autoencoder(encoder, decoder, embedding_dim=1)
        return build(self.fitted.network)  # type: ignore[no-any-return]

    @cached_property
    def fitted(self) -> DictConfig:
        """Return the config with what a run fills in from its data."""
        cfg = self.cfg.copy()
        cfg.network = network_for(cfg.network, self.samples())
        return cfg

    def samples(self) -> Samples:
        """Draw images and labels."""
        x = torch.randint(256, (self.n_samples, 1, self.side, self.side), dtype=torch.uint8)
        return Samples("random", x, torch.arange(self.n_samples) % 10)

    def row(self, measure: str, value: float, unit: str, rounds: int = 1) -> Row:
        """Return a row of the result."""
        shape, value = f"{self.n_samples}x1x{self.side}x{self.side}", float(f"{value:.4g}")
        return {"measure": measure, "shape": shape, "value": value, "unit": unit, "rounds": rounds}


def bare(case: Case) -> Clock:
    """Train an epoch without a framework."""
    device = training_device(case.cfg.trainer)
    x, network = as_float(case.samples().x).to(device), case.network().to(device)
    optimizer = build(case.cfg.phases.pretrain.optimizer)(network.parameters())
    clock = Clock()
    clock.tick()
    order = torch.randperm(len(x))
    for i in range(0, len(x), case.batch_size):
        batch = x[order[i : i + case.batch_size]]
        loss = mse_loss(network(batch)[1], batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    clock.tick()
    return clock


def fit_phase(case: Case, name: str = "pretrain", **settings: int) -> Clock:
    """Fit one phase as a run does, with changed settings."""
    cfg, clock = case.fitted.copy(), Clock()  # IDCEC's classifier asks for the images' shape too
    cfg.phases[name].update(settings or {"max_epochs": 1})
    model = build(cfg.model, network=case.network())
    model.configure_callbacks = lambda: [clock]  # so that fit needs no entrance for a benchmark
    data = ClusterData(case.samples(), case.batch_size, cfg.seed)
    with tempfile.TemporaryDirectory() as path:
        clock.record = fit(cfg, cfg.phases[name], name, model, data, PhaseFolder(Path(path)), ())
    return clock


class PlainModule(LightningModule):
    """Train the autoencoder as a tutorial would."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.network = case, case.network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss and log it."""
        loss = mse_loss(self.network(batch[0])[1], batch[0])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Build the same optimizer as the others'."""
        return build(self.case.cfg.phases.pretrain.optimizer)(self.parameters())


def plain_lightning(case: Case) -> Clock:
    """Train with Lightning's defaults and a loader that asks for one sample after another."""
    clock, data = Clock(), TensorDataset(as_float(case.samples().x))
    off = ("enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    options: dict[str, Any] = {"max_epochs": 1, "devices": 1, **dict.fromkeys(off, False)}
    with tempfile.TemporaryDirectory() as path:
        trainer = Trainer(callbacks=[clock], default_root_dir=path, **options)
        trainer.fit(PlainModule(case), DataLoader(data, batch_size=case.batch_size, shuffle=True))
    return clock


VARIANTS = {"bare loop": bare, "clusterlab": fit_phase, "plain Lightning": plain_lightning}


def compare(case: Case, rounds: int) -> list[Row]:
    """Run the variants in turn and return medians: speeds and their ratios, or the fixed cost."""
    seen = [{name: v(case).seconds for name, v in VARIANTS.items()} for _ in range(rounds + 1)]
    del seen[0]  # libraries warm up in it; many short rounds, since other jobs come and go
    rows, steps = [], -(-case.n_samples // case.batch_size)
    for kind in ("CPU", "wall"):
        for name in VARIANTS if not case.near_empty else ():
            value = median(case.n_samples / seconds[name][kind] for seconds in seen)
            rows.append(case.row(f"pretrain, {name}", value, f"images / {kind} s", rounds))
        for name in list(VARIANTS)[1:]:
            pairs = [(seconds["bare loop"][kind], seconds[name][kind]) for seconds in seen]
            if case.near_empty:
                value = median(1000 * (b - a) for a, b in pairs) / steps
                rows.append(case.row(f"fixed cost, {name}", value, f"{kind} ms / step", rounds))
            else:
                value = median(a / b for a, b in pairs)
                rows.append(case.row(f"{name} / bare loop", value, f"{kind} ratio", rounds))
    return rows


def refresh_share(case: Case, steps: int) -> list[Row]:
    """Return the share of a long finetune phase that refreshes take.

    That is, of a refresh and T steps, each a mean: a short phase's first refresh counts too much.
    """
    clock = fit_phase(case, "finetune", max_steps=steps, update_interval=T)
    seconds, n = clock.record["refresh_seconds"], clock.record["refreshes"]
    refresh, step = seconds / n, (clock.seconds["wall"] - seconds + clock.refreshed) / steps
    share = 100 * refresh / (refresh + T * step)
    measure = f"refreshes at T = {T}, from {n} of them and {steps} steps"
    return [case.row(measure, share, "% of finetune"), case.row("one refresh", refresh, "wall s")]


def augmentation(case: Case, rounds: int) -> Row:
    """Return how many images a second a phase's augmentation changes, a batch at a time."""
    augment = RandomAffine(degrees=10, translate=0.1, scale=0.1)
    x = as_float(case.samples().x)
    seen = []
    for _ in range(rounds + 1):
        start = time.process_time()
        maps = augment.maps(len(x), case.side, case.side, torch.Generator().manual_seed(0))
        for index in torch.randperm(len(x)).split(case.batch_size):
            augment(x[index], maps[index])
        seen.append(case.n_samples / (time.process_time() - start))
    return case.row("augmentation, affine", median(seen[1:]), "images / CPU s", rounds)


def cost(case: Case, rounds: int, measure: str, changed: list[str], base: list[str]) -> Row:
    """Return how many times longer a case pretrains with some settings than with others.

    Args:
        case: What is trained.
        rounds: Rounds that count.
        measure: Name of the row.
        changed: Settings, ``key=value``, on top of the case's.
        base: Those of what it is compared with.
    """
    cases = []
    for settings in (changed, base):
        cfg = case.cfg.copy()
        cfg.merge_with_dotlist(settings)
        cases.append(replace(case, cfg=cfg))
    seen = [[fit_phase(c).seconds["CPU"] for c in cases] for _ in range(rounds + 1)]
    value = median(ours / theirs for ours, theirs in seen[1:])
    return case.row(measure, value, "CPU ratio", rounds)


def without(case: Case, rounds: int, measure: str, part: str, instead: object) -> Row:
    """Return how many times longer the first phase takes without a part of the code.

    Args:
        case: What is trained.
        rounds: Rounds that count.
        measure: Name of the row.
        part: Where the part is, as for ``patch``.
        instead: What takes its place.
    """
    phase, seen = str(next(iter(case.cfg.phases))), []
    for _ in range(rounds + 1):
        ours = fit_phase(case, phase).seconds["CPU"]
        with patch(part, instead):
            seen.append(fit_phase(case, phase).seconds["CPU"] / ours)
    return case.row(measure, median(seen[1:]), "CPU ratio", rounds)


def peak_memory(case: Case) -> list[Row]:
    """Pretrain 5 steps and finetune 1 with its refreshes, in a process of its own."""
    if "--memory" not in sys.argv:
        command = [sys.executable, __file__, "--memory"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return [case.row("peak memory, both phases", float(output), "MiB")]
    fit_phase(case, "pretrain", max_steps=5)
    fit_phase(case, "finetune", max_steps=1)
    unit = 1024 if sys.platform == "linux" else 1024**2  # KiB there, bytes on macOS
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    sys.exit()


def main() -> None:
    """Measure everything, print a table and write it to a CSV, beside what other devices have."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="rounds that count; 9, with --quick 2")
    parser.add_argument("--out", type=Path, help="results/benchmark.csv, with --quick no file")
    parser.add_argument("--quick", action="store_true", help="try it out: a minute, rough numbers")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    quick, rounds = args.quick, args.rounds or (2 if args.quick else 9)
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        # k-means is not measured, and in random data it searches for long.
        cfg = compose("train", ["data=mnist", "model.n_init=1", "phases.finetune.tolerance=0"])
        others = {m: compose("train", ["data=mnist", f"model={m}"]) for m in ("idcec", "cdc")}
        paper = ["data=mnist", "model=icae"]
        others["icae"] = compose("train", [*paper, "network=residual_small"])
        others["wide"] = compose("train", paper)
        others["wide in bf16"] = compose("train", [*paper, "trainer.precision=bf16-mixed"])

    usps = Case(cfg, 2_560 if quick else 9_298, side=16)
    mnist = Case(cfg, 1_280 if quick else 2_560, side=28)
    near_empty = Case(cfg, 4_800 if quick else 16_000, side=8, batch_size=16, near_empty=True)
    idcec = replace(mnist, cfg=others["idcec"])
    cdc = replace(mnist, cfg=others["cdc"], batch_size=others["cdc"].data.batch_size)
    icae = replace(mnist, cfg=others["icae"], n_samples=mnist.n_samples // 2)  # six images each
    all_of_mnist = Case(cfg, 70_000, side=28)
    rows = peak_memory(all_of_mnist)  # first: a process inherits the peak of the one that starts it
    rows += [row for case in (usps, mnist, near_empty) for row in compare(case, rounds)]
    rows.append(augmentation(mnist, rounds))
    rows.append(cost(cdc, rounds, "CDC pretrain / without correlation", [], ["loss.lambda=0"]))
    for name, case in {"DCEC": mnist, "IDCEC": idcec, "CDC": cdc}.items():
        measure = f"{name} pretrain in bf16 / in float32"
        rows.append(cost(case, rounds, measure, ["trainer.precision=bf16-mixed"], []))
    few = max(rounds // 3, 1)
    for name, case in {"DCEC pretrain": mnist, "ICAE": icae}.items():
        # By the thresholds that kept_memory leaves: glibc's own, in a new process, give back more.
        measure, part = f"{name}, memory given back / kept", "clusterlab.phases.kept_memory"
        rows.append(without(case, few, measure, part, nullcontext))
    for name in ("wide", "wide in bf16"):
        measure = f"ICAE, {name}, convolutions / products"
        part = "clusterlab.networks.products.MOST"
        for side in (16, 28):
            case = Case(others[name], 200, side=side, batch_size=100)
            rows.append(without(case, few, measure, part, 0))
    rows += refresh_share(usps, 20 if quick else 2 * T)
    rows += refresh_share(mnist, 10) if quick else refresh_share(all_of_mnist, T)

    device = device_name(training_device(cfg.trainer))
    table = Table(title=device, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right" if column in ("value", "rounds") else "left")
    for row in rows:
        table.add_row(*(f"{v:,g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    out = args.out or (None if quick else Path("results/benchmark.csv"))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = {"device": device, "threads": torch.get_num_threads(), "commit": commit()}
        kept = [row for row in read_records(out) if row["device"] != device]
        write_csv(out, [*kept, *(row | made for row in rows)])


if __name__ == "__main__":
    main()
