"""Turn runs into records, and records into tables next to the published numbers."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from clusterlab.errors import problem
from clusterlab.files import settings_digest, write_atomically
from clusterlab.folders import settings_of
from clusterlab.metrics import SCORES

Row = dict[str, str]

# What makes two runs the same run; the newer record replaces the older.
IDENTITY = ("model", "data", "seed", "settings_sha256", "data_sha256", "device", "commit")
# What must agree among the runs of one mean.
SAME = ("settings_sha256", "data_sha256", "commit", "device")


def scalars(record: dict[str, Any], prefix: str = "") -> Row:
    """Flatten a record's scalars; the four scores and the seconds get their bare names.

    Example:
        >>> scalars({"metrics": {"nmi": 0.5}, "phases": {"finetune": {"steps": 3}}})
        {'nmi': '0.5', 'phases.finetune.steps': '3'}
    """
    flat: Row = {}
    for name, value in record.items():
        if name == "config":
            continue
        if isinstance(value, dict):
            flat |= scalars(value, "" if name == "metrics" else f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat[prefix + name] = "" if value is None else str(value)
    return flat


def collect(folder: Path) -> tuple[list[Row], list[str]]:
    """Read every finished run below a folder.

    Returns:
        Their records, and one line for each run that failed.
    """
    rows, failures = [], []
    for path in sorted(folder.rglob("result.json")):
        record = json.loads(path.read_text())
        if "error" in record:
            failures.append(f"{path.parent}: {record['error']}")
        else:
            # Again from the config: what counts as a setting may have changed since the run.
            settings = settings_of(OmegaConf.create(record["config"]))
            rows.append(scalars({**record, "settings_sha256": settings_digest(settings)}))
    return rows, failures


def read_records(path: Path) -> list[Row]:
    """Read a table of records; none if the file is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merge(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Add records to a table on disk; a repeated run replaces its older record."""
    table = {tuple(row[key] for key in IDENTITY): row for row in [*read_records(path), *rows]}
    merged = sorted(table.values(), key=lambda row: (row["data"], row["model"], int(row["seed"])))
    columns = dict.fromkeys(name for row in merged for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged)
    write_atomically(path, text.getvalue().encode())
    return merged


def short(digest: str) -> str:
    """Shorten a digest or a revision and keep its ``-dirty``.

    Example:
        >>> short("0123456789abcdef-dirty")
        '012345678-dirty'
    """
    name, dirty, _ = digest.partition("-dirty")
    return name[:9] + dirty


def summarise(rows: Sequence[Row], prefix: str = "") -> dict[str, str]:
    """Give mean and sample standard deviation over seeds, in percent, and the mean minutes.

    Args:
        rows: Runs that differ in their seed alone.
        prefix: Where the scores stand, such as ``phases.finetune.metrics_at_start.``.

    Raises:
        UserError: If the runs differ in settings, data, revision or device, or a seed is twice.

    Example:
        >>> runs = [{"seed": "0", "nmi": "0.80"}, {"seed": "1", "nmi": "0.82"}]
        >>> summarise(runs)["nmi"]
        '81.0 ± 1.4'
    """
    for name in SAME:
        kinds = {row.get(name, "") for row in rows}
        if len(kinds) > 1:
            raise problem(
                "runs that differ in their seed alone",
                f"{name} of {' and '.join(sorted(map(short, kinds)))}",
                "collect one of them into another file",
            )
    seeds = [row["seed"] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise problem("one run per seed", f"seeds {', '.join(seeds)}", "drop one")
    summary = {"seeds": str(len(rows))}
    for name in SCORES:
        values = [100 * float(row[prefix + name]) for row in rows if row.get(prefix + name)]
        if values:
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            summary[name] = f"{mean(values):.1f}{spread}"
    return summary


def results_table(records: Sequence[Row], published: Sequence[Row]) -> str:
    """Lay out ours next to the published numbers, as Markdown.

    A ``cae_kmeans`` row comes from the first refresh of the ``dcec`` runs: k-means on the
    pretrained embedding.
    """
    lines = [
        "| data | method | seeds | ACC | paper | NMI | paper | ARI | F1 | minutes a run |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for paper in published:
        runs = [row for row in records if (row["data"], row["model"]) == (paper["data"], "dcec")]
        if not runs:
            command = f"`python train.py model={paper['model']} data={paper['data']}`"
            lines.append(f"| {paper['data']} | {paper['model']} | not run: {command} |" + " |" * 7)
            continue
        kmeans = paper["model"] == "cae_kmeans"
        phases = ["pretrain"] if kmeans else ["pretrain", "finetune"]
        ours = summarise(runs, "phases.finetune.metrics_at_start." if kmeans else "")
        minutes = mean(
            sum(float(row[f"phases.{phase}.seconds"]) for phase in phases) / 60 for row in runs
        )
        cells = [paper["data"], "CAE + k-means" if kmeans else "**DCEC**", ours["seeds"]]
        for name in ("accuracy", "nmi"):
            cells += [ours[name], f"{100 * float(paper[name]):.1f}"]
        cells += [ours["ari"], ours["f1"], f"{math.ceil(minutes)}"]
        lines.append(f"| {' | '.join(cells)} |")
    devices = sorted({row["device"] for row in records})
    commits = sorted({short(row["commit"]) for row in records})
    lines += [
        "",
        f"In %, mean ± standard deviation over seeds, last state of each run. "
        f"Paper: {published[0]['paper']}, {published[0]['table']}. "
        f"Device: {'; '.join(devices)}. Revision: {', '.join(commits)}.",
    ]
    return "\n".join(lines)


def benchmark_table(rows: Sequence[Row]) -> str:
    """Lay out the benchmark's CPU measurements, as Markdown; the file has the wall times too."""
    lines = ["| measure | images | value | unit |", "|---|---|--:|---|"]
    for row in rows:
        if not row["unit"].startswith("wall ") or row["measure"] == "one refresh":
            value = f"{float(row['value']):,.4g}" if float(row["value"]) < 1000 else row["value"]
            lines.append(f"| {row['measure']} | {row['shape']} | {value} | {row['unit']} |")
    made = {f"{row['device']}, revision {short(row['commit'])}" for row in rows}
    lines += ["", f"{'; '.join(sorted(made))}. Medians of interleaved rounds, `make benchmark`."]
    return "\n".join(lines)


def fill(readme: str, name: str, table: str) -> str:
    """Put a table between the README's markers ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        UserError: If the markers are not there.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in readme or end not in readme:
        raise problem(f"the markers '{begin}' and '{end}' in the README", "none", "put them back")
    return f"{readme.split(begin)[0]}{begin}\n\n{table}\n\n{end}{readme.split(end)[1]}"
