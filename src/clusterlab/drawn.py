"""What a report draws: scores over a setting, and before and after a phase."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clusterlab.report import POOLABLE, SAME, SHORT, START, Line, Score, number, short

Curves = dict[str, list[tuple[float, dict[str, Score]]]]  # by name, scores at values of a setting


def sweeps(table: Sequence[Line]) -> dict[str, dict[str, list[tuple[float, Line]]]]:
    """Find the settings that were swept: numbers in which lines of a method differ.

    Returns:
        By setting and then by curve (data, method, and whatever else differs but revision and
        device, see ``apart``), its lines with their value of the setting, ascending.
    """
    found: dict[str, dict[str, list[tuple[float, Line]]]] = {}
    for line in table:
        for name, value in line.different.items():
            if name in SAME or not math.isfinite(number(value)):
                continue
            curves = found.setdefault(name, {})
            curve = line.name(without=(name, *POOLABLE))
            curves.setdefault(curve, []).append((float(value), line))
    swept = {}
    for name, curves in found.items():
        long = {c: sorted(p, key=lambda pair: pair[0]) for c, p in curves.items() if len(p) > 1}
        if long:
            swept[name] = long
    return swept


def apart(
    swept: Sequence[tuple[float, Line]], pooled: Sequence[str] = ()
) -> dict[str, list[tuple[float, Line]]]:
    """Part the lines of a swept setting by data, revision and device: no curve goes across these.

    Args:
        swept: Lines with their value of the setting, as ``sweeps`` has them.
        pooled: In what the runs of a line may differ, see ``lines``; its curve goes across that.

    Returns:
        By what these lines have in common and the others have not, such as ``", device=a CPU"``,
        the lines that have runs.
    """
    run = [(value, line) for value, line in swept if line.rows]
    names = [name for name in SAME if name not in ("settings_sha256", *pooled)]
    told = [name for name in names if len({line.rows[0].get(name) for _, line in run}) > 1]
    parts: dict[str, list[tuple[float, Line]]] = {}
    for value, line in run:
        own = [f", {name}={short(name, line.rows[0].get(name, ''))}" for name in told]
        parts.setdefault("".join(own), []).append((value, line))
    return parts


def points_of(
    curves: Mapping[str, Sequence[tuple[float, Line]]],
    drawn: Mapping[str, str],
    pooled: Sequence[str] = (),
) -> tuple[Curves, Curves]:
    """Return what is drawn over a setting: our curves, and one of the paper for all of a method.

    Args:
        curves: Lines with their value of the setting by curve, as ``sweeps`` has them.
        drawn: Columns of the records to draw, and a name for each.
        pooled: See ``apart``.

    Returns:
        Both by curve, value after value: mean and deviation of what there is of those columns.
    """
    ours: Curves = {}
    papers: dict[str, dict[float, dict[str, Score]]] = {}
    for curve, swept in curves.items():
        for part, pairs in apart(swept, pooled).items():
            ours[curve + part] = [
                (value, {label: score for n, label in drawn.items() if (score := line.ours(n))})
                for value, line in pairs
            ]
        for value, line in swept:
            told: dict[str, Score] = {}
            for name in SHORT:
                if (theirs := line.theirs(name)) is not None:
                    told[drawn[name]] = theirs, None
            if told and (line.published or {}).get("setting"):
                papers.setdefault(f"{line.method} on {line.data}, paper", {})[value] = told
    return ours, {curve: sorted(paper.items()) for curve, paper in papers.items()}


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
