"""Maps of embeddings in two dimensions, by t-SNE or UMAP: every ``Figure`` needs no display."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from clusterlab.errors import problem
from clusterlab.metrics import contingency, match
from clusterlab.viz import MARKERS, PALETTE, panel_grid, plain, style


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
        names = [f"{k}  {plain(name)}" for k, name in enumerate(class_names)]
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
