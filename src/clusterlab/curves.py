"""Curves: losses and scores over steps, of a run or of several, and over a swept setting."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from clusterlab.verdict import Choice
from clusterlab.viz import PALETTE, panel_grid, style

SCORES = {"ACC": "accuracy", "NMI": "nmi", "ARI": "ari", "macro-F1": "f1"}
BEHIND = ("loss", "confidence")  # broad and grey, context of the other lines
# A paper's curve, above ours.
DASHED: dict[str, Any] = {"color": "0.35", "ls": "--", "marker": "x", "zorder": 3}

Row = Mapping[str, float | str | None]
# A value of a setting, and by score its mean and deviation over seeds.
Point = tuple[float, Mapping[str, tuple[float, float | None]]]
Lines = dict[str, NDArray[np.float64]]  # by name: steps and values, shape (n, 2)
Panel = tuple[str, str, Lines]  # of which phase, what it shows, and its lines


@style
def learning_curves(rows: Sequence[Row], tolerance: float | None = None) -> Figure:
    """Draw loss terms, scores and label change against the optimizer steps of each phase.

    Missing, ``None`` and non-finite values are left out, and so are panels without a value.

    Args:
        rows: Rows of a ``metrics.csv``: "phase", "step", "<phase>/<term>" once an epoch and
            "cluster/<score>" once a refresh. Without ground truth the confidence stands alone.
        tolerance: Label change at which finetuning stops, drawn as a dashed line.
    """
    panels = panels_of(rows)
    colours = colours_of(panels)
    size = math.ceil(len(panels) / 2) or 1, min(2, len(panels)) or 1
    figure, grid = panel_grid(*size, 4.2, 3, "" if panels else "Nothing recorded yet")
    for axes, (phase, kind, lines) in zip(grid.flat, panels, strict=False):
        for name, points in lines.items():
            colour, width, layer = ("0.8", 4, 2) if name in BEHIND else (colours[name], 1.5, 3)
            marker = "o" if len(points) == 1 else ""  # a line through one point is invisible
            axes.plot(*points.T, marker=marker, color=colour, lw=width, zorder=layer, label=name)
        _value_axis(axes, kind, lines, tolerance)
        n_columns = 5 if kind == "scores" else 3
        pad = 8 + 13 * math.ceil(len(lines) / n_columns)
        axes.set_title(f"{phase}: {kind}", loc="left", pad=pad)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=n_columns)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.tick_params(labelsize=8)  # ticks are made when drawn, outside the style
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """Arrange what the phases logged: losses first, then scores and label change of each phase.

    Args:
        rows: See ``learning_curves``.
    """
    phases = dict.fromkeys(str(row["phase"]) for row in rows if row.get("phase"))
    columns = dict.fromkeys(column for row in rows for column in row)
    scores = {name: f"cluster/{c}" for name, c in SCORES.items()}
    confidence = {"confidence": "cluster/confidence"}
    change = {"label change": "cluster/label_change"}
    wanted = []
    for phase in phases:
        terms = {c.split("/", 1)[1]: c for c in columns if c.startswith(f"{phase}/")}
        wanted.append((phase, "loss", terms))
    for phase in phases:
        if _lines(rows, phase, scores):
            wanted.append((phase, "scores", scores | confidence))
        else:
            wanted.append((phase, "confidence", confidence))
        wanted.append((phase, "label change", change))
    return [(p, kind, lines) for p, kind, names in wanted if (lines := _lines(rows, p, names))]


def colours_of(panels: Sequence[Panel]) -> dict[str, str]:
    """Give each line's name a colour, the common names first: the same for all models."""
    names = ["reconstruction", "clustering", *SCORES, "label change"]
    names += [n for _, _, lines in panels for n in lines if n not in BEHIND]
    return dict(zip(dict.fromkeys(names), cycle(PALETTE), strict=False))


def _lines(rows: Sequence[Row], phase: str, columns: Mapping[str, str]) -> Lines:
    """Return the finite points of those columns that have any in this phase."""
    mine = [row for row in rows if row.get("phase") == phase]
    lines: Lines = {}
    for name, column in columns.items():
        points = np.array([(_number(row.get("step")), _number(row.get(column))) for row in mine])
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            lines[name] = points
    return lines


def _number(cell: float | str | None) -> float:
    return math.nan if cell is None or cell == "" else float(cell)


def _value_axis(axes: Axes, kind: str, lines: Lines, tolerance: float | None) -> None:
    values = np.concatenate(list(lines.values()))[:, 1]
    if kind == "loss":
        axes.set_yscale("log" if 0 < 10 * values.min() < values.max() else "linear")
        axes.set_ylabel("loss")
    elif kind in ("scores", "confidence"):
        # Whole tenths, so that small differences show and the range is read at a glance.
        top = math.ceil(10 * values.max()) / 10
        axes.set_ylim(min(math.floor(10 * values.min()) / 10, top - 0.1), top)
        axes.set_ylabel("score" if kind == "scores" else "mean of the largest q")
    else:
        if tolerance:
            axes.axhline(tolerance, color="0.3", ls="--", label=f"tolerance {100 * tolerance:g}%")
        positive = [v for v in (*values, tolerance or 0) if v > 0] or [1e-3]
        # Logarithmic down to the last decade that occurs, and linear from there to zero.
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        axes.set_yscale("symlog", linthresh=10.0**low, linscale=0.3)
        axes.set_ylim(-0.2 * 10.0**low, 10.0 ** max(high, low + 1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.set_ylabel("samples that changed cluster")


@style
def trials(curves: Mapping[str, Sequence[NDArray[np.float64]]], score: str) -> Figure:
    """Draw a score over the finetune steps of several runs, and what each run ends with.

    Args:
        curves: By name, the runs of each group: steps and values, shape ``(n, 2)``, by seed.
        score: Name of the score.
    """
    figure, grid = panel_grid(1, 2, 4.2, 3, "")
    steps, ends = grid[0]
    for (name, runs), colour in zip(curves.items(), cycle(PALETTE), strict=False):
        common = [step for step in runs[0][:, 0] if all(step in run[:, 0] for run in runs)]
        values = np.array([run[np.isin(run[:, 0], common), 1] for run in runs])  # (runs, steps)
        steps.plot(common, values.mean(0), color=colour, label=name)
        steps.fill_between(common, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
        ends.plot(range(1, 1 + len(runs)), [run[-1, 1] for run in runs], marker="o", color=colour)
    steps.set(xlabel="finetune step", ylabel=f"{score}, mean and range of runs")
    ends.set(xlabel="run", ylabel=f"{score} at the end")
    ends.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (steps, ends):
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    _name_curves(figure, steps)
    return figure


@style
def over_setting(
    setting: str,
    curves: Mapping[str, Sequence[Point]],
    published: Mapping[str, Sequence[Point]] | None = None,
) -> Figure:
    """Draw final scores against the values of a swept setting, a panel for each score.

    A band spans one standard deviation over seeds to either side of the mean; without one there
    was a single seed.

    Args:
        setting: Its name, such as ``loss.gamma``.
        curves: By name, each curve's points in ascending order.
        published: The same of papers, drawn dashed.
    """
    coloured = zip(curves.items(), cycle(PALETTE), strict=False)
    drawn: list[Any] = [(*curve, {"color": colour}) for curve, colour in coloured]
    drawn += [(*curve, DASHED) for curve in (published or {}).items()]
    names = list(dict.fromkeys(n for _, points, _ in drawn for _, s in points for n in s))
    size = math.ceil(len(names) / 2) or 1, min(2, len(names)) or 1
    figure, grid = panel_grid(*size, 4.2, 3, "" if names else "Runs without labels")
    values = sorted({x for _, points, _ in drawn for x, _ in points})
    least = min((x for x in values if x > 0), default=1)
    wide = values[0] >= 0 and values[-1] / least > 20
    for axes, name in zip(grid.flat, names, strict=False):
        for curve, points, look in drawn:
            known = [(x, *scores[name]) for x, scores in points if name in scores]
            x, y = [p[0] for p in known], np.array([p[1] for p in known])
            spread = np.array([p[2] or 0 for p in known])
            axes.plot(x, y, **({"marker": "o", "ms": 4, "label": curve} | look))
            axes.fill_between(x, y - spread, y + spread, color=look["color"], alpha=0.2, lw=0)
        if wide and values[0] > 0:
            axes.set_xscale("log")
        elif wide:  # from zero
            axes.set_xscale("symlog", linthresh=least)
        if len(values) <= 8:
            axes.set_xticks(values, [f"{x:g}" for x in values])
            axes.minorticks_off()
        axes.set(xlabel=setting, ylabel=name)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    if names:
        _name_curves(figure, grid[0, 0])
    return figure


def _name_curves(figure: Figure, axes: Axes) -> None:
    """Put a legend above all panels, in two columns if the names leave room for them."""
    named = axes.get_legend_handles_labels()
    legend = figure.legend(*named, loc="outside upper center", ncols=2)
    if legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        figure.legend(*named, loc="outside upper center")


@style
def before_and_after(phase: str, scores: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Figure:
    """Draw scores before and after a phase, a panel for each method.

    A grey line is a run, a bar one standard deviation over runs to either side of their mean.
    Below a score stands by how much it changed, mean and deviation over runs.

    Args:
        phase: Its name.
        scores: By method and then by score, those of each run, in percent; shape ``(runs, 2)``.
    """
    figure, grid = panel_grid(math.ceil(len(scores) / 2), min(2, len(scores)), 4.2, 3)
    for axes, (method, values) in zip(grid.flat, scores.items(), strict=False):
        ticks = []
        for i, (name, pairs) in enumerate(values.items()):
            at = np.array([i - 0.2, i + 0.2])
            axes.plot(at, pairs.T, color="0.7", lw=0.8, zorder=2)
            change, ddof = pairs[:, 1] - pairs[:, 0], 1 if len(pairs) > 1 else 0
            spread = pairs.std(0, ddof=ddof)
            for j, when in enumerate(("before", "after")):
                label = f"{when} {phase}" if i == 0 else None
                point = {"fmt": "o", "ms": 5, "capsize": 3, "color": PALETTE[j], "zorder": 3}
                axes.errorbar(at[j], pairs[:, j].mean(), spread[j], label=label, **point)
            deviation = f" ± {change.std(ddof=1):.2f}" if ddof else ""
            ticks.append(f"{name}\n{change.mean():+.2f}{deviation}")
        axes.set_title(fill(method, 50), loc="left")
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_ylabel("score, %")
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92", axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(scores) :]:
        axes.remove()
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@style
def over_clusters(
    ks: Sequence[int],
    values: Mapping[str, NDArray[np.float64]],
    said: Mapping[str, Choice],
    verdict: str,
) -> Figure:
    """Draw the measures of a scan over K: means over seeds, one standard deviation to either side.

    A ring marks each measure's best K, dots those within its spread. Behind the agreement, in
    grey, stands that of one Gaussian, for which it is corrected.

    Args:
        ks: The numbers of clusters.
        values: "silhouette", "bic", "agreement", "agreement_one_gaussian", each of shape
            ``(seeds, len(ks))``.
        said: What each measure says.
        verdict: What they say together.
    """
    figure, grid = panel_grid(1, 3, 3.6, 3, "")
    axis_names = ("silhouette", "BIC per sample, less one Gaussian's", "adjusted Rand index")
    drawn = zip(grid[0], ("silhouette", "bic", "agreement"), said.items(), axis_names, strict=True)
    for axes, column, (name, choice), axis_name in drawn:
        behind = f"{column}_one_gaussian"
        for line, colour in ((behind, "0.7"), (column, PALETTE[0])):
            if line in values:
                mean, std = values[line].mean(0), values[line].std(0, ddof=1)
                axes.plot(ks, mean, color=colour, label="one Gaussian" if line == behind else name)
                axes.fill_between(ks, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
        near = [list(ks).index(k) for k in choice.near]
        axes.plot(np.array(ks)[near], mean[near], "o", ms=4, color=PALETTE[0])
        if choice.best is not None:
            i = list(ks).index(choice.best)
            axes.plot(ks[i], mean[i], "o", ms=10, mfc="none", color=PALETTE[1])
        if behind in values:
            axes.legend(loc="best")
        axes.set_title(f"{name} says {choice}", loc="left")
        axes.set(xlabel="number of clusters K", ylabel=axis_name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(verdict, x=0.01, ha="left")
    return figure
