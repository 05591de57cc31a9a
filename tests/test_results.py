"""From run folders to rows."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import adjusted_rand_score

from clusterlab.errors import UserError
from clusterlab.folders import settings_of
from clusterlab.report import differences
from clusterlab.results import (
    IDENTITY,
    SEEDS,
    Found,
    find,
    merge,
    read_records,
    read_run,
    scalars,
    settings_row,
)
from records import row

START = "phases.finetune.metrics_at_start."


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
            "output_dir": "somewhere",
            "metrics": {"nmi": 9},
            "data": {"source": {"root": "/home"}},
            "model": {"seed": seed, "gamma": 0.1},
            "network": {"filters": [4, 8]},
            "trainer": {"precision": 32},
        },
        **changes,
    }


SCALARS = {
    "model": "dcec",
    "data": "usps",
    "seed": "4",
    "data_sha256": "d",
    "device": "a CPU",
    "commit": "",
    "accuracy": "0.5",
    "nmi": "",
    "label_free.silhouette": "0.25",
    "phases.finetune.steps": "3",
    "phases.finetune.metrics_at_start.nmi": "0.125",
}


def a_run(folder: Path, content: dict[str, Any] | None = None) -> None:
    """Make a run folder; without content one that is not finished."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    if content:
        (folder / "result.json").write_text(json.dumps(content))


def test_scalars() -> None:
    content = record(4)
    del content["config"]
    assert scalars(content) == SCALARS | {"settings_sha256": "5"}


def test_a_row_has_scalars_and_settings_but_not_where_or_which_seed(tmp_path: Path) -> None:
    a_run(tmp_path / "run", record(4))
    read = read_run(tmp_path / "run" / "result.json")
    assert len(read.pop("settings_sha256")) == 64  # made again, of the config
    assert read == SCALARS | {
        "config.metrics.nmi": "9",
        "config.model.gamma": "0.1",
        "config.network.filters": "[4, 8]",
        "config.precision": "32",
    }


def test_settings_of_two_seeds_are_one_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        a_run(tmp_path / str(seed), record(seed))
    one, other = (read_run(tmp_path / str(seed) / "result.json") for seed in (0, 1))
    assert {name for name in one if one[name] != other[name]} == {"seed"}


def test_starts_of_one_seed_are_rows_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        content = record(0)
        content["config"]["model"]["seed"] = seed
        a_run(tmp_path / str(seed), content)
    found = find(tmp_path)
    assert not found.left_out
    assert [r.get("config.model.seed") for r in found.rows] == [None, "1", "2"]
    assert [line["model.seed"] for line in differences(found.rows)] == ["seed", "1", "2"]


def test_find_lists_failed_and_unfinished_runs_and_leaves_them_out(tmp_path: Path) -> None:
    a_run(tmp_path / "b/seed=1", record(1))
    a_run(tmp_path / "a/seed=0", record(0))
    a_run(tmp_path / "failed", {**record(2), "error": "Expected a finite loss."})
    a_run(tmp_path / "unfinished")
    found = find(tmp_path)
    assert [r["seed"] for r in found.rows] == ["0", "1"]
    assert found.left_out == [
        f"failed: {tmp_path / 'failed'}: Expected a finite loss.",
        f"unfinished: {tmp_path / 'unfinished'}",
    ]


def test_find_counts_a_run_once_and_names_the_other(tmp_path: Path) -> None:
    a_run(tmp_path / "a", record(0))
    a_run(tmp_path / "b", record(0))
    a_run(tmp_path / "c", record(0, metrics={"accuracy": 0.6, "nmi": None}))
    a_run(tmp_path / "d", record(0, commit="other"))
    found = find(tmp_path)
    assert [(r["accuracy"], r["commit"]) for r in found.rows] == [("0.5", ""), ("0.5", "other")]
    run = "dcec on usps, seed 0, in"
    assert found.left_out == [
        f"duplicate, with the same scores: {run} {tmp_path / 'b'}",
        f"duplicate, with OTHER scores: {run} {tmp_path / 'c'}",
    ]


def test_find_reads_tables_beside_each_other(tmp_path: Path) -> None:
    """As in ``results/``: records, and two files that are none."""
    merge(tmp_path / "one.csv", [row(0), row(1)])
    merge(tmp_path / "two.csv", [row(1), row(2)])
    (tmp_path / "published.csv").write_text("table,paper\na,b\n")
    found = find(tmp_path)
    assert [r["seed"] for r in found.rows] == ["0", "1", "2"]
    assert len(found.left_out) == 1
    assert [r["seed"] for r in find(tmp_path / "two.csv").rows] == ["1", "2"]
    assert len(find(tmp_path / "one.csv", tmp_path / "two.csv").rows) == 3


def test_rows_tell_how_far_seeds_agree(tmp_path: Path) -> None:
    draw, labels = np.random.default_rng(0), []
    for i, (name, changes) in enumerate(
        {
            "a": {"seed": 0},
            "b": {"seed": 1},
            "c": {"seed": 2},
            "on another device": {"seed": 2, "device": "a GPU"},
            "other data": {"seed": 3, "data_sha256": "another"},
            "gone": {"seed": 4},
        }.items()
    ):
        a_run(tmp_path / name, record(0, n_clusters=4) | changes)
        labels.append(draw.integers(4, size=120) // 2 * 2 if name == "c" else np.arange(120) // 30)
        labels[-1][: 7 * i] = 3
        np.savez(tmp_path / name / "assignments.npz", label=labels[-1])
    (tmp_path / "gone" / "assignments.npz").unlink()
    pairs = {(i, j): adjusted_rand_score(labels[i], labels[j]) for i in range(4) for j in range(i)}
    expected = [
        (pairs[1, 0] + pairs[2, 0] + pairs[3, 0]) / 3,
        (pairs[1, 0] + pairs[2, 1] + pairs[3, 1]) / 3,
        (pairs[2, 0] + pairs[2, 1]) / 2,  # not with a run of its own seed
        (pairs[3, 0] + pairs[3, 1]) / 2,
    ]
    found = find(*(tmp_path / name for name in ("a", "b", "a", "c"))).rows
    assert float(found[0][SEEDS]) == pytest.approx((pairs[1, 0] + pairs[2, 0]) / 2)
    by_seed = {(r["seed"], r["device"]): r for r in find(tmp_path).rows}
    keys = [("0", "a CPU"), ("1", "a CPU"), ("2", "a CPU"), ("2", "a GPU")]
    assert [float(by_seed[key][SEEDS]) for key in keys] == pytest.approx(expected)
    assert SEEDS not in by_seed["3", "a CPU"]
    assert SEEDS not in by_seed["4", "a CPU"]


@pytest.mark.parametrize("name", ["empty", "missing", "empty.csv"])
def test_find_refuses_a_place_with_nothing_in_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="Expected runs or records, got n"):
        find(tmp_path / name)
    a_run(tmp_path / "run", record(0))
    with pytest.raises(UserError, match="Expected runs or records, got n"):
        find(tmp_path / "run", tmp_path / "run", tmp_path / name)  # the second is left out


def test_find_reads_real_runs(finished: tuple[Any, dict[str, Any]]) -> None:
    """What a run writes is what a table needs."""
    cfg, result = finished
    found = find(Path(cfg.run_dir))
    assert found.left_out == []
    (read,) = found.rows
    content = {name: value for name, value in result.items() if name != "config"}
    assert read == scalars(content) | settings_row(settings_of(OmegaConf.create(result["config"])))
    assert set(IDENTITY) - {"known_sha256"} <= read.keys()
    design = "experiment model data seed accuracy nmi ari f1 seconds device commit data_sha256"
    assert {*design.split(), "settings_sha256"} <= read.keys()
    assert float(read["nmi"]) == result["metrics"]["nmi"]
    assert float(read[f"{START}nmi"]) == result["phases"]["finetune"]["metrics_at_start"]["nmi"]
    assert read["config.loss.gamma"] == "0.1"


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
def test_runs_that_differ_are_kept_apart(tmp_path: Path, name: str) -> None:
    other = row() | {name: "7" if name == "seed" else "another"}
    merged = merge(tmp_path / "table.csv", [row(), other])
    assert sorted(r.get(name, "") for r in merged) == sorted([row().get(name, ""), other[name]])
    found = Found()
    for each in (row(), other):
        found.add(each, tmp_path)
    assert (found.rows, found.left_out) == ([row(), other], [])
