"""Intervals of any mean of ROC AUCs by drawing patients again, for what DeLong has no formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.evaluation.intervals import (
    CONFIDENCE,
    Difference,
    Interval,
    difference_from,
    interval_from,
    unit_of,
)

VALUES_AT_ONCE = 2**21  # of weights, so that memory does not grow with the resamples


@dataclass(frozen=True)
class Resamples:
    """How often each image is drawn in each resample: the same for all that are compared.

    Attributes:
        weights: uint16 of shape (n_resamples, n_images).
    """

    weights: npt.NDArray[np.uint16]


def draw_patients(
    labels: npt.NDArray[np.int64],
    groups: npt.ArrayLike | None = None,
    *,
    n_resamples: int,
    seed: int = 0,
) -> Resamples:
    """Draw as many patients as there are, with replacement; an image goes with its patient.

    A draw that lacks a class is drawn again, since it has no AUC.

    Args:
        labels: int of shape (n_images,).
        groups: the patient of each image, or None where every image is a patient of its own.
        n_resamples: how many times.
        seed: of the draws.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), chapter 3.8.
    """
    unit = unit_of(groups, len(labels))
    n_units = int(unit.max()) + 1
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    present = one_hot.any(axis=0)
    rng = np.random.default_rng(seed)
    weights = np.empty((n_resamples, len(labels)), np.uint16)
    filled = 0
    while filled < n_resamples:
        drawn = np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)[unit]
        if (drawn @ one_hot > 0)[present].all():
            weights[filled] = drawn
            filled += 1
    return Resamples(weights)


def weighted_aucs(
    y_true: npt.ArrayLike, y_score: npt.ArrayLike, weights: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Return the ROC AUC under each row of weights, shape (n_resamples,); a tie counts half.

    Args:
        y_true: bool of shape (n_images,).
        y_score: float of shape (n_images,).
        weights: of shape (n_resamples, n_images), some weight on either class.

    Raises:
        ValueError: only one class is present, or drawn.
    """
    score = np.asarray(y_score, np.float64)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    truth = np.asarray(y_true, bool)[order]
    n_at_once = max(1, VALUES_AT_ONCE // len(order))
    aucs = np.empty(len(weights))
    for start in range(0, len(weights), n_at_once):
        ordered = weights[start : start + n_at_once, order].astype(np.float64)
        positive = np.add.reduceat(ordered * truth, starts, axis=1)
        negative = np.add.reduceat(ordered * ~truth, starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        total = positive.sum(axis=1) * negative.sum(axis=1)
        if not total.all():
            raise ValueError("expected both classes in y_true in every resample, received one")
        aucs[start : start + n_at_once] = np.sum(positive * below, axis=1) / total
    return aucs


def macro_aucs(
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[Any],
) -> npt.NDArray[np.float64]:
    """Return the mean over classes of the AUC of one against the rest, under each row of weights.

    Args:
        labels: int of shape (n_images,), every class present.
        scores: float of shape (n_images, n_classes).
        weights: as for ``weighted_aucs``.
    """
    classes = range(scores.shape[1])
    aucs: npt.NDArray[np.float64] = np.mean(
        [weighted_aucs(labels == c, scores[:, c], weights) for c in classes], axis=0
    )
    return aucs


def percentile_interval(
    value: float, resampled: npt.NDArray[np.float64], confidence: float = CONFIDENCE
) -> Interval:
    """Return a value with the percentiles of its resamples; NaN where they do not vary."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    if high - low < 1e-12:  # what rounding leaves
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, float(low), float(high))


def drawn_variance(resampled: npt.NDArray[np.float64], n_units: int) -> float:
    """Return the variance over resamples; NaN where a class has a single patient, always drawn."""
    return float(np.var(resampled, ddof=1)) if n_units > 1 else float("nan")


def drawn_interval(
    value: float, resampled: npt.NDArray[np.float64], n_units: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of a mean of AUCs by its variance over resamples, on the logit scale.

    It holds the value, stays within 0 and 1, and ends as a two-class AUC's does where nothing
    varies; see ``interval_from``.

    Args:
        value: on all images.
        resampled: float64 of shape (n_resamples,).
        n_units: patients of the class that has fewest.
        confidence: of the two-sided interval.
    """
    return interval_from(value, drawn_variance(resampled, n_units), n_units, confidence)


def drawn_difference(
    value: float,
    other: float,
    resampled: npt.NDArray[np.float64],
    n_units: int,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Return the difference of two means of AUCs, tested by its variance over the same resamples.

    By the normal distribution: a count of resamples could not be smaller than their number allows,
    which a correction for many tests asks for, and so the interval holds 0 where p is above 0.05.

    Args:
        value, other: the two on all images.
        resampled: float64 of shape (n_resamples,), their difference in each.
        n_units: patients of the class that has fewest.
        confidence: of the two-sided interval.
    """
    variance = drawn_variance(resampled, n_units)
    return difference_from(value, other, variance, n_units, confidence)


def mean_over_seeds(resampled: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return the mean of several seeds' values in each resample."""
    mean: npt.NDArray[np.float64] = np.mean(resampled, axis=0)
    return mean
