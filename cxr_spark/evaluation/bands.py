"""ROC and precision-recall curves with pointwise bands, by drawing patients again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_spark.evaluation.bootstrap import Resamples
from cxr_spark.evaluation.intervals import CONFIDENCE

N_RESAMPLES = 1000
PLACES = np.linspace(0, 1, 201)

# Of images by falling score, counts of drawn positives and negatives up to each distinct score.
_Curve = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]


class Band(NamedTuple):
    """A curve over ``PLACES``, and where it lies in the middle 95 % of the resamples at each.

    Attributes:
        x, y, low, high: float64 of shape (n_places,).
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def roc_band(y_true: npt.ArrayLike, y_score: npt.ArrayLike, resamples: Resamples) -> Band:
    """Return sensitivity by 1 - specificity; where it jumps, the highest there.

    Args:
        y_true: bool of shape (n_images,), both classes present in every resample.
        y_score: float of shape (n_images,), higher for positive.
        resamples: how often each image is drawn.

    Source: Fawcett, Pattern Recognition Letters 27 (2006), vertical averaging of ROC curves.
    """
    return _band(y_true, y_score, resamples, _sensitivity)


def precision_recall_band(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, resamples: Resamples
) -> Band:
    """Return precision by recall: that of the highest threshold that finds so many positives.

    Args:
        y_true, y_score, resamples: as for ``roc_band``.
    """
    return _band(y_true, y_score, resamples, _precision)


def _band(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, resamples: Resamples, curve: _Curve
) -> Band:
    score = np.asarray(y_score, np.float64)
    order = np.argsort(-score, kind="stable")
    truth = np.asarray(y_true, bool)[order]
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf))

    def of(weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        drawn = weights[order].astype(np.float64)
        return curve(np.cumsum(drawn * truth)[ends], np.cumsum(drawn * ~truth)[ends])

    drawn = np.stack([of(weights) for weights in resamples.weights[:N_RESAMPLES]])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return Band(PLACES, of(np.ones(len(order))), low, high)


def _sensitivity(
    positives: npt.NDArray[np.float64], negatives: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    false_positive = np.concatenate([[0.0], negatives / negatives[-1]])
    true_positive = np.concatenate([[0.0], positives / positives[-1]])
    return np.interp(PLACES, false_positive, true_positive)


def _precision(
    positives: npt.NDArray[np.float64], negatives: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    # At recall 0 the first that finds any; shares are quotients of counts, which PLACES are not.
    wanted = np.maximum(PLACES * positives[-1] - 1e-9, 1e-9)
    at = np.searchsorted(positives, wanted)
    precision: npt.NDArray[np.float64] = positives[at] / (positives[at] + negatives[at])
    return precision
