from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.average import average, average_held_out

N = 600


def member(labels: np.ndarray, logits: np.ndarray, **columns: object) -> pd.DataFrame:
    positive = 1 / (1 + np.exp(-logits))
    return pd.DataFrame(
        {
            "image_id": [f"i{i:04d}" for i in range(len(labels))],
            "label": labels,
            "repeat": None,
            "fold": None,
            "score": list(np.stack([1 - positive, positive], axis=1).astype(np.float32)),
            **columns,
        }
    )


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(N) % 2)


@pytest.fixture
def split() -> np.ndarray:
    return np.array(["train", "val", "test"])[np.arange(N) % 3]


def test_each_member_is_scaled_as_a_logistic_regression_on_validation_images_scales_it(
    rng: np.random.Generator, labels: np.ndarray, split: np.ndarray
) -> None:
    logits = [(labels - 0.5) * 2 + rng.normal(size=N), (labels * 0.4 + rng.normal(size=N)) / 5 + 1]
    averaged = average([member(labels, x, split=split) for x in logits])
    expected = np.zeros(N)
    for x in logits:
        platt = LogisticRegression(C=np.inf, tol=1e-8)
        platt.fit(x[split == "val"][:, None], labels[split == "val"])
        expected += platt.predict_proba(x[:, None])[:, 1] / 2
    scores = np.stack(averaged.predictions["score"].to_list())
    assert scores[:, 1] == pytest.approx(expected, abs=2e-3)
    assert scores.sum(axis=1) == pytest.approx(np.ones(N), abs=1e-5)
    assert len(averaged.scalings) == 2


def test_test_images_choose_no_scaling(
    rng: np.random.Generator, labels: np.ndarray, split: np.ndarray
) -> None:
    logits = rng.normal(size=N)
    other = np.where(split == "test", -labels, labels)
    one = average([member(labels, logits, split=split)] * 2)
    two = average([member(other % 2, logits, split=split)] * 2)
    assert one.scalings[0].slope == two.scalings[0].slope


def test_two_members_that_err_apart_are_better_together(
    rng: np.random.Generator, labels: np.ndarray, split: np.ndarray
) -> None:
    logits = [(labels - 0.5) * 1.5 + rng.normal(size=N) for _ in range(2)]
    # the second is as good and far too sure: without calibration it alone would decide
    logits[1] = logits[1] * 50
    test = split == "test"
    alone = [roc_auc_score(labels[test], x[test]) for x in logits]
    averaged = average([member(labels, x, split=split) for x in logits])
    scores = np.stack(averaged.predictions["score"].to_list())[test, 1]
    assert roc_auc_score(labels[test], scores) > max(alone) + 0.01


def test_held_out_images_are_changed_as_validation_images_teach(
    rng: np.random.Generator, labels: np.ndarray, split: np.ndarray
) -> None:
    logits = [(labels - 0.5) * k + rng.normal(size=N) for k in (1, 2)]
    averaged = average([member(labels, x, split=split) for x in logits])
    folds = {"repeat": np.repeat([0, 1], N // 2), "fold": np.arange(N) % 5}
    tables = [member(labels, x, **folds) for x in logits]
    held_out = average_held_out(tables, averaged.scalings)
    expected = np.stack(averaged.predictions["score"].to_list())
    assert np.stack(held_out["score"].to_list()) == pytest.approx(expected)
    assert held_out[["repeat", "fold"]].equals(tables[0][["repeat", "fold"]])


def test_members_of_other_images_are_refused(labels: np.ndarray, split: np.ndarray) -> None:
    one = member(labels, labels * 1.0, split=split)
    with pytest.raises(ValueError, match="other image_id"):
        average([one, one.iloc[::-1]])
