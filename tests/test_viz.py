"""The figures show what they say they show."""

import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from clusterlab import curves, viz
from conftest import draw, random, suptitle, texts, titles


def panel(figure: Figure, title: str) -> Axes:
    return figure.axes[titles(figure).index(title)]


def run_rows(labelled: bool = True) -> list[dict[str, float | str | None]]:
    rows: list[dict[str, float | str | None]] = [
        {
            "phase": "pretrain",
            "epoch": epoch,
            "step": 10 * (epoch + 1),
            "pretrain/reconstruction": 0.1 / (1 + epoch),
            "pretrain/loss": 0.1 / (1 + epoch),
        }
        for epoch in range(40)
    ]
    for refresh in range(5):
        row: dict[str, float | str | None] = {
            "phase": "finetune",
            "epoch": refresh,
            "step": 140 * refresh,
            "finetune/reconstruction": None,
            "cluster/confidence": 0.5 + 0.1 * refresh,
            "cluster/label_change": None if refresh == 0 else 0.08 / 10**refresh,
        }
        if labelled:
            row |= {f"cluster/{c}": 0.7 + 0.05 * refresh for c in ("accuracy", "nmi", "ari", "f1")}
        rows.append(row)
    rows[-1]["cluster/label_change"] = 0.0
    losses = {"finetune/clustering": 0.3, "finetune/loss": 0.2}
    return [*rows, {"phase": "finetune", "step": 700, **losses}]


def test_curves_have_one_panel_a_question():
    figure = curves.learning_curves(run_rows(), tolerance=1e-3)
    draw(figure)
    assert titles(figure) == [
        "pretrain: loss",
        "finetune: loss",
        "finetune: scores",
        "finetune: label change",
    ]
    assert all(axes.get_xlabel() == "optimizer step" for axes in figure.axes)
    assert all(axes.get_ylabel() and axes.get_legend() for axes in figure.axes)


def test_curves_draw_the_recorded_points():
    axes = panel(curves.learning_curves(run_rows()), "finetune: scores")
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"ACC", "NMI", "ARI", "macro-F1", "confidence"}
    assert np.allclose(lines["ACC"].get_xdata(), [0, 140, 280, 420, 560])
    assert np.allclose(lines["ACC"].get_ydata(), [0.7, 0.75, 0.8, 0.85, 0.9])


def test_curves_without_labels_have_no_scores():
    figure = curves.learning_curves(run_rows(labelled=False), tolerance=1e-3)
    draw(figure)
    assert "finetune: scores" not in titles(figure)
    (line,) = panel(figure, "finetune: confidence").lines
    assert line.get_label() == "confidence"


def test_curves_use_a_logarithmic_axis_for_losses_over_a_decade():
    figure = curves.learning_curves(run_rows())
    assert panel(figure, "pretrain: loss").get_yscale() == "log"
    assert panel(figure, "finetune: loss").get_yscale() == "linear"


def test_label_change_is_logarithmic_shows_zero_and_the_tolerance():
    axes = panel(curves.learning_curves(run_rows(), tolerance=1e-3), "finetune: label change")
    change, tolerance = axes.lines
    assert axes.get_yscale() == "symlog"
    assert change.get_ydata()[-1] == 0
    assert axes.get_ylim()[0] < 0 < 8e-5 < axes.get_ylim()[1]
    assert tolerance.get_linestyle() == "--"
    assert tolerance.get_ydata()[0] == 1e-3
    assert tolerance.get_label() == "tolerance 0.1%"


def test_one_term_has_one_colour_in_all_panels():
    rows = run_rows()
    rows.append({"phase": "finetune", "step": 840, "finetune/reconstruction": 0.1})
    figure = curves.learning_curves(rows)
    colours = [
        line.get_color()
        for title in ("pretrain: loss", "finetune: loss")
        for line in panel(figure, title).lines
        if line.get_label() == "reconstruction"
    ]
    assert len(colours) == 2
    assert len(set(colours)) == 1


@pytest.mark.parametrize("value", [None, "", math.nan, math.inf, "nan"])
def test_curves_leave_out_what_is_no_number(value):
    rows = [{"phase": "pretrain", "step": s, "pretrain/loss": s / 10} for s in range(1, 4)]
    rows.append({"phase": "pretrain", "step": 4, "pretrain/loss": value})
    figure = curves.learning_curves(rows)
    draw(figure)
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]


@pytest.mark.parametrize("change", [0.0, 1.0, 1e-6])
def test_curves_of_a_single_refresh(change):
    rows = [{"phase": "finetune", "step": 0, "cluster/label_change": change, "cluster/nmi": change}]
    figure = curves.learning_curves(rows, tolerance=0.0)
    draw(figure)
    assert [axes.lines[0].get_marker() for axes in figure.axes] == ["o", "o"]


def test_curves_of_nothing():
    figure = curves.learning_curves([])
    draw(figure)
    assert figure.axes == []
    assert suptitle(figure) == "Nothing recorded yet"


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_pair_input_and_output(channels):
    x, x_hat = random(12, channels, 6, 4), random(12, channels, 6, 4, seed=1)
    figure = viz.reconstructions(x, x_hat, n=12)
    draw(figure)
    shown = {i: axes.images[0].get_array() for i, axes in enumerate(figure.axes) if axes.images}
    assert len(shown) == 24
    # Ten columns: sample 3 in rows 0 and 1, sample 11 in rows 2 and 3.
    for image, source in ((3, x[3]), (13, x_hat[3]), (21, x[11]), (31, x_hat[11])):
        expected = source.permute(1, 2, 0).expand(6, 4, 3)
        assert np.array_equal(shown[image], expected.numpy())
    assert f"{float((x - x_hat).square().mean()):.4f}" in suptitle(figure)
    captions = [text for axes in figure.axes for text in texts(axes)]
    assert captions == ["input", "output"] * 2


def test_reconstructions_accept_stored_bytes_and_fewer_images_than_asked():
    x = (random(2, 1, 5, 5) * 255).to(torch.uint8)
    before = x.clone()
    figure = viz.reconstructions(x, x.float() / 255)
    assert "0.0000" in suptitle(figure)
    assert torch.equal(x, before)
    assert len(figure.axes) == 4


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="Expected images of 1 or 3 channels, got 2"):
        viz.reconstructions(random(1, 2, 4, 4), random(1, 2, 4, 4))


def test_decoded_centers_are_titled_with_number_and_size():
    images, sizes = random(12, 1, 4, 4), torch.arange(12) * 1000
    figure = viz.decoded_centers(images, sizes)
    draw(figure)
    named = [axes for axes in figure.axes if axes.images]
    assert len(named) == 12
    assert named[11].get_title() == "cluster 11\n11,000 samples"
    assert np.allclose(named[11].images[0].get_array()[..., 0], images[11, 0].numpy())


def test_constant_images_keep_their_brightness():
    figure = viz.decoded_centers(torch.full((1, 1, 4, 4), 0.25), torch.tensor([3]))
    draw(figure)
    assert np.allclose(figure.axes[0].images[0].get_array(), 0.25)


def test_extreme_samples_are_the_nearest_and_the_farthest():
    # The grey of a sample is its distance to its center: 0, 1, ..., 9 tenths, in shuffled order.
    distance = torch.tensor([7, 2, 9, 0, 4, 5, 1, 8, 3, 6])
    z = torch.cat([distance, 100 + distance]).float()[:, None]
    x = (z % 100 * 20).to(torch.uint8)[:, :, None, None].expand(20, 1, 14, 14)
    labels = torch.arange(2).repeat_interleave(10)
    figure = viz.extreme_samples(x, z, torch.tensor([[0.0], [100.0]]), labels, n=3)
    draw(figure)
    assert len(figure.axes) == 4
    for row in range(2):
        for axes, expected in zip(figure.axes[2 * row :][:2], ([0, 1, 2], [7, 8, 9]), strict=True):
            strip = axes.images[0].get_array()
            greys = [float(strip[7, 15 * i + 7, 0]) for i in range(3)]  # 14 pixels and a gap of 1
            assert np.allclose(greys, np.array(expected) * 20 / 255)
    assert texts(figure.axes[0]) == ["cluster 0\n10 samples"]


def test_extreme_samples_of_small_and_empty_clusters():
    x = torch.zeros(6, 1, 14, 14)
    z, centers = random(6, 2), random(3, 2, seed=1)
    figure = viz.extreme_samples(x, z, centers, torch.tensor([0, 0, 0, 0, 0, 2]), n=4)
    draw(figure)
    assert [texts(axes)[0].split("\n")[1] for axes in figure.axes[::2]] == [
        "5 samples",
        "empty",
        "1 sample",
    ]
    # Each sample once: black where there is one, white where there is none.
    black = [int((axes.images[0].get_array()[7, :, 0] == 0).sum()) / 14 for axes in figure.axes]
    assert black == [4, 1, 0, 0, 1, 0]


def labels_of(axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def test_confusion_has_matched_clusters_on_the_diagonal():
    table = torch.tensor([[1, 0, 80, 5], [60, 2, 0, 9], [0, 70, 3, 6]])
    figure = viz.confusion(table, class_names=["cat", "dog", "emu"])
    draw(figure)
    axes = figure.axes[0]
    expected = table[:, [2, 0, 1, 3]]  # clusters of cat, dog and emu, then the unmatched one
    share = expected / expected.sum(1, keepdim=True)
    assert np.allclose(axes.images[0].get_array(), share.numpy())
    assert labels_of(axes.xaxis) == ["2", "0", "1", "3"]
    assert labels_of(axes.yaxis) == ["cat", "dog", "emu"]
    counts = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert counts == {
        (j, i): int(n) for (i, j), n in np.ndenumerate(expected.numpy()) if n
    }  # zeros are left blank
    assert f"ACC {210 / 236:.1%} of 236 samples" in suptitle(figure)


def test_confusion_puts_classes_without_a_cluster_last():
    table = torch.tensor([[9, 1], [2, 3], [0, 8]])
    axes = viz.confusion(table).axes[0]
    assert labels_of(axes.yaxis) == ["0", "2", "1"]
    assert np.allclose(axes.images[0].get_array(), [[0.9, 0.1], [0, 1], [0.4, 0.6]])


def test_confusion_of_many_clusters_has_no_counts_and_empty_classes_no_share():
    table = torch.eye(50, dtype=torch.int64)
    table[7] = 0
    figure = viz.confusion(table)
    draw(figure)
    assert len(figure.axes[0].texts) == 0
    assert np.isfinite(figure.axes[0].images[0].get_array()).all()


def test_long_and_odd_names_are_shown_plainly():
    axes = viz.confusion(torch.eye(2, dtype=torch.int64), ["$x$", "n" * 40]).axes[0]
    assert labels_of(axes.yaxis) == [r"\$x\$", "n" * 23 + "…"]


def test_save_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "centers.png"
    for n in (1, 3):
        figure = viz.decoded_centers(random(n, 1, 4, 4), torch.ones(n))
        viz.save(figure, path)
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == pytest.approx(150 * figure.get_figwidth(), abs=1)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        viz.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_global_state_is_left_behind():
    settings = dict(mpl.rcParams)
    draw(viz.confusion(torch.eye(3, dtype=torch.int64)))
    draw(curves.learning_curves(run_rows()))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == settings


def test_trials_are_averaged_over_the_steps_they_share() -> None:
    runs = [np.array([[0, 0.5], [10, 0.6], [20, 0.9]]), np.array([[0, 0.7], [10, 0.8], [15, 0.7]])]
    figure = curves.trials({"a": runs, "b": runs[:1]}, "ACC")
    steps, ends = figure.axes
    lines = [np.asarray(line.get_xydata()).tolist() for line in steps.lines]
    assert lines[0] == [[0, pytest.approx(0.6)], [10, pytest.approx(0.7)]]
    assert lines[1] == runs[0].tolist()
    band = np.asarray(steps.collections[0].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == (0.5, 0.8)
    assert [np.asarray(line.get_ydata()).tolist() for line in ends.lines] == [[0.9, 0.7], [0.9]]


def test_the_history_of_centers_has_first_and_last_step() -> None:
    images = torch.zeros(30, 25, 1, 4, 4)
    images[-1] = 1
    figure = viz.decoded_history(images, 100 * torch.arange(30))
    grid = np.array(figure.axes).reshape(8, 20)
    captions = [row[0].texts[0].get_text() for row in grid]
    assert (captions[0], captions[-1]) == ("step 0", "step 2,900")
    values = [float(np.asarray(axes.images[0].get_array()).mean()) for axes in grid[:, 19]]
    assert values == [0] * 7 + [1]
    assert len(viz.decoded_history(images[:1], torch.tensor([0])).axes) == 20
