from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

from cxr_spark.evaluation.thresholds import choose_threshold, operate, wilson


def make_scores(rng: np.random.Generator) -> tuple:
    y_true = rng.random(200) < 0.6
    return y_true, np.round(rng.normal(size=200) + y_true, 1)


def test_youden_is_the_best_of_all_thresholds(rng: np.random.Generator) -> None:
    y_true, y_score = make_scores(rng)

    def youden(threshold: float) -> float:
        found = operate(y_true, y_score, threshold)
        return found.sensitivity.value + found.specificity.value - 1

    best = max(youden(threshold) for threshold in [*np.unique(y_score), np.inf])
    assert youden(choose_threshold(y_true, y_score)) == pytest.approx(best)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize(
    ("required", "other"), [("sensitivity", "specificity"), ("specificity", "sensitivity")]
)
def test_required_shares_are_kept_at_the_least_cost(
    rng: np.random.Generator, required: str, other: str, share: float
) -> None:
    y_true, y_score = make_scores(rng)
    found = operate(y_true, y_score, choose_threshold(y_true, y_score, f"{required}={share}"))
    assert getattr(found, required).value >= share
    rivals = [operate(y_true, y_score, threshold) for threshold in [*np.unique(y_score), np.inf]]
    allowed = [getattr(r, other).value for r in rivals if getattr(r, required).value >= share]
    assert getattr(found, other).value == pytest.approx(max(allowed))


def test_of_thresholds_as_good_the_highest_is_chosen() -> None:
    """Each wins a tenth of specificity and loses one of sensitivity; sums differ by rounding."""
    y_true = np.tile([False, True], 10)
    y_score = np.arange(20.0)
    assert choose_threshold(y_true, y_score) == 18.5
    assert choose_threshold(y_true, y_score, "specificity=0.5") == 8.5
    tied = np.array([0.2, 0.2, 0.5, 0.5, 0.5])
    assert choose_threshold([0, 0, 0, 1, 1], tied) == pytest.approx(0.35)  # no tie is parted


def test_threshold_lies_between_the_two_scores_that_it_parts() -> None:
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.9]) == pytest.approx(0.45)


@pytest.mark.parametrize("rule", ["yuden", "sensitivity", "sensitivity=2", "sensitivity=0.9x", ""])
def test_an_unknown_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="expected youden, sensitivity=SHARE"):
        choose_threshold([0, 1], [0.1, 0.2], rule)


def test_measures_are_those_of_scikit_learn(rng: np.random.Generator) -> None:
    y_true, y_score = make_scores(rng)
    found, called = operate(y_true, y_score, 0.5), y_score >= 0.5
    expected = [
        np.mean(called == y_true),
        recall_score(y_true, called),
        recall_score(~y_true, ~called),
        precision_score(y_true, called),
        precision_score(~y_true, ~called),
    ]
    shares = (found.accuracy, found.sensitivity, found.specificity, found.ppv, found.npv)
    assert [share.value for share in shares] == pytest.approx(expected)
    assert found.f1 == pytest.approx(f1_score(y_true, called))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(y_true, called))


def test_nothing_called_positive_has_no_ppv() -> None:
    found = operate([1, 0], [0.1, 0.2], 0.9)
    assert np.isnan([found.ppv.value, found.ppv.low, found.ppv.high]).all()
    assert (found.sensitivity.value, found.npv.value, found.f1) == (0, 0.5, 0)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (380, 390)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    found = wilson(np.arange(n) < hits)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx(
        (hits / n, expected.low, expected.high)
    )
