"""Append finished runs to a table of records: ``scripts/collect.py runs results/dcec.csv``."""

import argparse
from pathlib import Path

from clusterlab.report import collect, merge


def main() -> None:
    """Read runs below a folder into a CSV; failed ones are listed and left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="a run folder, or one with runs below it")
    parser.add_argument("table", type=Path, help="the CSV in results/")
    arguments = parser.parse_args()
    rows, failures = collect(arguments.runs)
    merged = merge(arguments.table, rows)
    print(f"{len(rows)} runs read, {len(merged)} in {arguments.table}")
    for line in failures:
        print(f"failed, left out: {line}")


if __name__ == "__main__":
    main()
