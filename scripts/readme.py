"""Write the README's tables from ``results/``: ``make readme``."""

from pathlib import Path

from clusterlab.report import benchmark_table, fill, read_records, results_table

ROOT = Path(__file__).parents[1]


def filled_readme() -> str:
    """Return the README as it must be for the records in ``results/``."""
    results = ROOT / "results"
    records, published = read_records(results / "dcec.csv"), read_records(results / "published.csv")
    readme = fill((ROOT / "README.md").read_text(), "results", results_table(records, published))
    return fill(readme, "benchmark", benchmark_table(read_records(results / "benchmark.csv")))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(filled_readme())
