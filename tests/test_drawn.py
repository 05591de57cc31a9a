"""From lines to curves."""

import numpy as np
import pytest

from clusterlab import curves
from clusterlab.drawn import apart, points_of, retrained, sweeps
from clusterlab.report import SHORT, START, Line, lines
from records import paper, row, swept

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
