"""The figures of a run: every function returns a ``Figure``, none needs pyplot or a display."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

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
SCORES = {"ACC": "accuracy", "NMI": "nmi", "ARI": "ari", "macro-F1": "f1"}

Row = Mapping[str, float | str | None]
Lines = dict[str, tuple[list[float], list[float]]]  # name: steps and values
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
            out, and so are panels without a value. Without ground truth the panel of scores
            shows the confidence alone.
        tolerance: Label change at which finetuning stops, drawn as a dashed line.
    """
    phases = list(dict.fromkeys(str(row["phase"]) for row in rows if row.get("phase")))
    columns = dict.fromkeys(column for row in rows for column in row)
    terms = dict.fromkeys(c.split("/", 1)[1] for c in columns if c.split("/")[0] in phases)
    colours = dict(zip([t for t in terms if t != "loss"], PALETTE, strict=False))
    scores = {**SCORES, "confidence": "confidence"}
    panels: list[tuple[Callable[[Axes, Lines], None], str, Lines]] = []
    for phase in phases:
        lines = _lines(rows, phase, {t: f"{phase}/{t}" for t in terms})
        panels.append((partial(_loss_panel, colours), phase, lines))
    for phase in phases:
        lines = _lines(rows, phase, {name: f"cluster/{c}" for name, c in scores.items()})
        panels.append((_score_panel, phase, lines))
        lines = _lines(rows, phase, {"label change": "cluster/label_change"})
        panels.append((partial(_change_panel, tolerance), phase, lines))
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return _figure(4, 1, "Nothing recorded yet")
    n_columns, n_rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    figure = _figure(4.2 * n_columns, 2.9 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, (draw, phase, lines) in zip(grid.flat, panels, strict=False):
        draw(axes, lines)
        axes.set_xlabel(f"optimizer step ({phase})")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.grid(visible=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure


def _lines(rows: Sequence[Row], phase: str, columns: Mapping[str, str]) -> Lines:
    """Return steps and values of those columns that have finite values in the phase."""
    lines: Lines = {}
    for row in rows:
        for name, column in columns.items():
            step, value = row.get("step"), row.get(column)
            if row.get("phase") != phase or isinstance(step, str) or isinstance(value, str):
                continue
            if step is not None and value is not None and math.isfinite(value):
                steps, values = lines.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return lines


def _draw(axes: Axes, lines: Lines, colours: Mapping[str, str]) -> NDArray[np.float64]:
    """Draw the lines, those without a colour grey and behind; return all values."""
    for name in sorted(lines, key=lambda name: name in colours):
        steps, values = lines[name]
        style = (
            {"color": colours[name], "lw": 1.5} if name in colours else {"color": "0.7", "lw": 3}
        )
        # A line through one point would be invisible without its marker.
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 30 else "", ms=3, **style)
    return np.concatenate([values for _, values in lines.values()])


def _loss_panel(colours: Mapping[str, str], axes: Axes, lines: Lines) -> None:
    if len(lines) == 2 and "loss" in lines and len({str(line) for line in lines.values()}) == 1:
        del lines["loss"]  # the only term of the phase is the loss
    values = _draw(axes, lines, colours)
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
    axes.set(title="Loss terms", ylabel="loss")
    axes.legend()


def _score_panel(axes: Axes, lines: Lines) -> None:
    values = _draw(axes, lines, dict(zip(SCORES, PALETTE, strict=False)))
    # Whole tenths, so that small differences show and the range is still read at a glance.
    axes.set_ylim(math.floor(10 * values.min()) / 10, math.ceil(10 * values.max()) / 10 + 1e-9)
    labelled = lines.keys() & SCORES.keys()
    axes.set(title="Scores against the ground truth" if labelled else "Mean confidence")
    axes.set_ylabel("score" if labelled else "mean of the largest q")
    axes.legend(ncols=2)


def _change_panel(tolerance: float | None, axes: Axes, lines: Lines) -> None:
    ((steps, values),) = lines.values()
    positive = [v for v in (*values, tolerance or 0.0) if v > 0]
    floor = 10.0 ** math.floor(math.log10(min(positive, default=1e-3)))
    at = np.array(steps), np.array(values)
    shown = np.maximum(at[1], floor)
    axes.plot(at[0], shown, color=PALETTE[0], marker="o", ms=3, lw=1.5)
    if (zero := at[1] == 0).any():
        style = {"marker": "v", "ls": "", "mfc": "white", "color": PALETTE[0], "clip_on": False}
        axes.plot(at[0][zero], shown[zero], label="no change at all", zorder=3, **style)
    if tolerance:
        axes.axhline(
            tolerance, color="0.3", ls="--", lw=1, label=f"tolerance {100 * tolerance:g} %"
        )
    axes.set_yscale("log")
    axes.set_ylim(floor, 10.0 ** math.ceil(math.log10(max(positive, default=1e-2)) + 1e-9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title="Label change between refreshes", ylabel="samples that changed cluster")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


@_style
def reconstructions(x: Tensor, x_hat: Tensor, n: int = 10) -> Figure:
    """Draw inputs above their reconstructions, ten pairs a row.

    Args:
        x: Inputs, shape ``(N, C, H, W)``, C = 1 or 3, ``uint8`` or in [0, 1].
        x_hat: Reconstructions of the same shape.
        n: Draw the first n.
    """
    x, x_hat = as_float(x[:n].detach().cpu()), as_float(x_hat[:n].detach().cpu())
    error = float((x - x_hat).square().mean())
    n_columns = min(10, len(x))
    blocks = math.ceil(len(x) / n_columns)
    height = 0.8 * x.shape[2] / x.shape[3]
    figure = _figure(
        1 + 0.8 * n_columns,
        0.4 + blocks * 2 * height,
        f"Reconstructions (mean squared error {error:.4f} over these {len(x)})",
    )
    grid = figure.subplots(2 * blocks, n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, pair in enumerate(zip(x, x_hat, strict=True)):
        block, column = divmod(i, n_columns)
        for row, image in enumerate(pair):
            _show(grid[2 * block + row, column], _image(image))
    for row, axes in enumerate(grid[:, 0]):
        _row_label(axes, "output" if row % 2 else "input")
    return figure


@_style
def decoded_centers(images: Tensor, sizes: Tensor) -> Figure:
    """Draw what each cluster center decodes to, with the cluster's number and size.

    Args:
        images: Decoded centers, shape ``(K, C, H, W)``, in [0, 1].
        sizes: Samples per cluster, shape ``(K,)``.
    """
    n_columns = min(10, len(images))
    n_rows = math.ceil(len(images) / n_columns)
    height = 0.95 * images.shape[2] / images.shape[3] + 0.45
    title = f"Decoded cluster centers, {int(sizes.sum()):,} samples"
    figure = _figure(max(3.5, 0.95 * n_columns), 0.4 + n_rows * height, title)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for k, (axes, image) in enumerate(zip(grid.flat, images, strict=False)):
        _show(axes, _image(image))
        axes.set_title(f"cluster {k}\n{int(sizes[k]):,}", fontsize=8)
    return figure


@_style
def extreme_samples(x: Tensor, z: Tensor, centers: Tensor, labels: Tensor, n: int = 10) -> Figure:
    """Draw of each cluster the samples nearest to its center and those farthest from it.

    Distances grow from left to right. A cluster of fewer than 2 n samples shows each of them once.

    Args:
        x: Images, shape ``(N, C, H, W)``, ``uint8`` or in [0, 1].
        z: Embeddings, shape ``(N, d)``.
        centers: Cluster centers, shape ``(K, d)``.
        labels: Hard assignment, shape ``(N,)``.
        n: Images on each side.
    """
    z, centers, labels = z.detach().cpu(), centers.detach().cpu(), labels.detach().cpu()
    distance = (z - centers[labels]).norm(dim=1)
    cell = 0.42 * x.shape[2] / x.shape[3]
    figure = _figure(1.3 + 0.84 * n, 0.7 + (cell + 0.1) * len(centers), "Cluster members")
    grid = figure.subplots(len(centers), 2, squeeze=False)
    for k, row in enumerate(grid):
        members = torch.nonzero(labels == k).flatten()
        order = members[distance[members].argsort(stable=True)]
        for axes, index in zip(row, (order[:n], order[n:][-n:]), strict=True):
            _show(axes, _strip([_image(image) for image in x[index]], n, x.shape[2], x.shape[3]))
        _row_label(
            row[0], f"cluster {k}\n{len(members):,}" if len(members) else f"cluster {k}\nempty"
        )
    grid[0, 0].set_title("nearest to the center")
    grid[0, 1].set_title("farthest from the center")
    return figure


def tsne(z: Tensor, seed: int = 0) -> Tensor:
    """Return a t-SNE map ``(n, 2)`` of embeddings ``(n, d)``, started from their PCA."""
    if len(z) < 3 or (z == z[0]).all():
        return torch.zeros(len(z), 2)  # nothing to arrange, and PCA would divide by zero
    init = "pca" if z.shape[1] > 1 else "random"
    perplexity = min(30, (len(z) - 1) / 3)
    model = TSNE(init=init, perplexity=perplexity, random_state=seed)
    return torch.as_tensor(model.fit_transform(z.detach().cpu().float().numpy()))


@_style
def tsne_panels(
    before: Tensor | None,
    after: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw t-SNE maps before and after finetuning, coloured by cluster and by class.

    A cluster has the colour of the class it is matched with, so the two columns can be compared.

    Args:
        before: Embeddings before finetuning, shape ``(n, d)``; ``None`` leaves that row out.
        after: Embeddings of the same samples after it, shape ``(n, d)``.
        labels: Hard assignment after finetuning, shape ``(n,)``.
        y: Ground truth, shape ``(n,)``; ``None`` leaves the column of classes out.
        class_names: One name a class.
        seed: Seed of t-SNE.
    """
    labels = labels.detach().cpu()
    colours = torch.arange(int(labels.max()) + 1)
    columns = [("cluster", labels, colours)]
    if y is not None:
        y = y.detach().cpu()
        table = contingency(y, labels, int(y.max()) + 1, len(colours))
        colours = match(table)
        free = colours < 0
        colours[free] = len(table) + torch.arange(int(free.sum()))
        columns = [("cluster", labels, colours), ("class", y, torch.arange(len(table)))]
    rows = [("after finetuning", after)]
    rows = rows if before is None else [("before finetuning", before), *rows]
    figure = _figure(
        4.2 * len(columns), 0.6 + 3.9 * len(rows), f"t-SNE of {len(after):,} embeddings"
    )
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for panels, (when, z) in zip(grid, rows, strict=True):
        points = tsne(z, seed).numpy()
        for axes, (what, groups, numbers) in zip(panels, columns, strict=True):
            _scatter(axes, points, groups.numpy(), numbers.numpy())
            axes.set_title(f"{when}, by {what}" if before is not None else f"by {what}")
    if y is not None and class_names:
        _class_legend(figure, class_names)
    note = "t-SNE keeps neighbourhoods; sizes of groups and distances between them mean nothing"
    figure.supxlabel(note, fontsize=8, color="0.4")
    return figure


def _scatter(
    axes: Axes, points: NDArray[np.float32], groups: NDArray[np.int64], colours: NDArray[np.int64]
) -> None:
    """Draw points in the colour of their group, and each group's number at its median."""
    code = colours[groups]
    size = float(np.clip(9000 / len(points), 3, 20))
    for turn in np.unique(code // len(PALETTE)):
        inside = code // len(PALETTE) == turn
        face = [PALETTE[c % len(PALETTE)] for c in code[inside]]
        marker = MARKERS[turn % len(MARKERS)]
        axes.scatter(*points[inside].T, s=size, c=face, marker=marker, alpha=0.7, linewidths=0)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for group in np.unique(groups):
        at = np.median(points[groups == group], axis=0)
        style = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo}
        axes.text(*at, str(group), fontsize=10 if len(colours) <= 20 else 7, **style)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_adjustable("datalim")


def _class_legend(figure: Figure, class_names: Sequence[str]) -> None:
    handles = [
        Line2D(
            [],
            [],
            ls="",
            marker=MARKERS[k // len(PALETTE) % len(MARKERS)],
            color=PALETTE[k % len(PALETTE)],
            label=f"{k}  {_plain(name)}",
        )
        for k, name in enumerate(class_names)
    ]
    figure.legend(handles=handles, loc="outside right center", title="class")


@_style
def confusion(table: Tensor, class_names: Sequence[str] | None = None) -> Figure:
    """Draw the contingency table with matched clusters on the diagonal, the others at the right.

    Colour is the share of a class, the number in a cell its samples (without zeros, and up to 20
    clusters). Classes without a cluster come last.

    Args:
        table: Contingency table, shape ``(n_classes, n_clusters)``.
        class_names: One name a class.
    """
    table = table.cpu()
    matched = match(table)
    clusters = sorted(range(len(matched)), key=lambda j: (matched[j] < 0, int(matched[j]), j))
    partners = [int(matched[j]) for j in clusters if matched[j] >= 0]
    classes = partners + [k for k in range(len(table)) if k not in partners]
    ordered = table[classes][:, clusters]
    share = ordered.double() / ordered.sum(1, keepdim=True).clamp(min=1)
    cells = max(table.shape)
    cell, font = (0.45, 7.5) if cells <= 20 else (0.2, 6)
    figure = _figure(1.8 + cell * len(clusters), 1.3 + cell * len(classes))
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    names = [_plain(class_names[k]) if class_names else str(k) for k in classes]
    axes.set_xticks(range(len(clusters)), [str(j) for j in clusters], fontsize=font + 1)
    axes.set_yticks(range(len(classes)), names, fontsize=font + 1)
    axes.set(xlabel="cluster (ordered by matched class)", ylabel="class")
    axes.set_title(f"ACC {accuracy(table):.1%} of {int(table.sum()):,} samples")
    axes.spines[:].set_visible(True)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    if cells <= 20:
        for (i, j), count in np.ndenumerate(ordered.numpy()):
            colour = "white" if share[i, j] > 0.5 else "black"
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=font, color=colour)
    return figure


def _figure(width: float, height: float, title: str = "") -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    return figure


def _plain(name: str) -> str:
    """Shorten a long name, and keep matplotlib from reading dollars as mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def _image(image: Tensor) -> NDArray[np.float32]:
    """Return one image ``(C, H, W)`` as RGB ``(H, W, 3)`` in [0, 1]."""
    if image.shape[0] not in (1, 3):
        raise ValueError(f"Expected images of 1 or 3 channels, got {image.shape[0]}")
    rgb = as_float(image.detach().cpu()).nan_to_num().clamp(0, 1).expand(3, -1, -1)
    return np.ascontiguousarray(rgb.permute(1, 2, 0).float().numpy())


def _strip(
    images: Sequence[NDArray[np.float32]], n: int, height: int, width: int
) -> NDArray[np.float32]:
    """Put images side by side with white gaps, white also where there are fewer than n."""
    gap = max(1, width // 14)
    strip = np.ones((height, n * (width + gap) - gap, 3), dtype=np.float32)
    for i, image in enumerate(images):
        strip[:, i * (width + gap) : i * (width + gap) + width] = image
    return strip


def _show(axes: Axes, image: NDArray[np.float32]) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()


def _row_label(axes: Axes, text: str) -> None:
    axes.text(-0.03, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)
