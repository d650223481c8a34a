"""The plot beside the JSON: ratios with their targets, and rates, as horizontal bars."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_spark.benchmark.rows import Row
from cxr_spark.report.style import COLOURS, STYLE

_STYLE = {**STYLE, "axes.grid": False}
_BLUE, _ORANGE, *_ = COLOURS
_GREY = "#888888"
_WIDTH_INCHES, _DPI = 8.0, 100


def write_plot(file: Path, rows: Sequence[Row], title: str) -> bool:
    """Draw the rows that have numbers as a PNG of 800 px width; return whether there are any."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratios = [row for row in rows if row.ratio is not None]
    rates = [row for row in rows if row.rate is not None and row.unit != "s"]
    curves = [row for row in rows if row.curve]
    drawn = ((_ratios, ratios), (_rates, rates), (_curves, curves))
    panels = [(draw, own) for draw, own in drawn if own]
    if not panels:
        return False
    heights = [2.0 if draw is _curves else 0.3 * len(own) + 0.75 for draw, own in panels]
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH_INCHES, sum(heights) + 0.4), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        figure.suptitle(title, fontsize=9, color=_GREY)
        for axes, (draw, own) in zip(grid[:, 0], panels, strict=True):
            draw(axes, own)
        beside = file.with_name(f"_{file.name}.{os.getpid()}")
        figure.savefig(beside, format="png")
    beside.replace(file)
    return True


def _ratios(axes: Any, rows: Sequence[Row]) -> None:
    values = [row.ratio or 0.0 for row in rows]
    colours = [_ORANGE if row.met is False else _BLUE for row in rows]
    _bars(axes, [f"{row.what}\nagainst {row.against_what}" for row in rows], values, colours)
    for i, row in enumerate(rows):
        if row.quartiles:
            axes.plot(row.quartiles, [i, i], color="black", linewidth=1)
        if row.target:
            axes.plot([row.target] * 2, [i - 0.42, i + 0.42], color="black", linewidth=2)
    axes.axvline(1, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("ratio, ours by the other's (thick tick: target; thin line: quartiles)")
    axes.set_xlim(0, 1.15 * max(*values, *(row.target or 0 for row in rows), 1.0))


def _rates(axes: Any, rows: Sequence[Row]) -> None:
    values = [row.rate or 0.0 for row in rows]
    labels = [row.what if row.unit == "images/s" else f"{row.what} ({row.unit})" for row in rows]
    _bars(axes, labels, values, [_BLUE] * len(rows))
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 4)
    axes.set_xlabel("images/s, unless said otherwise")


def _curves(axes: Any, rows: Sequence[Row]) -> None:
    for row, colour in zip(rows, itertools.cycle(COLOURS), strict=False):
        seconds, values = zip(*row.curve, strict=True)
        what = f"{row.what.partition(',')[0]}, {row.against_what or 'it'} ({row.unit})"
        axes.plot(seconds, values, color=colour, linewidth=1.2, label=what)
    axes.set_ylim(0, 1.25 * max(value for row in rows for _, value in row.curve))
    axes.set_xlabel("seconds, of the last run")
    axes.tick_params(labelsize=7.5)
    axes.legend(loc="lower right", fontsize=7.5, frameon=False)


def _bars(axes: Any, labels: list[str], values: list[float], colours: list[str]) -> None:
    axes.barh(range(len(values)), values, color=colours, height=0.7)
    axes.set_yticks(range(len(values)), labels, fontsize=7.5)
    axes.invert_yaxis()
    for i, value in enumerate(values):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axes.annotate(
            text, (value, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
