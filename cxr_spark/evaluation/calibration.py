"""Whether scores are the shares that they claim, and how to make them so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

N_BINS = 15
_TINY = 1e-12  # what a score of 0 is taken for, which has no logarithm


@dataclass(frozen=True)
class Reliability:
    """Images in bins of their score.

    Attributes:
        n: images of each bin that holds any, int64 of shape (n_bins,).
        score: their mean score, float64 of the same shape.
        share: the share of them that are positive, float64 of the same shape.
    """

    n: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """A change of scores: the softmax of ``slope`` times the logarithms of scores plus ``offset``.

    Attributes:
        slope: 1 / temperature.
        offset: float64 of shape (n_classes,), all 0 for temperature scaling.
    """

    slope: float
    offset: npt.NDArray[np.float64]

    def apply(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return changed scores of shape (n_images, n_classes), rows adding to 1."""
        changed: npt.NDArray[np.float64] = softmax(self.slope * _logs(scores) + self.offset, axis=1)
        return changed


def brier_score(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> float:
    """Return the mean over images of the squared distance of scores from what is true.

    For two classes it is that of the positive score alone, as usual, which lies within 0 and 1; for
    more it is the sum over classes, within 0 and 2.

    Args:
        labels: int of shape (n_images,).
        scores: float of shape (n_images, n_classes), rows adding to 1.

    Source: Brier, Monthly Weather Review 78 (1950).
    """
    n_classes = scores.shape[1]
    squares = np.square(scores - np.eye(n_classes)[labels]).sum(axis=1)
    return float(np.mean(squares) / (2 if n_classes == 2 else 1))


def reliability(y_true: npt.ArrayLike, y_score: npt.ArrayLike, n_bins: int = N_BINS) -> Reliability:
    """Return how often images of about one score are positive, in bins of equal width.

    Args:
        y_true: bool of shape (n_images,).
        y_score: float of shape (n_images,), within 0 and 1.
        n_bins: how many bins between 0 and 1; those without an image are left out.
    """
    score = np.asarray(y_score, np.float64)
    place = np.minimum((score * n_bins).astype(int), n_bins - 1)
    n = np.bincount(place, minlength=n_bins)
    held = n > 0
    sums = [np.bincount(place, w, n_bins)[held] for w in (score, np.asarray(y_true, np.float64))]
    return Reliability(n[held], sums[0] / n[held], sums[1] / n[held])


def expected_calibration_error(
    labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], n_bins: int = N_BINS
) -> float:
    """Return the mean distance between the highest score and the share of right calls, over bins.

    Args:
        labels: int of shape (n_images,).
        scores: float of shape (n_images, n_classes), rows adding to 1.
        n_bins: of the highest score, of equal width between 0 and 1.

    Source: Guo, Pleiss, Sun and Weinberger, International Conference on Machine Learning (2017).
    """
    found = reliability(scores.argmax(axis=1) == labels, scores.max(axis=1), n_bins)
    return float(np.sum(found.n * np.abs(found.share - found.score)) / found.n.sum())


def fit_scaling(
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    method: Literal["temperature", "platt"] = "temperature",
) -> Scaling:
    """Fit a change of scores by the likelihood of validation images.

    Args:
        labels: int of shape (n_images,).
        scores: float of shape (n_images, n_classes), rows adding to 1.
        method: 'temperature' fits one number, and changes no call; 'platt' also an offset of each
            class.

    Sources: Guo et al. (2017); Platt, Advances in Large Margin Classifiers (1999), here on the
    logarithms of softmax scores, without his prior on the labels.
    """
    logs, n_classes = _logs(scores), scores.shape[1]
    rows = np.arange(len(labels))

    def loss(slope: float, offset: npt.NDArray[np.float64]) -> float:
        return -float(np.mean(log_softmax(slope * logs + offset, axis=1)[rows, labels]))

    none = np.zeros(n_classes)
    # On images that it parts without an error a slope would grow without end.
    bounds = (np.log(0.01), np.log(100.0))
    best = minimize_scalar(
        lambda log_slope: loss(float(np.exp(log_slope)), none), bounds=bounds, method="bounded"
    )
    if method == "temperature":
        return Scaling(float(np.exp(best.x)), none)

    def unpack(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        return float(np.exp(x[0])), np.concatenate([[0.0], x[1:]])

    start = np.concatenate([[best.x], np.zeros(n_classes - 1)])
    limits = [bounds, *[(-50.0, 50.0)] * (n_classes - 1)]
    fitted = minimize(lambda x: loss(*unpack(x)), start, method="L-BFGS-B", bounds=limits)
    return Scaling(*unpack(fitted.x))


def _logs(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logs: npt.NDArray[np.float64] = np.log(np.maximum(scores, _TINY))
    return logs
