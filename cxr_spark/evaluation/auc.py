"""Areas under the ROC curve with DeLong's intervals, and the seed study's metric beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A ROC AUC with its confidence interval."""

    auc: float
    low: float
    high: float


def placement_values(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how each image is placed among the images of the other class.

    Args:
        y_true: bool of shape (n_images,), whether the image is positive.
        y_score: float of shape (n_images,), higher for positive.

    Returns:
        For each positive the share of negatives that score lower, shape (n_positive,), and for each
        negative the share of positives that score higher, shape (n_negative,); a tie counts half.
        The mean of either is the ROC AUC.

    Raises:
        ValueError: only one class is present.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), in the fast form by ranks of
    Sun and Xu, IEEE Signal Processing Letters 21 (2014).
    """
    truth = np.asarray(y_true, bool)
    score = np.asarray(y_score, np.float64)
    positive, negative = score[truth], score[~truth]
    if not len(positive) or not len(negative):
        raise ValueError(
            f"expected both classes in y_true, received {len(positive)} positive "
            f"and {len(negative)} negative"
        )
    ranks = rankdata(np.concatenate([positive, negative]))
    of_positive = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    of_negative = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return of_positive, of_negative


def delong_interval(
    y_true: npt.ArrayLike, y_scores: Sequence[npt.ArrayLike], confidence: float = CONFIDENCE
) -> Interval:
    """Return the mean ROC AUC of one or several score vectors of the same images, and its interval.

    Several score vectors, as of several seeds, are joined by the mean of their placement values:
    the interval is that of their mean AUC over test images, and holds no spread over seeds. It is
    made on the logit scale, so that it stays within 0 and 1. Where the variance is 0, DeLong says
    nothing. If every placement is 1, or every one 0, the interval ends where the exact binomial one
    of the smaller class does; if all scores are equal, its ends are NaN.

    Args:
        y_true: bool of shape (n_images,).
        y_scores: float of shape (n_images,) each.
        confidence: of the two-sided interval.

    Raises:
        ValueError: only one class is present.
    """
    placements = [placement_values(y_true, score) for score in y_scores]
    of_positive = np.mean([positive for positive, _ in placements], axis=0)
    of_negative = np.mean([negative for _, negative in placements], axis=0)
    auc = float(np.clip(of_positive.mean(), 0, 1))
    if auc in (0.0, 1.0):
        edge = float(((1 - confidence) / 2) ** (1 / min(len(of_positive), len(of_negative))))
        return Interval(1.0, edge, 1.0) if auc else Interval(0.0, 0.0, 1 - edge)
    variance = sum(
        float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else auc * (1 - auc)
        for values in (of_positive, of_negative)
    )
    if variance == 0:
        return Interval(auc, float("nan"), float("nan"))
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance) / (auc * (1 - auc))
    return Interval(auc, float(expit(logit(auc) - half)), float(expit(logit(auc) + half)))


def macro_auc(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> float:
    """Return the mean over classes of the ROC AUC of one against the rest.

    Args:
        labels: int of shape (n_images,), every class present.
        scores: float of shape (n_images, n_classes).
    """
    return float(
        np.mean([roc_auc_score(labels == c, scores[:, c]) for c in range(scores.shape[1])])
    )


def keras_auc(
    labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], n_thresholds: int = 200
) -> float:
    """Return ``keras.metrics.AUC`` of softmax scores and one-hot labels: the seed study's metric.

    It is a micro average: every image counts once for each class, over a grid of thresholds. On the
    same scores it differs from the ROC AUC of the positive class; it stands here to compare.

    Args:
        labels: int of shape (n_images,).
        scores: float of shape (n_images, n_classes), rows adding to 1.
        n_thresholds: points of the grid; 200 is Keras' default.
    """
    truth = np.eye(scores.shape[1], dtype=bool)[labels].ravel()
    flat = np.clip(np.asarray(scores, np.float32).ravel(), 0, 1)
    # Keras puts a score on the grid by float32 arithmetic: it lies above the thresholds of lower
    # index.
    bucket = np.maximum(np.ceil(flat * np.float32(n_thresholds - 1)).astype(int) - 1, 0)
    rates = []
    for of_class in (truth, ~truth):
        counts = np.bincount(bucket[of_class], minlength=n_thresholds)
        rates.append(np.cumsum(counts[::-1])[::-1] / max(of_class.sum(), 1))
    true_positive, false_positive = rates
    heights = (true_positive[:-1] + true_positive[1:]) / 2
    return float(np.sum((false_positive[:-1] - false_positive[1:]) * heights))
