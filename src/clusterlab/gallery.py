"""Pictures of samples for a run's page, and which samples stand for a cluster."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clusterlab import plots
from clusterlab.data.samples import Samples, as_float

SIDE = 96  # at most, of a picture in the lists
SHEET_SIDES = (28, 20, 14)  # of one on the map's sheet, smaller where the sheet would be too large
PICTURES = 480  # in the lists of all clusters together, at most; one in each, however many
# Bytes of all of either: with base64, plotting library and names, 10,000 images stay under 6 MB.
SHEET_BYTES, LIST_BYTES = 1_900_000, 900_000


@dataclass
class Shown:
    """One sample as the page shows it: its number, its file, picture, and why it is there."""

    index: int
    name: str
    picture: str
    note: str


@dataclass
class Cluster:
    """One cluster: how many, how certain, its looks on the map, and samples of three kinds.

    With labels also the shares of its classes, and of vectors the features that set it apart. Its
    name is that of the class whose known labels it learned, else empty.
    """

    number: int
    name: str
    size: int
    confidence: float
    colour: str
    lists: dict[str, list[Shown]]
    classes: list[tuple[str, float]]
    features: list[tuple[int, float]]


def _pixels(x: Tensor, side: int) -> list[Image.Image]:
    """Return images ``(n, C, H, W)`` as Pillow has them, none larger than ``side``."""
    images = []
    for one in x:  # the whole set as numbers would take four times its memory
        pixels = one if one.dtype == torch.uint8 else (one * 255).round().to(torch.uint8)
        array = pixels.permute(1, 2, 0).numpy()
        image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
        image.thumbnail((side, side))
        images.append(image)
    return images


def _encoded(image: Image.Image, most: int) -> str | None:
    """Return an image as a data URI of the best quality within so many bytes, if there is one."""
    for quality in (85, 60, 30, 5):
        content = io.BytesIO()
        image.save(content, format="webp", quality=quality)
        if content.tell() <= most:
            break
    else:
        return None
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def columns(n: int) -> int:
    """Return how many of n pictures stand side by side on a sheet that is about square."""
    return max(1, int(np.ceil(np.sqrt(n))))


def picture_sheet(x: Tensor) -> tuple[str, tuple[int, int]]:
    """Put small pictures of images ``(n, C, H, W)`` side by side on one sheet, row by row.

    Returns:
        The sheet as a data URI, empty if no quality makes it small enough, and a picture's width
        and height.
    """
    across = columns(len(x))
    for side in SHEET_SIDES:
        images = _pixels(x, side)
        width, height = images[0].size
        sheet = Image.new(images[0].mode, (across * width, -(-len(x) // across) * height))
        for i, image in enumerate(images):
            sheet.paste(image, (i % across * width, i // across * height))
        if encoded := _encoded(sheet, SHEET_BYTES):
            return encoded, (width, height)
    return "", (0, 0)


def most_bytes(n_clusters: int) -> int:
    """Return how large a picture in the lists may be, so that all are within ``LIST_BYTES``."""
    return LIST_BYTES // max(PICTURES, 3 * n_clusters)


def shown(
    samples: Samples,
    index: Sequence[int],
    names: Sequence[str],
    most: int,
    confidence: Any = None,
) -> list[Shown]:
    """Return samples with their names and pictures; with the confidence of all, that of each.

    Args:
        samples: The data.
        index: Which samples.
        names: One name a sample.
        most: Bytes of a picture, at most.
        confidence: Largest q of every sample, shape ``(N,)``, or ``None``.
    """
    pictures, notes = [""] * len(index), [""] * len(index)
    if samples.are_images and len(index):
        for i, image in enumerate(_pixels(samples.x[list(index)], SIDE)):
            while (picture := _encoded(image, most)) is None and max(image.size) > 8:
                image = image.reduce(2)
            pictures[i] = picture or ""
    if confidence is not None:
        notes = [f"q {confidence[i]:.2f}" for i in index]
    return [Shown(i, names[i], p, n) for i, p, n in zip(index, pictures, notes, strict=True)]


def clusters_of(
    samples: Samples, z: Any, q: Any, names: Sequence[str], cluster_names: Sequence[str] = ()
) -> list[Cluster]:
    """Describe each cluster by the samples nearest its mean, least certain, and farthest out.

    Args:
        samples: The data.
        z: Embeddings, shape ``(N, d)``.
        q: Soft assignment, shape ``(N, K)``.
        names: One name a sample.
        cluster_names: Names of the first clusters, or none.
    """
    labels, confidence = q.argmax(1), q.max(1)
    n = max(1, min(10, PICTURES // (3 * q.shape[1])))
    most = most_bytes(q.shape[1])
    standard = None if samples.are_images else standardised(samples.x)
    described = []
    for k in range(q.shape[1]):
        members = np.flatnonzero(labels == k)
        mean = z[members].mean(0) if len(members) else z[:0].sum(0)
        distance = np.linalg.norm(z[members] - mean, axis=1)
        order = members[np.argsort(distance, kind="stable")]
        unsure = members[np.argsort(confidence[members], kind="stable")]
        lists = {
            "Most typical": order[:n],
            "Least certain": unsure[:n],
            "Outermost": order[::-1][:n],
        }
        classes: list[tuple[str, float]] = []
        if samples.y is not None and len(members):
            counts = torch.bincount(samples.y[members])
            for c in counts.argsort(descending=True)[:3].tolist():
                name = samples.class_names[c] if samples.class_names else str(c)
                classes.append((name, int(counts[c]) / len(members)))
        described.append(
            Cluster(
                number=k,
                name="".join(cluster_names[k : k + 1]),
                size=len(members),
                confidence=float(confidence[members].mean()) if len(members) else 0.0,
                colour=plots.look_of(k)[0],
                lists={
                    title: shown(samples, chosen.tolist(), names, most, confidence)
                    for title, chosen in lists.items()
                },
                classes=[c for c in classes if c[1] > 0],
                features=[] if standard is None else apart(standard, members),
            )
        )
    return described


def standardised(x: Tensor) -> Tensor:
    """Bring features of vectors ``(N, d)`` to mean 0 and deviation 1; a flat one to NaN."""
    x = as_float(x)
    deviation = x.std(0, correction=0)
    return torch.where(deviation > 0, (x - x.mean(0)) / deviation, torch.nan)


def apart(x: Tensor, members: Any, n: int = 5) -> list[tuple[int, float]]:
    """Name the features in which some vectors differ most from all.

    Args:
        x: All vectors, ``standardised``, shape ``(N, d)``.
        members: Indices of some, shape ``(m,)``.
        n: How many features to name.

    Returns:
        Numbers of the features, and by how many standard deviations of all vectors the mean of
        these is above (or, negative, below) the mean of all; the largest first.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0], [2.0, 5.0]])
        >>> apart(standardised(x), [0, 1], n=1)
        [(0, -1.0)]
    """
    if not len(members):
        return []
    by = x[members].mean(0)
    chosen = by.abs().nan_to_num(-1).argsort(descending=True)[:n]
    return [(int(i), float(by[i])) for i in chosen if by[i].isfinite()]
