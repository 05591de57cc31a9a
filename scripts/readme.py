"""Write the README's tables from ``results/``: ``make readme``."""

from pathlib import Path

from clusterlab.report import benchmark_table, fill, lines, render
from clusterlab.results import read_records

ROOT = Path(__file__).parents[1]


def filled_readme() -> str:
    """Return the README as it must be for the records in ``results/``."""
    results = ROOT / "results"
    readme = (ROOT / "README.md").read_text()
    published = read_records(results / "published.csv")
    for name in dict.fromkeys(row["table"] for row in published):
        own = [row for row in published if row["table"] == name]
        table = lines(read_records(results / f"{name}.csv"), own, missing=True)
        readme = fill(readme, name, render(table, format="markdown"))
    return fill(readme, "benchmark", benchmark_table(read_records(results / "benchmark.csv")))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(filled_readme())
