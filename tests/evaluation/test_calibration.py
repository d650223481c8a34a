from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from cxr_spark.evaluation.calibration import (
    brier_score,
    expected_calibration_error,
    fit_scaling,
    reliability,
)


def make_study(rng: np.random.Generator, n_classes: int, n: int = 2000) -> tuple:
    """Return labels, calibrated scores, and scores that are three times too sure of themselves."""
    logits = rng.normal(size=(n, n_classes))
    scores = softmax(logits, axis=1)
    labels = np.array([rng.choice(n_classes, p=row) for row in scores])
    return labels, scores, softmax(3 * logits, axis=1)


def test_brier_score_is_scikit_learns(rng: np.random.Generator) -> None:
    labels, scores, _ = make_study(rng, 2, 100)
    assert brier_score(labels, scores) == pytest.approx(brier_score_loss(labels, scores[:, 1]))
    assert brier_score(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])) == 1


def test_brier_score_of_three_classes_sums_over_them() -> None:
    scores = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    expected = ((0.25 + 0.09 + 0.04) + (1 + 1)) / 2
    assert brier_score(np.array([0, 0]), scores) == pytest.approx(expected)


def test_reliability_is_scikit_learns_curve(rng: np.random.Generator) -> None:
    labels, _, scores = make_study(rng, 2, 300)
    found = reliability(labels == 1, scores[:, 1], 10)
    share, score = calibration_curve(labels, scores[:, 1], n_bins=10)
    assert found.share == pytest.approx(share)
    assert found.score == pytest.approx(score)
    assert found.n.sum() == 300


def test_reliability_counts_scores_at_both_ends() -> None:
    found = reliability([0, 1, 1], [0.0, 1.0, 0.97], 4)
    assert found.n.tolist() == [1, 2]
    assert found.share.tolist() == [0, 1]


def test_calibration_error_is_counted_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.4, 0.6]])
    # bins of 0.25: the first two lie in the last bin, half of them right; the others are both right
    error = expected_calibration_error(np.array([0, 1, 1, 1]), scores, 4)
    assert error == pytest.approx((2 * abs(0.5 - 0.85) + 2 * abs(1 - 0.575)) / 4)


def test_calibrated_scores_have_a_small_error(rng: np.random.Generator) -> None:
    labels, calibrated, sure = make_study(rng, 2, 20000)
    assert expected_calibration_error(labels, calibrated) < 0.01
    assert expected_calibration_error(labels, sure) > 0.1


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_scaling_undoes_what_is_too_sure(
    rng: np.random.Generator, method: str, n_classes: int
) -> None:
    labels, calibrated, sure = make_study(rng, n_classes, 20000)
    scaling = fit_scaling(labels, sure, method)  # type: ignore[arg-type]
    assert scaling.slope == pytest.approx(1 / 3, rel=0.05)
    assert scaling.apply(sure) == pytest.approx(calibrated, abs=0.03)
    assert scaling.apply(sure).sum(axis=1) == pytest.approx(np.ones(20000))


def test_platt_is_logistic_regression_on_the_log_odds(rng: np.random.Generator) -> None:
    labels, _, sure = make_study(rng, 2, 500)
    labels = np.where(rng.random(500) < 0.2, 1, labels)  # so that an offset is needed
    scaled = fit_scaling(labels, sure, "platt").apply(sure)[:, 1]
    log_odds = np.log(sure[:, 1] / sure[:, 0])[:, None]
    fitted = LogisticRegression(C=np.inf).fit(log_odds, labels).predict_proba(log_odds)[:, 1]
    assert scaled == pytest.approx(fitted, abs=2e-3)
    assert log_loss(labels, scaled) == pytest.approx(log_loss(labels, fitted), abs=1e-5)


def test_temperature_changes_no_call_and_no_order(rng: np.random.Generator) -> None:
    labels, _, sure = make_study(rng, 3, 300)
    scaled = fit_scaling(labels, sure).apply(sure)
    assert (scaled.argmax(axis=1) == sure.argmax(axis=1)).all()


def test_scores_without_an_error_keep_a_finite_slope() -> None:
    labels, scores = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])
    scaling = fit_scaling(labels, scores, "platt")
    assert np.isfinite(scaling.slope)
    assert np.isfinite(scaling.apply(np.array([[1.0, 0.0]]))).all()
