"""The tables of README and docs."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from clusterlab.errors import UserError
from clusterlab.results import Row, read_records
from conftest import script_module
from records import cells, paper, row

ROOT = Path(__file__).parents[1]
METHODS = ("kmeans", "dcec")


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    """Return scripts/readme.py as a module."""
    return script_module("readme")


def test_benchmark_table(readme: ModuleType) -> None:
    """CPU times and the seconds of a refresh, by device; other wall times stay in the file."""
    first = {"shape": "100 x 8x8", "device": "a CPU", "commit": "c" * 40}
    second = first | {"device": "another", "commit": "d" * 40}
    bare = {"measure": "bare loop", "value": "12.34567", "unit": "images / CPU s"}
    rows = [
        bare | first,
        {"measure": "bare loop", "value": "45678", "unit": "wall images / s"} | first,
        {"measure": "bare loop", "value": "45679", "unit": "images / wall s"} | first,
        {"measure": "one refresh", "value": "2.5", "unit": "wall s"} | first,
        bare | {"value": "12345.6"} | second,
    ]
    laid = readme.benchmark_table(rows).splitlines()
    assert [cells(line) for line in [laid[0], *laid[2:4]]] == [
        ["measure", "images", "unit", "a CPU", "another"],
        ["bare loop", "100 x 8x8", "images / CPU s", "12.35", "12,346"],
        ["one refresh", "100 x 8x8", "wall s", "2.5", ""],
    ]
    assert "4567" not in "".join(laid)
    assert laid[-1].startswith("a CPU: revision ccccccccc; another: revision ddddddddd.")


def test_fill_replaces_what_stands_between_the_markers(readme: ModuleType) -> None:
    kept = "<!-- speed -->\nkept\n<!-- end of speed -->\n"
    page = f"# Title\n<!-- results -->\nold\n<!-- end of results -->\n{kept}more\n"
    once = readme.fill(page, "results", "| new |\n")
    filled = "<!-- results -->\n\n| new |\n\n<!-- end of results -->"
    assert once == f"# Title\n{filled}\n{kept}more\n"
    assert readme.fill(once, "results", "| new |") == once


@pytest.mark.parametrize("page", ["", "<!-- results -->", "<!-- end of results -->"])
def test_fill_needs_both_markers(readme: ModuleType, page: str) -> None:
    with pytest.raises(UserError, match="put them back"):
        readme.fill(page, "results", "table")


def test_the_summary_has_the_papers_own_methods_that_were_run(readme: ModuleType) -> None:
    published = [paper(model=model, data=data) for data in ("usps", "mnist") for model in METHODS]
    rows = [row(model=model, experiment="dcec_table1") for model in METHODS]
    laid = readme.summary_table(rows, published).splitlines()
    assert len(laid) == 3
    told = dict(zip(cells(laid[0]), cells(laid[2]), strict=True))
    assert told["method"] == "dcec"
    assert (told["ACC"], told["ACC, paper"], told["NMI, paper"]) == ("80.0", "79.0", "82.6")


def test_the_summary_takes_the_better_founded_of_twins_and_few_shares(readme: ModuleType) -> None:
    share = "config.data.labelled"
    published = [
        paper(table="sdcec_table1", model="sdcec", setting=f"data.labelled={s}", accuracy="")
        for s in ("0", "0.03", "0.1", "0.5")
    ]

    def told(told_share: str, precision: str, seeds: int, accuracy: float) -> list[Row]:
        own = {"model": "sdcec", "experiment": "", share: told_share, "accuracy": str(accuracy)}
        own |= {"settings_sha256": told_share + precision, "config.precision": precision}
        return [row(seed, **own) for seed in range(seeds)]

    rows = [
        *told("0", "32-true", 2, 0.5),
        *told("0", "bf16-mixed", 1, 0.7),
        *told("0.03", "32-true", 5, 0.8),
        *told("0.1", "bf16-mixed", 1, 0.75),
        *told("0.1", "", 1, 0.65),  # an old record, which does not say that it is of float32
        *told("0.5", "bf16-mixed", 2, 0.9),
        *told("0.5", "32-true", 2, 0.85),
    ]
    for order in (rows, rows[::-1]):
        head, _, *laid = map(cells, readme.summary_table(order, published).splitlines())
        found = [(line[head.index("runs")], line[head.index("ACC")]) for line in laid if line]
        assert sorted(found) == [
            ("data.labelled=0, precision=32-true", "50.0 ± 0.0"),
            ("data.labelled=0.1, precision=none", "65.0"),
            ("data.labelled=0.5, precision=32-true", "85.0 ± 0.0"),
        ]


def test_every_page_is_what_the_records_say(readme: ModuleType) -> None:
    filled = readme.pages()
    assert {path.name for path in filled} == {"README.md", "results.md", "speed.md"}
    for path, text in filled.items():
        assert path.read_text() == text, "run `make readme`"


def test_every_published_number_has_a_command_and_a_source() -> None:
    published = read_records(ROOT / "results" / "published.csv")
    assert published
    keys = {(line["table"], line["data"], line["model"], line["setting"]) for line in published}
    assert len(keys) == len(published)
    for line in published:
        assert line["paper"], line
        assert line["place"].startswith(("Table ", "README of github.com/")), line
        assert (ROOT / "conf" / "experiment" / f"{line['experiment']}.yaml").exists()
        assert (ROOT / "conf" / "model" / f"{line['model']}.yaml").exists()
        assert (ROOT / "conf" / "data" / f"{line['data']}.yaml").exists()
        for score in (line["accuracy"], line["nmi"]):
            assert score == "" or 0 < float(score) < 1, line


def test_every_record_in_results_is_clean() -> None:
    """Of a committed revision, finished, and of a known experiment; some tables are of none."""
    tables = [
        p
        for p in (ROOT / "results").glob("*.csv")
        if p.stem not in ("published", "benchmark", "scaling", "scan")
    ]
    for table in tables:
        for line in read_records(table):
            assert line["experiment"] == ("" if table.stem == "precision" else table.stem)
            assert re.fullmatch("[0-9a-f]{40}", line["commit"]), line["commit"]
    of_none = ("icae_ablation", "icae_epochs", "icae_equations")
    for table in (ROOT / "results" / "sweeps").glob("*.csv"):
        for line in read_records(table):
            name = line["experiment"]
            known = (ROOT / "conf" / "experiment" / f"{name}.yaml").exists()
            assert name == "" if table.stem in of_none else known, table
            assert re.fullmatch("[0-9a-f]{40}", line["commit"]), line["commit"]
