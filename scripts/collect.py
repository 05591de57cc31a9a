"""Append finished runs to a table of records: ``scripts/collect.py runs results/table.csv``."""

import argparse
from pathlib import Path

from clusterlab.errors import exit_on_error
from clusterlab.results import find, merge


def main() -> None:
    """Read runs below a folder into a CSV; others are listed and left out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="a run folder, or one with runs below it")
    parser.add_argument("table", type=Path, help="the CSV in results/")
    arguments = parser.parse_args()
    with exit_on_error():
        found = find(arguments.runs)
    merged = merge(arguments.table, found.rows)
    print(f"{len(found.rows)} runs read, {len(merged)} in {arguments.table}")
    for line in found.left_out:
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
