"""From run folders to the README's table."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusterlab.errors import UserError
from clusterlab.report import (
    IDENTITY,
    SAME,
    benchmark_table,
    collect,
    fill,
    merge,
    read_records,
    results_table,
    scalars,
    summarise,
)

ROOT = Path(__file__).parents[1]
START = "phases.finetune.metrics_at_start."


def row(seed: int = 0, **changes: str) -> dict[str, str]:
    """Make the record of a run as a table holds it."""
    scores = {"accuracy": 0.8 + seed / 100, "nmi": 0.7, "ari": 0.6, "f1": 0.5 + seed / 1000}
    return {
        "model": "dcec",
        "data": "usps",
        "seed": str(seed),
        "settings_sha256": "5" * 64,
        "data_sha256": "d" * 64,
        "device": "a CPU",
        "commit": "c" * 40,
        **{name: str(value) for name, value in scores.items()},
        **{f"{START}{name}": str(value / 2) for name, value in scores.items()},
        "phases.pretrain.seconds": "60",
        "phases.finetune.seconds": str(120 + 60 * seed),
        **changes,
    }


def paper(**changes: str) -> dict[str, str]:
    return {
        "paper": "Guo et al.",
        "table": "Table 1",
        "data": "usps",
        "model": "dcec",
        "accuracy": "0.7900",
        "nmi": "0.8257",
        **changes,
    }


def record(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Make a result.json."""
    return {
        "model": "dcec",
        "data": "usps",
        "seed": seed,
        "settings_sha256": "5",
        "data_sha256": "d",
        "device": "a CPU",
        "commit": None,
        "metrics": {"accuracy": 0.5, "nmi": None},
        "label_free": {"silhouette": 0.25, "cluster_sizes": [1, 2], "trouble": []},
        "phases": {"finetune": {"steps": 3, "metrics_at_start": {"nmi": 0.125}}},
        "config": {
            "seed": seed,
            "metrics": {"nmi": 9},
            "data": {"source": {}},
            "model": {"seed": seed},
            "trainer": {"precision": 32},
        },
        **changes,
    }


def test_scalars() -> None:
    assert scalars(record(4)) == {
        "model": "dcec",
        "data": "usps",
        "seed": "4",
        "settings_sha256": "5",
        "data_sha256": "d",
        "device": "a CPU",
        "commit": "",
        "accuracy": "0.5",
        "nmi": "",
        "label_free.silhouette": "0.25",
        "phases.finetune.steps": "3",
        "phases.finetune.metrics_at_start.nmi": "0.125",
    }


def test_collect_leaves_failed_and_unfinished_runs_out(tmp_path: Path) -> None:
    for name in ("b/seed=1", "a/seed=0", "failed", "unfinished"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b/seed=1/result.json").write_text(json.dumps(record(1)))
    (tmp_path / "a/seed=0/result.json").write_text(json.dumps(record(0)))
    failed = {**record(2), "error": "Expected a finite loss."}
    (tmp_path / "failed/result.json").write_text(json.dumps(failed))
    (tmp_path / "unfinished/settings.json").write_text("{}")
    rows, failures = collect(tmp_path)
    # The digest is made again, of the config, without the seed.
    (digest,) = {row.pop("settings_sha256") for row in rows}
    assert len(digest) == 64
    expected = [scalars(record(seed)) for seed in (0, 1)]
    assert rows == [{k: v for k, v in row.items() if k != "settings_sha256"} for row in expected]
    assert failures == [f"{tmp_path / 'failed'}: Expected a finite loss."]


def test_collect_reads_real_runs(finished: tuple[Any, dict[str, Any]]) -> None:
    """What a run writes is what a table needs."""
    cfg, result = finished
    rows, failures = collect(Path(cfg.run_dir))
    assert (rows, failures) == ([scalars(result)], [])
    assert set(IDENTITY) <= rows[0].keys()
    design = "experiment model data seed accuracy nmi ari f1 seconds device commit data_sha256"
    assert {*design.split(), "settings_sha256"} <= rows[0].keys()
    assert float(rows[0]["nmi"]) == result["metrics"]["nmi"]
    assert float(rows[0][f"{START}nmi"]) == result["phases"]["finetune"]["metrics_at_start"]["nmi"]


def test_merge_sorts_and_replaces(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    assert read_records(table) == []
    merge(table, [row(10), row(2), row(0, data="mnist"), row(1, model="cdc")])
    again = row(2, nmi="0.9") | {"note": "made again"}  # a column that the others lack
    merged = merge(table, [again])
    assert [(r["data"], r["model"], r["seed"]) for r in merged] == [
        ("mnist", "dcec", "0"),
        ("usps", "cdc", "1"),
        ("usps", "dcec", "2"),
        ("usps", "dcec", "10"),
    ]
    stored = read_records(table)
    assert [r["nmi"] for r in stored] == ["0.7", "0.7", "0.9", "0.7"]
    assert [r["note"] for r in stored] == ["", "", "made again", ""]
    before = table.read_bytes()
    merge(table, [])
    assert table.read_bytes() == before
    with table.open(newline="") as file:
        assert sum(1 for _ in csv.reader(file)) == 5
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize("name", IDENTITY)
def test_merge_keeps_runs_that_differ(tmp_path: Path, name: str) -> None:
    other = "7" if name == "seed" else "another"
    merged = merge(tmp_path / "table.csv", [row(), row() | {name: other}])
    assert sorted(r[name] for r in merged) == sorted([row()[name], other])


def test_summarise_gives_mean_and_sample_deviation() -> None:
    values = {name: np.random.default_rng(i).random(5) for i, name in enumerate(("nmi", "ari"))}
    rows = [row(s, **{k: str(v[s]) for k, v in values.items()}) for s in range(5)]
    summary = summarise(rows)
    assert summary["seeds"] == "5"
    for name, value in values.items():
        percent = 100 * value
        assert summary[name] == f"{percent.mean():.1f} ± {percent.std(ddof=1):.1f}"
        assert summary[name] != f"{percent.mean():.1f} ± {percent.std(ddof=0):.1f}"
    assert summarise(rows, START)["accuracy"] == "41.0 ± 0.8"


def test_summarise_one_run_has_no_deviation() -> None:
    assert summarise([row()])["accuracy"] == "80.0"


def test_summarise_leaves_out_what_nobody_measured() -> None:
    """Runs without labels have no accuracy, rather than one of zero."""
    assert "accuracy" not in summarise([row(seed, accuracy="") for seed in range(2)])


@pytest.mark.parametrize("name", SAME)
def test_summarise_refuses_to_mix(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} of .*another"):
        summarise([row(0), row(1, **{name: "another"})])


def test_what_is_not_mixed() -> None:
    assert set(SAME) == {"settings_sha256", "data_sha256", "commit", "device"}


def test_a_dirty_revision_is_told_from_the_clean_one() -> None:
    with pytest.raises(UserError, match="commit of") as caught:
        summarise([row(0), row(1, commit="c" * 40 + "-dirty")])
    assert "dirty" in str(caught.value)
    assert "dirty" in results_table([row(0, commit="c" * 40 + "-dirty")], [paper()])


def test_summarise_refuses_a_seed_twice() -> None:
    with pytest.raises(UserError, match="one run per seed, got seeds 0, 1, 0"):
        summarise([row(0), row(1), row(0)])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_results_table() -> None:
    published = [paper(), paper(model="cae_kmeans", accuracy="0.7415", nmi="0.7330")]
    other = row(0, data="mnist", device="another CPU", commit="e" * 40)
    lines = results_table([row(0), row(1), other], published).splitlines()
    assert cells(lines[0])[:3] == ["data", "method", "seeds"]
    ours, kmeans = cells(lines[2]), cells(lines[3])
    assert len(ours) == len(kmeans) == len(cells(lines[0])) == len(cells(lines[1]))
    assert ours == [
        *("usps", "**DCEC**", "2", "80.5 ± 0.7", "79.0", "70.0 ± 0.0", "82.6"),
        *("60.0 ± 0.0", "50.0 ± 0.1", "4"),  # 1 + 2 and 1 + 3 minutes, rounded up
    ]
    assert kmeans == [
        *("usps", "CAE + k-means", "2", "40.2 ± 0.4", "74.2", "35.0 ± 0.0", "73.3"),
        *("30.0 ± 0.0", "25.0 ± 0.0", "1"),
    ]
    assert "Guo et al., Table 1" in lines[-1]
    assert "a CPU" in lines[-1]
    assert "ccccccccc" in lines[-1]


def test_a_published_row_without_runs_is_not_run() -> None:
    published = [paper(), paper(data="mnist_test")]
    lines = results_table([row()], published).splitlines()
    assert cells(lines[2])[2] == "1"
    command = "not run: `python train.py model=dcec data=mnist_test`"
    assert cells(lines[3])[:3] == ["mnist_test", "dcec", command]
    assert set(cells(lines[3])[3:]) == {""}
    assert lines[3].count("|") == lines[0].count("|")
    without = results_table([], published).splitlines()
    assert all(cells(line)[2].startswith("not run: `python train.py") for line in without[2:4])


def test_benchmark_table() -> None:
    """CPU times and the seconds of a refresh; other wall times stay in the file."""
    shared = {"shape": "100 x 8x8", "device": "a CPU", "commit": "c" * 40}
    rows = [
        {"measure": "bare loop", "value": "12.34567", "unit": "images / CPU s"},
        {"measure": "bare loop", "value": "45678", "unit": "wall images / s"},
        {"measure": "one refresh", "value": "2.5", "unit": "wall s"},
    ]
    lines = benchmark_table([row | shared for row in rows]).splitlines()
    assert [cells(line) for line in lines[2:4]] == [
        ["bare loop", "100 x 8x8", "12.35", "images / CPU s"],
        ["one refresh", "100 x 8x8", "2.5", "wall s"],
    ]
    assert "45678" not in "".join(lines)
    assert lines[-1].startswith("a CPU, revision ccccccccc.")


def test_fill_replaces_what_stands_between_the_markers() -> None:
    kept = "<!-- speed -->\nkept\n<!-- end of speed -->\n"
    readme = f"# Title\n<!-- results -->\nold\n<!-- end of results -->\n{kept}more\n"
    once = fill(readme, "results", "| new |")
    filled = "<!-- results -->\n\n| new |\n\n<!-- end of results -->"
    assert once == f"# Title\n{filled}\n{kept}more\n"
    assert fill(once, "results", "| new |") == once


@pytest.mark.parametrize("readme", ["", "<!-- results -->", "<!-- end of results -->"])
def test_fill_needs_both_markers(readme: str) -> None:
    with pytest.raises(UserError, match="put them back"):
        fill(readme, "results", "table")


def test_the_readme_is_what_the_records_say() -> None:
    if not (ROOT / "results" / "dcec.csv").exists():
        pytest.skip("no results/dcec.csv yet: collect runs with scripts/collect.py")
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "README.md").read_text() == script.filled_readme(), "run `make readme`"


def test_the_published_numbers_are_there_to_compare_with() -> None:
    published = read_records(ROOT / "results" / "published.csv")
    assert published
    for line in published:
        assert line["paper"], line
        assert line["table"].startswith("Table "), line
        assert 0 < float(line["accuracy"]) < 1, line
        assert 0 < float(line["nmi"]) < 1, line
