"""Areas under the ROC curve, and the seed study's metric beside them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata


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
        ValueError: only one class is present, or a score is NaN.

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
    if n_nan := np.count_nonzero(np.isnan(score)):
        raise ValueError(f"expected numbers in y_score, received {n_nan} NaN")
    ranks = rankdata(np.concatenate([positive, negative]))
    of_positive = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    of_negative = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return of_positive, of_negative


def roc_auc(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> float:
    """Return the ROC AUC; a tie counts half.

    Raises:
        ValueError: only one class is present, which has none.
    """
    return float(np.mean(placement_values(y_true, y_score)[0]))


def macro_auc(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> float:
    """Return the mean over classes of the ROC AUC of one against the rest.

    Args:
        labels: int of shape (n_images,), every class present.
        scores: float of shape (n_images, n_classes).

    Raises:
        ValueError: a class is missing.
    """
    return float(np.mean([roc_auc(labels == c, scores[:, c]) for c in range(scores.shape[1])]))


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
