"""Write the README's tables from ``results/``: ``make readme``."""

from pathlib import Path

from clusterlab.report import benchmark_table, fill, lines, render
from clusterlab.results import find, read_records

ROOT = Path(__file__).parents[1]


def filled_readme() -> str:
    """Return the README as it must be for the records in ``results/``."""
    results = ROOT / "results"
    readme = (ROOT / "README.md").read_text()
    published = read_records(results / "published.csv")
    rows = find(results).rows
    for name in dict.fromkeys(row["table"] for row in published):
        if f"<!-- {name} -->" not in readme:
            continue
        own = [row for row in published if row["table"] == name]
        # Our own experiments stand with their method, another paper's in that paper's table.
        cells = {(row["data"], row["model"]) for row in own}
        others = {row["experiment"] for row in published} - {row["experiment"] for row in own}
        ours = [
            row
            for row in rows
            if (row["data"], row["model"]) in cells and row["experiment"] not in others
        ]
        table = lines(ours, own, missing=True)
        readme = fill(readme, name, render(table, format="markdown"))
    return fill(readme, "benchmark", benchmark_table(read_records(results / "benchmark.csv")))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(filled_readme())
