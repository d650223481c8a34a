"""The arithmetic of pairs, and the table."""

from __future__ import annotations

import pytest

from cxr_spark.benchmark.rows import (
    MeasurementError,
    failed_row,
    format_table,
    marginal_rate,
    quartiles,
    rate_row,
    ratio_row,
)
from cxr_spark.benchmark.targets import TARGETS


def test_the_targets_are_those_that_were_set() -> None:
    assert TARGETS["ceiling", "marginal", "ResNet50"] == 0.95
    assert TARGETS["ceiling", "marginal", "MobileNetV3Small"] == 0.90
    for backbone, measure in (("Xception", "marginal"), ("Xception", "whole process")):
        assert not [key for key in TARGETS if key[1:] == (measure, backbone)]
    assert TARGETS["keras_loop", "marginal", "MobileNetV3Small"] == 1.4
    assert TARGETS["spark_recipe", "marginal", "MobileNetV3Small"] == 3.3
    assert TARGETS["spark_recipe", "whole process", "MobileNetV3Small"] == 2.5
    assert TARGETS["paper_grid", "whole process", "MobileNetV3Small"] == 2.5
    assert TARGETS["paper_grid", "whole process", "ResNet50"] == 5.0


def test_a_marginal_rate_is_free_of_what_does_not_grow() -> None:
    start, rate = 7.0, 40.0
    assert marginal_rate(100, start + 100 / rate, 400, start + 400 / rate) == pytest.approx(rate)


@pytest.mark.parametrize(("n_whole", "t_whole"), [(100, 9.0), (400, 5.0), (400, 4.0)])
def test_no_marginal_rate_is_invented(n_whole: int, t_whole: float) -> None:
    with pytest.raises(MeasurementError, match="no rate follows"):
        marginal_rate(100, 5.0, n_whole, t_whole)


def test_the_ratio_is_the_median_over_pairs_and_not_of_medians() -> None:
    pairs = [(10.0, 10.0), (40.0, 20.0), (90.0, 30.0)]
    row = ratio_row("ours", "theirs", pairs, target=2.5)
    assert (row.rate, row.against, row.ratio, row.met) == (40.0, 20.0, 2.0, False)
    assert row.quartiles == (1.5, 2.5)
    assert row.n_pairs == 3
    assert ratio_row("ours", "theirs", [(3.0, 2.0), (3.0, 2.0)], target=1.5).met is True


def test_where_nothing_is_compared_there_is_no_ratio_and_no_verdict() -> None:
    row = rate_row("alone", [3.0, 1.0, 2.0])
    assert (row.rate, row.against, row.ratio, row.target, row.met) == (2.0, None, None, None, None)
    assert row.quartiles == (1.5, 2.5) == quartiles([1.0, 2.0, 3.0])
    assert quartiles([4.0]) == (4.0, 4.0)


def test_a_failure_is_one_line_and_no_number() -> None:
    row = failed_row("broken", "it\n  broke")
    assert (row.rate, row.ratio, row.met, row.note) == (None, None, None, "it broke")
    assert format_table([row]).splitlines()[-1] == "    it broke"
    row = failed_row("broken", "it broke", target=0.9)
    assert (row.ratio, row.target, row.met) == (None, 0.9, None)


def test_the_table_has_a_line_a_row() -> None:
    text = format_table([ratio_row("ours", "theirs", [(3.0, 2.0)], target=2.0)])
    header, line, beneath = text.splitlines()
    assert header.split()[:2] == ["what", "rate"]
    assert line.split()[-1] == "NO"
    assert beneath == "    against theirs"
