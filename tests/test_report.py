"""From rows to tables, curves and the README."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clusterlab import curves
from clusterlab.drawn import apart, points_of, retrained, sweeps
from clusterlab.errors import UserError
from clusterlab.layout import FORMATS, in_place_of_scores, render
from clusterlab.report import SAME, SHORT, START, Line, differences, lines
from clusterlab.results import SEEDS, Row, read_records
from conftest import script_module

ROOT = Path(__file__).parents[1]
METHODS = ("kmeans", "dcec")


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
        "seconds": str(180 + 60 * seed),
        **changes,
    }


def swept(gamma: float, seed: int = 0, **changes: str) -> dict[str, str]:
    """Make the record of a run with another weight of the clustering term."""
    settings = {"config.loss.gamma": str(gamma), "config.model.gamma": str(gamma)}
    digest = {"settings_sha256": f"{gamma:064f}"}
    return row(seed, accuracy=str(0.5 + gamma / 10 + seed / 50)) | settings | digest | changes


def paper(**changes: str) -> dict[str, str]:
    return {
        "table": "dcec_table1",
        "experiment": "dcec_table1",
        "paper": "Guo et al.",
        "place": "Table 1",
        "data": "usps",
        "model": "dcec",
        "published_as": "",
        "accuracy": "0.7900",
        "nmi": "0.8257",
        "ari": "",
        **changes,
    }


def shared(method: str, share: str, accuracy: float) -> dict[str, str]:
    """Make the record of a method that is told a share of the labels."""
    settings = {"config.data.labelled": share, "settings_sha256": f"{method}{share}".ljust(64, "0")}
    told = {"metrics_unlabelled.accuracy": str(accuracy), "experiment": "sdcec_table1"}
    return row(model=method) | settings | told


@pytest.mark.parametrize(
    ("knn", "result"),
    [(0.7, "beats all of them"), (0.9, "does NOT beat cae_knn at data.labelled=0.1")],
)
def test_the_table_says_whether_sdcec_beats_the_classifiers(knn: float, result: str) -> None:
    rows = [shared("sdcec", share, 0.8) for share in ("0", "0.1", "0.5")]
    rows += [shared("cae_logistic", share, 0.75) for share in ("0.1", "0.5")]
    laid = render(lines([*rows, shared("cae_knn", "0.1", knn)]))
    assert "usps of experiment=sdcec_table1: sdcec beside classifiers of the same labels, " in laid
    assert f"at 2 shares: it {result}." in laid
    assert "classifiers" not in render(lines(rows[:3]))
    other = shared("sdcec", "0.1", 0.9) | {"settings_sha256": "5" * 64, "config.loss.gamma": "1"}
    assert f"at 2 shares: its lowest line {result}." in render(
        lines([*rows, other, shared("cae_knn", "0.1", knn)])
    )
    older = shared("cae_logistic", "0.1", 0.85) | {"commit": "a" * 40}
    for both in ([older, *rows], [*rows, older]):
        assert "does NOT beat cae_logistic at data.labelled=0.1" in render(lines(both))


def test_what_settled_runs_reach_is_told() -> None:
    """Of ACC 0.9 and 0.8 the mean is 85, and the sample deviation 5 times the root of 2."""
    name = "phases.retrain.stop_reason"
    stops = zip((0.9, 0.4, 0.8), ("tolerance", "max_epochs", "tolerance"), strict=True)
    runs = [row(i, accuracy=str(acc), **{name: why}) for i, (acc, why) in enumerate(stops)]
    said = "dcec on usps: its classifier settled in 2 of 3 runs, where it has ACC 85.0 ± 7.1"
    assert said in render(lines(runs))
    assert "settled" not in render(lines([runs[0], runs[2]]))
    assert "settled" not in render(lines([row(0, accuracy="0.9"), row(1, accuracy="0.9")]))
    restless = [run | {name: "max_epochs"} for run in runs]
    assert "settled in 0 of 3 runs.\n" in render(lines(restless))


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


# Formats


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def two_lines() -> list[Line]:
    kmeans = row(0, model="spectral", device="another CPU", accuracy="0.6", seconds="6")
    return lines([row(0), row(1), kmeans], [paper(), paper(model="spectral", published_as="SEC")])


def test_markdown() -> None:
    text = render(two_lines(), ["failed: x: y"], "markdown")
    head, rule, ours, spectral, _, note, left_out = text.splitlines()
    assert cells(head) == [
        *("data", "method", "seeds", "ACC", "ACC, paper", "ACC Δ", "NMI", "NMI, paper", "NMI Δ"),
        *("ARI", "F1", "minutes", "device"),
    ]
    assert set(rule) <= set("|:-")
    assert cells(ours) == [
        *("usps", "dcec", "2", "80.5 ± 0.7", "79.0", "+1.5", "70.0 ± 0.0", "82.6", "-12.6"),
        *("60.0 ± 0.0", "50.0 ± 0.1", "4", "a CPU"),  # 3 and 4 minutes: 3.5
    ]
    assert cells(spectral)[:6] == ["usps", "spectral", "1", "60.0", "79.0", "-19.0"]
    assert cells(spectral)[-2:] == ["0.1", "another CPU"]
    assert "Revision: ccccccccc." in note
    assert "Guo et al., Table 1" in note
    assert "spectral stands where the paper has SEC." in note
    assert left_out == "- failed: x: y"


def test_what_most_lines_have_in_common_is_said_once() -> None:
    usual = {"config.loss.gamma": "0.1", "config.model.n_init": "20", "config.data.size": "16"}
    others: list[dict[str, str]] = [{}, {"config.loss.gamma": "1"}, {"config.data.size": "32"}]
    others += [{"config.model.n_init": "1"}]
    rows = [row(**usual | other, settings_sha256=str(i)) for i, other in enumerate(others)]
    *lines_, _, _, note = render(lines(rows, []), format="markdown").splitlines()
    head, *body = (cells(line) for line in lines_ if not line.startswith("|:"))
    assert head[2] == "runs"
    assert {line[2] for line in body} == {"", "loss.gamma=1", "data.size=32", "model.n_init=1"}
    told = "data.size=16, loss.gamma=0.1, model.n_init=20"
    assert note == f"- Where runs are not said to differ: {told}."
    # Of a method that has no such setting the note would not be true.
    other = row(model="kmeans", settings_sha256="k")
    text = render(lines([*rows, other], []), format="markdown")
    assert "not said" not in text
    assert "data.size=16, loss.gamma=1, model.n_init=20" in text


def test_latex_is_a_booktabs_table_with_what_latex_would_stumble_over_escaped() -> None:
    table = lines([row(0, data="mnist_test"), row(1, data="mnist_test")])
    text = render(table, ["failed: runs/50%_x"], "latex")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0].startswith(r"\begin{tabular}{ll")
    assert body[1] == r"\toprule"
    assert body[-1] == r"\end{tabular}"
    assert [line for line in body if line.startswith(r"\m")] == [r"\midrule"]
    assert r"mnist\_test" in body[4]
    assert r"80.5 $\pm$ 0.7" in body[4]
    assert "±" not in "".join(body)
    assert "% failed: runs/50%_x" in text


def test_csv_has_numbers() -> None:
    ours, spectral = csv.DictReader(io.StringIO(render(two_lines(), ["left out"], "csv")))
    assert (ours["accuracy"], ours["accuracy_published"]) == ("0.805000", "0.7900")
    assert float(ours["accuracy_std"]) == pytest.approx(0.01 / 2**0.5, abs=1e-6)
    assert (ours["seeds"], ours["minutes"], ours["commit"]) == ("2", "3.50", "c" * 40)
    assert (spectral["seeds"], spectral["accuracy_std"]) == ("1", "")


def test_text_is_not_squeezed() -> None:
    text = render(two_lines(), ["unfinished: somewhere"])
    assert "80.5 ± 0.7" in text
    assert "…" not in text
    assert "unfinished: somewhere" in text


@pytest.mark.parametrize("style", FORMATS)
def test_no_runs_with_labels(style: str) -> None:
    unlabelled = dict.fromkeys(("accuracy", "nmi", "ari", "f1"), "")
    text = render(lines([row(0, **unlabelled), row(1, **unlabelled)]), format=style)
    assert "dcec" in text
    assert "ACC" not in text
    assert "In %" not in text


def test_what_is_shown_in_place_of_scores() -> None:
    free = {"label_free.silhouette": "0.31", SEEDS: "0.75"}
    unlabelled = [row(seed, accuracy="", **free) for seed in (0, 1)]
    assert in_place_of_scores(lines(unlabelled)) == ["label_free.silhouette", SEEDS]
    both = lines([*unlabelled, row(0, data="digits", **free)])
    assert in_place_of_scores(both) == ["label_free.silhouette", SEEDS]
    assert (
        in_place_of_scores(lines([row(0, **free)], [paper(), paper(model="idec")], missing=True))
        == []
    )
    unlabelled[1][SEEDS] = "0.85"
    head, _, line, *_ = render(lines(unlabelled), format="markdown", also=[SEEDS]).splitlines()
    assert cells(line)[cells(head).index("agreement of seeds")] == "0.800 ± 0.071"


def test_further_columns() -> None:
    steps = [row(seed, **{"phases.finetune.steps": str(1000 + 280 * seed)}) for seed in (0, 1)]
    table, also = lines(steps), ["phases.finetune.steps"]
    head, _, line, *_ = render(table, format="markdown", also=also).splitlines()
    assert cells(line)[cells(head).index("steps, finetune")] == "1140 ± 198"
    (numbers,) = csv.DictReader(io.StringIO(render(table, format="csv", also=also)))
    assert float(numbers["phases.finetune.steps"]) == 1140
    assert float(numbers["phases.finetune.steps_std"]) == pytest.approx(280 / 2**0.5, rel=1e-4)


def test_the_share_of_right_labels_is_a_score_too() -> None:
    name = "phases.retrain.accuracy_rejected"
    table = lines([row(0, **{name: "0.1"}), row(1, **{name: "0.3"})])
    head, _, line, *_ = render(table, format="markdown", also=[name]).splitlines()
    assert cells(line)[cells(head).index("ACC rejected, retrain")] == "20.0 ± 14.1"
    (numbers,) = csv.DictReader(io.StringIO(render(table, format="csv", also=[name])))
    assert float(numbers[name]) == pytest.approx(0.2)  # as all scores for programs
    assert float(numbers[f"{name}_std"]) == pytest.approx(0.1 * 2**0.5, rel=1e-4)


def test_a_column_of_words() -> None:
    name, other = "phases.retrain.stop_reason", "phases.pretrain.reused"
    stops = ("max_epochs", "tolerance", "tolerance")
    rows = [row(seed, **{name: stop, other: "True"}) for seed, stop in enumerate(stops)]
    table = lines([*rows, row(0, model="kmeans")])
    head, _, *told = render(table, format="markdown", also=[name, other]).splitlines()[:4]
    heads = ("method", "stop reason, retrain", "reused, pretrain")
    columns = [cells(head).index(column) for column in heads]
    found = [[cells(line)[column] for column in columns] for line in told]
    assert found == [["dcec", "2 tolerance; 1 max_epochs", "True"], ["kmeans", "", ""]]
    text = io.StringIO(render(table, format="csv", also=[name, other]))
    assert [numbers[name] for numbers in csv.DictReader(text)] == ["2 tolerance; 1 max_epochs", ""]


# Before and after module B


def with_module_b(seed: int, accuracy: float, nmi: float, **changes: str) -> dict[str, str]:
    start = {f"{START}accuracy": str(accuracy), f"{START}nmi": str(nmi)}
    return row(seed, model="idcec") | start | changes


def test_what_module_b_changed_is_told_run_by_run() -> None:
    rows = [with_module_b(0, 0.9, 0.7), with_module_b(1, 0.85, 0.6), row(0)]  # ends: 0.80, 0.81
    found = retrained(lines([*rows, row(0, model="also", **{f"{START}accuracy": ""})]))
    assert list(found) == ["idcec on usps"]
    assert list(found["idcec on usps"]) == ["ACC", "NMI"]
    assert np.allclose(found["idcec on usps"]["ACC"], [[90, 80], [85, 81]])
    other = [with_module_b(0, 0.9, 0.7, settings_sha256=f"{i}" * 64) for i in (1, 2)]
    figure = curves.before_and_after("retrain", found | retrained(lines(other)))
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "ACC\n-7.00 ± 4.24",  # 10 and 4
        "NMI\n+5.00 ± 7.07",  # 0 and 10
    ]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.lines]
    assert [pytest.approx([90, 80]), pytest.approx([85, 81])] == drawn[:2]
    assert [87.5] in drawn
    (bar,) = axes.collections[0].get_segments()
    assert bar[:, 1] == pytest.approx([87.5 - 12.5**0.5, 87.5 + 12.5**0.5])
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["before retrain", "after retrain"]


# Sweeps


def test_sweeps_are_found_with_their_values_in_order() -> None:
    rows = [swept(gamma, seed) for gamma in (1.0, 0.01, 0.1) for seed in (0, 1)]
    found = sweeps(lines([*rows, row(0, model="kmeans")]))
    assert list(found) == ["loss.gamma"]
    assert list(found["loss.gamma"]) == ["dcec on usps"]
    points = found["loss.gamma"]["dcec on usps"]
    assert [value for value, _ in points] == [0.01, 0.1, 1.0]
    score = points[1][1].ours("accuracy")
    assert score == pytest.approx((52, 2**0.5))  # 51 and 53


def test_a_grid_gives_a_curve_for_each_value_of_the_other() -> None:
    rows = []
    for gamma in (0.1, 1.0):
        for t in (30, 140):
            setting = {"config.T": str(t), "settings_sha256": f"{gamma}{t}"}
            rows.append(swept(gamma, 0, **setting))
    found = sweeps(lines(rows))
    assert set(found) == {"loss.gamma", "T"}
    assert set(found["T"]) == {"dcec on usps, loss.gamma=0.1", "dcec on usps, loss.gamma=1.0"}
    assert all(len(points) == 2 for curve in found.values() for points in curve.values())


def test_no_curve_goes_across_devices_or_revisions() -> None:
    rows = [swept(gamma) for gamma in (0.01, 0.1)]
    rows += [swept(gamma, device="a GPU") for gamma in (1.0, 10.0)]
    (points,) = sweeps(lines(rows))["loss.gamma"].values()
    told = {part: [value for value, _ in pairs] for part, pairs in apart(points).items()}
    assert told == {", device=a CPU": [0.01, 0.1], ", device=a GPU": [1.0, 10.0]}
    (points,) = sweeps(lines([*rows[:2], swept(1.0, commit="e" * 40)]))["loss.gamma"].values()
    assert list(apart(points)) == [", commit=ccccccccc", ", commit=eeeeeeeee"]
    assert list(apart(points[:2])) == [""]
    not_run = Line("usps", "dcec", (), None, {"loss.gamma": "3"})
    assert apart([(3.0, not_run)]) == {}


def test_the_papers_curve_is_drawn_once() -> None:
    published = [
        paper(setting=f"loss.gamma={value}", accuracy=accuracy)
        for value, accuracy in (("0.1", "0.5"), ("1.0", "0.6"))
    ]
    gpu = {"device": "a GPU"}
    rows = [swept(0.1), swept(1.0), swept(0.1, **gpu), swept(1.0, **gpu), swept(2.0, **gpu)]
    (curves,) = sweeps(lines(rows, published)).values()
    points, published_points = points_of(curves, SHORT)
    on = "dcec on usps"
    assert list(points) == [f"{on}, device=a CPU", f"{on}, device=a GPU"]
    assert list(published_points) == [f"{on}, paper"]
    assert [value for value, _ in points[f"{on}, device=a GPU"]] == [0.1, 1.0, 2.0]
    assert points[f"{on}, device=a CPU"][1][1]["ACC"] == pytest.approx((60, None))
    told = [(value, scores["ACC"]) for value, scores in published_points[f"{on}, paper"]]
    assert told == [(0.1, (50, None)), (1.0, (60, None))]
    table = lines(
        [*rows[:2], swept(1.0, 1, **gpu), swept(2.0, **gpu)], published, pooled=["device"]
    )
    ours, _ = points_of(
        sweeps(table)["loss.gamma"], SHORT, ["device"]
    )  # nor is a pooled one parted
    assert {name: [value for value, _ in of] for name, of in ours.items()} == {on: [0.1, 1.0, 2.0]}
    without = [paper()]  # of no setting: no curve
    (curves,) = sweeps(lines(rows, without)).values()
    assert points_of(curves, SHORT)[1] == {}


def test_what_is_no_number_is_no_sweep() -> None:
    """Neither names, nor revisions, though one in a million consists of digits."""
    one, other = row(0), row(0, settings_sha256="6" * 64)
    named = [one | {"config.optimizer": "sgd"}, other | {"config.optimizer": "adam"}]
    assert sweeps(lines(named)) == {}
    assert sweeps(lines([row(0, commit="1" * 40), row(0, commit="2" * 40)])) == {}


def test_the_curve_over_a_setting_shows_means_and_bands() -> None:
    points = [
        (0.01, {"ACC": (50.0, 2.0)}),
        (0.1, {"ACC": (60.0, 1.0)}),
        (1.0, {"ACC": (40.0, None)}),
    ]
    figure = curves.over_setting("loss.gamma", {"dcec on usps": points})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "loss.gamma"
    (line,) = axes.lines
    assert np.allclose(line.get_xydata(), [[0.01, 50], [0.1, 60], [1, 40]])
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == 40
    assert {48.0, 52.0, 59.0, 61.0} <= set(corners[:, 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dcec on usps"]
    told = {"a paper": [(0.1, {"ACC": (59.0, None)}), (3.0, {"ACC": (41.0, None)})]}
    (axes,) = curves.over_setting("loss.gamma", {"dcec on usps": points}, told).axes
    ours, theirs = axes.lines
    assert (ours.get_linestyle(), theirs.get_linestyle()) == ("-", "--")
    assert np.allclose(theirs.get_xydata(), [[0.1, 59], [3, 41]])


@pytest.mark.parametrize("length", [5, 60])
def test_names_of_curves_stay_within_the_figure(length: int) -> None:
    named = {letter * length: [(x, {"ACC": (80.0, None)}) for x in (1.0, 2.0)] for letter in "ab"}
    figure = curves.over_setting("loss.gamma", named)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(named)
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_a_wide_setting_that_starts_at_zero_keeps_its_values_apart() -> None:
    points = [(x, {"ACC": (50.0, None)}) for x in (0.0, 0.01, 0.1, 0.5)]
    (axes,) = curves.over_setting("data.labelled", {"sdcec on usps": points}).axes
    assert axes.get_xscale() == "symlog"
    axes.figure.draw_without_rendering()
    at = axes.transData.transform([(x, 50) for x in (0.0, 0.01, 0.1, 0.5)])[:, 0]
    assert (np.diff(at) > 0.1 * (at[-1] - at[0])).all()


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


# The README


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
