"""Records of runs: read from their folders, kept as one row a run in ``results/<table>.csv``."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from omegaconf import OmegaConf

from clusterlab.errors import problem
from clusterlab.files import csv_text, read_json, settings_digest, write_atomically
from clusterlab.folders import settings_of
from clusterlab.metrics import ari, contingency

Row = dict[str, str]

ALIKE = ("settings_sha256", "data_sha256")  # in runs that differ in their seed alone
# What makes two runs the same run; the newer record replaces the older.
IDENTITY = ("model", "data", "seed", *ALIKE, "known_sha256", "device", "commit")
CONFIG = "config."  # before the name of a setting
SEEDS = "label_free.agreement_of_seeds"  # of a run with those that were read together with it
CLUSTERS = "assignments.npz"  # the file of a run's samples: index, label, q and z


def identity(row: Row) -> tuple[str, ...]:
    """Return what makes a run the same run as another; "" for what it has not."""
    return tuple(row.get(name, "") for name in IDENTITY)


@dataclass
class Found:
    """What was found in some places: one row for each finished run, one line for each other.

    A run that is there twice counts once; the other is named in ``left_out``.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, row: Row, where: Path) -> None:
        """Take a row, unless the same run is there already."""
        for other in self.rows:
            if identity(other) == identity(row):
                same = other["accuracy"] == row["accuracy"] and other["nmi"] == row["nmi"]
                result = "with the same scores" if same else "with OTHER scores"
                run = f"{row['model']} on {row['data']}, seed {row['seed']}"
                self.left_out.append(f"duplicate, {result}: {run}, in {where}")
                return
        self.rows.append(row)


def scalars(record: dict[str, Any], prefix: str = "") -> Row:
    """Flatten a record; the four scores and the seconds get their bare names, lists are left out.

    Example:
        >>> scalars({"metrics": {"nmi": 0.5}, "phases": {"finetune": {"steps": 3}}})
        {'nmi': '0.5', 'phases.finetune.steps': '3'}
    """
    flat: Row = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= scalars(value, "" if name == "metrics" else f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat[prefix + name] = "" if value is None else str(value)
    return flat


def settings_row(settings: Any, name: str = CONFIG) -> Row:
    """Flatten settings, lists included, into the columns ``config.<name>``.

    The names are those of the command line: parts in a list are numbered, ``views.0.degrees``.

    Example:
        >>> settings_row({"loss": {"gamma": 0.1}, "filters": [32, 64], "views": [{"shear": 10}]})
        {'config.loss.gamma': '0.1', 'config.filters': '[32, 64]', 'config.views.0.shear': '10'}
    """
    if isinstance(settings, list) and any(isinstance(part, dict) for part in settings):
        settings = dict(enumerate(settings))
    if not isinstance(settings, dict):
        return {name.rstrip("."): "" if settings is None else str(settings)}
    flat: Row = {}
    for key, value in settings.items():
        if key != "_partial_":
            flat |= settings_row(value, f"{name}{key}.")
    return flat


def read_run(path: Path) -> Row:
    """Turn a ``result.json`` into a row: its scalars, and the settings that decided it."""
    record = read_json(path)
    # Again from the config: what counts as a setting may have changed since the run.
    settings = settings_of(OmegaConf.create(record.pop("config")))
    record["settings_sha256"] = settings_digest(settings)
    return scalars(record) | settings_row(settings)


def open_clusters(run_dir: Path) -> NpzFile:
    """Open what a finished run left of its samples.

    Raises:
        UserError: If it is not there.
    """
    if not (run_dir / CLUSTERS).exists():
        remedy = "run its command, without its result.json if it has one: nothing is trained twice"
        raise problem("the clusters of a finished run", f"no {CLUSTERS} in {run_dir}", remedy)
    stored: NpzFile = np.load(run_dir / CLUSTERS)
    return stored


def agreement_of_seeds(runs: Mapping[Path, Row]) -> dict[Path, float]:
    """Tell how far the clusters of each run are those of the runs that differ in their seed alone.

    What they find together does not hang on chance: it tells settings apart without a label, and
    the run that is most like the others from one that is not.

    Args:
        runs: Folders of finished runs and their rows.

    Returns:
        The mean adjusted Rand index of each run with those, but for runs that have none, or whose
        clusters are gone.
    """
    labels = {}
    for run in runs:
        if (run / CLUSTERS).exists():
            with open_clusters(run) as stored:
                labels[run] = torch.from_numpy(stored["label"])
    found: dict[Path, list[float]] = {}
    for one, other in combinations(labels, 2):
        a, b = runs[one], runs[other]
        if a["seed"] != b["seed"] and all(a[name] == b[name] for name in ALIKE):
            k = int(a["n_clusters"])
            shared = ari(contingency(labels[one], labels[other], k, k))
            for run in (one, other):
                found.setdefault(run, []).append(shared)
    return {run: mean(values) for run, values in found.items()}


def find(*places: Path) -> Found:
    """Read every run in run folders, in folders of them, and in tables of records.

    Rows of run folders also have the agreement of each run with those of other seeds, if there are
    such.

    Args:
        places: Run folders, folders with runs somewhere below, ``.csv`` files, or folders of
            those.

    Raises:
        UserError: If a place does not exist, or holds neither runs nor records.
    """
    found, read = Found(), dict[Path, Row]()
    for place in places:
        before = len(found.rows) + len(found.left_out)
        if not place.exists():
            raise problem("runs or records", f"no {place}", "give a folder of runs or a CSV")
        tables = [place] if place.is_file() else sorted(place.glob("*.csv"))
        runs = [] if place.is_file() else sorted(place.rglob("settings.json"))
        for table in tables if not runs else []:
            for row in read_records(table):
                if "settings_sha256" in row:  # not published.csv or benchmark.csv
                    found.add(row, table)
        for folder in (path.parent for path in runs):
            result = folder / "result.json"
            if not result.exists():
                found.left_out.append(f"unfinished: {folder}")
            elif error := read_json(result).get("error"):
                found.left_out.append(f"failed: {folder}: {error}")
            else:
                found.add(read.setdefault(folder, read_run(result)), folder)
        if len(found.rows) + len(found.left_out) == before:
            raise problem("runs or records", f"none in {place}", "give a folder of runs or a CSV")
    for folder, seeds in agreement_of_seeds(read).items():
        read[folder][SEEDS] = str(seeds)
    return found


def read_records(path: Path) -> list[Row]:
    """Read a table of records; none if the file is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merge(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Add records to a table on disk; a repeated run replaces its older record."""
    table = {identity(row): row for row in [*read_records(path), *rows]}
    merged = sorted(table.values(), key=lambda row: (row["data"], row["model"], int(row["seed"])))
    write_atomically(path, csv_text(merged).encode())
    return merged
