"""The interactive plots of a run's page, drawn by Bokeh."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, CustomJS, HoverTool, NumeralTickFormatter, TapTool
from bokeh.plotting import figure
from numpy.typing import NDArray

from clusterlab.curves import BEHIND, Panel, colours_of
from clusterlab.viz import PALETTE

Array = NDArray[Any]

GREY = "#858585"  # readable on white and on black: the page follows the reader's choice of either
SHAPES = ("circle", "triangle", "square", "diamond")  # see viz.MARKERS


def look_of(cluster: int) -> tuple[str, str]:
    """Return a cluster's colour and shape, the same as in the figures."""
    return PALETTE[cluster % len(PALETTE)], SHAPES[cluster // len(PALETTE) % len(SHAPES)]


def _panel(title: str, height: int, **options: Any) -> Any:
    plot: Any = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        toolbar_location=options.pop("toolbar_location", None),
        **options,
    )
    plot.title.text_color = GREY
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.update(
            axis_label_text_color=GREY,
            major_label_text_color=GREY,
            axis_line_color=GREY,
            major_tick_line_color=GREY,
            minor_tick_line_color=None,
        )
    plot.grid.grid_line_color = GREY
    plot.grid.grid_line_alpha = 0.25
    return plot


def embedding_map(places: Array, labels: Array, index: Array) -> Any:
    """Draw a point for each sample; the page's script is told which one is pointed at.

    Args:
        places: Where the points are, shape ``(n, 2)``.
        labels: Clusters, shape ``(n,)``.
        index: Which samples they are, shape ``(n,)``.
    """
    looks = [look_of(int(label)) for label in labels]
    source = ColumnDataSource(
        {
            "x": places[:, 0].astype(np.float32),
            "y": places[:, 1].astype(np.float32),
            "cluster": labels.astype(np.int32),
            "index": index.astype(np.int32),
            "alpha": np.full(len(labels), 0.75, np.float32),
            "colour": [colour for colour, _ in looks],
            "shape": [shape for _, shape in looks],
        },
        name="map",
    )
    plot = _panel(
        "",
        560,
        match_aspect=True,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll=None,  # a page that is scrolled, also by a finger, must not zoom or move it
        active_drag=None,
        toolbar_location="above",
    )
    size = float(np.clip(260 / np.sqrt(len(labels)), 5, 10))
    points = plot.scatter(
        "x",
        "y",
        source=source,
        size=size,
        color="colour",
        marker="shape",
        alpha="alpha",
        line_color=None,
        nonselection_alpha="alpha",
        nonselection_color="colour",
    )
    pointed = CustomJS(code="window.pointed(cb_data)")
    tapped = CustomJS(
        args={"source": source}, code="window.chosen(source.data.index[source.selected.indices[0]])"
    )
    plot.add_tools(HoverTool(renderers=[points], tooltips=None, callback=pointed))
    plot.add_tools(TapTool(renderers=[points], callback=tapped))
    plot.axis.visible = False
    plot.grid.visible = False
    return plot


def learning_curves(panels: Sequence[Panel], tolerance: float | None) -> list[Any]:
    """Draw losses, scores and label change over the steps, one plot a panel.

    Args:
        panels: See ``curves.panels_of``.
        tolerance: Label change at which training stops, a dashed line.
    """
    colours = colours_of(panels)
    plots = []
    for phase, kind, lines in panels:
        values = np.concatenate(list(lines.values()))[:, 1]
        wide = kind == "loss" and 0 < 10 * values.min() < values.max()
        scale = "log" if wide else "linear"
        title = f"{phase}: {kind}"
        if kind == "label change" and tolerance:
            title += " (dashed: the tolerance)"
        plot = _panel(title, 290, y_axis_type=scale, tools="")
        for name, points in lines.items():
            colour = GREY if name in BEHIND else colours[name]
            if kind == "label change":
                colour = PALETTE[0]  # alone in its panel, and visible on black too
            options = {"legend_label": name, "color": colour}
            line = plot.line(*points.T, line_width=2, **options)
            if len(points) == 1:
                line = plot.scatter(*points.T, size=6, **options)
            tips = [(name, "@y{0.0000}"), ("step", "@x{0,0}")]
            plot.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
        if kind == "label change":
            plot.yaxis.formatter = NumeralTickFormatter(format="0.[0]%")
            if tolerance:
                plot.hspan(y=[tolerance], line_color=GREY, line_dash="dashed")
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.xaxis.axis_label = "optimizer step"
        (legend,) = plot.legend
        legend.update(
            background_fill_alpha=0,
            border_line_color=None,
            label_text_color=GREY,
            label_text_font_size="12px",
            orientation="horizontal",
            ncols=3,
            padding=0,
            margin=0,
        )
        plot.add_layout(legend, "below")
        plots.append(plot)
    return plots


def histogram(values: Array, title: str, what: str, edges: Array) -> Any:
    """Draw how often values fall between edges; values ``(n,)``, edges ``(m + 1,)``."""
    counts, edges = np.histogram(values, edges)
    plot = _panel(title, 260, tools="", y_axis_label="samples", x_axis_label=what)
    bars = plot.quad(
        top=counts, bottom=0, left=edges[:-1], right=edges[1:], color=PALETTE[0], line_color=GREY
    )
    tips = [(what, "@left{0.00} to @right{0.00}"), ("samples", "@top{0,0}")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.y_range.start = 0
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    return plot


def size_bars(sizes: Array) -> Any:
    """Draw the size of each cluster, shape ``(K,)``, in its colour; a line where all were equal."""
    clusters = np.arange(len(sizes))
    colours = [look_of(int(k))[0] for k in clusters]
    plot = _panel(
        "Cluster sizes (dashed: their mean)",
        260,
        tools="",
        x_axis_label="cluster",
        y_axis_label="samples",
    )
    bars = plot.vbar(x=clusters, top=sizes, width=0.8, color=colours)
    tips = [("cluster", "@x"), ("samples", "@top{0,0}")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.hspan(y=[sizes.mean()], line_color=GREY, line_dash="dashed")
    plot.y_range.start = 0
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    return plot
