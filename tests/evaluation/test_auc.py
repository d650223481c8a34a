from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.auc import keras_auc, macro_auc, placement_values, roc_auc


@pytest.mark.parametrize("ties", [False, True])
def test_placements_average_to_the_auc(rng: np.random.Generator, ties: bool) -> None:
    y_true = np.arange(90) % 3 == 0
    y_score = np.round(rng.normal(size=90) + y_true, 1 if ties else 9)
    of_positive, of_negative = placement_values(y_true, y_score)
    expected = roc_auc_score(y_true, y_score)
    assert [of_positive.mean(), of_negative.mean()] == pytest.approx([expected] * 2, abs=1e-12)
    assert roc_auc(y_true, y_score) == pytest.approx(expected, abs=1e-12)


def test_placement_values_are_shares_of_the_other_class() -> None:
    of_positive, of_negative = placement_values([1, 1, 0, 0, 0], [0.9, 0.4, 0.1, 0.4, 0.6])
    assert of_positive.tolist() == pytest.approx([1.0, 1.5 / 3])
    assert of_negative.tolist() == pytest.approx([1.0, 0.75, 0.5])


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected numbers in y_score, received 1 NaN"):
        roc_auc([1, 0, 1], [0.1, np.nan, 0.3])


def test_macro_auc_is_scikit_learns_one_against_rest(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 60)
    scores = rng.dirichlet(np.ones(3), 60)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert macro_auc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_a_missing_class_has_no_auc(rng: np.random.Generator) -> None:
    labels, scores = np.arange(20) % 2, rng.random((20, 3))
    with pytest.raises(ValueError, match="expected both classes in y_true, received 0 positive"):
        macro_auc(labels, scores)
    with pytest.raises(ValueError, match="received 20 positive and 0 negative"):
        roc_auc(np.ones(20), scores[:, 0])


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
