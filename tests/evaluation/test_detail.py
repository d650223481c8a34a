from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr_spark.evaluation.detail import look_closely
from cxr_spark.evaluation.rules import Rules
from tests.evaluation.test_results import make_predictions


def make_table(scores: list[list[float]], labels: list[int]) -> pd.DataFrame:
    """Return test images of given scores, and validation images of the same."""
    n = len(labels)
    one = {"label": labels, "score": scores, "patient_id": [None] * n}
    names = [f"i{k}" for k in range(n)]
    return pd.concat(
        [pd.DataFrame({**one, "split": s, "image_id": names}) for s in ("val", "test")]
    )


def test_the_worst_errors_come_first() -> None:
    scores = [[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.05, 0.95], [0.7, 0.3]]
    table = make_table(scores, [0, 1, 0, 1, 0])
    wrong = look_closely(table, Rules(1), 0.5).wrong
    assert wrong["image_id"].tolist() == ["i0", "i1", "i2"]
    assert wrong["score"].tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert wrong["called"].tolist() == [1, 0, 1]
    assert look_closely(table, Rules(1), 0.5, n_wrong=1).wrong["image_id"].tolist() == ["i0"]
    # by another threshold two of them are called rightly
    assert look_closely(table, Rules(1), 0.93).wrong["image_id"].tolist() == ["i1"]


def test_errors_on_both_sides_of_a_high_threshold_count_by_their_distance_from_it() -> None:
    scores = [[0.02, 0.98], [0.9, 0.1], [0.001, 0.999], [0.04, 0.96]]
    wrong = look_closely(make_table(scores, [0, 1, 0, 1]), Rules(1), 0.97).wrong
    assert wrong["image_id"].tolist() == ["i1", "i2", "i0", "i3"]
    assert wrong["score"].tolist() == pytest.approx([0.9, 0.999, 0.98, 0.04])
    assert wrong.columns.tolist() == ["image_id", "label", "called", "score"]


def test_three_classes_are_called_by_the_highest_score() -> None:
    table = make_table([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], [0, 2, 2])
    found = look_closely(table, Rules(None), None)
    assert found.wrong["image_id"].tolist() == ["i1"]
    assert [curves.label for curves in found.curves] == [0, 2]  # no image is of class 1


def test_three_classes_have_curves_each_against_the_rest(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 300)
    scores = rng.dirichlet([1, 1, 1], 300) + np.eye(3)[labels] * 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    found = look_closely(make_table(scores.tolist(), labels.tolist()), Rules(None), None)
    assert [curves.label for curves in found.curves] == [0, 1, 2]
    for label, roc, precision_recall in found.curves:
        area = roc_auc_score(labels == label, scores[:, label])
        assert np.trapz(roc.y, roc.x) == pytest.approx(area, abs=0.02)
        assert (roc.low <= roc.y + 1e-9).all()
        assert (roc.y <= roc.high + 1e-9).all()
        area = average_precision_score(labels == label, scores[:, label])
        assert np.mean(precision_recall.y) == pytest.approx(area, abs=0.02)


def test_curves_hold_the_areas_nearly(rng: np.random.Generator) -> None:
    table = make_predictions(rng)
    found = look_closely(table, Rules(1), 0.5)
    test = table[table["split"] == "test"]
    truth, score = test["label"], np.stack(test["score"])[:, 1]
    ((label, roc, precision_recall),) = found.curves
    assert label == 1
    assert np.trapz(roc.y, roc.x) == pytest.approx(roc_auc_score(truth, score), abs=0.02)
    assert np.mean(precision_recall.y) == pytest.approx(
        average_precision_score(truth, score), abs=0.01
    )


def test_images_of_a_patient_are_drawn_together(rng: np.random.Generator) -> None:
    """Where a patient's images are alike, bands are wider than of as many patients as images."""
    table = make_predictions(rng)
    patients = [f"{label}-{k % 12}" for k, label in enumerate(table["label"])]
    of_few = table.assign(patient_id=patients)
    table["score"] = of_few.groupby(["split", "patient_id"])["score"].transform("first")
    of_few["score"] = table["score"]
    width = []
    for one in (table.assign(patient_id=None), of_few):
        ((_, roc, _),) = look_closely(one, Rules(1), 0.5).curves
        width.append(np.mean(roc.high - roc.low))
    assert 0 < width[0] < width[1]


def test_reliability_is_of_scaled_scores(rng: np.random.Generator) -> None:
    table = make_predictions(rng)
    plain = look_closely(table, Rules(1), 0.5).reliability
    scaled = look_closely(table, Rules(1, calibration="platt"), 0.5).reliability
    assert plain.n.sum() == scaled.n.sum() == 40
    assert plain.score.tolist() != scaled.score.tolist()
