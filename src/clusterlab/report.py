"""Tables of records next to the published numbers, and curves over a swept setting."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from clusterlab.errors import problem
from clusterlab.files import csv_text
from clusterlab.metrics import SCORES
from clusterlab.results import CONFIG, Row

# What must agree among the runs of one mean.
SAME = ("settings_sha256", "data_sha256", "commit", "device")
SHORT = {"accuracy": "ACC", "nmi": "NMI", "ari": "ARI", "f1": "F1"}
START = "phases.retrain.metrics_at_start."
UNLABELLED = ("accuracy", "nmi")  # shown of the samples without a known label, where some have one
TOLD_NOTHING = "metrics_unlabelled.accuracy"
CLASSIFIERS = ("cae_knn", "cae_logistic")  # of the pretrained embedding, beside sdcec
FLOAT32 = "32-true"  # the trainer's word for it
FORMATS = ("text", "markdown", "latex", "csv")
Score = tuple[float, float | None]  # mean and sample standard deviation, in percent


@dataclass(frozen=True)
class Line:
    """One line of a table: the runs of one method that differ in their seed alone.

    Args:
        data: Name of the data set.
        method: Name of the method, as in ``model=``.
        rows: Records of the runs; none if nobody ran it.
        published: Row of the published number, or ``None``.
        different: In what these runs differ from other lines of the method: the values of
            settings and of what else stands in ``SAME``, by name; and their precision, if it is not
            float32.
    """

    data: str
    method: str
    rows: tuple[Row, ...]
    published: Row | None
    different: Mapping[str, str]

    def ours(self, name: str) -> Score | None:
        """Return mean and deviation of a score over seeds; ``None`` without labels or runs.

        In percent for the four scores, of whatever samples or phase; any other number of the
        records is left as it is, and a word, such as why a phase stopped, has no mean.
        """
        try:
            values = [scale(name) * float(row[name]) for row in self.rows if row.get(name)]
        except ValueError:
            return None
        return (mean(values), stdev(values) if len(values) > 1 else None) if values else None

    def words(self, name: str) -> str:
        """Return what a column says that is no number; how often, where runs say different."""
        counts = Counter(row[name] for row in self.rows if row.get(name))
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{count} {word}" for word, count in counts.most_common())

    def theirs(self, name: str) -> float | None:
        """Return the published score in percent."""
        value = (self.published or {}).get(name)
        return 100 * float(value) if value else None

    def name(self, without: str = "") -> str:
        """Return what tells the line from others, but for one setting."""
        told = [f"{name}={value}" for name, value in self.different.items() if name != without]
        return ", ".join([f"{self.method} on {self.data}", *told])

    @property
    def minutes(self) -> float | None:
        """Mean minutes of a run, those of a reused pretraining included."""
        return mean(float(row["seconds"]) / 60 for row in self.rows) if self.rows else None


def of_table(
    rows: Sequence[Row], published: Sequence[Row], name: str
) -> tuple[list[Row], list[Row]]:
    """Choose what belongs to one of the published tables.

    Our own experiments stand with their method, another paper's in that paper's table.

    Args:
        rows: Records, one a run.
        published: Published numbers of all tables.
        name: The table.

    Returns:
        Of each the rows that belong to it.

    Raises:
        UserError: If there is no such table.
    """
    own = [row for row in published if row["table"] == name]
    if not own:
        names = ", ".join(dict.fromkeys(row["table"] for row in published))
        raise problem(f"a table of {names}", name, "choose one")
    cells = {(row["data"], row["model"]) for row in own}
    others = {row["experiment"] for row in published} - {row["experiment"] for row in own}
    chosen = [
        row
        for row in rows
        if (row["data"], row["model"]) in cells and row["experiment"] not in others
    ]
    return chosen, own


def scale(name: str) -> int:
    """Return by what a number of the records is multiplied to be shown: a score is in percent.

    Example:
        >>> [scale(n) for n in ("nmi", "phases.retrain.accuracy_rejected", "phases.retrain.steps")]
        [100, 100, 1]
    """
    return 100 if name.rpartition(".")[2].partition("_")[0] in SCORES else 1


def lines(rows: Sequence[Row], published: Sequence[Row] = (), missing: bool = False) -> list[Line]:
    """Put runs that differ in their seed alone into one line each, beside the published number.

    Lines are in the order of the published table, then by name, and by value where a setting was
    swept. Runs of a method that differ in settings, data, revision or device are lines of their
    own, which say in what.

    Args:
        rows: Records, one a run.
        published: Published numbers, see ``results/published.csv``; where several have the method
            and the data, the first for the same experiment counts, else the first.
        missing: Also give published lines that nobody ran.

    Raises:
        UserError: If a seed is twice in a line.
    """
    methods: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        methods.setdefault((row["data"], row["model"]), []).append(row)
    order = dict.fromkeys((row["data"], row["model"]) for row in published)
    wanted = [key for key in order if missing or key in methods]
    table: list[Line] = []
    for data, method in [*wanted, *sorted(methods.keys() - order.keys())]:
        own = [row for row in published if (row["data"], row["model"]) == (data, method)]
        found = _lines_of(data, method, methods.get((data, method), []), own)
        table += found
        if missing:
            table += _not_run(data, method, found, own)
    return table


def _lines_of(data: str, method: str, rows: Sequence[Row], published: Sequence[Row]) -> list[Line]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name, "") for name in SAME), []).append(row)
    told = differences([group[0] for group in groups.values()])
    found = []
    for group, different in zip(groups.values(), told, strict=True):
        seeds = sorted(int(row["seed"]) for row in group)
        if len(set(seeds)) < len(seeds):
            raise problem("one run per seed", f"seeds {', '.join(map(str, seeds))}", "drop one")
        theirs = published_for(group[0], published)
        bits = group[0].get(f"{CONFIG}precision") or FLOAT32
        if bits != FLOAT32 and "precision" not in different:  # told also where nothing else differs
            different["trainer.precision"] = bits
        found.append(Line(data, method, tuple(group), theirs, different))
    return sorted(found, key=lambda line: [_number(v) for v in line.different.values()])


def _not_run(data: str, method: str, found: Sequence[Line], published: Sequence[Row]) -> list[Line]:
    """Return a line for each setting and experiment with a published number and no run."""
    there = {_which(line.published) for line in found if line.published}
    left: dict[tuple[str, str], Line] = {}
    for row in published:
        name, _, value = (row.get("setting") or "").partition("=")
        if _which(row) not in there:
            line = Line(data, method, (), row, {name: value} if name else {})
            left.setdefault(_which(row), line)
    return list(left.values())


def published_for(row: Row, published: Sequence[Row]) -> Row | None:
    """Choose the published number to put beside a record.

    Args:
        row: The record.
        published: Published numbers of its method and data.

    Returns:
        The first that has no setting or the record's, of the same experiment if there is one.

    Example:
        >>> tenth = {"setting": "data.labelled=0.1", "experiment": "some", "accuracy": "0.9"}
        >>> published_for({"config.data.labelled": "0.10", "experiment": ""}, [tenth])["accuracy"]
        '0.9'
        >>> published_for({"config.data.labelled": "0.2", "experiment": ""}, [tenth])
    """
    fitting = []
    for line in published:
        name, _, value = (line.get("setting") or "").partition("=")
        ours = row.get(CONFIG + name, "")
        if not name or ours == value or _number(ours) == _number(value) < math.inf:
            fitting.append(line)
    same = [line for line in fitting if line["experiment"] == row.get("experiment")]
    return next(iter(same or fitting), None)


def _which(published: Row) -> tuple[str, str]:
    return published.get("setting") or "", published["experiment"]


def _number(text: str) -> float:
    """Return a number as it is and anything else as infinite, so that it comes last."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def differences(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Say in what each of some runs differs from the others.

    Experiments have names, which stand for all that varies with them. Otherwise a value that
    others are derived from is named alone: of settings that vary together, the one with the
    shortest name.

    Example:
        >>> a = {"config.loss.gamma": "0.1", "config.model.gamma": "0.1", "config.seed": "0"}
        >>> differences([a, a | {"config.loss.gamma": "1", "config.model.gamma": "1"}])
        [{'loss.gamma': '0.1'}, {'loss.gamma': '1'}]
    """
    settings = {name for row in rows for name in row if name.startswith(CONFIG)}
    experiments = [row.get("experiment", "") for row in rows]
    if len(rows) > 1 and len(set(experiments)) == len(rows):
        return [{"experiment": name or "none"} for name in experiments]
    found: dict[tuple[int, ...], str] = {}
    if all(experiments) and len(set(experiments)) > 1:
        found[tuple(experiments.index(name) for name in experiments)] = "experiment"
    for name in sorted(settings, key=lambda name: (len(name), name)):
        values = [row.get(name, "") for row in rows]
        pattern = tuple(values.index(value) for value in values)
        if any(pattern):
            found.setdefault(pattern, name)

    def told(names: Sequence[str]) -> int:
        return len({tuple(row.get(name, "") for name in names) for row in rows})

    names = sorted(found.values())
    others = [name for name in names if name != "experiment"]
    if told(others) == told(names):
        names = others
    for name in SAME:  # where those leave rows that differ in it without a difference
        if told([*names, name]) > told(names):
            names.append(name)
    return [{n.removeprefix(CONFIG): short(n, row.get(n, "")) for n in names} for row in rows]


def short(name: str, value: str) -> str:
    """Shorten a digest or a revision, and keep its ``-dirty``.

    Example:
        >>> short("commit", "0123456789abcdef-dirty")
        '012345678-dirty'
    """
    if not name.endswith(("sha256", "commit")):
        return value or "none"
    digest, dirty, _ = value.partition("-dirty")
    return digest[:9] + dirty or "none"


# The table, in four formats


def cells(line: Line, also: Sequence[str] = ()) -> dict[str, str]:
    """Return the cells of a line by the head of their column, as text for people."""
    row = {"data": line.data, "method": line.method, "seeds": str(len(line.rows) or "not run")}
    row["runs"] = ", ".join(f"{name}={value}" for name, value in line.different.items())
    for name in SCORES:
        ours, theirs = line.ours(name), line.theirs(name)
        if ours:
            row[SHORT[name]] = _shown(ours, ".1f", ".1f")
        if theirs is not None:
            row[f"{SHORT[name]} paper"] = f"{theirs:.1f}"
        if ours and theirs is not None:
            row[f"{SHORT[name]} diff"] = f"{round(ours[0] - theirs, 1) + 0.0:+.1f}"  # no -0.0
    for name in UNLABELLED:
        if ours := line.ours(f"metrics_unlabelled.{name}"):
            row[f"{SHORT[name]} unlabelled"] = _shown(ours, ".1f", ".1f")
    for name in also:
        found = line.ours(name)
        row[name] = _shown(found, ".6g", ".3g") if found else line.words(name)
    if line.minutes is not None:
        row["minutes"] = f"{line.minutes:.0f}" if line.minutes >= 1 else f"{line.minutes:.1f}"
        row["device"] = line.rows[0]["device"]
        row["revision"] = short("commit", line.rows[0]["commit"])
    return row


def _shown(score: Score, mean: str, deviation: str) -> str:
    return f"{score[0]:{mean}}" + ("" if score[1] is None else f" ± {score[1]:{deviation}}")


def numbers(line: Line, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return a line as numbers for programs; scores in [0, 1]."""
    row: dict[str, Any] = {"data": line.data, "method": line.method, "seeds": len(line.rows)}
    for name in SCORES:
        if ours := line.ours(name):
            row[name] = f"{ours[0] / 100:.6f}"
            row[f"{name}_std"] = "" if ours[1] is None else f"{ours[1] / 100:.6f}"
        if (theirs := line.theirs(name)) is not None:
            row[f"{name}_published"] = f"{theirs / 100:.4f}"
        if ours := line.ours(f"metrics_unlabelled.{name}"):
            row[f"{name}_unlabelled"] = f"{ours[0] / 100:.6f}"
    for name in also:
        if found := line.ours(name):
            row[name] = f"{found[0] / scale(name):.9g}"
            row[f"{name}_std"] = "" if found[1] is None else f"{found[1] / scale(name):.6g}"
        else:
            row[name] = line.words(name)
    if line.rows:
        row["minutes"] = f"{line.minutes:.2f}"
        row |= {name: line.rows[0].get(name, "") for name in SAME}
        row |= line.different
    return row


def render(
    table: Sequence[Line],
    left_out: Sequence[str] = (),
    format: str = "text",
    also: Sequence[str] = (),
) -> str:
    """Lay out a table with its notes.

    Args:
        table: The lines.
        left_out: Runs that are not in it, a sentence each; not part of the CSV.
        format: One of ``FORMATS``.
        also: Further columns of the records to show, such as ``phases.finetune.steps``.
    """
    if format == "csv":
        return csv_text([numbers(line, also) for line in table])
    rows = [cells(line, also) for line in table]
    # A column that says the same in every line goes into the notes.
    shared = {}
    for name in ("device", "revision"):
        values = {row.get(name) for row in rows} - {None}
        if len(values) == 1:
            shared[name] = values.pop()
            rows = [{head: cell for head, cell in row.items() if head != name} for row in rows]
    scores = [f"{s}{kind}" for s in SHORT.values() for kind in ("", " paper", " diff")]
    scores += [f"{SHORT[name]} unlabelled" for name in UNLABELLED]
    order = ["data", "method", "runs", "seeds", *scores, *also, "minutes", "device", "revision"]
    heads = [head for head in order if any(row.get(head) for row in rows)]
    body = [[row.get(head, "") for head in heads] for row in rows]
    notes = [*remarks(table, shared), *left_out]
    left = ("data", "method", "runs", "device", "revision")
    if format == "text":
        return as_text(heads, body, left, notes)
    if format == "markdown":
        heads = [head.replace(" diff", " Δ").replace(" paper", ", paper") for head in heads]
    align = ["left" if head in left else "right" for head in heads]
    style = "pipe" if format == "markdown" else "latex_booktabs"
    laid = tabulate(body, heads, style, disable_numparse=True, colalign=align)
    if format == "latex":
        laid = laid.replace("±", r"$\pm$")
        return "\n".join([f"% {note}" for note in notes] + [laid, ""])
    return "\n".join([laid, "", " ".join(notes[:1]), *(f"- {note}" for note in notes[1:]), ""])


def remarks(table: Sequence[Line], shared: Mapping[str, str | None]) -> list[str]:
    """Say how to read the table, and what its published numbers are."""
    text = "In %, mean ± standard deviation over seeds, last state of each run; minutes of a run"
    text += ", a reused pretraining included."
    text += "".join(f" {name.capitalize()}: {value}." for name, value in shared.items())
    sources = dict.fromkeys(
        f"{line.published['paper']}, {line.published['place']}"
        for line in table
        if line.published and any(line.published[name] for name in SCORES)
    )
    if sources:
        text += f" Paper: {'; '.join(sources)}; differences in points."
    other = dict.fromkeys(
        f"{line.method} stands where the paper has {line.published['published_as']}."
        for line in table
        if line.published and line.published.get("published_as")
    )
    missing: dict[tuple[str, str], list[str]] = {}
    for line in table:
        if line.published and not line.rows:
            setting = line.published.get("setting") or ""
            experiment = f"experiment={line.published['experiment']} data={line.data}"
            experiment += f" {line.published['needs']}" if line.published.get("needs") else ""
            missing.setdefault((experiment, setting), []).append(line.method)
    commands: dict[str, list[str]] = {}  # one for all values of a setting
    for (experiment, setting), methods in missing.items():
        name, _, value = setting.partition("=")
        command = f"python train.py -m {experiment} model={','.join(methods)} seed=0,1,2,3,4"
        commands.setdefault(f"{command} {name}=" if name else command, []).append(value)
    return [
        " ".join([text, *other]),
        *against_classifiers(table),
        *(f"not run: {command}{','.join(values)}" for command, values in commands.items()),
    ]


def against_classifiers(table: Sequence[Line]) -> list[str]:
    """Say of SDCEC whether it beats the classifiers that are told the same labels.

    On the samples whose label nobody told; a sentence for each data set and experiment in which
    both were run. Where a method has several lines, SDCEC's lowest must beat the others' highest.
    """
    scores: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for line in table:
        if line.method in ("sdcec", *CLASSIFIERS) and (ours := line.ours(TOLD_NOTHING)):
            row = line.rows[0]
            shares = scores.setdefault((line.data, row["experiment"]), {})
            found = shares.setdefault(row[f"{CONFIG}data.labelled"], {})
            worst = min if line.method == "sdcec" else max
            found[line.method] = worst(ours[0], found.get(line.method, ours[0]))
    told = []
    for (data, experiment), shares in scores.items():
        both = {s: m for s, m in shares.items() if "sdcec" in m and len(m) > 1}
        lost = [
            f"{method} at data.labelled={share}"
            for share, methods in both.items()
            for method in CLASSIFIERS
            if methods.get(method, -math.inf) >= methods["sdcec"]
        ]
        if both:
            named = f" of experiment={experiment}" if experiment else ""
            result = f"does NOT beat {', '.join(lost)}" if lost else "beats all of them"
            text = f"ACC of unlabelled samples, {data}{named}: sdcec beside classifiers of the"
            told.append(f"{text} same labels, at {len(both)} shares: it {result}.")
    return told


def as_text(
    heads: Sequence[str], body: Iterable[Sequence[str]], left: Sequence[str], notes: Sequence[str]
) -> str:
    """Lay out a table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right")
    for row in body:
        table.add_row(*row)
    text = io.StringIO()
    # As wide as it is: a narrow terminal breaks lines better than cells.
    Console(file=text, width=10_000, markup=False, highlight=False).print(table)
    laid = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*laid, *notes, ""])


# Curves over a swept setting


def sweeps(table: Sequence[Line]) -> dict[str, dict[str, list[tuple[float, Line]]]]:
    """Find the settings that were swept: numbers in which lines of a method differ.

    Returns:
        By setting and then by curve (data, method, and whatever else differs), its lines with
        their value of the setting, ascending.
    """
    found: dict[str, dict[str, list[tuple[float, Line]]]] = {}
    for line in table:
        for name, value in line.different.items():
            if name in SAME or not math.isfinite(_number(value)):
                continue
            curves = found.setdefault(name, {})
            curves.setdefault(line.name(without=name), []).append((float(value), line))
    swept = {}
    for name, curves in found.items():
        long = {c: sorted(p, key=lambda pair: pair[0]) for c, p in curves.items() if len(p) > 1}
        if long:
            swept[name] = long
    return swept


# Before and after a classifier is trained


def retrained(table: Sequence[Line]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Find the lines whose runs were scored before their retrain phase too.

    Returns:
        By line and then by score, what each run had before and after it, in percent; shape
        ``(runs, 2)``.
    """
    found = {}
    for line in table:
        scores = {}
        for name, label in SHORT.items():
            both = [[row.get(START + name), row.get(name)] for row in line.rows]
            if pairs := [pair for pair in both if all(pair)]:
                scores[label] = 100 * np.array(pairs, dtype=float)
        if scores:
            found[line.name()] = scores
    return found
