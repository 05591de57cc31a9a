"""From rows to lines, and the program that shows them."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusterlab.errors import UserError
from clusterlab.layout import render
from clusterlab.report import SAME, START, differences, lines
from clusterlab.results import Row
from records import cells, paper, row, swept

ROOT = Path(__file__).parents[1]


def test_a_line_has_mean_and_sample_deviation() -> None:
    values = {name: np.random.default_rng(i).random(5) for i, name in enumerate(("nmi", "ari"))}
    rows = [row(s, **{k: str(v[s]) for k, v in values.items()}) for s in range(5)]
    (line,) = lines(rows)
    assert len(line.rows) == 5
    for name, value in values.items():
        expected = (100 * value.mean(), 100 * value.std(ddof=1))
        assert line.ours(name) == pytest.approx(expected, abs=1e-9)
    assert line.minutes == pytest.approx(5)  # 3, 4, 5, 6, 7
    assert line.theirs("nmi") is None


def test_one_run_has_no_deviation_and_no_labels_no_score() -> None:
    (line,) = lines([row(accuracy="")], [paper()])
    assert line.ours("nmi") == pytest.approx((70, None))
    assert line.ours("accuracy") is None
    assert line.theirs("nmi") == pytest.approx(82.57)
    assert line.theirs("ari") is None


@pytest.mark.parametrize("name", SAME)
def test_what_differs_is_never_averaged(name: str) -> None:
    other = {name: "another"}
    table = lines([row(0), row(1), row(0, **other), row(1, **other), row(2, **other)], [paper()])
    assert [len(line.rows) for line in table] == [2, 3]
    assert [list(line.different) for line in table] == [[name], [name]]
    assert table[1].different[name].startswith("another")
    assert all(line.published for line in table)
    text = render(table)
    told = set(re.findall(r"\S*another", text))  # once, in a column of its own or among the runs
    assert told == {"another" if name in ("commit", "device") else f"{name}=another"}


def test_other_precision_than_float32_is_told_of_a_single_line_too() -> None:
    bits = {"config.precision": "bf16-mixed"}
    (line,) = lines([row(0, **bits), row(1, **bits)], [paper()])
    assert line.different == {"trainer.precision": "bf16-mixed"}
    other = {"settings_sha256": "6" * 64, "config.precision": "32-true"}
    both = lines([row(0, **bits), row(0, **other)])
    assert [line.different for line in both] == [
        {"precision": "bf16-mixed"},
        {"precision": "32-true"},
    ]


def test_beside_a_published_number_stands_what_was_asked_differently() -> None:
    """A line alone has nothing to differ from, but the number is of the paper's own settings."""
    asked = {"asked.network": "small", "asked.loss.gamma": "0.5"}
    runs = [row(0, **asked), row(1, **asked | {"asked.n_clusters": "10"})]  # what it is anyway
    (line,) = lines(runs, [paper()])
    assert line.different == {"loss.gamma": "0.5", "network": "small"}
    (alone,) = lines(runs)
    assert alone.different == {}
    (plain,) = lines([row(0)], [paper()])
    assert plain.different == {}
    (some,) = lines([runs[0], row(2)], [paper()])  # an older record does not say what was asked
    assert some.different == {}
    told = lines([swept(g, **{"asked.loss.gamma": str(g)}) for g in (1.0, 0.1)], [paper()])
    assert [line.different for line in told] == [{"loss.gamma": "0.1"}, {"loss.gamma": "1.0"}]


def test_a_reader_may_pool_what_it_was_computed_with() -> None:
    gpu, other = {"device": "a GPU"}, {"commit": "e" * 40}
    rows = [row(0), row(1, **gpu), row(2, **gpu), row(3, **gpu, **other)]
    assert [len(line.rows) for line in lines(rows, pooled=["device"])] == [3, 1]
    assert [len(line.rows) for line in lines(rows, pooled=["commit"])] == [1, 3]
    (line,) = table = lines(rows, pooled=["device", "commit"])
    assert line.ours("accuracy") == pytest.approx(
        (81.5, 100 * np.std([0, 0.01, 0.02, 0.03], ddof=1))
    )
    assert line.different == {}
    assert "Device: 3 a GPU; 1 a CPU. Revision: 3 ccccccccc; 1 eeeeeeeee." in render(table)
    (numbers,) = csv.DictReader(io.StringIO(render(table, format="csv")))
    assert numbers["device"] == "a CPU; a GPU"
    again = [*rows, row(0, **gpu)]
    assert [len(line.rows) for line in lines(again)] == [1, 3, 1]
    with pytest.raises(UserError, match=r"seeds 0, 0, 1, 2, 3; drop one, or pool less"):
        lines(again, pooled=["device", "commit"])


def test_what_must_agree() -> None:
    assert set(SAME) == {"settings_sha256", "data_sha256", "commit", "device"}


def test_a_dirty_revision_is_told_from_the_clean_one() -> None:
    table = lines([row(0), row(1, commit="c" * 40 + "-dirty")])
    assert [line.different["commit"] for line in table] == ["c" * 9, "c" * 9 + "-dirty"]
    assert "ccccccccc-dirty" in render(lines([row(0, commit="c" * 40 + "-dirty")]))


def test_a_seed_twice_in_a_line_is_refused() -> None:
    with pytest.raises(UserError, match="one run per seed, got seeds 0, 0, 1"):
        lines([row(0), row(1), row(0)])


def test_a_setting_that_came_with_a_revision_gives_way_to_it() -> None:
    def made(share: str, commit: str, weight: str) -> Row:
        return {"config.data.labelled": share, "config.loss.labelled": weight, "commit": commit}

    old, new, other = made("0.1", "a", ""), made("0.1", "b", "1.0"), made("0.2", "b", "1.0")
    shares = [{"data.labelled": "0.1"}, {"data.labelled": "0.2"}]
    assert differences([old, other]) == shares
    both = [{**share, "commit": commit} for share, commit in zip(shares[:1] * 2, "ab", strict=True)]
    assert differences([old, new, other]) == [*both, {**shares[1], "commit": "b"}]
    # Not where it is all that tells runs apart, nor where it was left out or swept since.
    assert differences([old, new]) == [{"loss.labelled": w} for w in ("none", "1.0")]
    for last in (made("0.2", "b", ""), made("0.2", "b", "10")):
        assert all("loss.labelled" in told for told in differences([old, new, last]))


def test_differences_name_the_setting_that_the_others_follow() -> None:
    first = {"config.n": "1", "config.n.again": "1", "config.lr": "3", "config.kept": "0"}
    second = first | {"config.n": "2", "config.n.again": "2"}
    third = second | {"config.lr": "4"}
    assert differences([first, second]) == [{"n": "1"}, {"n": "2"}]
    assert differences([first, second, third]) == [
        {"n": "1", "lr": "3"},
        {"n": "2", "lr": "3"},
        {"n": "2", "lr": "4"},
    ]
    assert differences([first]) == [{}]
    # A setting that one of them did not have, and digests whose settings are not recorded.
    assert differences([{}, {"config.new": "1"}]) == [{"new": "none"}, {"new": "1"}]
    assert differences([{"settings_sha256": "a"}, {"settings_sha256": "b"}])[0] == {
        "settings_sha256": "a"
    }


def test_experiments_are_told_apart_by_name() -> None:
    """However many settings they differ in; but not where two lines are of the same one."""
    one, other = swept(0.1, experiment="plain"), swept(1.0, experiment="ours")
    assert differences([one, other]) == [{"experiment": "plain"}, {"experiment": "ours"}]
    third = swept(2.0, experiment="ours")
    assert [list(d) for d in differences([one, other, third])] == [["loss.gamma"]] * 3
    # A name for what an experiment changes, beside a setting that is swept within one.
    also = {"config.augment.flip": "0", "config.augment.turn": "10", "commit": "2" * 40}
    first, second = swept(0.1, experiment="plain"), swept(1.0, experiment="plain")
    third = swept(1.0, experiment="ours") | also
    assert differences([first, second, third]) == [
        {"loss.gamma": "0.1", "experiment": "plain"},
        {"loss.gamma": "1.0", "experiment": "plain"},
        {"loss.gamma": "1.0", "experiment": "ours"},
    ]


def test_of_two_papers_the_first_counts() -> None:
    published = [paper(), paper(table="another", accuracy="0.5")]
    (line,) = lines([row()], published)
    assert line.theirs("accuracy") == pytest.approx(79)


def test_lines_stand_in_the_order_of_the_paper() -> None:
    published = [paper(model="kmeans"), paper(), paper(data="mnist")]
    rows = [row(model="mine"), row(), row(model="kmeans"), row(model="also")]
    table = lines(rows, published)
    assert [line.method for line in table] == ["kmeans", "dcec", "also", "mine"]
    again = [*published, paper(table="other"), paper(table="other", model="kmeans")]
    assert [line.method for line in lines(rows, again)] == ["kmeans", "dcec", "also", "mine"]
    table = lines(rows, published, missing=True)
    assert [(line.data, line.method, len(line.rows)) for line in table] == [
        *(("usps", "kmeans", 1), ("usps", "dcec", 1), ("mnist", "dcec", 0)),
        *(("usps", "also", 1), ("usps", "mine", 1)),
    ]


def test_lines_nobody_ran_have_their_published_number_and_a_command() -> None:
    published = [paper(data="mnist"), paper(data="mnist", model="dec"), paper()]
    table = lines([row()], published, missing=True)
    command = "not run: python train.py -m experiment=dcec_table1 data=mnist model=dcec,dec"
    command += " seed=0,1,2,3,4"
    for style in ("text", "markdown"):
        laid = render(table, format=style)
        assert laid.rstrip().endswith(command)
        (line,) = [line for line in laid.splitlines() if " dec " in line]
        assert re.findall(r"[\w.]+ ?\w+", line) == ["mnist", "dec", "not run", "79.0", "82.6"]
    first, *_ = csv.DictReader(io.StringIO(render(table, format="csv")))
    assert (first["seeds"], first["accuracy"], first["accuracy_published"]) == ("0", "", "0.7900")


def test_a_run_of_an_experiment_stands_beside_that_papers_number() -> None:
    published = [paper(), paper(table="da", experiment="da", accuracy="0.98")]
    rows = [row(), row(experiment="da", commit="1" * 40), row(experiment="x", commit="2" * 40)]
    assert [round(line.theirs("accuracy") or 0) for line in lines(rows, published)] == [79, 98, 79]
    alone = lines(rows[1:2], published, missing=True)
    assert [(len(line.rows), round(line.theirs("accuracy") or 0)) for line in alone] == [
        *((1, 98), (0, 79)),
    ]


def shares(*values: str) -> list[dict[str, str]]:
    """Make a record for each share of known labels, with an ACC of 0.6 plus the share."""
    return [
        row(
            accuracy=str(0.6 + float(value)),
            settings_sha256=f"{value:0>64}",
            **{"config.data.labelled": value, "metrics_unlabelled.accuracy": "0.55"},
        )
        for value in values
    ]


def test_published_numbers_of_a_setting_stand_beside_that_setting() -> None:
    published = [
        paper(setting=f"data.labelled={value}", accuracy=accuracy)
        for value, accuracy in (("0", "0.58"), ("0.1", "0.8"), ("0.5", "0.9"))
    ]
    table = lines(shares("0.5", "0.3", "0.10"), published, missing=True)
    told = [(dict(line.different), len(line.rows), line.theirs("accuracy")) for line in table]
    assert told == [
        ({"data.labelled": "0.10"}, 1, pytest.approx(80)),
        ({"data.labelled": "0.3"}, 1, None),
        ({"data.labelled": "0.5"}, 1, pytest.approx(90)),
        ({"data.labelled": "0"}, 0, pytest.approx(58)),
    ]
    laid = render(table, format="markdown")
    head, _, tenth, *_ = laid.splitlines()
    assert dict(zip(cells(head), cells(tenth), strict=True)) | {"minutes": ""} == {
        **{"data": "usps", "method": "dcec", "runs": "data.labelled=0.10", "seeds": "1"},
        **{"ACC": "70.0", "ACC, paper": "80.0", "ACC Δ": "-10.0"},
        **{"NMI": "70.0", "NMI, paper": "82.6", "NMI Δ": "-12.6", "ARI": "60.0", "F1": "50.0"},
        **{"ACC unlabelled": "55.0", "minutes": ""},
    }
    command = "experiment=dcec_table1 data=usps model=dcec seed=0,1,2,3,4 data.labelled=0"
    assert f"not run: python train.py -m {command}" in laid
    (alone,) = lines(shares("0.5"), published)  # nothing else tells the reader which share it is
    assert alone.different == {"data.labelled": "0.5"}


# The program


def report(*argv: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_program_prints_and_writes(tmp_path: Path) -> None:
    start = {f"{START}accuracy": "0.7"}
    rows = [swept(gamma, seed, **start) for gamma in (0.1, 1.0) for seed in (0, 1)]
    table = tmp_path / "records.csv"
    heads = list(rows[0])
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "settings.json").write_text(json.dumps({}))
    out = tmp_path / "out"
    done = report(table, tmp_path / "runs", "--format", "markdown", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "loss.gamma=0.1" in done.stdout
    assert "unfinished: " in done.stdout
    made = {path.name for path in out.iterdir()}
    tables = {"table.txt", "table.md", "table.tex", "table.csv"}
    assert made == {*tables, "loss.gamma.png", "retrain.png"}
    assert (out / "table.md").read_text() == done.stdout
    again = report(table, "--also", "accuracy", "phases.finetune.step")
    assert (again.returncode, again.stdout) == (1, "")
    assert "Expected a column of the records, got phases.finetune.step;" in again.stderr
    again = report(tmp_path / "none")
    assert (again.returncode, again.stdout) == (1, "")
    assert re.fullmatch(r"Error: Expected runs or records, got no .*none; .*\n", again.stderr)


def test_a_sweep_without_labels_is_told_and_drawn_all_the_same(tmp_path: Path) -> None:
    for gamma in (0.1, 1.0):
        for seed in (0, 1):
            run = tmp_path / "runs" / f"{gamma},{seed}"
            run.mkdir(parents=True)
            (run / "settings.json").write_text("{}")
            config = {"loss": {"gamma": gamma}, "data": {"source": {}}, "model": {"seed": seed}}
            config |= {"trainer": {"precision": "32-true"}, "seed": seed}
            told = {"model": "dcec", "data": "own", "seed": seed, "n_clusters": 2, "seconds": 60.0}
            told |= {"metrics": dict.fromkeys(("accuracy", "nmi", "ari", "f1"))}
            told |= {"label_free": {"silhouette": 0.25}, "data_sha256": "d", "config": config}
            (run / "result.json").write_text(json.dumps({"device": "a CPU", **told}))
            label = np.array([0, 0, 1, 1] if gamma == 1 or seed else [0, 1, 0, 1])
            np.savez(run / "assignments.npz", label=label)
    done = report(tmp_path / "runs", "--format", "markdown", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    head, _, *told = done.stdout.splitlines()[:4]
    column = cells(head).index("agreement of seeds")
    assert [cells(line)[column] for line in told] == ["-0.500 ± 0.000", "1.000 ± 0.000"]
    assert (tmp_path / "out" / "loss.gamma.png").stat().st_size > 5000
