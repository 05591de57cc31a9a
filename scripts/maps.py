"""Maps of several runs' embeddings side by side: ``scripts/maps.py RUN RUN RUN``.

Figure 3 of the DCEC paper is the maps of cae_kmeans, dec_conv and dcec on the same 1,000 samples.
"""

import argparse
from pathlib import Path

import torch
from omegaconf import OmegaConf

from clusterlab.checks import build
from clusterlab.data.samples import Samples
from clusterlab.errors import exit_on_error, problem
from clusterlab.files import read_json
from clusterlab.maps import as_numbered, side_by_side
from clusterlab.results import open_clusters
from clusterlab.viz import save


def main() -> None:
    """Draw the same samples in each run's embedding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders on the same data")
    parser.add_argument("--out", type=Path, default=Path("maps.png"))
    parser.add_argument(
        "--by",
        nargs="+",
        choices=("class", "cluster"),
        default=["class"],
        help="what the colours show, a row of maps for each: the class, or without labels the last "
        "run's cluster; or each run's own cluster, in the colour of what it is matched with",
    )
    parser.add_argument("--method", choices=("t-SNE", "UMAP"), default="t-SNE")
    parser.add_argument("--samples", type=int, default=1000, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of their choice and of the maps")
    arguments = parser.parse_args()
    with exit_on_error():
        draw(**vars(arguments))
    print(arguments.out)


def draw(runs: list[Path], out: Path, by: list[str], method: str, samples: int, seed: int) -> None:
    """Read the embeddings that the runs left, and draw them."""
    records, embeddings, clusters = [], [], []
    for run in runs:
        with open_clusters(run) as stored:
            embeddings.append(torch.from_numpy(stored["z"]))
            clusters.append(torch.from_numpy(stored["label"]))
        records.append(read_json(run / "result.json"))
    if len({record["data_sha256"] for record in records}) > 1:
        names = ", ".join(record["data"] for record in records)
        raise problem("runs on the same data", names, "give runs of one data set")
    data: Samples = build(OmegaConf.create(records[-1]["config"]["data"]["source"]))
    generator = torch.Generator().manual_seed(seed)
    shown = torch.randperm(len(data), generator=generator)[:samples].sort().values

    drawn = []
    for record, z in zip(records, embeddings, strict=True):
        accuracy = record["metrics"]["accuracy"]
        title = f"{record['model']} on {record['data']}, seed {record['seed']}"
        if "n_known" in record:
            title += f", {record['n_known'] / record['n_samples']:.1%} labelled"
        title += "" if accuracy is None else f": ACC {accuracy:.1%}"
        drawn.append((title, z[shown]))
    reference = clusters[-1] if data.y is None else data.y
    groups = {
        "class": [reference[shown]] * len(runs),
        "cluster": [as_numbered(own, reference)[own[shown]] for own in clusters],
    }
    of_class = "class" if data.y is not None else "the last run's cluster"
    rows = {of_class if name == "class" else name: groups[name] for name in by}
    names = None if data.y is None else data.class_names
    save(side_by_side(drawn, rows, names, seed, method), out)


if __name__ == "__main__":
    main()
