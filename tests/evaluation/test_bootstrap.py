from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.bootstrap import (
    draw_patients,
    macro_aucs,
    paired_p_value,
    percentile_interval,
    weighted_aucs,
)
from cxr_spark.evaluation.intervals import auc_interval
from tests.evaluation.test_intervals import make_layout


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


@pytest.mark.slow
def test_bootstrap_intervals_of_the_macro_auc_cover() -> None:
    """In 300 studies of three classes and patients with several images; found: 0.94."""
    patients = np.repeat(np.arange(150), 2)
    labels = np.repeat(np.arange(150) % 3, 2)
    centres = 1.2 * np.eye(3)

    def study(rng: np.random.Generator, labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
        noise = rng.normal(size=(patients.max() + 1, 3))[patients]
        return centres[labels] + 0.7 * noise + 0.7 * rng.normal(size=(len(labels), 3))

    many = np.repeat(np.arange(60000) % 3, 2)
    rng = np.random.default_rng(0)
    truth = macro_aucs(
        many, study(rng, many, np.repeat(np.arange(60000), 2)), np.ones((1, len(many)))
    )[0]
    weights = draw_patients(labels, patients, n_resamples=500).weights
    covered = 0
    for _ in range(300):
        scores = study(rng, labels, patients)
        interval = percentile_interval(0.0, macro_aucs(labels, scores, weights))
        covered += interval.low <= truth <= interval.high
    assert 0.91 <= covered / 300 <= 0.98


def test_what_does_not_vary_has_no_interval() -> None:
    interval = percentile_interval(1.0, np.ones(100))
    assert interval.auc == 1
    assert np.isnan([interval.low, interval.high]).all()


def test_p_values_are_those_of_the_standard_deviation(rng: np.random.Generator) -> None:
    resampled = rng.normal(0.02, 0.01, 4000)
    error = np.std(resampled, ddof=1)
    assert paired_p_value(0.02, resampled) == pytest.approx(2 * norm.sf(0.02 / error))
    assert paired_p_value(-0.02, -resampled) == pytest.approx(2 * norm.sf(0.02 / error))
    assert paired_p_value(0.2, resampled) < 1e-6  # no number of tests makes much of it
    assert paired_p_value(0.0, np.zeros(9)) == 1
    assert np.isnan(paired_p_value(0.1, np.full(9, 0.1)))


def test_resamples_are_taken_in_blocks(rng: np.random.Generator, monkeypatch) -> None:
    y_true, y_score = rng.random(60) < 0.4, rng.normal(size=60)
    weights = draw_patients(y_true.astype(int), n_resamples=50).weights
    whole = weighted_aucs(y_true, y_score, weights)
    monkeypatch.setattr("cxr_spark.evaluation.bootstrap.VALUES_AT_ONCE", 60 * 7)
    assert weighted_aucs(y_true, y_score, weights).tolist() == whole.tolist()
