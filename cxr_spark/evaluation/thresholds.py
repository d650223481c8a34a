"""The threshold of a two-class score, chosen on validation images and used on test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.metrics import roc_curve

from cxr_spark.evaluation.intervals import CONFIDENCE
from cxr_spark.evaluation.rules import THRESHOLD_RULE


@dataclass(frozen=True)
class Proportion:
    """A share of images, with its interval; NaN throughout where there is no image to count."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Operating:
    """What one threshold gives on some images.

    Attributes:
        accuracy: of all images, the share judged rightly.
        sensitivity, specificity: of positives and of negatives, the share judged rightly.
        ppv, npv: of those called positive and of those called negative, the same share; they hold
            for images with as large a share of positives as these.
        f1: the harmonic mean of sensitivity and ppv.
        balanced_accuracy: the mean of sensitivity and specificity.
    """

    accuracy: Proportion
    sensitivity: Proportion
    specificity: Proportion
    ppv: Proportion
    npv: Proportion
    f1: float
    balanced_accuracy: float


def choose_threshold(y_true: npt.ArrayLike, y_score: npt.ArrayLike, rule: str = "youden") -> float:
    """Return the threshold that a rule chooses; of several as good the highest.

    It lies halfway between the lowest score that it calls positive and the highest that it does
    not, so that a rounding of scores changes nothing.

    Args:
        y_true: bool of shape (n_images,), both classes present.
        y_score: float of shape (n_images,).
        rule: 'youden' for the largest sensitivity + specificity - 1; 'sensitivity=0.95' for the
            largest specificity of those thresholds whose sensitivity is at least as required;
            'specificity=0.9' the other way round.

    Raises:
        ValueError: it is no such rule.

    Source: Youden, Cancer 3 (1950).
    """
    match = THRESHOLD_RULE.fullmatch(rule)
    if match is None:
        raise ValueError(
            f"expected youden, sensitivity=SHARE or specificity=SHARE, received {rule!r}"
        )
    score = np.asarray(y_score, np.float64)
    false_positive, sensitivity, thresholds = roc_curve(y_true, score, drop_intermediate=False)
    specificity = 1 - false_positive
    # Rounded, since sums of shares that are the same number may differ in their last digit.
    worth = np.round(sensitivity + specificity, 12)
    if match[1] is not None:
        required, other = (
            (sensitivity, specificity) if match[1] == "sensitivity" else (specificity, sensitivity)
        )
        # Shares are quotients of counts, which the required share is not.
        worth = np.where(required >= float(match[2]) - 1e-12, other, -1.0)
    lowest = thresholds[int(np.argmax(worth))]
    below = score[score < lowest]
    if not np.isfinite(lowest) or not len(below):
        return float(min(lowest, score.max() + 1e-9))
    return float((lowest + below.max()) / 2)


def operate(y_true: npt.ArrayLike, y_score: npt.ArrayLike, threshold: float) -> Operating:
    """Return what a threshold gives: an image is called positive from ``threshold`` on.

    Args:
        y_true: bool of shape (n_images,).
        y_score: float of shape (n_images,).
        threshold: of the score.
    """
    truth = np.asarray(y_true, bool)
    called = np.asarray(y_score) >= threshold
    right = called == truth
    sensitivity, specificity = wilson(right[truth]), wilson(right[~truth])
    n_wrong = np.count_nonzero(~right)
    n_found = np.count_nonzero(called & truth)
    return Operating(
        accuracy=wilson(right),
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=wilson(right[called]),
        npv=wilson(right[~called]),
        f1=2 * n_found / (2 * n_found + n_wrong) if n_found + n_wrong else float("nan"),
        balanced_accuracy=(sensitivity.value + specificity.value) / 2,
    )


def wilson(hits: npt.NDArray[np.bool_], confidence: float = CONFIDENCE) -> Proportion:
    """Return the share of hits with Wilson's score interval, which takes images for independent.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    n = len(hits)
    if not n:
        return Proportion(float("nan"), float("nan"), float("nan"))
    z = float(norm.ppf((1 + confidence) / 2))
    share = float(np.mean(hits))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Proportion(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))
