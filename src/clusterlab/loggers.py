"""Where the numbers of a run go while it trains: a CSV always, W&B if asked."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from clusterlab.files import write_atomically

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
        self._rows: list[Row] = []
        self._resumed = path.exists()

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Nothing to tell apart."""
        return ""

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave the config to the run folder."""

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add the row of a step."""
        assert step is not None
        if self._resumed:
            self._rows = [row for row in read_csv(self.path) if row["step"] < step]
            self._resumed = False
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._rows.append({"phase": self.phase, "step": step, **values})
        write_csv(self.path, self._rows)


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write rows with the union of their columns; a missing value is an empty cell."""
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def read_csv(path: Path) -> list[Row]:
    """Read rows back: numbers as numbers, without the empty cells."""
    with path.open(newline="") as file:
        return [
            {
                name: value if name == "phase" else int(value) if name == "step" else float(value)
                for name, value in row.items()
                if value != ""
            }
            for row in csv.DictReader(file)
        ]


class WandbRun(WandbLogger):
    """Log all phases to one W&B run, each on a step axis of its own.

    Offline needs no account; ``wandb sync <folder>`` uploads later.

    Args:
        mode: ``offline`` or ``online``.
        phases: Names of the phases, whose panels get the axis ``<phase>/step``.
        kwargs: What ``lightning.pytorch.loggers.WandbLogger`` takes.
    """

    def __init__(self, mode: str, phases: list[str], **kwargs: Any) -> None:
        super().__init__(offline=mode == "offline", **kwargs)
        self._phases = phases
        self._axes_defined = False

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values with the step of their phase."""
        if not self._axes_defined:
            for phase in self._phases:
                self.experiment.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
            self.experiment.define_metric("cluster/*", step_metric="finetune/step")
            self._axes_defined = True
        prefixes = {name.split("/")[0] for name in metrics} & set(self._phases)
        phase = prefixes.pop() if prefixes else "finetune"
        self.experiment.log({**metrics, f"{phase}/step": step})
