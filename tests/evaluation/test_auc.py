from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.auc import delong_interval, keras_auc, macro_auc, placement_values


def make_scores(rng: np.random.Generator, n: int, shift: float, ties: bool) -> tuple:
    y_true = np.arange(n) % 3 == 0
    y_score = rng.normal(size=n) + shift * y_true
    return y_true, np.round(y_score, 1) if ties else y_score


def slow_delong(y_true: np.ndarray, y_score: np.ndarray) -> tuple[float, float]:
    """AUC and its variance by the definition: all pairs, one by one."""
    kernel = [
        [1.0 if p > n else 0.5 if p == n else 0.0 for n in y_score[~y_true]]
        for p in y_score[y_true]
    ]
    pairs = np.array(kernel)
    of_positive, of_negative = pairs.mean(axis=1), pairs.mean(axis=0)
    variance = of_positive.var(ddof=1) / len(of_positive) + of_negative.var(ddof=1) / len(
        of_negative
    )
    return float(pairs.mean()), float(variance)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_delong_agrees_with_all_pairs(rng: np.random.Generator, shift: float, ties: bool) -> None:
    y_true, y_score = make_scores(rng, 90, shift, ties)
    auc, variance = slow_delong(y_true, y_score)
    interval = delong_interval(y_true, [y_score])
    assert interval.auc == pytest.approx(auc, abs=1e-12)
    assert interval.auc == pytest.approx(roc_auc_score(y_true, y_score), abs=1e-12)
    half = norm.ppf(0.975) * np.sqrt(variance) / (auc * (1 - auc))
    for end, sign in ((interval.low, -1), (interval.high, 1)):
        assert np.log(end / (1 - end)) == pytest.approx(np.log(auc / (1 - auc)) + sign * half)


def test_placement_values_are_shares_of_the_other_class() -> None:
    of_positive, of_negative = placement_values([1, 1, 0, 0, 0], [0.9, 0.4, 0.1, 0.4, 0.6])
    assert of_positive.tolist() == pytest.approx([1.0, 1.5 / 3])
    assert of_negative.tolist() == pytest.approx([1.0, 0.75, 0.5])


def test_intervals_cover_the_true_auc(rng: np.random.Generator) -> None:
    """2,000 studies of 234 and 390 independent images with a true AUC of 0.92."""
    shift = np.sqrt(2) * norm.ppf(0.92)
    y_true = np.arange(624) >= 234
    covered = 0
    for _ in range(2000):
        interval = delong_interval(y_true, [rng.normal(size=624) + shift * y_true])
        covered += interval.low <= 0.92 <= interval.high
    assert 0.935 <= covered / 2000 <= 0.965


def test_several_seeds_are_joined_by_their_placements(rng: np.random.Generator) -> None:
    y_true, one = make_scores(rng, 90, 1.0, False)
    other = one + rng.normal(size=90)
    joint = delong_interval(y_true, [one, other])
    assert joint.auc == pytest.approx(
        (roc_auc_score(y_true, one) + roc_auc_score(y_true, other)) / 2
    )
    assert delong_interval(y_true, [one, one]) == delong_interval(y_true, [one])


@pytest.mark.parametrize(("scores", "auc"), [([3, 4, 1, 2], 1.0), ([1, 2, 3, 4], 0.0)])
def test_perfect_and_reversed_scores_have_an_honest_interval(scores: list[int], auc: float) -> None:
    interval = delong_interval([1, 1, 0, 0], [scores])
    assert interval.auc == auc
    assert interval.high - interval.low == pytest.approx(1 - 0.025**0.5)


def test_constant_scores_are_chance() -> None:
    interval = delong_interval([1, 1, 0, 0], [np.ones(4)])
    assert interval.auc == 0.5
    assert np.isnan([interval.low, interval.high]).all()  # no image tells how sure that is


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="expected both classes in y_true, received 2 positive"):
        delong_interval([1, 1], [[0.1, 0.2]])


def test_macro_auc_is_scikit_learns_one_against_rest(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 60)
    scores = rng.dirichlet(np.ones(3), 60)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert macro_auc(labels, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("concentration", [0.05, 0.5, 5.0])
def test_keras_auc_is_that_of_keras(
    rng: np.random.Generator, n_classes: int, concentration: float
) -> None:
    import keras

    labels = rng.integers(0, n_classes, 300)
    scores = rng.dirichlet(np.full(n_classes, concentration), 300).astype(np.float32)
    scores[:5] = np.eye(n_classes, dtype=np.float32)[labels[:5]]
    scores[5:10] = 1 / n_classes
    metric = keras.metrics.AUC()
    metric.update_state(np.eye(n_classes)[labels], scores)
    assert keras_auc(labels, scores) == pytest.approx(float(metric.result()), abs=2e-6)
