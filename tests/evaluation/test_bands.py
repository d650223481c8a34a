from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr_spark.evaluation.bands import PLACES, Band, precision_recall_band, roc_band
from cxr_spark.evaluation.bootstrap import Resamples, draw_patients
from tests.evaluation.test_intervals import make_layout


def make_scores(rng: np.random.Generator, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    y_true = rng.random(60) < 0.4
    return y_true, np.round(rng.normal(size=60) + y_true, decimals)


def slow_sensitivity(y_true: np.ndarray, y_score: np.ndarray, weights: np.ndarray) -> list[float]:
    """By rate, the line between the points of sklearn's curve, or the highest of those there."""
    false, true, _ = roc_curve(y_true, y_score, sample_weight=weights, drop_intermediate=False)
    found = []
    for place in PLACES:
        before = max(k for k in range(len(false)) if false[k] <= place + 1e-12)
        value = true[before]
        if before + 1 < len(false):
            share = max(0, place - false[before]) / (false[before + 1] - false[before])
            value += share * (true[before + 1] - true[before])
        found.append(value)
    return found


def slow_precision(y_true: np.ndarray, y_score: np.ndarray, weights: np.ndarray) -> list[float]:
    """By recall, the precision of the highest of sklearn's thresholds that reaches it."""
    kept = weights > 0  # or thresholds that call nothing stand among sklearn's
    precision, recall, thresholds = precision_recall_curve(
        y_true[kept], y_score[kept], sample_weight=weights[kept]
    )
    reaching = [
        max(k for k in range(len(thresholds)) if recall[k] >= place - 1e-12 and recall[k] > 0)
        for place in PLACES
    ]
    return [precision[k] for k in reaching]


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "no ties"])
@pytest.mark.parametrize(
    ("band", "slow"),
    [(roc_band, slow_sensitivity), (precision_recall_band, slow_precision)],
    ids=["roc", "precision-recall"],
)
def test_bands_are_those_of_a_slow_loop(band, slow, decimals: int, rng) -> None:
    y_true, y_score = make_scores(rng, decimals)
    patients = rng.integers(0, 25, 60)
    resamples = draw_patients(y_true.astype(int), patients, n_resamples=80)
    found = band(y_true, y_score, resamples)
    drawn = [slow(y_true, y_score, weights.astype(float)) for weights in resamples.weights]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.y == pytest.approx(slow(y_true, y_score, np.ones(60)), abs=1e-9)
    assert (found.low < found.high).mean() > 0.5


@pytest.mark.parametrize("band", [roc_band, precision_recall_band])
def test_what_is_told_apart_has_no_width(band) -> None:
    y_true = np.arange(40) >= 20
    resamples = draw_patients(y_true.astype(int), n_resamples=20)
    found = band(y_true, y_true.astype(float), resamples)
    assert (found.y == 1).all()
    assert (found.low == 1).all()


def test_bands_hold_the_curve_and_take_no_time(rng: np.random.Generator) -> None:
    y_true, patients = make_layout()
    y_score = rng.normal(size=624) + 1.5 * y_true
    resamples = draw_patients(y_true.astype(int), patients, n_resamples=2000)
    began = time.process_time()
    bands: list[Band] = [b(y_true, y_score, resamples) for b in (roc_band, precision_recall_band)]
    assert time.process_time() - began < 2
    inner = slice(10, -10)
    for band in bands:
        assert (band.low[inner] <= band.y[inner]).all()
        assert (band.y[inner] <= band.high[inner]).all()
    few = roc_band(y_true, y_score, Resamples(resamples.weights[:1000]))
    assert (few.low == bands[0].low).all()  # no more than a thousand are taken


@pytest.mark.filterwarnings("error")
def test_constant_scores_have_the_diagonal_and_the_share_of_positives() -> None:
    y_true = np.arange(40) >= 30
    resamples = draw_patients(y_true.astype(int), n_resamples=20)
    roc = roc_band(y_true, np.ones(40), resamples)
    assert np.stack([roc.y, roc.low, roc.high]) == pytest.approx(np.stack([PLACES] * 3))
    precision = precision_recall_band(y_true, np.ones(40), resamples)
    assert (precision.y == 0.25).all()
    assert (precision.low < precision.high).all()
