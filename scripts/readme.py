"""Write the tables of README and docs from ``results/``: ``make readme``."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from clusterlab.errors import problem
from clusterlab.layout import cells, render, where_settled
from clusterlab.report import (
    FLOAT32,
    POOLABLE,
    START,
    Line,
    lines,
    of_table,
    precision,
    settled,
    short,
)
from clusterlab.results import SEEDS, Row, find, read_records

ROOT = Path(__file__).parents[1]
RETRAIN = "phases.retrain"
# Tables of a swept setting, and the further columns in them. ACC of module A, of what module B's
# classifier was taught, for how many epochs, and why they ended:
TAUGHT = (
    f"{START}accuracy",
    f"{RETRAIN}.metrics_of_pseudo_labels.accuracy",
    f"{RETRAIN}.epochs",
    f"{RETRAIN}.stop_reason",
)
# Where k-means started, and what is to be seen of it without labels.
STARTED = (
    "phases.finetune.metrics_at_start.accuracy",
    "phases.finetune.losses.loss",
    "label_free.silhouette",
)
# How near the embeddings of an image's views are, and when.
VIEWS = ("phases.finetune.losses.consistency", "phases.finetune.steps")
SHARE, FIGURE_2 = "data.labelled", ("0", "0.01", "0.1", "0.5")
# Tables of a method whose seeds differ more than any two machines do, a seed here and a seed there.
POOLED = dict.fromkeys(("icae_small", "icae_weight"), POOLABLE)
COMPUTED = ("precision", "trainer.precision", "device", "commit")
SWEPT = {
    "dcec_starts": (STARTED[0], "phases.finetune.steps"),
    "idcec_lambda": (f"{RETRAIN}.n_reliable", f"{RETRAIN}.accuracy_rejected"),
    "idcec_alpha": TAUGHT,
    "idcec_beta": TAUGHT,
    "idcec_next_start": TAUGHT,
    "cdc_eta": (),
    "cdc_starts": STARTED,
    "cdc_starts_of_4": STARTED,
    "sdcec_one_percent": (),
    "sdcec_fashion_one_percent": (),
    "icae_ablation": (),
    "icae_epochs": (),
    "icae_equations": (),
    "icae_size": (),
    "icae_size_longer": (),
    "icae_longer": ("phases.finetune.steps",),
    "icae_views": (),
    "icae_settings": VIEWS,
    "icae_weight": (*VIEWS, SEEDS),
    "icae_consistency": ("label_free.silhouette", SEEDS),
    "icae_truth": ("phases.finetune.metrics_at_start.accuracy", *VIEWS),
}


def pages() -> dict[Path, str]:
    """Return each page with tables as it must be for the records in ``results/``."""
    results = ROOT / "results"
    published = read_records(results / "published.csv")
    rows = find(results).rows
    front = {
        "results": summary_table(rows, published),
        "scan": scan_table(read_records(results / "scan.csv")),
    }
    details = {}
    for name in dict.fromkeys(row["table"] for row in published):
        details[name] = render(lines_of(rows, published, name, missing=True), format="markdown")
    details["idcec_settled"] = settled_table(rows)
    for name, also in SWEPT.items():
        records = read_records(results / "sweeps" / f"{name}.csv")
        swept = lines(records, pooled=POOLED.get(name, ()))
        details[name] = render(swept, format="markdown", also=also)
    bits = lines(read_records(results / "precision.csv"))
    speed = {
        "benchmark": benchmark_table(read_records(results / "benchmark.csv")),
        "scaling": scaling_table(read_records(results / "scaling.csv")),
        "precision": render(bits, format="markdown", also=[f"{START}accuracy"]),
    }
    filled = {}
    for path, tables in {
        ROOT / "README.md": front,
        ROOT / "docs" / "results.md": details,
        ROOT / "docs" / "speed.md": speed,
    }.items():
        filled[path] = path.read_text()
        for name, table in tables.items():
            filled[path] = fill(filled[path], name, table)
    return filled


def lines_of(
    rows: Sequence[Row], published: Sequence[Row], name: str, missing: bool = False
) -> list[Line]:
    """Return the lines of one of the published tables."""
    chosen = of_table(rows, published, name)
    return lines(*chosen, missing=missing, pooled=POOLED.get(name, ()))


def summary_table(rows: Sequence[Row], published: Sequence[Row]) -> str:
    """Lay out what was run of the methods that the published tables are of, and named after.

    Of lines that differ in how they were computed alone, the one of most seeds, float32 if equal;
    of the shares of known labels, those of the figure in SDCEC's paper.
    """
    scores = ("ACC", "ACC paper", "NMI", "NMI paper", "ACC unlabelled")
    shown = ("data", "method", "runs", "seeds", *scores, "minutes")
    kept: dict[tuple[str, ...], Line] = {}
    for name in dict.fromkeys(row["table"] for row in published):
        for line in lines_of(rows, published, name):
            share = line.different.get(SHARE, FIGURE_2[0])
            if line.method != name.partition("_")[0] or share not in FIGURE_2:
                continue
            asked = (f"{k}={v}" for k, v in line.different.items() if k not in COMPUTED)
            key = (name, line.data, line.rows[0]["experiment"], *asked)
            kept[key] = max(kept.get(key, line), line, key=worth)
    table = list(kept.values())
    told = [cells(line, elsewhere=("device", "commit")) for line in table]
    body = [[row.get(head, "") for head in shown] for row in told]
    heads = [head.replace(" paper", ", paper") for head in shown]
    align = ["left" if head in ("data", "method", "runs") else "right" for head in shown]
    laid = tabulate(body, heads, "pipe", disable_numparse=True, colalign=align)
    return "\n".join([laid, "", *(f"- {text}" for text in where_settled(table))])


def worth(line: Line) -> tuple[int, bool]:
    """Say how well a line is founded, whatever its scores are."""
    return len(line.rows), precision(line.rows[0]) == FLOAT32


def settled_table(rows: Sequence[Row]) -> str:
    """Lay out each run of IDCEC by ACC, and when the classifier of module B settled."""
    body = []
    ours = (row for row in rows if settled(row) is not None)
    for row in sorted(ours, key=lambda row: float(row["accuracy"])):
        told = [row["data"], row["experiment"], precision(row), row["seed"]]
        told += ["yes" if settled(row) else "no", row["phases.retrain.epochs"]]
        body.append([*told, f"{100 * float(row['accuracy']):.1f}"])
    heads = ["data", "experiment", "precision", "seed", "settled", "epochs", "ACC"]
    align = ["left"] * 3 + ["right"] * 4
    return tabulate(body, heads, "pipe", disable_numparse=True, colalign=align)


def benchmark_table(rows: Sequence[Row]) -> str:
    """Lay out the benchmark's CPU measurements, a column a device; the file has wall times too."""
    made = {
        row["device"]: f"{row['device']}: revision {short('commit', row['commit'])}" for row in rows
    }
    parts: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if "wall" not in row["unit"] or row["measure"] == "one refresh":
            part = parts.setdefault((row["measure"], row["shape"], row["unit"]), {})
            value = float(row["value"])
            part[row["device"]] = f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    body = [[*key, *(part.get(name, "") for name in made)] for key, part in parts.items()]
    align = ["left"] * 3 + ["right"] * len(made)
    heads = ["measure", "images", "unit", *made]
    table = tabulate(body, heads, "pipe", disable_numparse=True, colalign=align)
    return (
        f"{table}\n\n{'; '.join(made.values())}. Medians of interleaved rounds, `make benchmark`."
    )


def scan_table(rows: Sequence[Row]) -> str:
    """Lay out what scans over K said: a line for each, from a row for each of its measures."""
    scans: dict[tuple[str, str], Row] = {}
    for row in rows:
        named = {"data": row["data"], "model": row["model"]}
        line = scans.setdefault((row["data"], row["model"]), named)
        line[row["measure"]] = f"{row['best']} ({', '.join(row['near'].split())})"
    for row in rows:  # the last columns
        scans[row["data"], row["model"]] |= {"": row["verdict"], "revision": row["commit"][:9]}
    return tabulate(list(scans.values()), headers="keys", tablefmt="pipe", disable_numparse=True)


def scaling_table(rows: Sequence[Row]) -> str:
    """Lay out what each part costs, a column for each size of the data."""
    sizes = [f"n = {int(row['n']):,}, K = {row['K']}" for row in rows]
    parts: dict[str, Row] = {}
    for row, size in zip(rows, sizes, strict=True):
        parts.setdefault(f"{row['part']}, {row['unit']}", {})[size] = row["value"]
    order = dict.fromkeys(sizes)
    table = [{"": part, **{size: values[size] for size in order}} for part, values in parts.items()]
    text = tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True)
    return f"{text}\n\n{rows[0]['device']}, revision {short('commit', rows[0]['commit'])}."


def fill(page: str, name: str, table: str) -> str:
    """Put a table between a page's markers ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        UserError: If the markers are not there.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in page or end not in page:
        raise problem(f"the markers '{begin}' and '{end}' in the page", "none", "put them back")
    before, after = page.split(begin)[0], page.split(end)[1]
    return f"{before}{begin}\n\n{table.rstrip()}\n\n{end}{after}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
