"""Tables of runs next to the published numbers: ``scripts/report.py runs``, or ``results``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from clusterlab.curves import before_and_after, over_setting
from clusterlab.drawn import points_of, retrained, sweeps
from clusterlab.errors import exit_on_error, problem
from clusterlab.layout import FORMATS, in_place_of_scores, in_words, numbers, render
from clusterlab.report import POOLABLE, SHORT, lines, of_table
from clusterlab.results import find, read_records
from clusterlab.viz import save

PUBLISHED = Path(__file__).parents[1] / "results" / "published.csv"
ENDINGS = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}


def main() -> None:
    """Print the table of some runs; with --out write it in all formats, and draw what was swept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "places", type=Path, nargs="+", help="run folders, folders of runs, or CSVs of records"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of what is printed")
    parser.add_argument("--table", help="this table of results/published.csv alone")
    parser.add_argument("--missing", action="store_true", help="also list what nobody ran")
    parser.add_argument(
        "--pool",
        nargs="+",
        default=[],
        choices=POOLABLE,
        help="let runs of one mean differ in this too; they are never averaged otherwise",
    )
    parser.add_argument(
        "--also", nargs="+", default=[], help="further columns, such as phases.finetune.steps"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the table in all formats, a plot of each sweep, and one of the scores "
        "before and after a retrain phase",
    )
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="also a W&B run with the table; with --out offline there"
    )
    arguments = parser.parse_args()
    with exit_on_error():
        if arguments.wandb and arguments.out is None:
            raise problem("--out with --wandb", "none", "name a folder for the W&B run")
        found = find(*arguments.places)
        rows, published = found.rows, read_records(PUBLISHED)
        if arguments.table:
            rows, published = of_table(rows, published, arguments.table)
        for name in arguments.also:
            if not any(row.get(name) for row in rows):
                remedy = "choose one of the head of a table that scripts/collect.py writes"
                raise problem("a column of the records", name, remedy)
        table = lines(rows, published, arguments.missing, arguments.pool)
    also = list(dict.fromkeys([*arguments.also, *in_place_of_scores(table)]))
    print(render(table, found.left_out, arguments.format, also), end="")
    if arguments.format == "csv":  # the notes have no place in it
        print(*found.left_out, sep="\n", file=sys.stderr, end="")
    if arguments.out is None:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, ending in ENDINGS.items():
        text = render(table, found.left_out, name, also)
        (arguments.out / f"table.{ending}").write_text(text)
    drawn = {name: f"{label}, %" for name, label in SHORT.items()}
    drawn |= {name: in_words(name) for name in also}
    for setting, curves in sweeps(table).items():
        points, papers = points_of(curves, drawn, arguments.pool)
        save(over_setting(setting, points, papers), arguments.out / f"{setting}.png")
    if before := retrained(table):
        save(before_and_after("retrain", before), arguments.out / "retrain.png")
    if arguments.wandb:
        log_table(arguments.wandb, arguments.out, [numbers(line, also) for line in table])
    print(*sorted(map(str, arguments.out.iterdir())), sep="\n", file=sys.stderr)


def log_table(project: str, out: Path, rows: list[dict[str, Any]]) -> None:
    """Leave the table and the plots in an offline W&B run, which ``wandb sync`` uploads."""
    import wandb

    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[None if (c := row.get(name)) is None else str(c) for name in columns] for row in rows]
    settings = wandb.Settings(silent=True)
    run = wandb.init(
        project=project,
        name="report",
        job_type="report",
        dir=out,
        mode="offline",
        settings=settings,
    )
    run.log({"table": wandb.Table(columns, cells)})
    run.log({path.stem: wandb.Image(str(path)) for path in sorted(out.glob("*.png"))})
    folder = Path(run.dir).parent
    run.finish()
    print(f"W&B run, not uploaded yet: wandb sync {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
