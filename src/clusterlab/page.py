"""``report.html``: a run on one page, to see whether its clusters are to be believed."""

import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from clusterlab import plots, viz
from clusterlab.checks import build
from clusterlab.curves import panels_of
from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import exit_on_error, problem
from clusterlab.figures import BEFORE, PAGE, some_of
from clusterlab.files import write_atomically
from clusterlab.loggers import read_csv
from clusterlab.metrics import contingency, match
from clusterlab.neighbours import Neighbours, neighbours

ARRANGED = 3_000  # of them by t-SNE, the others beside their nearest
SIDE = 96  # at most, of a picture in the lists
SHEET_SIDES = (28, 20, 14)  # of one on the map's sheet, smaller where the sheet would be too large
PICTURES = 480  # in the lists of all clusters together, at most
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
    """One cluster: how many, how certain, its looks on the map, and samples of three kinds."""

    number: int
    size: int
    confidence: float
    colour: str
    shape: str
    lists: dict[str, list[Shown]]
    classes: list[tuple[str, float]]


def write(run_dir: Path, samples: Samples) -> Path:
    """Write the page of a finished run into its folder.

    Args:
        run_dir: The folder, with ``result.json``, ``assignments.npz`` and ``metrics.csv``.
        samples: The data that it was made with.

    Returns:
        The page's path.
    """
    record = json.loads((run_dir / "result.json").read_text())
    with np.load(run_dir / "assignments.npz") as stored:
        z, q = stored["z"], stored["q"]
    labels, confidence = q.argmax(1), q.max(1)
    n_clusters, seed = q.shape[1], record["seed"]
    names = samples.files or tuple(f"sample {i}" for i in range(len(samples)))
    sizes = np.bincount(labels, minlength=n_clusters)

    mapped = some_of(len(samples), seed).numpy()
    sheet, side = picture_sheet(samples.x[mapped]) if samples.are_images else ("", (0, 0))
    rows = read_csv(run_dir / "metrics.csv") if (run_dir / "metrics.csv").exists() else []
    tolerance = record["config"]["phases"].get("finetune", {}).get("tolerance")
    drawn = {
        "map": plots.embedding_map(arrange(z[mapped], seed), labels[mapped], mapped),
        "sizes": plots.size_bars(sizes),
        "confidence": plots.histogram(
            confidence, "Confidence", "largest q of a sample", np.linspace(0, 1, 21)
        ),
    }
    curves = plots.learning_curves(panels_of(rows), tolerance)
    drawn |= {f"curve{i}": plot for i, plot in enumerate(curves)}
    script, divs = components(drawn)
    pairs = neighbours(z, labels, n_clusters)
    if (run_dir / BEFORE).exists():  # finetuning opens gaps, also through the middle of a class
        with np.load(run_dir / BEFORE) as stored:
            at = stored["index"]
            pairs = neighbours(stored["z"], labels[at], n_clusters)
        pairs = [replace(pair, between=at[pair.between].tolist()) for pair in pairs]
    page = _template("report.html.j2").render(
        record=record,
        samples=samples,
        library=Resources(mode="inline", components=["bokeh"]).render_js(),
        script=script,
        divs=divs,
        curves=len(curves),
        clusters=clusters_of(samples, z, q, names),
        pairs=[(pair, _boundary(samples, pair, names)) for pair in pairs],
        table=_table(samples, labels, n_clusters),
        sheet=sheet,
        details={
            "side": side,
            "columns": _columns(len(mapped)),
            "index": mapped.tolist(),
            "names": [names[i] for i in mapped],
            "confidence": confidence[mapped].round(3).tolist(),
            "label": labels[mapped].tolist(),
        },
        before=(run_dir / BEFORE).exists(),
        arranged=min(ARRANGED, len(mapped)),
        config=OmegaConf.to_yaml(OmegaConf.create(record["config"])),
    )
    write_atomically(run_dir / PAGE, page.encode())
    return run_dir / PAGE


def _template(name: str) -> Any:
    loader = PackageLoader("clusterlab")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **options)
    return environment.get_template(name)


def arrange(z: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Return a map of embeddings ``(n, d)``, shape ``(n, 2)``, in less time than t-SNE of all.

    t-SNE arranges ``ARRANGED`` of them, and each other one comes to the middle of its three
    nearest among those.
    """
    first = some_of(len(z), seed, ARRANGED)
    points = torch.from_numpy(z).float()
    arranged = viz.tsne(points[first], seed).double()
    places = torch.empty(len(z), 2, dtype=torch.float64)
    for part in torch.split(torch.arange(len(z)), 1000):
        nearest = torch.cdist(points[part], points[first]).topk(min(3, len(first)), largest=False)
        places[part] = arranged[nearest.indices].mean(1)
    places[first] = arranged
    return places.numpy()


def _pixels(x: Tensor, side: int) -> list[Image.Image]:
    """Return images ``(n, C, H, W)`` as Pillow has them, none larger than ``side``."""
    pixels = (as_float(x) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = [
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels
    ]
    for image in images:
        image.thumbnail((side, side))
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


def _columns(n: int) -> int:
    return max(1, int(np.ceil(np.sqrt(n))))


def picture_sheet(x: Tensor) -> tuple[str, tuple[int, int]]:
    """Put small pictures of images ``(n, C, H, W)`` side by side on one sheet, row by row.

    Returns:
        The sheet as a data URI, empty if no quality makes it small enough, and a picture's width
        and height.
    """
    columns = _columns(len(x))
    for side in SHEET_SIDES:
        images = _pixels(x, side)
        width, height = images[0].size
        sheet = Image.new(images[0].mode, (columns * width, -(-len(x) // columns) * height))
        for i, image in enumerate(images):
            sheet.paste(image, (i % columns * width, i // columns * height))
        if encoded := _encoded(sheet, SHEET_BYTES):
            return encoded, (width, height)
    return "", (0, 0)


def _shown(
    samples: Samples, index: Sequence[int], names: Sequence[str], notes: Sequence[str]
) -> list[Shown]:
    pictures = [""] * len(index)
    if samples.are_images and len(index):
        for i, image in enumerate(_pixels(samples.x[list(index)], SIDE)):
            while (picture := _encoded(image, LIST_BYTES // PICTURES)) is None:
                image = image.reduce(2)
            pictures[i] = picture
    return [Shown(i, names[i], p, n) for i, p, n in zip(index, pictures, notes, strict=True)]


def clusters_of(samples: Samples, z: Any, q: Any, names: Sequence[str]) -> list[Cluster]:
    """Describe each cluster by the samples nearest its mean, least certain, and farthest out.

    Args:
        samples: The data.
        z: Embeddings, shape ``(N, d)``.
        q: Soft assignment, shape ``(N, K)``.
        names: One name a sample.
    """
    labels, confidence = q.argmax(1), q.max(1)
    n = max(3, min(10, PICTURES // (3 * q.shape[1])))
    described = []
    for k in range(q.shape[1]):
        members = np.flatnonzero(labels == k)
        colour, shape = plots.look_of(k)
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
                size=len(members),
                confidence=float(confidence[members].mean()) if len(members) else 0.0,
                colour=colour,
                shape=shape,
                lists={
                    title: _shown(
                        samples, chosen.tolist(), names, [f"q {confidence[i]:.2f}" for i in chosen]
                    )
                    for title, chosen in lists.items()
                },
                classes=[c for c in classes if c[1] > 0],
            )
        )
    return described


def _boundary(samples: Samples, pair: Neighbours, names: Sequence[str]) -> list[Shown]:
    return _shown(samples, pair.between, names, [""] * len(pair.between))


def _table(samples: Samples, labels: Any, n_clusters: int) -> dict[str, Any] | None:
    """Return the confusion matrix, its columns in the order of the classes they are matched to."""
    if samples.y is None:
        return None
    n_classes = int(samples.y.max()) + 1
    table = contingency(samples.y, torch.from_numpy(labels), n_classes, n_clusters)
    matched = match(table)  # (K,), -1 without a class
    order = sorted(range(n_clusters), key=lambda k: (int(matched[k]) < 0, int(matched[k]), k))
    names = samples.class_names or tuple(map(str, range(n_classes)))
    share = table.double() / table.sum(1, keepdim=True).clamp(min=1)
    return {
        "clusters": order,
        "rows": [
            (names[c], [(int(table[c, k]), float(share[c, k])) for k in order])
            for c in range(n_classes)
        ],
    }


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of finished runs in a folder, itself included, sorted.

    Raises:
        UserError: If there are none.
    """
    found = [path.parent for path in sorted(folder.rglob("result.json"))]
    finished = [
        run for run in found if "error" not in json.loads((run / "result.json").read_text())
    ]
    if not finished:
        raise problem(f"a finished run in {folder}", "none", "give a run's folder, or one of runs")
    return finished


def write_index(folder: Path, runs: Sequence[Path]) -> Path:
    """Write ``index.html`` of a folder of runs, which compares them and links to their pages."""
    rows: list[Mapping[str, Any]] = []
    for run in runs:
        record = json.loads((run / "result.json").read_text())
        rows.append({"link": (run / PAGE).relative_to(folder).as_posix(), **record})
    page = _template("index.html.j2").render(title=folder.resolve().name, rows=rows)
    write_atomically(folder / "index.html", page.encode())
    return folder / "index.html"


def main() -> None:
    """Write the pages of a run, or of all runs in a folder and an index of them."""
    with exit_on_error(OSError):
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            raise problem("page.py <run or folder of runs>", " ".join(sys.argv[1:]), "give one")
        folder = Path(sys.argv[1])
        runs = runs_in(folder)
        for run in runs:
            cfg = OmegaConf.create(json.loads((run / "result.json").read_text())["config"])
            print(write(run, build(cfg.data.source)))
        if runs != [folder]:
            print(write_index(folder, runs))


if __name__ == "__main__":
    main()
