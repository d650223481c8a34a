from __future__ import annotations

import pytest

from cxr_spark.evaluation.paper import compare_published


@pytest.mark.parametrize(
    ("low", "high", "places"),
    [
        (0.95, 0.98, ["inside", "inside"]),
        (0.90, 0.96, ["above", "above"]),
        (0.96, 0.97, ["inside", "above"]),
        (0.98, 0.99, ["below", "below"]),
        (0.968, 0.973, ["inside", "inside"]),
    ],
)
def test_published_figures_stand_inside_or_outside_the_interval(
    low: float, high: float, places: list[str]
) -> None:
    found = compare_published(low, high)
    assert [row["test_auc"] for row in found] == [0.968, 0.973]
    assert [row["place"] for row in found] == places
