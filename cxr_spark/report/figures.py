"""The figures of the report, as SVG. A head has one colour in all of them, a class in its own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.report.style import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_LABELS_INSIDE = 6  # of a square panel, whose lower right is empty


@dataclass(frozen=True)
class Picture:
    """A figure: the name of its file, the words for who cannot see it, and its SVG."""

    name: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Curve:
    """One line of a panel: x and y of shape (n_points,), the head it belongs to, and its label.

    Attributes:
        head: whose colour it has; a class where curves are of classes.
        marked: whether its points are; a line of one point is that mark alone.
        band: the lowest and highest y at each x, shaded; None for none.
    """

    head: str
    label: str
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    dashed: bool = False
    marked: bool = False
    band: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None


def head_colours(heads: Sequence[str]) -> dict[str, str]:
    """Return the colour of each head, by its place among the experiment's heads."""
    return {head: COLOURS[i % len(COLOURS)] for i, head in enumerate(heads)}


def auc_bars(summary: pd.DataFrame, colours: dict[str, str], notice: str) -> Picture:
    """Draw the test AUC of each configuration, grouped by backbone, with its interval.

    Args:
        summary: one row a configuration, as ``evaluation.results.summarise`` makes it.
        colours: of each head.
        notice: a line over the figure, empty for none.
    """
    rows = summary.to_dict("records")
    groups = list(dict.fromkeys(_group(row) for row in rows))
    rows.sort(key=lambda row: groups.index(_group(row)))  # stable: heads keep their order
    figure, axes = _figure(7.2, 1.3 + 0.23 * len(rows) + 0.3 * len(groups), notice)
    lowest, places, labels, place = 0.5, [], [], 0.0
    for k, row in enumerate(rows):
        if k == 0 or _group(row) != _group(rows[k - 1]):
            axes.annotate(
                _group(row), (0, place + 0.15), xycoords=("axes fraction", "data"),
                xytext=(3, 0), textcoords="offset points", fontweight="bold", va="center",
            )  # fmt: skip
            place += 1.1
        places.append(place)
        labels.append(row["head"])
        auc, low, high = row["test_auc"], row["test_auc_low"], row["test_auc_high"]
        axes.barh(place, auc, 0.8, color=colours[row["head"]], alpha=0.85)
        if pd.notna(low):
            axes.errorbar(
                auc, place, xerr=[[auc - low], [high - auc]], color="#222222", capsize=2.5, lw=1
            )
        axes.plot(row["test_keras_auc"], place, "D", color="white", mec="#222222", ms=4.5)
        if pd.notna(row["paper_test_keras_auc"]):
            axes.plot(row["paper_test_keras_auc"], place, "o", color="none", mec="#222222", ms=6)
        values = [auc, low, row["test_keras_auc"], row["paper_test_keras_auc"]]
        lowest = min(lowest, *(value for value in values if pd.notna(value)))
        place += 1
    axes.set_yticks(places, labels)
    axes.set_ylim(-0.4, place - 0.4)
    axes.invert_yaxis()
    axes.set_xlim(max(0.0, np.floor(lowest * 10) / 10), 1.0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("AUC on the test images (bars: ROC AUC, with its 95 % interval)")
    handles = [_marker("D", "Keras' metric, here")]
    if summary["paper_test_keras_auc"].notna().any():
        handles.append(_marker("o", "Keras' metric, paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    best = summary.loc[summary["test_auc"].idxmax()]
    alt = (
        f"Bars of the test ROC AUC of {len(summary)} configurations. "
        f"The highest is {best['configuration']}, {best['test_auc']:.3f}."
    )
    return _picture("test_auc", alt, figure)


def panel(
    name: str,
    title: str,
    curves: Sequence[Curve],
    colours: dict[str, str],
    *,
    x_label: str,
    y_label: str,
    notice: str,
    diagonal: bool = False,
    unit_square: bool = False,
) -> Picture:
    """Draw one small figure of lines; several of them stand side by side where there is room.

    Args:
        name: of the file, without its ending.
        title: over the panel.
        curves: the lines.
        colours: of each head.
        x_label, y_label: of the axes.
        notice: a line over the figure, empty for none.
        diagonal: whether to draw the line from corner to corner, as of chance in ROC curves.
        unit_square: whether both axes run from 0 to 1; with a diagonal they do.
    """
    square = diagonal or unit_square
    n_labels = len({curve.label for curve in curves})
    inside = square and n_labels <= MOST_LABELS_INSIDE
    below = 0.0 if inside or not square else 0.17 * ((n_labels + 1) // 2)
    figure, axes = _figure(3.5, (3.1 if square else 2.8) + below, notice)
    axes.set_title(title, fontsize=10, loc="left")
    if diagonal:
        axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, ls=":")
    if square:
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_aspect("equal")
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    for curve in curves:
        style = "--" if curve.dashed else "-"
        marker = "o" if curve.marked else None
        if curve.band is not None:
            axes.fill_between(
                curve.x, *curve.band, color=colours[curve.head], alpha=0.25, lw=0,
                label="95 % of drawings",
            )  # fmt: skip
        axes.plot(
            curve.x, curve.y, style, color=colours[curve.head], lw=1.4, label=curve.label,
            marker=marker, ms=3.5,
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    ordered = list(dict.fromkeys(labels))
    handles = [first[label] for label in ordered]
    if inside:
        axes.legend(
            handles, ordered, fontsize=7.5, framealpha=0.8, edgecolor="none", loc="lower right"
        )
    else:  # lines may run anywhere, or names be many
        figure.legend(
            handles, ordered, fontsize=7.5, frameon=False, loc="outside lower center", ncols=2
        )
    return _picture(name, f"{title}: {y_label} by {x_label}", figure)


def _group(row: dict[Any, Any]) -> str:
    return (
        row["backbone"]
        if row["preprocessing"] == "none"
        else f"{row['backbone']} ({row['preprocessing']})"
    )


def _figure(width: float, height: float, notice: str) -> tuple[Figure, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    if notice:  # a small figure has room for the word alone
        figure.suptitle(
            notice if width > 5 else notice.partition(":")[0], fontsize=7.5, color="#a33"
        )
    return figure, axes


def _marker(shape: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    face = "white" if shape == "D" else "none"
    return Line2D([], [], ls="", marker=shape, color=face, mec="#222222", ms=5.5, label=label)


def _picture(name: str, alt: str, figure: Figure) -> Picture:
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Picture(name, alt, file.getvalue())
