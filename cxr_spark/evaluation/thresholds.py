"""The threshold of a two-class score, chosen on validation images and used on test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve


@dataclass(frozen=True)
class Operating:
    """Shares at one threshold: of all images judged rightly, of positives and negatives found."""

    accuracy: float
    sensitivity: float
    specificity: float


def youden_threshold(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> float:
    """Return the threshold of the largest sensitivity + specificity - 1; the highest of several.

    It lies halfway between the lowest score that it calls positive and the highest that it does
    not, so that a rounding of scores changes nothing.

    Source: Youden, Cancer 3 (1950).
    """
    score = np.asarray(y_score, np.float64)
    false_positive, true_positive, thresholds = roc_curve(y_true, score, drop_intermediate=False)
    lowest = thresholds[int(np.argmax(true_positive - false_positive))]
    below = score[score < lowest]
    if not np.isfinite(lowest) or not len(below):
        return float(min(lowest, score.max() + 1e-9))
    return float((lowest + below.max()) / 2)


def operate(y_true: npt.ArrayLike, y_score: npt.ArrayLike, threshold: float) -> Operating:
    """Return what a threshold gives: an image is called positive from ``threshold`` on."""
    truth = np.asarray(y_true, bool)
    called = np.asarray(y_score) >= threshold
    return Operating(
        accuracy=float(np.mean(called == truth)),
        sensitivity=float(np.mean(called[truth])),
        specificity=float(np.mean(~called[~truth])),
    )
