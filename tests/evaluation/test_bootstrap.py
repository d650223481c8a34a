from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.bootstrap import (
    draw_patients,
    drawn_difference,
    macro_aucs,
    percentile_interval,
    weighted_aucs,
)
from cxr_spark.evaluation.intervals import auc_interval
from tests.evaluation.test_intervals import FULL, make_layout, studies


def test_weighted_auc_is_that_of_images_repeated(rng: np.random.Generator) -> None:
    y_true = rng.random(60) < 0.4
    y_score = np.round(rng.normal(size=60) + y_true, 1)
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    for row, auc in zip(weights, weighted_aucs(y_true, y_score, weights), strict=True):
        again = np.repeat(np.arange(60), row.astype(int))
        assert auc == pytest.approx(roc_auc_score(y_true[again], y_score[again]), abs=1e-12)


def test_macro_auc_is_the_mean_over_classes(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert macro_aucs(labels, scores, np.ones((1, 60)))[0] == pytest.approx(expected)


def test_images_of_a_patient_go_together() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1]), np.array(["a", "a", "b", "c", "c"])
    weights = draw_patients(labels, groups, n_resamples=200).weights
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (weights[:, :2].sum(axis=1) > 0).all()  # never without a class
    assert (weights[:, 2:].sum(axis=1) > 0).all()
    assert (draw_patients(labels, groups, n_resamples=200).weights == weights).all()
    assert (draw_patients(labels, groups, n_resamples=200, seed=1).weights != weights).any()


def test_intervals_are_those_of_the_formula_nearly(rng: np.random.Generator) -> None:
    y_true, patients = make_layout()
    of_patient = rng.normal(size=427)[patients]
    score = 0.8 * of_patient + 0.6 * rng.normal(size=624) + np.sqrt(2) * norm.ppf(0.93) * y_true
    weights = draw_patients(y_true.astype(int), patients, n_resamples=2000).weights
    formula = auc_interval(y_true, [score], patients)
    drawn = percentile_interval(formula.auc, weighted_aucs(y_true, score, weights))
    assert drawn.low == pytest.approx(formula.low, abs=0.008)
    assert drawn.high == pytest.approx(formula.high, abs=0.008)


@FULL
@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize("auc", [0.80, 0.95, 0.98])
def test_drawings_of_patients_cover_in_2000_studies(auc: float, correlation: float) -> None:
    y_true, patients = make_layout()
    weights = draw_patients(y_true.astype(int), patients, n_resamples=500).weights
    covered = 0
    for score in studies(auc, correlation, 2000):
        interval = percentile_interval(auc, weighted_aucs(y_true, score, weights))
        covered += interval.low <= auc <= interval.high
    print(f"\nAUC {auc}, correlation {correlation}: {covered / 2000:.4f}")
    assert 0.92 <= covered / 2000 <= 0.97


def test_what_does_not_vary_has_no_interval() -> None:
    interval = percentile_interval(1.0, np.ones(100))
    assert interval.auc == 1
    assert np.isnan([interval.low, interval.high]).all()
    thirds = np.mean([np.ones(100), np.full(100, 0.7), np.full(100, 0.6)], axis=0)
    thirds[::2] += 1e-16  # what rounding may leave
    assert np.isnan(percentile_interval(thirds[0], thirds).low)


def test_p_values_are_those_of_the_standard_deviation(rng: np.random.Generator) -> None:
    resampled = rng.normal(0.02, 0.01, 4000)
    error = np.std(resampled, ddof=1)
    found = drawn_difference(0.92, 0.90, resampled, 50)
    assert found.p_value == pytest.approx(2 * norm.sf(0.02 / error))
    half = norm.ppf(0.975) * error
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half))
    back = drawn_difference(0.90, 0.92, -resampled, 50)
    assert (back.low, back.high, back.p_value) == pytest.approx(
        (-found.high, -found.low, found.p_value)
    )
    assert drawn_difference(0.95, 0.75, resampled, 50).p_value < 1e-6  # no number of tests matters


def test_equal_configurations_have_a_p_value_of_1_and_none_is_made_up() -> None:
    same = drawn_difference(0.9, 0.9, np.zeros(9), 50)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    both_perfect = drawn_difference(1.0, 1.0, np.zeros(9), 2)
    assert both_perfect.p_value == 1
    assert (both_perfect.low, both_perfect.high) == pytest.approx((0.025**0.5 - 1, 1 - 0.025**0.5))
    unknown = drawn_difference(0.9, 0.8, np.full(9, 0.1), 50)
    assert unknown.difference == pytest.approx(0.1)
    assert np.isnan([unknown.low, unknown.high, unknown.p_value]).all()


def test_resamples_are_taken_in_blocks(rng: np.random.Generator, monkeypatch) -> None:
    y_true, y_score = rng.random(60) < 0.4, rng.normal(size=60)
    weights = draw_patients(y_true.astype(int), n_resamples=50).weights
    whole = weighted_aucs(y_true, y_score, weights)
    monkeypatch.setattr("cxr_spark.evaluation.bootstrap.VALUES_AT_ONCE", 60 * 7)
    assert weighted_aucs(y_true, y_score, weights).tolist() == whole.tolist()
