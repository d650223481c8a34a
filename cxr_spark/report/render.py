"""Templates, and how numbers stand in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import pandas as pd


def make_environment(**filters: Callable[[Any], str]) -> jinja2.Environment:
    """Return an environment of the room's templates, in which every name is escaped.

    Args:
        filters: beside those for numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cxr_spark", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = {
        "auc": format_auc, "difference": format_difference, "p": format_p_value,
        "share": format_share, "exact": format_exact, "parameter": format_parameter,
    }  # fmt: skip
    environment.filters.update(**numbers, **filters)
    return environment


def format_auc(value: float | None) -> str:
    """Return an area with three decimals; one below 1 is never shown as 1."""
    if value is None or pd.isna(value):
        return ""
    return "> 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def format_parameter(value: object) -> str:
    """Return a parameter of a head: a number with three digits, anything else as it is written."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_difference(value: float | None) -> str:
    """Return a difference with its sign."""
    return "" if value is None or pd.isna(value) else f"{value:+.3f}"


def format_p_value(value: float | None) -> str:
    """Return a p-value with three decimals."""
    if value is None or pd.isna(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_exact(value: float | None) -> str:
    """Return a number in full, to sort by."""
    return "" if value is None or pd.isna(value) else repr(float(value))


def format_share(value: float | None) -> str:
    """Return a share in percent."""
    return "" if value is None or pd.isna(value) else f"{100 * value:.1f} %"
