"""Choose what to draw of a finished run, and draw it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from clusterlab import curves, maps, viz
from clusterlab.callbacks import CenterHistory, EmbeddingHistory
from clusterlab.data.samples import Samples, as_float
from clusterlab.files import write_arrays
from clusterlab.metrics import cluster_sizes, contingency
from clusterlab.models.base import DeepClustering

BEFORE = "before.npz"  # index (n,) and embedding z (n, d) of some samples before finetuning
MAP = "map.npz"  # index (n,) and places (n, 2) of fewer of them on the map of the embedding
PAGE = "report.html"
SOME = 10_000  # samples that stand for all in what takes long
TSNE_SAMPLES = 2000  # more only darkens the picture, and t-SNE takes minutes


def some_of(n_samples: int, seed: int, n: int = SOME) -> Tensor:
    """Draw n samples, or all if there are fewer; their sorted indices, shape ``(n,)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n_samples, generator=generator)[:n].sort().values


def map_of(z: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Map some of all embeddings ``(N, d)``: indices, shape ``(n,)``, and places ``(n, 2)``."""
    index = some_of(len(z), seed, TSNE_SAMPLES)
    return index, maps.tsne(z[index], seed)


def draw(
    folder: Path,
    model: DeepClustering,
    samples: Samples,
    some: Tensor,
    before: Tensor | None,
    z: Tensor,
    q: Tensor,
    rows: list[dict[str, Any]],
    cfg: DictConfig,
) -> dict[str, Path]:
    """Draw a run's figures.

    Args:
        folder: Where the PNG files go.
        model: The trained model.
        samples: The data set.
        some: Which samples stand for all, shape ``(n,)``, see ``some_of``.
        before: Their embedding before finetuning, shape ``(n, d)``, or ``None``.
        z: Embedding at the end, shape ``(N, d)``.
        q: Soft assignment at the end, shape ``(N, K)``.
        rows: What the phases logged.
        cfg: The run's config.

    Returns:
        Name and path of each figure.
    """
    labels, n_clusters = q.argmax(1), q.shape[1]
    centers = model.centers.detach().cpu()
    few = some_of(len(samples), cfg.seed, 10)
    y = samples.y
    mapped, places = map_of(z, cfg.seed)
    write_arrays(folder.parent / MAP, {"index": mapped.numpy(), "places": places.numpy()})

    figures = {
        "embedding": maps.tsne_panels(
            None if before is None else before[torch.isin(some, mapped)],
            z[mapped],
            labels[mapped],
            None if y is None else y[mapped],
            samples.class_names,
            cfg.seed,
            places,
        ),
    }
    if samples.are_images:
        figures["extreme_samples"] = viz.extreme_samples(samples.x, z, centers, labels)
    network = model.network.cpu().eval()
    with torch.no_grad():
        if rows:  # something was trained
            tolerance = cfg.phases.finetune.tolerance if "finetune" in cfg.phases else None
            figures["learning_curves"] = curves.learning_curves(rows, tolerance)
        if rows and samples.are_images:
            x = as_float(samples.x[few])
            figures["reconstructions"] = viz.reconstructions(x, network(x)[1])
        if model.inductive and samples.are_images:
            sizes = cluster_sizes(labels, n_clusters)
            figures["decoded_centers"] = viz.decoded_centers(network.decode(centers), sizes)
    for name in cfg.phases:
        kept = folder.parent / str(name) / EmbeddingHistory.FILE
        if kept.exists():
            with np.load(kept) as stored:
                index, steps, moving = (torch.from_numpy(stored[k]) for k in ("index", "step", "z"))
            groups = labels if y is None else y
            figures[f"history_{name}"] = maps.tsne_history(
                moving, steps, groups[index], None if y is None else samples.class_names, cfg.seed
            )
        kept = folder.parent / str(name) / CenterHistory.FILE
        if kept.exists():
            with np.load(kept) as stored:
                images, steps = (torch.from_numpy(stored[k]) for k in ("images", "step"))
            figures[f"centers_{name}"] = viz.decoded_history(images, steps)
    if y is not None:
        table = contingency(y, labels, int(y.max()) + 1, n_clusters)
        figures["confusion"] = viz.confusion(table, samples.class_names)
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        viz.save(figure, paths[name])
    return paths
