"""From lines to tables and their notes."""

import csv
import io

import pytest

from clusterlab.layout import FORMATS, in_place_of_scores, render
from clusterlab.report import Line, lines
from clusterlab.results import SEEDS
from records import cells, paper, row


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
