"""The table of a report with its notes, in four formats."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from clusterlab.files import csv_text
from clusterlab.metrics import SCORES
from clusterlab.report import SAME, SHORT, Line, Score, scale, settled
from clusterlab.results import CONFIG, SEEDS

UNLABELLED = ("accuracy", "nmi")  # shown of the samples without a known label, where some have one
TOLD_NOTHING = "metrics_unlabelled.accuracy"
LABEL_FREE = ("label_free.silhouette", "label_free.agreement", SEEDS, "label_free.confidence")
CLASSIFIERS = ("cae_knn", "cae_logistic")  # of the pretrained embedding, beside sdcec
FORMATS = ("text", "markdown", "latex", "csv")


def cells(line: Line, also: Sequence[str] = (), elsewhere: Sequence[str] = ()) -> dict[str, str]:
    """Return the cells of a line by the head of their column, as text for people.

    Args:
        line: The line.
        also: Further columns of the records to show.
        elsewhere: What is left out of the column that tells runs apart: it has one of its own.
    """
    row = {"data": line.data, "method": line.method, "seeds": str(len(line.rows) or "not run")}
    told = (f"{name}={value}" for name, value in line.different.items() if name not in elsewhere)
    row["runs"] = ", ".join(told)
    for name in SCORES:
        ours, theirs = line.ours(name), line.theirs(name)
        if ours:
            row[SHORT[name]] = _shown(ours)
        if theirs is not None:
            row[f"{SHORT[name]} paper"] = f"{theirs:.1f}"
        if ours and theirs is not None:
            row[f"{SHORT[name]} diff"] = f"{round(ours[0] - theirs, 1) + 0.0:+.1f}"  # no -0.0
    for name in UNLABELLED:
        if ours := line.ours(f"metrics_unlabelled.{name}"):
            row[f"{SHORT[name]} unlabelled"] = _shown(ours)
    for name in also:
        found = line.ours(name)
        row[name] = _shown(found, *_digits(name)) if found else line.words(name)
    if line.minutes is not None:
        row["minutes"] = f"{line.minutes:.0f}" if line.minutes >= 1 else f"{line.minutes:.1f}"
        row["device"] = line.words("device")
        row["revision"] = line.words("commit")
    return row


def _shown(score: Score, mean: str = ".1f", deviation: str = ".1f") -> str:
    return f"{score[0]:{mean}}" + ("" if score[1] is None else f" ± {score[1]:{deviation}}")


def _digits(name: str) -> tuple[str, str]:
    """Return how mean and deviation of a column are written."""
    if scale(name) == 100:
        return ".1f", ".1f"
    return (".3f", ".3f") if name in LABEL_FREE else (".6g", ".3g")


def in_place_of_scores(table: Sequence[Line]) -> list[str]:
    """Return the columns that say something of runs without labels; none if all had some."""
    if all(line.ours("accuracy") for line in table if line.rows):
        return []
    return [name for name in LABEL_FREE if any(line.ours(name) for line in table)]


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
        row |= {name: "; ".join(sorted({r.get(name, "") for r in line.rows})) for name in SAME}
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
    elsewhere = ("device", "commit")
    shown, as_most = told_once(table, elsewhere)
    rows = [cells(line, also, elsewhere) for line in shown]
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
    heads = [in_words(head) if head in also else head for head in heads]
    notes = [*remarks(table, shared), *as_most, *left_out]
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


def told_once(table: Sequence[Line], elsewhere: Sequence[str]) -> tuple[list[Line], list[str]]:
    """Take what most lines have in common from each, and say it in a note.

    Where three settings or more tell runs apart, mostly one at a time, a line that names all of
    them hides its own.

    Args:
        table: The lines.
        elsewhere: Settings that are not named in lines.

    Returns:
        The lines, and the note if there is one.
    """
    varied = {name for line in table for name in line.different} - {*elsewhere, "experiment"}
    usual: dict[str, str] = {}
    for name in sorted(varied) if len(varied) > 2 else ():
        values = [line.different.get(name) for line in table]
        value, count = Counter(values).most_common(1)[0]
        # Not where another method has no such setting: the note is about all lines.
        if value is not None and None not in values and count > len(table) / 2:
            usual[name] = value
    own = [
        replace(line, different={k: v for k, v in line.different.items() if usual.get(k) != v})
        for line in table
    ]
    told = ", ".join(f"{name}={value}" for name, value in usual.items())
    return own, [f"Where runs are not said to differ: {told}."] if usual else []


def in_words(name: str) -> str:
    """Put the name of a column of the records in words.

    Example:
        >>> in_words("phases.retrain.metrics_at_start.accuracy")
        'ACC at start, retrain'
        >>> in_words("phases.finetune.losses.reconstruction")
        'loss of reconstruction, finetune'
        >>> [in_words(n) for n in ("label_free.silhouette", "config.loss.gamma")]
        ['silhouette', 'loss.gamma']
    """
    if name.startswith(CONFIG):  # as on a command line
        return name.removeprefix(CONFIG)
    *where, what = name.split(".")
    first, *rest = what.split("_")
    text = " ".join([SHORT.get(first, first), *rest])
    if "losses" in where and what != "loss":  # that is their sum
        text = f"loss of {text}"
    for place in where:
        if place.startswith("metrics_"):
            text += place.removeprefix("metrics").replace("_", " ")
    return f"{text}, {where[1]}" if where[:1] == ["phases"] else text


def remarks(table: Sequence[Line], shared: Mapping[str, str | None]) -> list[str]:
    """Say how to read the table, and what its published numbers are."""
    text = "mean ± standard deviation over seeds, last state of each run; minutes of a run"
    text = f"In %, {text}" if any(line.ours("accuracy") for line in table) else text.capitalize()
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
        *where_settled(table),
        *(f"not run: {command}{','.join(values)}" for command, values in commands.items()),
    ]


def against_classifiers(table: Sequence[Line]) -> list[str]:
    """Say of SDCEC whether it beats the classifiers that are told the same labels.

    On the samples whose label nobody told; a sentence for each data set and experiment in which
    both were run. Where a method has several lines, SDCEC's lowest must beat the others' highest.
    """
    scores: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for line in table:
        if line.method in ("sdcec", *CLASSIFIERS) and (ours := line.ours(TOLD_NOTHING)):
            row = line.rows[0]
            shares = scores.setdefault((line.data, row["experiment"]), {})
            found = shares.setdefault(row[f"{CONFIG}data.labelled"], {})
            found.setdefault(line.method, []).append(ours[0])
    told = []
    for (data, experiment), shares in scores.items():
        both = {s: m for s, m in shares.items() if "sdcec" in m and len(m) > 1}
        lost = [
            f"{method} at data.labelled={share}"
            for share, methods in both.items()
            for method in CLASSIFIERS
            if max(methods.get(method, [-math.inf])) >= min(methods["sdcec"])
        ]
        if both:
            named = f" of experiment={experiment}" if experiment else ""
            result = f"does NOT beat {', '.join(lost)}" if lost else "beats all of them"
            text = f"ACC of unlabelled samples, {data}{named}: sdcec beside classifiers of the"
            where = f"{len(both)} share{'s' * (len(both) != 1)}"
            several = any(len(methods["sdcec"]) > 1 for methods in both.values())
            which = "its lowest line" if several else "it"
            told.append(f"{text} same labels, at {where}: {which} {result}.")
    return told


def where_settled(table: Sequence[Line]) -> list[str]:
    """Say of IDCEC what those of its runs reach whose classifier settled.

    Where clusters split or join classes it keeps changing labels, which is seen without the truth:
    a user can take another seed. A sentence for each line of several runs that did not all settle.
    """
    told = []
    for line in table:
        known = [row for row in line.rows if settled(row) is not None]
        calm = replace(line, rows=tuple(row for row in known if settled(row)))
        if len(calm.rows) < len(known) > 1:
            scores = [f"{SHORT[n]} {_shown(score)}" for n in SCORES if (score := calm.ours(n))]
            reached = f", where it has {', '.join(scores)}" if scores else ""
            text = f"its classifier settled in {len(calm.rows)} of {len(known)} runs{reached}."
            told.append(f"{line.name()}: {text}")
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
