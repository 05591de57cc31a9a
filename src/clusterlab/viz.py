"""Pictures of samples and clusters: every function returns a ``Figure``, none needs a display."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from clusterlab.data.samples import as_float
from clusterlab.files import write_atomically
from clusterlab.metrics import accuracy, by_class, match

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
    names = [plain(class_names[k]) if class_names else str(k) for k in classes]
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


def plain(name: str) -> str:
    """Shorten a long name, and keep matplotlib from reading dollars as mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")
