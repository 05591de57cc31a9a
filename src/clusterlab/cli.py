"""The command line: ``python train.py`` in a checkout, ``clusterlab`` once installed."""

import errno
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from clusterlab.errors import UserError, problem
from clusterlab.files import settings_digest

# Overrides that say where and how to run, not what; they do not name a run folder.
UNNAMED = re.compile(
    r"^(\+?(model|data|seed|experiment|sweep|logger|trainer|output_dir|run_dir|pretrained_dir|"
    r"restart|figures|checkpoint_interval)(=|$)|logger\.|trainer\.|data\.root|hydra)"
)
OmegaConf.register_new_resolver("file_stem", lambda path: Path(path).stem, replace=True)
UNWRITABLE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES}
failed: list[str] = []  # jobs of this sweep that ended with a UserError


def config_folder() -> Path:
    """Return the folder of the configs: beside ``src`` in a checkout, in the package otherwise."""
    here = Path(__file__).parent
    shipped = here / "conf"
    return shipped if shipped.is_dir() else here.parents[1] / "conf"


def run_name(cfg: DictConfig, overrides: list[str]) -> str:
    """Return the run folder's name: what was asked, without a time, so that asking again resumes.

    Example:
        >>> cfg = DictConfig({"model_name": "dcec", "data": {"name": "usps"}, "seed": 3,
        ...                   "experiment_name": None})
        >>> run_name(cfg, ["data=usps", "loss.gamma=0.5", "seed=3"])
        'dcec_usps/loss.gamma=0.5,seed=3'
    """
    asked = sorted(override for override in overrides if not UNNAMED.match(override))
    name = cfg.experiment_name or f"{cfg.model_name}_{cfg.data.name}"
    detail = ",".join([*asked, f"seed={cfg.seed}"])
    # Slashes would make folders of a path, and file systems end names at 255 bytes.
    detail = re.sub(r"[^\w.,=+@~-]+", "-", detail)
    if len(detail) > 200:
        detail = f"{detail[:180]}~{settings_digest(detail)[:12]}"
    return f"{name}/{detail}"


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def job(cfg: DictConfig) -> None:
    """Run one job of the command line."""
    # Imported here, so that --help, --cfg and mistyped keys answer at once.
    from clusterlab.training import run

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    context = HydraConfig.get()
    cfg.experiment_name = context.runtime.choices.get("experiment")
    if cfg.run_dir is None:
        name = run_name(cfg, list(context.overrides.task))
        cfg.run_dir = str(Path(cfg.output_dir) / name)
    try:
        record = run(cfg)
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            if error.errno not in UNWRITABLE:
                raise
            error = problem("room to write", error, "free some space and run the same again")
        print(f"Error: {error}", file=sys.stderr)
        failed.append(cfg.run_dir)
        if context.mode == RunMode.RUN:
            raise SystemExit(1) from None
        return
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C in a phase into an exit
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        raise SystemExit(130) from None
    if record:
        show(record, Path(cfg.run_dir))


def show(record: dict[str, Any], run_dir: Path) -> None:
    """Print a run's scores, phases and files."""
    console = Console()
    title = f"{record['model']} on {record['data']}, seed {record['seed']}"
    title += f": {record['n_samples']} samples, {record['n_clusters']} clusters"
    scores = Table(title=title, title_justify="left")
    values = []
    for name, value in record["metrics"].items():
        scores.add_column("ACC" if name == "accuracy" else name.upper(), justify="right")
        values.append("" if value is None else f"{value:.3f}")
    for name in ("silhouette", "confidence"):
        scores.add_column(name, justify="right")
        value = record["label_free"][name]
        values.append("" if value is None else f"{value:.3f}")
    scores.add_row(*values)
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
    for path in ("result.json", "metrics.csv", "assignments.npz", "figures"):
        if (run_dir / path).exists():
            console.print(str(run_dir / path), highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; exit with 1 if a job failed."""
    job()
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)
