"""Scores of several runs over finetune steps, and at their ends: ``scripts/trials.py RUN RUN``.

Figures 4 and 5 of the CDC paper are those of its ten runs on each data set.
"""

import argparse
from pathlib import Path

import numpy as np

from clusterlab.curves import SCORES, trials
from clusterlab.errors import exit_on_error, problem
from clusterlab.files import read_json
from clusterlab.folders import PhaseFolder
from clusterlab.viz import save


def main() -> None:
    """Draw a line for each method and data set, over the refreshes that all of its runs have."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("--out", type=Path, default=Path("trials.png"))
    parser.add_argument("--score", choices=SCORES, default="ACC")
    arguments = parser.parse_args()
    with exit_on_error():
        draw(arguments.runs, arguments.out, arguments.score)
    print(arguments.out)


def draw(runs: list[Path], out: Path, score: str) -> None:
    """Read what the runs logged at each refresh, and draw it."""
    curves: dict[str, dict[int, np.ndarray]] = {}
    for run in runs:
        if not (run / "result.json").exists():
            raise problem("a finished run", f"no result.json in {run}", "train it to its end")
        record = read_json(run / "result.json")
        column = f"cluster/{SCORES[score]}"
        rows = [row for row in PhaseFolder(run / "finetune").rows() if row.get(column)]
        if not rows:
            raise problem(f"{score} at each refresh", f"none in {run}", "give runs with labels")
        points = np.array([(float(row["step"]), float(row[column])) for row in rows])
        group = curves.setdefault(f"{record['model']} on {record['data']}", {})
        if record["seed"] in group:
            raise problem("one run per seed", f"seed {record['seed']} twice", "drop one")
        group[record["seed"]] = points
    save(trials({name: [g[s] for s in sorted(g)] for name, g in curves.items()}, score), out)


if __name__ == "__main__":
    main()
