"""Write the README's results table from ``results/``: ``make readme``."""

from pathlib import Path

from clusterlab.report import fill, read_records, results_table

ROOT = Path(__file__).parents[1]


def filled_readme() -> str:
    """Return the README as it must be for the records in ``results/``."""
    records = read_records(ROOT / "results" / "dcec.csv")
    published = read_records(ROOT / "results" / "published.csv")
    return fill((ROOT / "README.md").read_text(), results_table(records, published))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(filled_readme())
