"""Ask an embedding how many clusters it has: three measures over K, none of which needs labels."""

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clusterlab import curves, viz
from clusterlab.cli import check_given, quiet_lightning, run_name, settle
from clusterlab.errors import asked_for_help, exit_on_error, problem
from clusterlab.files import csv_text, write_atomically, write_json
from clusterlab.isolation import composed
from clusterlab.measures import Row, measure
from clusterlab.record import commit
from clusterlab.results import open_clusters, read_records
from clusterlab.training import run
from clusterlab.verdict import Choice, choices, table, verdict

USAGE = "scan.py data=usps [k=2..20] [seeds=5] [samples=10000] [table=scans.csv] [as for train.py]"
EMBEDDING_DIM = 10  # DEC's for every data set; networks here have K, which nobody knows yet


def embedding(overrides: Sequence[str], fewest: int) -> tuple[DictConfig, Tensor | None]:
    """Make the run that trains the embedding, or find it finished.

    Args:
        overrides: As for ``train.py``.
        fewest: K of that run; nothing here depends on it.

    Returns:
        Its config, and its embeddings, shape ``(N, d)``; ``None`` on a rank other than 0.

    Raises:
        UserError: If the config is none, or the method trains with K.
    """
    given = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    if "n_clusters" in given:
        raise problem("k=2..20, which are scanned", f"n_clusters={given['n_clusters']}", "drop it")
    asked = [*overrides, f"n_clusters={fewest}", "figures=false"]
    asked += [] if "model" in given else ["model=cae_kmeans"]
    cfg = composed(asked)
    if cfg.model_name == "spectral":  # as many dimensions as clusters
        raise problem("an embedding that does not depend on K", "spectral", "set model=cae_kmeans")
    if "embedding_dim" in cfg.network and OmegaConf.is_interpolation(cfg.network, "embedding_dim"):
        asked.append(f"network.embedding_dim={EMBEDDING_DIM}")
        cfg = composed(asked)
    if trained := [str(name) for name in cfg.phases if name != "pretrain" and cfg.phases[name]]:
        got = f"{cfg.model_name}, whose phase {trained[0]} trains with K"
        raise problem("an embedding that does not depend on K", got, "set model=cae_kmeans")
    check_given(cfg.data)
    cfg.experiment_name = given.get("experiment")
    settle(cfg, asked)
    if not run(cfg):
        return cfg, None
    with open_clusters(Path(cfg.run_dir)) as stored:
        return cfg, torch.from_numpy(stored["z"])


def show(rows: Sequence[Row], said: dict[str, Choice], title: str) -> None:
    """Print mean and standard deviation of each measure and K, and what each measure says."""
    ks, values = table(rows)
    shown = Table(title=title, title_justify="left")
    shown.add_column("K", justify="right")
    for name in values:
        shown.add_column(name.replace("_", " "), justify="right")
    for i, k in enumerate(ks):
        cells = [(v[:, i].mean(), v[:, i].std(ddof=1)) for v in values.values()]
        shown.add_row(str(k), *(f"{mean:.3f} ± {std:.3f}" for mean, std in cells))
    console = Console()
    console.print(shown)
    for name, choice in said.items():
        near = ", ".join(map(str, choice.near))
        console.print(f"{name}: {choice}" + (f", within its spread {near}" if near else ""))


def numbers(given: dict[str, str]) -> tuple[range, int, int]:
    """Read the K to scan, the number of seeds and the most samples.

    Raises:
        UserError: If one of them is no such number.

    Example:
        >>> numbers({"k": "3..5", "seeds": "2"})
        (range(3, 6), 2, 10000)
    """
    k = re.fullmatch(r"(\d+)\.\.(\d+)", given.get("k", "2..20"))
    ks = range(int(k[1]), int(k[2]) + 1) if k else range(0)
    if len(ks) < 2 or ks[0] < 2:
        raise problem("a range of K from 2", f"k={given['k']}", "set k=2..20")
    least = {"seeds": 2, "samples": 2 * ks[-1]}  # a spread; a half with a sample for each cluster
    values = {"seeds": given.get("seeds", "5"), "samples": given.get("samples", "10000")}
    for name, value in values.items():
        if not value.isdecimal() or int(value) < least[name]:
            raise problem(f"{name} of {least[name]} or more", value, f"set {name}={least[name]}")
    return ks, int(values["seeds"]), int(values["samples"])


def scan(given: dict[str, str], overrides: Sequence[str]) -> None:
    """Train once, measure each K, then print, draw and store what that says.

    Args:
        given: The scan's own arguments: "k", "seeds", "samples" and "table", or some of them.
        overrides: The others, as for ``train.py``.

    Raises:
        UserError: If an argument is not what it must be, or K is too large for the data.
    """
    ks, seeds, samples = numbers(given)
    cfg, z = embedding(overrides, ks[0])
    if z is None:
        return
    if 2 * ks[-1] > (different := len(np.unique(z, axis=0))):
        raise problem(f"K up to {different // 2}, half of the samples", ks[-1], "set a lower k")
    rows = measure(z, ks, seeds, samples, cfg.seed)
    said = choices(rows)
    sure, best, text = verdict(said)
    own = [f"{name}={value}" for name, value in given.items() if name != "table"]
    folder = Path(cfg.output_dir) / "scan" / run_name(cfg, [*overrides, *own])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "scan.csv", csv_text(rows).encode())
    made = {"data": cfg.data.name, "model": cfg.model_name, "commit": commit()}
    record = {"verdict": text, "sure": sure, "k": best, **made, "seed": cfg.seed}
    record |= {"measures": {name: asdict(choice) for name, choice in said.items()}}
    record |= {"scanned": [ks[0], ks[-1]], "seeds": seeds, "samples": min(samples, len(z))}
    write_json(folder / "scan.json", {**record, "embedding": cfg.run_dir})
    viz.save(curves.over_clusters(*table(rows), said, text), folder / "scan.png")
    if "table" in given:
        keep(Path(given["table"]), made, said, text)
    title = f"{cfg.model_name} on {cfg.data.name}: {min(samples, len(z))} samples, {seeds} halves"
    show(rows, said, title)
    print(text, *(folder / f"scan.{kind}" for kind in ("png", "csv", "json")), sep="\n")


def keep(path: Path, made: dict[str, Any], said: dict[str, Choice], text: str) -> None:
    """Put a verdict into a table of verdicts, a row a measure, in the place of an older one."""
    new = [
        {"data": made["data"], "model": made["model"], "measure": name, "best": str(choice)}
        | {"near": " ".join(map(str, choice.near)), "verdict": text, "commit": made["commit"]}
        for name, choice in said.items()
    ]
    rows = {(row["data"], row["model"], row["measure"]): row for row in [*read_records(path), *new]}
    write_atomically(path, csv_text(list(rows.values())).encode())


def main() -> None:
    """Scan from the command line: ``key=value`` arguments, most of them as in training."""
    if asked_for_help(USAGE):
        return
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    quiet_lightning()
    with exit_on_error(OSError):
        if not all("=" in text or text.startswith("~") for text in sys.argv[1:]):
            raise problem(USAGE, " ".join(sys.argv[1:]), "give key=value")
        own = {"k", "seeds", "samples", "table"}
        given = dict(text.partition("=")[::2] for text in sys.argv[1:])
        others = [text for text in sys.argv[1:] if text.partition("=")[0] not in own]
        scan({name: value for name, value in given.items() if name in own}, others)


if __name__ == "__main__":
    main()
