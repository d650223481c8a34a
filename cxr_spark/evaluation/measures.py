"""Every measure of one configuration and seed, from its rows of the predictions table alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import average_precision_score, confusion_matrix

from cxr_spark.evaluation.auc import keras_auc, macro_auc, roc_auc
from cxr_spark.evaluation.bootstrap import (
    Resamples,
    draw_patients,
    drawn_interval,
    macro_aucs,
    percentile_interval,
    weighted_aucs,
)
from cxr_spark.evaluation.calibration import (
    brier_score,
    expected_calibration_error,
    fit_scaling,
)
from cxr_spark.evaluation.intervals import auc_interval
from cxr_spark.evaluation.rules import Rules
from cxr_spark.evaluation.thresholds import choose_threshold, operate, wilson

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Scored:
    """The images of one split with their scores, by ``image_id``.

    Attributes:
        image_id: str of shape (n_images,).
        labels: int64 of shape (n_images,).
        scores: float64 of shape (n_images, n_classes).
        groups: of shape (n_images,), the patient of each image; an image that tells none is one.
    """

    image_id: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    groups: npt.NDArray[Any]

    @property
    def n_patients(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.groups))

    @property
    def fewest_patients(self) -> int:
        """Patients of the class that has fewest of them."""
        return min(len(np.unique(self.groups[self.labels == c])) for c in np.unique(self.labels))


def scored(predictions: pd.DataFrame, split: str) -> Scored:
    """Return the images of a split from the predictions of one configuration and seed."""
    rows = predictions[predictions["split"] == split].sort_values("image_id", kind="stable")
    of_nobody = "image " + rows["image_id"].astype(str)
    patients = ("patient " + rows["patient_id"].astype(str)).where(
        rows["patient_id"].notna(), of_nobody
    )
    return Scored(
        rows["image_id"].to_numpy(str),
        rows["label"].to_numpy(np.int64),
        np.stack(rows["score"].to_list()).astype(np.float64),
        patients.to_numpy(str),
    )


def draw_resamples(test: Scored, rules: Rules) -> Resamples:
    """Draw the patients of test images as often as rules say."""
    return draw_patients(test.labels, test.groups, n_resamples=rules.n_resamples)


def calibrated(val: Scored, test: Scored, rules: Rules) -> npt.NDArray[np.float64]:
    """Return the scores of test images, scaled as validation images teach where rules say so."""
    if rules.calibration is None:
        return test.scores
    return fit_scaling(val.labels, val.scores, rules.calibration).apply(test.scores)


def measure(
    predictions: pd.DataFrame, rules: Rules, classes: Sequence[str], resamples: Resamples | None
) -> dict[str, Any]:
    """Return the measures of one configuration and seed.

    Args:
        predictions: its rows, in the columns of the predictions table.
        rules: how measures are made.
        classes: the names of the task's classes, by label.
        resamples: of the test images; None draws them.

    Returns:
        Numbers by the names of ``results.RESULT_COLUMNS``, and under ``classes`` a row for each
        class: ROC AUC against the rest and sensitivity, with their intervals; under ``confusion``
        how many test images of each class (rows) are called which (columns).
    """
    n_images = predictions["split"].value_counts()
    val, test = scored(predictions, "val"), scored(predictions, "test")
    resamples = resamples or draw_resamples(test, rules)
    scores = calibrated(val, test, rules)
    row: dict[str, Any] = {
        **{f"n_{split}": int(n_images.get(split, 0)) for split in SPLITS},
        "n_test_patients": test.n_patients,
        "test_keras_auc": keras_auc(test.labels, test.scores),
        "test_brier": brier_score(test.labels, scores),
        "test_ece": expected_calibration_error(test.labels, scores),
    }
    if rules.positive is None:
        called = test.scores.argmax(axis=1)
        row |= _of_many(val, test, resamples)
    else:
        threshold, two = _of_two(val, test, rules.positive, rules.threshold, resamples)
        positive = test.scores[:, rules.positive] >= threshold
        called = np.where(positive, rules.positive, 1 - rules.positive)
        row |= two
    row["classes"] = _of_classes(test, called, classes)
    row["confusion"] = confusion_matrix(test.labels, called, labels=range(len(classes))).tolist()
    return row


def _of_two(
    val: Scored, test: Scored, positive: int, rule: str, resamples: Resamples
) -> tuple[float, dict[str, Any]]:
    """Return the threshold, and the measures that a two-class task has."""
    truth, score = test.labels == positive, test.scores[:, positive]
    interval = auc_interval(truth, [score], test.groups)
    drawn = percentile_interval(interval.auc, weighted_aucs(truth, score, resamples.weights))
    threshold = choose_threshold(val.labels == positive, val.scores[:, positive], rule)
    found, at_half = operate(truth, score, threshold), operate(truth, score, 0.5)
    row: dict[str, Any] = {
        "val_auc": roc_auc(val.labels == positive, val.scores[:, positive]),
        "test_auc": interval.auc,
        "test_auc_low": interval.low,
        "test_auc_high": interval.high,
        "test_auc_bootstrap_low": drawn.low,
        "test_auc_bootstrap_high": drawn.high,
        "test_average_precision": float(average_precision_score(truth, score)),
        "threshold": threshold,
        "test_f1": found.f1,
        "test_balanced_accuracy": found.balanced_accuracy,
    }
    for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv"):
        share = getattr(found, name)
        row[f"test_{name}"] = share.value
        row[f"test_{name}_low"], row[f"test_{name}_high"] = share.low, share.high
        row[f"test_{name}_at_half"] = getattr(at_half, name).value
    row["test_f1_at_half"] = at_half.f1
    row["test_balanced_accuracy_at_half"] = at_half.balanced_accuracy
    return threshold, row


def _of_many(val: Scored, test: Scored, resamples: Resamples) -> dict[str, Any]:
    """Return the measures of a task of three classes or more; a call is the highest score."""
    value = macro_auc(test.labels, test.scores)
    resampled = macro_aucs(test.labels, test.scores, resamples.weights)
    interval = drawn_interval(value, resampled, test.fewest_patients)
    drawn = percentile_interval(value, resampled)
    right = test.scores.argmax(axis=1) == test.labels
    accuracy = wilson(right)
    of_classes = [right[test.labels == c].mean() for c in range(test.scores.shape[1])]
    return {
        "val_auc": macro_auc(val.labels, val.scores),
        "test_auc": value,
        "test_auc_low": interval.low,
        "test_auc_high": interval.high,
        "test_auc_bootstrap_low": drawn.low,
        "test_auc_bootstrap_high": drawn.high,
        "test_average_precision": float(
            np.mean(
                [
                    average_precision_score(test.labels == c, test.scores[:, c])
                    for c in range(test.scores.shape[1])
                ]
            )
        ),
        "test_accuracy": accuracy.value,
        "test_accuracy_low": accuracy.low,
        "test_accuracy_high": accuracy.high,
        "test_balanced_accuracy": float(np.mean(of_classes)),
    }


def _of_classes(
    test: Scored, called: npt.NDArray[np.int64], classes: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for c, name in enumerate(classes):
        auc = auc_interval(test.labels == c, [test.scores[:, c]], test.groups)
        share = wilson(called[test.labels == c] == c)
        rows.append(
            {
                "class": name, "auc": auc.auc, "auc_low": auc.low, "auc_high": auc.high,
                "sensitivity": share.value, "sensitivity_low": share.low,
                "sensitivity_high": share.high,
            }
        )  # fmt: skip
    return rows
