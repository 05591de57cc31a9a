"""What surrounds a network as the data grows: ``scripts/scaling.py``, minutes on a core.

Made-up vectors in place of embeddings.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from sklearn.cluster import KMeans, MiniBatchKMeans

from clusterlab.assignment import target_distribution
from clusterlab.data.datamodule import EpochShuffle
from clusterlab.loggers import Row, write_csv
from clusterlab.metrics import score
from clusterlab.models.base import DeepClustering
from clusterlab.networks import Pixels
from clusterlab.record import commit, device_name
from clusterlab.results import read_records

SIZES = (10_000, 100_000, 1_000_000)
CLUSTERS = (10, 100)
DIM = 10


def made_up(n: int, k: int) -> torch.Tensor:
    """Draw k overlapping blobs of n vectors."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(k, DIM, generator=generator)
    return centers[torch.arange(n) % k] + torch.randn(n, DIM, generator=generator)


def parts(n: int, k: int) -> dict[str, Callable[[], object]]:
    """Return what happens at a start and at a refresh, as functions to be timed."""
    z = made_up(n, k)
    model = DeepClustering(Pixels((DIM,)), k, seed=0).requires_grad_(False)
    model.centers.copy_(z[:k])
    labels = model.assign_all(z).argmax(1)
    fit = {"n_clusters": k, "random_state": 0}
    return {
        "q and p of all samples": lambda: target_distribution(model.assign_all(z)),
        "order of an epoch": lambda: list(EpochShuffle(torch.arange(n), 256, seed=0)),
        "scores": lambda: score(labels, torch.arange(n) % k, k),
        "k-means (one start)": lambda: KMeans(n_init=1, **fit).fit(z.numpy()),
        "mini-batch k-means (one start)": lambda: MiniBatchKMeans(n_init=1, **fit).fit(z.numpy()),
    }


def measure(n: int, k: int) -> list[Row]:
    """Time each part once, in CPU seconds, and say how much memory the process took."""
    rows: list[Row] = []
    for name, part in parts(n, k).items():
        begin = time.process_time()
        part()
        seconds = time.process_time() - begin
        rows.append({"part": name, "n": n, "K": k, "value": f"{seconds:.3g}", "unit": "CPU s"})
    unit = 1024 if sys.platform == "linux" else 1024**2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    rows.append({"part": "peak memory", "n": n, "K": k, "value": f"{peak:.0f}", "unit": "MiB"})
    return rows


def main() -> None:
    """Measure each size in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/scaling.csv"))
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")
    if arguments.one:
        write_csv(arguments.out, measure(*arguments.one))
        return
    rows: list[Row] = []
    for n, k in product(SIZES, CLUSTERS):
        part = arguments.out.with_name(f".{n}_{k}.csv")
        command = [sys.executable, __file__, "--out", str(part), "--one", str(n), str(k)]
        subprocess.run(command, check=True)
        rows += read_records(part)
        part.unlink()
        print(f"n = {n:,}, K = {k}")
    made = {"device": device_name(torch.device("cpu")), "commit": commit()}
    write_csv(arguments.out, [row | made for row in rows])


if __name__ == "__main__":
    main()
