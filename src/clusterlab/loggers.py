"""Where the numbers of a run go while it trains: a CSV always, W&B if asked."""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from matplotlib.image import imread

from clusterlab.errors import problem
from clusterlab.files import csv_text, settings_digest, write_atomically
from clusterlab.sweep import FOLDER

log = logging.getLogger(__name__)

Row = dict[str, Any]


class PhaseCsv(Logger):
    """Write one phase's ``metrics.csv``: a row an epoch and a row a refresh.

    Lightning's CSV logger deletes the file when a run is resumed. This one goes on: what a resumed
    phase logs again replaces what stood at those steps, so that the file of an interrupted run
    ends up equal to the file of one that was not.

    Args:
        path: The file.
        phase: Name in the first column.
    """

    def __init__(self, path: Path, phase: str) -> None:
        super().__init__()
        self.path = path
        self.phase = phase
        self._rows: list[Row] | None = None
        self._columns: dict[str, None] = {}  # an ordered set

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Nothing to tell apart."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave the config to the run folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the row of a step."""
        assert step is not None
        step = int(step)  # a float, where a model of somebody's logs "step" itself
        row = {"phase": self.phase, "step": step}
        row |= {name: value for name, value in metrics.items() if name != "epoch"}
        if self._rows is None:
            kept = read_csv(self.path) if self.path.exists() else []
            self._rows = [old for old in kept if old["step"] < step]
        self._rows.append(row)
        if row.keys() <= self._columns.keys():
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        else:
            write_csv(self.path, self._rows)
            self._columns = columns(self._rows)


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write rows with the union of their columns."""
    write_atomically(path, csv_text(rows).encode())


def columns(rows: list[Row]) -> dict[str, None]:
    """Return the union of the rows' columns in the order they first occur."""
    return dict.fromkeys(name for row in rows for name in row)


def read_csv(path: Path) -> list[Row]:
    """Read rows back: numbers as numbers, without empty cells, without a line cut off by a kill."""
    lines = path.read_text().splitlines(keepends=True)
    return [
        {
            name: value if name == "phase" else int(value) if name == "step" else float(value)
            for name, value in row.items()
            if value != ""
        }
        for row in csv.DictReader(line for line in lines if line.endswith("\n"))
    ]


def replay(rows: Sequence[Row], loggers: Sequence[Logger]) -> None:
    """Log again what another process logged, so that a dashboard shows all phases of a run."""
    # A run that W&B goes on with has these rows.
    new = [one for one in loggers if not (isinstance(one, WandbRun) and one.experiment.resumed)]
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("phase", "step")}
        for logger in new:
            logger.log_metrics(values, row["step"])


class WandbRun(WandbLogger):
    """Log all phases to one W&B run, each on a step axis of its own.

    Offline needs no account; ``wandb sync <folder>`` uploads later.

    Args:
        mode: ``offline`` or ``online``.
        phases: Names of the phases, whose panels get the axis ``<phase>/step``.
        save_dir: The run folder; it fixes the run's id, so that a resumed run goes on in its own.
        tags: Tags; ``None`` among them is left out. The jobs of a sweep have its name as one more.
        name: What W&B shows; ``None`` for the run folder's name, which says what was asked.
        kwargs: What else ``lightning.pytorch.loggers.WandbLogger`` takes.

    Raises:
        UserError: If the mode is another.
    """

    def __init__(
        self,
        mode: str,
        phases: list[str],
        save_dir: str,
        tags: list[str | None],
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if mode not in ("offline", "online"):
            raise problem("logger.wandb.mode=offline or online", mode, "correct it")
        self.mode = mode
        sweep = os.environ.get(FOLDER)
        super().__init__(
            name=name or "/".join(Path(save_dir).parts[-2:]),
            offline=mode == "offline",
            save_dir=save_dir,
            id=settings_digest(str(Path(save_dir).resolve()))[:16],
            tags=[tag for tag in (*tags, sweep and Path(sweep).name) if tag is not None],
            settings={"silent": True},  # or it prints 33 lines
            **kwargs,
        )
        self._wandb_init.pop("anonymous")  # deprecated in W&B, which warns of it
        if mode == "offline":
            self._wandb_init.pop("resume")  # not offline, says W&B
        self._phases = phases
        self._axes_defined = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values with the step of their phase."""
        if not self._axes_defined:
            for phase in self._phases:
                self.experiment.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
            self.experiment.define_metric("cluster/*", step_metric="finetune/step")
            self._axes_defined = True
        prefixes = {name.split("/")[0] for name in metrics} & set(self._phases)
        phase = prefixes.pop() if prefixes else "finetune"
        axis = {} if step is None else {f"{phase}/step": step}
        self.experiment.log({**metrics, **axis})


def close(loggers: Sequence[Logger], status: str) -> None:
    """Close the dashboards, or the next run of a sweep would go on in this one's.

    Args:
        loggers: The run's loggers.
        status: ``success`` or ``failed``.
    """
    for logger in loggers:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            folder = Path(logger.experiment.dir).parent
            logger.experiment.finish(exit_code=int(status != "success"))
            if isinstance(logger, WandbRun) and logger.mode == "offline":
                log.info("W&B run, not uploaded yet: wandb sync %s", folder)


def publish(
    loggers: Sequence[Logger], scores: dict[str, dict[str, Any]], figures: dict[str, Path]
) -> None:
    """Give the dashboards the final scores and the figures.

    Args:
        loggers: The run's loggers.
        scores: ``metrics`` and ``label_free`` of the record.
        figures: Name and path of each figure.
    """
    final = {name: value for group in scores.values() for name, value in group.items()}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(final)
            for name, path in figures.items():
                logger.log_image(f"figures/{name}", [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            for name, path in figures.items():
                logger.experiment.add_image(f"figures/{name}", imread(path), dataformats="HWC")
            for name, value in scores["metrics"].items():
                if value is not None:
                    logger.experiment.add_scalar(f"final/{name}", value)
