"""Pictures of samples and clusters: every function returns a ``Figure``, none needs a display."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from clusterlab.data.samples import as_float
from clusterlab.errors import problem
from clusterlab.files import write_atomically
from clusterlab.metrics import accuracy, by_class, contingency, match

# Okabe and Ito's colours, then one by one what is farthest from all before it, in OKLab and least
# over normal, protanopic and deuteranopic vision. 0.11 between the nearest two; 0.02 is visible.
_HEX = (
    "0072b2 e69f00 009e73 d55e00 cc79a7 56b4e9 680028 300098 60e8a8 805060 "
    "8878f8 b80010 004060 98b888 c80898 a8d0e8 d8d048 0038c8 306020 6000f8"
)
PALETTE = [f"#{code}" for code in _HEX.split()]
MARKERS = "o^sD"  # one a round through the palette, for more than 20 clusters
style = mpl.rc_context(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "legend.handlelength": 1.2,
        "legend.columnspacing": 1.2,
        "legend.borderaxespad": 0.2,
    }
)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG at 150 dpi; a reader finds the old file or the new one, never half."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomically(Path(path), content.getvalue())


@style
def reconstructions(x: Tensor, x_hat: Tensor, n: int = 10) -> Figure:
    """Draw the first n inputs ``(N, C, H, W)`` above their reconstructions, ten pairs a row."""
    x, x_hat = as_float(x[:n].detach().cpu()), as_float(x_hat[:n].detach().cpu())
    error = float((x - x_hat).square().mean())
    n_columns, ratio = min(10, len(x)), x.shape[2] / x.shape[3]
    title = f"Reconstructions of {len(x)} samples, mean squared error {error:.4f}"
    figure, grid = panel_grid(2 * math.ceil(len(x) / 10), n_columns, 0.85, 0.82 * ratio, title)
    for i, pair in enumerate(zip(x, x_hat, strict=True)):
        for j, image in enumerate(pair):
            grid[2 * (i // 10) + j, i % 10].imshow(_rgb(image))
    _image_grid(grid, ["input", "output"] * (len(grid) // 2))
    return figure


@style
def decoded_centers(images: Tensor, sizes: Tensor) -> Figure:
    """Draw the decoded center ``(K, C, H, W)`` of each cluster, with its number and size."""
    n_rows, n_columns = math.ceil(len(images) / 10), min(10, len(images))
    height = 0.9 * images.shape[2] / images.shape[3] + 0.38
    figure, grid = panel_grid(n_rows, n_columns, 0.95, height, "Decoded cluster centers")
    for k, image in enumerate(images):
        grid.flat[k].imshow(_rgb(image))
        grid.flat[k].set_title(_caption(k, int(sizes[k])), fontsize=7.5)
    _image_grid(grid, [])
    return figure


@style
def decoded_history(images: Tensor, steps: Tensor, n_rows: int = 8, n_columns: int = 20) -> Figure:
    """Draw how decoded centers change: a row for each of some steps, a column for each cluster.

    Args:
        images: Shape ``(S, K, C, H, W)``.
        steps: Optimizer steps, shape ``(S,)``.
        n_rows: At most so many of the steps, evenly chosen, the first and the last among them.
        n_columns: At most so many clusters, the first ones.
    """
    rows = torch.linspace(0, len(steps) - 1, min(n_rows, len(steps))).round().long()
    shown = images[rows, :n_columns]
    height = 0.6 * images.shape[3] / images.shape[4]
    size = (len(shown), shown.shape[1])
    figure, grid = panel_grid(*size, 0.6, height, "Decoded cluster centers while training")
    for axes, image in zip(grid.flat, shown.flatten(0, 1), strict=True):
        axes.imshow(_rgb(image))
    _image_grid(grid, [f"step {step:,}" for step in steps[rows].tolist()])
    return figure


@style
def extreme_samples(x: Tensor, z: Tensor, centers: Tensor, labels: Tensor, n: int = 10) -> Figure:
    """Draw the members of each cluster that are nearest to its center and farthest from it.

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
    height, width = x.shape[2:]
    step = width + max(1, width // 14)
    title = "Members of each cluster by their distance to its center"
    figure, grid = panel_grid(len(centers), 2, 0.42 * n, 0.42 * height / width + 0.1, title)
    captions = []
    for k, sides in enumerate(grid):
        members = torch.nonzero(labels == k).flatten()
        order = members[distance[members].argsort(stable=True)]
        captions.append(_caption(k, len(members)))
        for axes, index in zip(sides, (order[:n], order[n:][-n:]), strict=True):
            strip = np.ones((height, n * step + step // 3, 3), dtype=np.float32)
            for i, image in enumerate(x[index.to(x.device)]):
                strip[:, i * step : i * step + width] = _rgb(image)
            axes.imshow(strip)
    _image_grid(grid, captions)
    grid[0, 0].set_title("nearest")
    grid[0, 1].set_title("farthest")
    return figure


def tsne(z: Tensor, seed: int = 0, start: Tensor | None = None) -> Tensor:
    """Return a t-SNE map ``(n, 2)`` of embeddings ``(n, d)``, started from their PCA.

    Args:
        z: Embeddings, shape ``(n, d)``.
        seed: Seed of t-SNE.
        start: Another map of the same samples to start from, shape ``(n, 2)``.
    """
    if len(z) < 3 or (z == z[0]).all():
        return torch.zeros(len(z), 2)  # nothing to arrange, and PCA would divide by zero
    init: Any = "pca" if z.shape[1] > 1 else "random"
    if start is not None and start.std() > 0:  # small, as t-SNE wants it
        init = (1e-4 * (start - start.mean(0)) / start.std()).numpy()
    model = TSNE(init=init, perplexity=min(30, (len(z) - 1) / 3), random_state=seed)
    return torch.as_tensor(model.fit_transform(z.detach().cpu().float().numpy()))


def umap(z: Tensor, seed: int = 0) -> Tensor:
    """Return a UMAP map ``(n, 2)`` of embeddings ``(n, d)``.

    Raises:
        UserError: If umap-learn is not installed, or there are fewer than 4 embeddings.
    """
    try:
        from umap import UMAP
    except ImportError:
        remedy = "install it with pip install '.[umap]', or take t-SNE"
        raise problem("umap-learn for UMAP maps", "none installed", remedy) from None
    if len(z) < 4:
        raise problem("at least 4 samples to map", len(z), "draw more")
    model = UMAP(n_neighbors=min(15, len(z) - 1), random_state=seed, n_jobs=1)
    return torch.as_tensor(model.fit_transform(z.detach().cpu().float().numpy()))


def as_numbered(labels: Tensor, groups: Tensor) -> Tensor:
    """Return the number of the group that each cluster is matched with, shape ``(K,)``.

    Clusters that are matched with none have further numbers.

    Args:
        labels: Hard assignment, shape ``(n,)``.
        groups: Such as the class, shape ``(n,)``.

    Example:
        >>> as_numbered(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 1, 1, 0, 0]))
        tensor([1, 2, 0])
    """
    n_groups = int(groups.max()) + 1
    matched = match(contingency(groups, labels, n_groups, int(labels.max()) + 1))
    matched[matched < 0] = n_groups + torch.arange(int((matched < 0).sum()))
    return matched


@style
def tsne_panels(
    before: Tensor | None,
    after: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    places: Tensor | None = None,
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
        places: The map of ``after``, shape ``(n, 2)``, if there is one already.
    """
    labels = labels.detach().cpu()
    numbers = torch.arange(int(labels.max()) + 1)
    columns = [("cluster", labels, numbers)]
    if y is not None:
        y = y.detach().cpu()
        classes = torch.arange(int(y.max()) + 1)
        columns = [("cluster", labels, as_numbered(labels, y)), ("class", y, classes)]
    rows = [("" if before is None else "after finetuning, ", after, places)]
    if before is not None:
        rows = [("before finetuning, ", before, None), *rows]
    title = f"t-SNE of {len(after):,} embeddings"
    figure, grid = panel_grid(len(rows), len(columns), 4.2, 4.1, title)
    for panels, (when, z, known) in zip(grid, rows, strict=True):
        points = (tsne(z, seed) if known is None else known).numpy()
        for axes, (what, groups, colours) in zip(panels, columns, strict=True):
            _scatter(axes, points, groups.numpy(), colours.numpy())
            axes.set_title(f"{when}by {what}")
    _explain(figure, class_names if y is not None else None)
    return figure


@style
def side_by_side(
    embeddings: Sequence[tuple[str, Tensor]],
    rows: Mapping[str, Sequence[Tensor]],
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    method: str = "t-SNE",
) -> Figure:
    """Draw maps of several embeddings of the same samples, a row for each way to colour them.

    Args:
        embeddings: Titles and embeddings of shape ``(n, d)``.
        rows: By what the colours show, such as "class", each embedding's groups, shape ``(n,)``.
        class_names: One name a class.
        seed: Seed of the maps.
        method: ``t-SNE`` or ``UMAP``.

    Raises:
        UserError: If umap-learn is needed and not installed.
    """
    arrange = {"t-SNE": tsne, "UMAP": umap}[method]
    n_samples = len(embeddings[0][1])
    title = f"{method} of the same {n_samples:,} samples"
    figure, grid = panel_grid(len(rows), len(embeddings), 4.2, 4.1, title)
    for j, (name, z) in enumerate(embeddings):
        points = arrange(z, seed).numpy()
        grid[0, j].set_title(name)
        for axes, groups in zip(grid[:, j], rows.values(), strict=True):
            colours = torch.arange(int(groups[j].max()) + 1)
            _scatter(axes, points, groups[j].numpy(), colours.numpy())
    for axes, what in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(f"by {what}")
    _explain(figure, class_names)
    return figure


@style
def tsne_history(
    z: Tensor,
    steps: Tensor,
    groups: Tensor,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    n_panels: int = 6,
) -> Figure:
    """Draw t-SNE maps of embeddings that move, each map started from the one before it.

    Args:
        z: Embeddings of the same samples at some steps, shape ``(S, n, d)``.
        steps: The steps, shape ``(S,)``.
        groups: What the colours show, such as the class; shape ``(n,)``.
        class_names: One name a class.
        seed: Seed of t-SNE.
        n_panels: Most maps to draw: the first, the last, and evenly spaced ones between.
    """
    shown = torch.linspace(0, len(z) - 1, min(n_panels, len(z))).round().long().tolist()
    n_columns = min(3, len(shown))
    title = f"t-SNE of the same {len(groups):,} samples while they are trained"
    figure, grid = panel_grid(math.ceil(len(shown) / n_columns), n_columns, 3.4, 3.4, title)
    colours, points = torch.arange(int(groups.max()) + 1), None
    for axes, i in zip(grid.flat, shown, strict=False):
        points = tsne(z[i], seed, points)
        _scatter(axes, points.numpy(), groups.numpy(), colours.numpy())
        axes.set_title(f"step {int(steps[i]):,}")
    for axes in grid.flat[len(shown) :]:
        axes.remove()
    _explain(figure, class_names)
    return figure


def _explain(figure: Figure, class_names: Sequence[str] | None) -> None:
    """Name the classes, where they have names, and say how to read a t-SNE map."""
    if class_names:
        figure.set_figwidth(figure.get_figwidth() + 1.6)
        looks = [(PALETTE[k % 20], MARKERS[k // 20 % 4]) for k in range(len(class_names))]
        handles = [Line2D([], [], ls="", color=colour, marker=marker) for colour, marker in looks]
        names = [f"{k}  {_plain(name)}" for k, name in enumerate(class_names)]
        figure.legend(handles, names, loc="outside right center", title="class")
    note = "neighbourhoods have a meaning; sizes of groups and distances between them have none"
    figure.supxlabel(note, fontsize=7, color="0.4")


def _scatter(
    axes: Axes, points: NDArray[Any], groups: NDArray[np.int64], colours: NDArray[np.int64]
) -> None:
    """Draw points in the colour of their group, and each group's number near its median."""
    turns, code = np.divmod(colours[groups], len(PALETTE))
    size = float(np.clip(9000 / len(points), 3, 20))
    for turn in np.unique(turns):
        (x, y), face = points[turns == turn].T, [PALETTE[c] for c in code[turns == turn]]
        axes.scatter(x, y, size, face, marker=MARKERS[turn % 4], alpha=0.7, linewidths=0)
    present = np.unique(groups)
    font = 10 if len(present) <= 20 else 7
    places = np.stack([np.median(points[groups == group], axis=0) for group in present])
    places = _spread(places, 0.006 * font * float(np.ptp(points, axis=0).max()))
    halo: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground="white")]
    for group, (x, y) in zip(present, places, strict=True):
        text = axes.text(x, y, str(group), ha="center", va="center", weight="bold", fontsize=font)
        text.set_path_effects(halo)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[:].set_color("0.8")


def _spread(places: NDArray[Any], distance: float) -> NDArray[Any]:
    """Push places apart until hardly any two are nearer than the distance."""
    # A little apart from the start: places that coincide have no direction to be pushed in.
    angle = np.arange(len(places))
    places = places + 0.01 * distance * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for _ in range(100):
        away = places[:, None] - places
        length = np.linalg.norm(away, axis=2, keepdims=True) + 1e-9
        places = places + (away / length * np.clip(distance - length, 0, None) / 2).sum(1)
    return places


@style
def confusion(table: Tensor, class_names: Sequence[str] | None = None) -> Figure:
    """Draw a contingency table with matched clusters on the diagonal and the others at the right.

    Colour is the share of the class, the number its samples (left out if zero, and if there are
    more than 20 classes or clusters). Classes without a cluster come last.

    Args:
        table: Contingency table, shape ``(n_classes, n_clusters)``.
        class_names: One name a class.
    """
    table = table.cpu()
    clusters, share = by_class(table)
    matched = match(table).tolist()
    classes = sorted(range(len(table)), key=lambda k: (k not in matched, k))
    ordered, share = table[classes][:, clusters], share[classes][:, clusters]
    names = [_plain(class_names[k]) if class_names else str(k) for k in classes]
    few = max(table.shape) <= 20
    cell, font = (0.45, 8) if few else (0.2, 6.5)
    title = f"Matched clusters: ACC {accuracy(table):.1%} of {int(table.sum()):,} samples"
    width = cell * len(clusters) + 0.06 * max(map(len, names)) + 1.2
    figure, grid = panel_grid(1, 1, width, cell * len(classes) + 0.5, title)
    axes = grid[0, 0]
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(clusters)), clusters, fontsize=font)
    axes.set_yticks(range(len(classes)), names, fontsize=font)
    axes.set(xlabel="cluster, in the order of its matched class", ylabel="class")
    bar = figure.colorbar(image, shrink=0.8, aspect=4 * cell * len(classes), fraction=0.2 / width)
    bar.set_label("share of the class")
    bar.ax.tick_params(labelsize=8)
    for (i, j), count in np.ndenumerate(ordered.numpy()):
        if few and count:
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, count, ha="center", va="center", fontsize=7.5, color=colour)
    return figure


def panel_grid(
    n_rows: int, n_columns: int, width: float, height: float, title: str = ""
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of panels of this size in inches, never too narrow for its title."""
    size = max(0.09 * len(title) + 0.2, n_columns * width + 0.5), n_rows * height + 0.4
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _image_grid(grid: NDArray[Any], captions: Sequence[str]) -> None:
    """Leave of the axes their images, and caption the rows."""
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, text in zip(grid[:, 0], captions, strict=False):
        axes.text(-0.03, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)


def _rgb(image: Tensor) -> NDArray[np.float32]:
    """Return one image ``(C, H, W)`` as ``(H, W, 3)`` in [0, 1]."""
    if image.shape[0] not in (1, 3):
        raise ValueError(f"Expected images of 1 or 3 channels, got {image.shape[0]}")
    rgb = as_float(image.detach().cpu()).float().nan_to_num().clamp(0, 1)
    return np.ascontiguousarray(rgb.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _caption(cluster: int, size: int) -> str:
    samples = f"{size:,} sample{'s' if size > 1 else ''}" if size else "empty"
    return f"cluster {cluster}\n{samples}"


def _plain(name: str) -> str:
    """Shorten a long name, and keep matplotlib from reading dollars as mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")
