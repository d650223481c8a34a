from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.evaluation.thresholds import operate, youden_threshold


def test_youden_is_the_best_of_all_thresholds(rng: np.random.Generator) -> None:
    y_true = rng.random(200) < 0.6
    y_score = np.round(rng.normal(size=200) + y_true, 1)

    def youden(threshold: float) -> float:
        found = operate(y_true, y_score, threshold)
        return found.sensitivity + found.specificity - 1

    best = max(youden(threshold) for threshold in [*np.unique(y_score), np.inf])
    assert youden(youden_threshold(y_true, y_score)) == pytest.approx(best)


def test_threshold_lies_between_the_two_scores_that_it_parts() -> None:
    assert youden_threshold([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.9]) == pytest.approx(0.45)


def test_shares_are_counted_by_hand() -> None:
    found = operate([1, 1, 1, 0, 0], [0.9, 0.5, 0.2, 0.5, 0.1], 0.5)
    assert (found.sensitivity, found.specificity) == pytest.approx((2 / 3, 1 / 2))
    assert found.accuracy == pytest.approx(3 / 5)
