"""The figures of a run: every function returns a ``Figure``, none touches pyplot or a display."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from clusterlab.data.samples import as_float
from clusterlab.metrics import accuracy, contingency, match

# Okabe and Ito's colours, then one by one what is farthest from all before it, in OKLab and least
# over normal, protanopic and deuteranopic vision. 0.11 between the nearest two; 0.02 is visible.
PALETTE = (
    "#0072b2 #e69f00 #009e73 #d55e00 #cc79a7 #56b4e9 #680028 #300098 #60e8a8 #805060 "
    "#8878f8 #b80010 #004060 #98b888 #c80898 #a8d0e8 #d8d048 #0038c8 #306020 #6000f8"
).split()
MARKERS = "o^sD"  # one a round through the palette, for more than 20 clusters
GREY = "0.55"
SCORES = {"accuracy": "ACC", "nmi": "NMI", "ari": "ARI", "f1": "macro-F1"}

Row = Mapping[str, float | str | None]
Series = tuple[list[float], list[float]]  # steps, values
_style = mpl.rc_context(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "0.92",
        "legend.frameon": False,
        "figure.titlesize": 11,
    }
)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG at 150 dpi; a reader finds the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=150)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@_style
def learning_curves(rows: Sequence[Row], tolerance: float | None = None) -> Figure:
    """Draw loss terms, scores and label change against the optimizer steps of each phase.

    Args:
        rows: Rows of a ``metrics.csv``: "phase", "step", "<phase>/<term>" once an epoch and
            "cluster/<score>" once a refresh. Missing, ``None`` and non-finite values are left
            out, and so are panels without a value. Without ground truth the scores' panel shows
            the confidence alone.
        tolerance: Label change at which finetuning stops, a dashed line.
    """
    phases = list(dict.fromkeys(str(row["phase"]) for row in rows if row.get("phase")))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    losses, scores = {}, {}
    for phase in phases:
        names = [c for c in columns if c.startswith(f"{phase}/")]
        losses[phase] = {c.split("/", 1)[1]: _series(rows, phase, c) for c in names}
        names = [*SCORES, "confidence", "label_change"]
        scores[phase] = {c: _series(rows, phase, f"cluster/{c}") for c in names}
    changes = {phase: {"": scores[phase].pop("label_change")} for phase in phases}
    terms = [t for t in dict.fromkeys(t for names in losses.values() for t in names) if t != "loss"]
    colours = dict(zip(terms, PALETTE * len(terms), strict=False)) | {"loss": GREY}
    panels = [
        (draw, phase, {name: series for name, series in lines.items() if series[0]})
        for draw, of_phase in ((_losses, losses), (_scores, scores), (_label_change, changes))
        for phase, lines in of_phase.items()
        if any(series[0] for series in lines.values())
    ]
    n_columns = min(2, max(1, len(panels)))
    n_rows = max(1, math.ceil(len(panels) / 2))
    figure = _figure(4.2 * n_columns, 2.9 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (draw, phase, lines) in zip(grid.flat, panels, strict=False):
        draw(axes, phase, lines, colours, tolerance)
        axes.set_xlabel(f"{phase} step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.grid(visible=True)
        axes.set_axisbelow(True)
    if not panels:
        grid[0, 0].text(0.5, 0.5, "nothing recorded yet", ha="center")
    return figure
