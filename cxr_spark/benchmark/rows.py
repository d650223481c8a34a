"""What a benchmark finds: rows of rates and ratios, the targets they meet, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Pair = tuple[float, float]


class MeasurementError(Exception):
    """A measurement that gave no number; its text is the one line that stands in its place."""


class NoRateError(MeasurementError):
    """Two runs of which the longer took no longer."""


@dataclass(frozen=True)
class Row:
    """One line of the table; None where there is nothing to tell or to compare.

    Attributes:
        what: what was measured.
        unit: of ``rate`` and ``against``.
        rate: ours, the median.
        against: what it is compared with, the median.
        against_what: the name of that.
        ratio: the median over pairs of ours by the other: above 1 is faster. Not the quotient of
            the two medians, since rates drift and only adjacent runs compare.
        target: the smallest ratio that is good enough.
        met: whether ``ratio`` reaches ``target``.
        quartiles: the first and the third of ``ratio``; of ``rate`` where there is no ratio.
        n_pairs: how many measurements the medians are of.
        note: why there is no number, or what else to know.
        curve: what was seen over time, (seconds, in ``unit``); most rows have none.
    """

    what: str
    unit: str = "images/s"
    rate: float | None = None
    against: float | None = None
    against_what: str | None = None
    ratio: float | None = None
    target: float | None = None
    met: bool | None = None
    quartiles: tuple[float, float] | None = None
    n_pairs: int = 0
    note: str = ""
    curve: tuple[tuple[float, float], ...] = ()


def rate_row(what: str, rates: Sequence[float], *, unit: str = "images/s", note: str = "") -> Row:
    """Return the row of rates that are compared with nothing."""
    return Row(
        what, unit, statistics.median(rates), quartiles=quartiles(rates), n_pairs=len(rates),
        note=note,
    )  # fmt: skip


def ratio_row(
    what: str,
    against_what: str,
    pairs: Sequence[Pair],
    *,
    target: float | None = None,
    unit: str = "images/s",
    note: str = "",
) -> Row:
    """Return the row of adjacent pairs of rates, (ours, the other's)."""
    ratios = [ours / other for ours, other in pairs]
    ratio = statistics.median(ratios)
    return Row(
        what,
        unit,
        statistics.median(ours for ours, _ in pairs),
        statistics.median(other for _, other in pairs),
        against_what,
        ratio,
        target,
        None if target is None else ratio >= target,
        quartiles(ratios),
        len(pairs),
        note,
    )


def failed_row(
    what: str, reason: object, *, unit: str = "images/s", target: float | None = None
) -> Row:
    """Return the row of a measurement that gave no number, with the reason in one line.

    Where it has a target, that is neither met nor missed: nothing was compared.
    """
    return Row(what, unit, target=target, note=" ".join(str(reason).split()))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile, interpolated; of one value that value twice."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def marginal_rate(n_quarter: int, t_quarter: float, n_whole: int, t_whole: float) -> float:
    """Return images a second between two runs, from which what does not grow with images is gone.

    Args:
        n_quarter: images of the shorter run.
        t_quarter: its seconds.
        n_whole: images of the longer run.
        t_whole: its seconds.

    Raises:
        NoRateError: the longer run has no more images, or took no longer.
    """
    if n_whole <= n_quarter or t_whole <= t_quarter:
        raise NoRateError(
            f"{n_whole} images took {t_whole:.2f} s and {n_quarter} took {t_quarter:.2f} s: "
            "no rate follows; give more images (--limit)"
        )
    return (n_whole - n_quarter) / (t_whole - t_quarter)


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for the terminal, notes beneath their rows."""
    header = ("what", "rate", "unit", "against", "ratio", "quartiles", "n", "target", "met")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for line, row in zip(lines, [None, *rows], strict=True):
        padded = [
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(padded).rstrip())
        text += [f"    {part}" for part in (_beneath(row) if row else [])]
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    spread = "-" if row.quartiles is None else "..".join(map(_number, row.quartiles))
    return (
        row.what, _number(row.rate), row.unit, _number(row.against), _number(row.ratio), spread,
        str(row.n_pairs or "-"), _number(row.target),
        {True: "yes", False: "NO", None: "-"}[row.met],
    )  # fmt: skip


def _beneath(row: Row) -> list[str]:
    compared = f"against {row.against_what}" if row.against_what else ""
    return [part for part in ("; ".join(filter(None, (compared, row.note))),) if part]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
