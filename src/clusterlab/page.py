"""``report.html``: a run on one page, to see whether its clusters are to be believed."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sklearn.neighbors import NearestNeighbors

from clusterlab import gallery, plots
from clusterlab.checks import build
from clusterlab.curves import panels_of
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError, asked_for_help, exit_on_error, problem
from clusterlab.figures import BEFORE, MAP, PAGE, map_of, some_of
from clusterlab.files import read_json, write_atomically
from clusterlab.loggers import read_csv
from clusterlab.metrics import by_class, contingency
from clusterlab.neighbours import neighbours
from clusterlab.results import agreement_of_seeds, open_clusters, read_run

USAGE = "page.py <run or folder of runs>"
Array = NDArray[Any]


def write(run_dir: Path, samples: Samples) -> Path:
    """Write the page of a finished run into its folder.

    Args:
        run_dir: The folder, with ``result.json``, ``assignments.npz`` and ``metrics.csv``.
        samples: The data that it was made with.

    Returns:
        The page's path.

    Raises:
        UserError: If its clusters are gone.
    """
    record = read_json(run_dir / "result.json")
    with open_clusters(run_dir) as stored:
        z, q = stored["z"], stored["q"]
    labels, confidence = q.argmax(1), q.max(1)
    n_clusters, seed = q.shape[1], record["seed"]
    names = samples.files or tuple(f"sample {i}" for i in range(len(samples)))
    sizes = np.bincount(labels, minlength=n_clusters)

    mapped = some_of(len(samples), seed).numpy()
    sheet, side = gallery.picture_sheet(samples.x[mapped]) if samples.are_images else ("", (0, 0))
    rows = read_csv(run_dir / "metrics.csv") if (run_dir / "metrics.csv").exists() else []
    tolerance = record["config"]["phases"].get("finetune", {}).get("tolerance")
    index, known = arranged(run_dir, z, seed)
    places = beside(z[mapped], z[index], known)
    places[np.isin(mapped, index)] = known
    drawn = {
        "map": plots.embedding_map(places, labels[mapped], mapped),
        "sizes": plots.size_bars(sizes),
        "confidence": plots.histogram(
            confidence, "Confidence", "largest q of a sample", np.linspace(0, 1, 21)
        ),
    }
    curves = plots.learning_curves(panels_of(rows), tolerance)
    drawn |= {f"curve{i}": plot for i, plot in enumerate(curves)}
    script, divs = components(drawn)
    at, start = np.arange(len(z)), z
    if (run_dir / BEFORE).exists():  # finetuning opens gaps, also through the middle of a class
        with np.load(run_dir / BEFORE) as stored:
            at, start = stored["index"], stored["z"]
    pairs = [
        replace(pair, between=at[pair.between].tolist())
        for pair in neighbours(start, labels[at], n_clusters)
    ]
    most = gallery.most_bytes(n_clusters)
    return _render(
        run_dir / PAGE,
        record=record,
        samples=samples,
        library=Resources(mode="inline", components=["bokeh"]).render_js(),
        script=script,
        divs=divs,
        curves=len(curves),
        clusters=gallery.clusters_of(samples, z, q, names, record.get("class_names", ())),
        pairs=[(pair, gallery.shown(samples, pair.between, names, most)) for pair in pairs],
        table=_table(samples, labels, n_clusters),
        sheet=sheet,
        details={
            "side": side,
            "columns": gallery.columns(len(mapped)),
            "index": mapped.tolist(),
            "names": [names[i] for i in mapped],
            "confidence": confidence[mapped].round(3).tolist(),
            "label": labels[mapped].tolist(),
        },
        before=(run_dir / BEFORE).exists(),
        arranged=len(index),
        config=OmegaConf.to_yaml(OmegaConf.create(record["config"])),
    )


def _render(path: Path, **values: Any) -> Path:
    """Write the page that its file is named after, and return its path."""
    loader = PackageLoader("clusterlab")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **options)
    page = environment.get_template(f"{path.name}.j2").render(**values)
    write_atomically(path, page.encode(errors="replace"))  # names of files may be no text
    return path


def arranged(run_dir: Path, z: Array, seed: int) -> tuple[Array, Array]:
    """Return which samples t-SNE arranged, shape ``(n,)``, and where, shape ``(n, 2)``.

    The run's figures were drawn from the same map; where there are none, it is made here.
    """
    if (run_dir / MAP).exists():
        with np.load(run_dir / MAP) as stored:
            return stored["index"], stored["places"]
    index, places = map_of(torch.from_numpy(z), seed)
    return index.numpy(), places.numpy()


def beside(z: Array, known: Array, places: Array) -> Array:
    """Place embeddings on a map of others, in the middle of their three nearest.

    Args:
        z: The embeddings, shape ``(n, d)``.
        known: Those on the map, shape ``(m, d)``.
        places: Where these are, shape ``(m, 2)``.

    Returns:
        Shape ``(n, 2)``.

    Example:
        >>> known = np.array([[0.0], [1.0], [2.0], [9.0]])
        >>> beside(np.array([[1.1]]), known, np.array([[0, 0], [3, 0], [0, 3], [50, 50]]))
        array([[1., 1.]])
    """
    nearest = NearestNeighbors(n_neighbors=min(3, len(known))).fit(known)
    middle: Array = places[nearest.kneighbors(z, return_distance=False)].mean(1)
    return middle


def _table(samples: Samples, labels: Any, n_clusters: int) -> dict[str, Any] | None:
    """Return the confusion matrix, its columns in the order of the classes they are matched to."""
    if samples.y is None:
        return None
    n_classes = int(samples.y.max()) + 1
    table = contingency(samples.y, torch.from_numpy(labels), n_classes, n_clusters)
    order, share = by_class(table)
    names = samples.class_names or tuple(map(str, range(n_classes)))
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
    finished = [run for run in found if "error" not in read_json(run / "result.json")]
    if not finished:
        raise problem(f"a finished run in {folder}", "none", "give a run's folder, or one of runs")
    return finished


def data_of(run_dir: Path) -> Samples:
    """Load the data that a run was made with.

    Raises:
        UserError: If it is not there any more, or not the same.
    """
    record = read_json(run_dir / "result.json")
    samples: Samples = build(OmegaConf.create(record["config"]).data.source)
    if samples.sha256 != record["data_sha256"]:
        raise problem(f"the data that {run_dir} was made with", "other data", "put it back")
    return samples


def write_index(folder: Path, runs: Sequence[Path]) -> Path:
    """Write ``index.html`` of a folder of runs, which compares them and links to their pages."""
    rows: list[Mapping[str, Any]] = []
    seeds = agreement_of_seeds({run: read_run(run / "result.json") for run in runs})
    for run in runs:
        told = {"paged": (run / PAGE).exists(), "seeds": seeds.get(run)}
        name = run.relative_to(folder).as_posix()
        rows.append({"name": name, **told, **read_json(run / "result.json")})
    return _render(folder / "index.html", title=folder.resolve().name, rows=rows)


def main() -> None:
    """Write the pages of a run, or of all runs in a folder and an index of them."""
    if asked_for_help(USAGE):
        return
    with exit_on_error(OSError):
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            raise problem(USAGE, " ".join(sys.argv[1:]) or "nothing", "give one")
        folder = Path(sys.argv[1])
        runs = runs_in(folder)
        if runs == [folder]:
            print(write(folder, data_of(folder)))
            return
        for run in runs:
            try:
                print(write(run, data_of(run)))
            except UserError as error:  # the others have their pages all the same
                print(f"No page of {run}: {error}", file=sys.stderr)
        print(write_index(folder, runs))


if __name__ == "__main__":
    main()
