"""Write the tables of README and docs from ``results/``: ``make readme``."""

from pathlib import Path

from tabulate import tabulate

from clusterlab.report import START, benchmark_table, fill, lines, of_table, render
from clusterlab.results import Row, find, read_records

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
        ours, own = of_table(rows, published, name)
        table = lines(ours, own, missing=True)
        readme = fill(readme, name, render(table, format="markdown"))
    readme = fill(readme, "scan", scan_table(read_records(results / "scan.csv")))
    return fill(readme, "benchmark", benchmark_table(read_records(results / "benchmark.csv")))


def scan_table(rows: list[Row]) -> str:
    """Return what scans over K said: a line for each, from a row for each of its measures."""
    scans: dict[tuple[str, str], Row] = {}
    for row in rows:
        named = {"data": row["data"], "model": row["model"]}
        line = scans.setdefault((row["data"], row["model"]), named)
        line[row["measure"]] = f"{row['best']} ({', '.join(row['near'].split())})"
    for row in rows:  # the last columns
        scans[row["data"], row["model"]] |= {"": row["verdict"], "revision": row["commit"][:9]}
    return tabulate(list(scans.values()), headers="keys", tablefmt="pipe", disable_numparse=True)


def filled_scaling() -> str:
    """Return docs/scaling.md as it must be for ``results/``: sizes, and precisions of numbers."""
    rows = read_records(ROOT / "results" / "scaling.csv")
    sizes = list(dict.fromkeys(f"n = {int(row['n']):,}, K = {row['K']}" for row in rows))
    parts: dict[str, dict[str, str]] = {}
    for row, size in zip(rows, (f"n = {int(r['n']):,}, K = {r['K']}" for r in rows), strict=True):
        parts.setdefault(f"{row['part']}, {row['unit']}", {})[size] = row["value"]
    table = [{"": part, **{size: values[size] for size in sizes}} for part, values in parts.items()]
    text = tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True)
    made = f"{rows[0]['device']}, revision {rows[0]['commit'][:9]}."
    page = (ROOT / "docs" / "scaling.md").read_text()
    page = fill(page, "scaling", f"{text}\n\n{made}")
    bits = lines(read_records(ROOT / "results" / "precision.csv"))
    before = f"{START}accuracy"
    return fill(page, "precision", render(bits, format="markdown", also=[before]))


if __name__ == "__main__":
    (ROOT / "docs" / "scaling.md").write_text(filled_scaling())
    (ROOT / "README.md").write_text(filled_readme())
