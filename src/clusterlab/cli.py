"""The command line: ``python train.py`` in a checkout, ``clusterlab`` once installed."""

import errno
import logging
import math
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from clusterlab import sweep
from clusterlab.errors import UserError, exit_on_error, problem
from clusterlab.files import check_paths, config_folder, settings_digest

# Overrides that say where and how to run, not what; they do not name a run folder.
UNNAMED = re.compile(
    r"^(\+?(model|data|seed|experiment|sweep|logger|trainer|output_dir|run_dir|pretrained_dir|"
    r"restart|figures|progress|checkpoint_interval|optimize|jobs_per_gpu)(=|$)|"
    r"logger\.|trainer\.|data\.root|hydra)"
)
FILLED_IN = re.compile(r"^[+~]*(asked|experiment_name)(?![\w-])")
UNWRITABLE = {
    *(errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


def safe(text: str, limit: int) -> str:
    """Make a file name of at most ``limit`` bytes; a shortened one ends in a digest of the whole.

    Example:
        >>> safe("../data.path=/my pictures", 100)
        'data.path=-my-pictures'
    """
    name = re.sub(r"[^\w.,=+@~-]+", "-", text).lstrip(".-")
    if len(name.encode()) <= limit:
        return name
    kept = name.encode()[: limit - 13].decode(errors="ignore")
    return f"{kept}~{settings_digest(text)[:12]}"


def named(overrides: list[str]) -> list[str]:
    """Return the overrides that say what to run, sorted.

    Example:
        >>> named(["data=usps", "seed=3", "network=residual_small", "loss.gamma=0.5"])
        ['loss.gamma=0.5', 'network=residual_small']
    """
    return sorted(override for override in overrides if not UNNAMED.match(override))


def run_name(cfg: DictConfig, overrides: list[str]) -> str:
    """Return the run folder's name: what was asked, without a time, so that asking again resumes.

    Example:
        >>> cfg = DictConfig({"model_name": "dcec", "data": {"name": "usps"}, "seed": 3,
        ...                   "experiment_name": None, "trainer": {"precision": "32-true"}})
        >>> run_name(cfg, ["data=usps", "loss.gamma=0.5", "seed=3"])
        'dcec_usps/loss.gamma=0.5,seed=3'
        >>> cfg.experiment_name = "dcec_table1"
        >>> run_name(cfg, ["experiment=dcec_table1"])
        'dcec_table1/dcec_usps,seed=3'
    """
    asked = named(overrides)
    if cfg.trainer.precision != "32-true":  # decides the result, wherever it was set
        asked.append(f"trainer.precision={cfg.trainer.precision}")
    name = safe(f"{cfg.model_name}_{cfg.data.name}", 100)
    detail = f"{safe(','.join(asked), 150)}," if asked else ""
    if cfg.experiment_name:  # it may span several methods and data sets
        return f"{safe(cfg.experiment_name, 100)}/{name},{detail}seed={cfg.seed}"
    return f"{name}/{detail}seed={cfg.seed}"


def settle(cfg: DictConfig, overrides: list[str]) -> None:
    """Fill in what was asked, and the run folder, named after it where it has no name yet.

    Raises:
        UserError: If a folder's name is a number, or an override sets what is filled in here.
    """
    check_paths(cfg)
    for override in overrides:
        if found := FILLED_IN.match(override):
            expected = f"{found[1]} to be filled in by the command line"
            raise problem(expected, override, "leave it out; experiment=NAME takes an experiment")
    parted = (override.lstrip("+").partition("=") for override in named(overrides))
    cfg.asked = {name: value.replace("${", r"\${") or "none" for name, _, value in parted}
    cfg.run_dir = cfg.run_dir or str(Path(cfg.output_dir) / run_name(cfg, overrides))


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def job(cfg: DictConfig) -> float:
    """Run one job of the command line; return what an optimiser of settings maximises."""
    context = HydraConfig.get()
    told = sweep.Job(list(context.overrides.task))
    try:
        told.take_place()  # before CUDA looks around
        told.write("running")
        # Imported here, so that --help, --cfg and mistyped keys answer at once.
        from clusterlab.training import run

        quiet_lightning()
        cfg.experiment_name = context.runtime.choices.get("experiment")
        share_cores(context.launcher)
        check_given(cfg.data)
        settle(cfg, list(context.overrides.task))
        record = run(cfg)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            remedy = "free some space, or set output_dir to a folder that you may write to"
            error = problem("a place to write", error, remedy)
        whole = not isinstance(error, UserError) or os.environ.get("HYDRA_FULL_ERROR") == "1"
        if context.mode == RunMode.RUN:
            if whole:
                raise
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        # The other jobs of a sweep go on.
        if whole:
            traceback.print_exception(error)
        print(f"Error: {error}", file=sys.stderr)
        told.write("failed", why=str(error) or type(error).__name__)
        told.say()
        return -math.inf
    except (KeyboardInterrupt, SystemExit) as stop:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        code = getattr(stop, "code", None)
        # Lightning turns Ctrl-C in a phase into exit 1. Another code is a launcher's, which says
        # by it that the job is to be started again.
        raise SystemExit(130 if code in (None, 1) else code) from None
    score = sweep.objective(record, cfg.optimize) if record else -math.inf
    phases = record["phases"].values() if record else []
    own = sum(phase["seconds"] for phase in phases if not phase.get("reused"))
    told.write("done", seconds=own, score=score)
    if record:
        show(record, Path(cfg.run_dir))
    told.say()
    return score


LIGHTNING = ("lightning.pytorch", "lightning.fabric")  # its loggers


def quiet_lightning() -> None:
    """Leave the console to what this package says."""
    for name in LIGHTNING:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def check_given(data: DictConfig) -> None:
    """Refuse data whose config lacks a value that only the user knows.

    Raises:
        UserError: Naming the first.
    """
    asked: Any = OmegaConf.to_container(data, resolve=False)
    if missing := [f"data.{name}" for name, value in asked.items() if value == "???"]:
        raise problem(f"a value for {missing[0]}", "none", f"set {missing[0]}")


def share_cores(launcher: DictConfig) -> None:
    """Divide the cores among joblib's jobs, unless the environment says how many threads a job has.

    PyTorch gives every job all cores: two at a time are then slower than one after the other.
    """
    n_jobs = launcher.get("n_jobs", 1)
    if n_jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(1 if n_jobs < 1 else max(1, (cores or 1) // n_jobs))


def show(record: dict[str, Any], run_dir: Path) -> None:
    """Print a run's scores, phases and files."""
    console = Console()
    title = f"{record['model']} on {record['data']}, seed {record['seed']}"
    title += f": {record['n_samples']} samples, {record['n_clusters']} clusters"
    scores = Table(title=title, title_justify="left")
    rows = [{"samples": "all", **record["metrics"], **record["label_free"]}]
    heads = {name: "ACC" if name == "accuracy" else name.upper() for name in record["metrics"]}
    heads |= {"silhouette": "silhouette", "confidence": "confidence"}
    if "metrics_unlabelled" in record:
        rows.append({"samples": "unlabelled", **record["metrics_unlabelled"]})
        heads = {"samples": "samples", **heads}
    for head in heads.values():
        scores.add_column(head, justify="left" if head == "samples" else "right")
    for row in rows:
        values = [row.get(name) for name in heads]
        scores.add_row(*(f"{v:.3f}" if isinstance(v, float) else v for v in values))
    console.print(scores)

    phases = Table()
    for column in ("phase", "time", "epochs", "steps", "stopped by", "label change"):
        phases.add_column(column, justify="left" if column in ("phase", "stopped by") else "right")
    for name, phase in record["phases"].items():
        reason = phase["stop_reason"] + (" (reused)" if phase.get("reused") else "")
        change = phase.get("label_change")
        phases.add_row(
            name,
            f"{phase['seconds']:.1f} s",
            str(phase["epochs"]),
            str(phase["steps"]),
            reason,
            "" if change is None else f"{change:.2%}",
        )
    console.print(phases)
    for line in record["label_free"]["trouble"]:
        console.print(f"[yellow]{line}")
    for path in ("result.json", "metrics.csv", "assignments.csv", "figures", "report.html"):
        if (run_dir / path).exists():
            console.print(str(run_dir / path), highlight=False, soft_wrap=True)


def check_groups(words: list[str]) -> None:
    """Refuse ``augment@phases.finetune.augment=null``, for which Hydra has a traceback.

    Raises:
        UserError: Saying how a part of the config is left out.
    """
    for word in words:
        name, _, value = word.partition("=")
        group, at, place = name.lstrip("+").partition("@")
        if at and value == "null":
            raise problem(f"the name of a config in conf/{group}", "null", f"set {place}=null")


def main() -> None:
    """Run the command line; exit with 1 if a job of a sweep failed."""
    with exit_on_error():
        check_groups(sys.argv[1:])
    os.environ.pop(sweep.FOLDER, None)
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")
    job()
    if sweep.FOLDER not in os.environ:
        return
    folder = Path(os.environ[sweep.FOLDER])
    if lines := sweep.failures(folder):
        print(sweep.progress(folder), *lines, sep="\n", file=sys.stderr)
        raise SystemExit(1)
