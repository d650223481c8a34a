"""How sure a ROC AUC is: intervals, and tests of pairs, where images are of patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import norm

from cxr_spark.evaluation.auc import placement_values

CONFIDENCE = 0.95
# Variances up to this are what rounding leaves where there is none: the square of an AUC's last
# digit is 1e-32, and a single pair of 10^10 that changes its order makes 1e-21.
ROUNDING = 1e-28


@dataclass(frozen=True)
class Interval:
    """A ROC AUC with its confidence interval."""

    auc: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The ROC AUCs of some classifiers on the same images, and how they vary with the images.

    Attributes:
        auc: float64 of shape (n_classifiers,).
        covariance: float64 of shape (n_classifiers, n_classifiers), of the AUCs.
        n_units: of the class that has fewer of them: its patients, or images where they tell none.
    """

    auc: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]
    n_units: int


@dataclass(frozen=True)
class Difference:
    """The ROC AUC of one classifier less that of another on the same images.

    Attributes:
        difference, low, high: with its confidence interval.
        p_value: two-sided, of no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float


def estimate_aucs(
    y_true: npt.ArrayLike,
    y_scores: Sequence[Sequence[npt.ArrayLike]],
    groups: npt.ArrayLike | None = None,
) -> Estimate:
    """Return the ROC AUCs of classifiers with their covariance over patients.

    Args:
        y_true: bool of shape (n_images,), whether the image is positive.
        y_scores: of each classifier one or several score vectors of shape (n_images,), as of
            several seeds. Those of one classifier are joined by the mean of their placement values:
            its AUC is the mean of theirs, and its variance that over images, without any over
            seeds.
        groups: of shape (n_images,), the patient of each image, of any kind that can be compared;
            None takes every image for a patient of its own.

    Raises:
        ValueError: only one class is present.

    Source: Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997);
    where every patient has one image it is DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988).
    """
    truth = np.asarray(y_true, bool)
    unit = unit_of(groups, len(truth))
    n_units = int(unit.max()) + 1
    columns = []
    for of_classifier in y_scores:
        placements = [placement_values(truth, score) for score in of_classifier]
        columns.append([np.mean(side, axis=0) for side in zip(*placements, strict=True)])
    of_positive, of_negative = (np.stack(side, axis=1) for side in zip(*columns, strict=True))
    auc = np.clip(of_positive.mean(axis=0), 0, 1)
    sums, counts = [], []
    for values, units in ((of_positive, unit[truth]), (of_negative, unit[~truth])):
        total = np.zeros((n_units, len(auc)))
        np.add.at(total, units, values - auc)
        sums.append(total / len(values))
        counts.append(len(np.unique(units)))
    positive, negative = sums
    both = np.sum(
        (np.bincount(unit[truth], minlength=n_units) > 0)
        & (np.bincount(unit[~truth], minlength=n_units) > 0)
    )
    covariance = _corrected(counts[0]) * positive.T @ positive
    covariance += _corrected(counts[1]) * negative.T @ negative
    if both:
        crossed = positive.T @ negative
        covariance += _corrected(n_units) * (crossed + crossed.T)
    return Estimate(auc, covariance, min(counts))


def unit_of(groups: npt.ArrayLike | None, n_images: int) -> npt.NDArray[np.int64]:
    """Return the patient of each image as a number from 0; None makes each image one of its own."""
    if groups is None:
        return np.arange(n_images)
    numbers: npt.NDArray[np.int64] = np.unique(groups, return_inverse=True)[1]
    return numbers


def _corrected(n: int) -> float:
    """Bessel's correction of a sum over n units; a single unit tells no variance."""
    return n / (n - 1) if n > 1 else float("nan")


def auc_interval(
    y_true: npt.ArrayLike,
    y_scores: Sequence[npt.ArrayLike],
    groups: npt.ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the mean ROC AUC of one or several score vectors of the same images, and its interval.

    Args:
        y_true: bool of shape (n_images,).
        y_scores: float of shape (n_images,) each, as of several seeds; see ``estimate_aucs``.
        groups: the patient of each image, or None.
        confidence: of the two-sided interval.

    Raises:
        ValueError: only one class is present.
    """
    return interval_of(estimate_aucs(y_true, [y_scores], groups), 0, confidence)


def interval_of(estimate: Estimate, k: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of one of some classifiers; see ``interval_from``."""
    auc, variance = float(estimate.auc[k]), float(estimate.covariance[k, k])
    return interval_from(auc, variance, estimate.n_units, confidence)


def interval_from(
    auc: float, variance: float, n_units: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of an AUC, or of a mean of AUCs, made on the logit scale.

    So it stays within 0 and 1. Where every placement is 1, or every one 0, there is no variance to
    make it of: it ends where the exact binomial one of the smallest class' patients does; and a
    classifier with an error is never surer of it than one without. Where the variance is 0 for
    another reason, as of equal scores, or not known, its ends are NaN.

    Args:
        auc: from 0 to 1.
        variance: of it, over patients.
        n_units: patients of the class that has fewest.
        confidence: of the two-sided interval.
    """
    edge = _edge(n_units, confidence)
    if auc in (0.0, 1.0):
        return Interval(1.0, edge, 1.0) if auc else Interval(0.0, 0.0, 1 - edge)
    if not variance > ROUNDING:
        return Interval(auc, float("nan"), float("nan"))
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance) / (auc * (1 - auc))
    low, high = float(expit(logit(auc) - half)), float(expit(logit(auc) + half))
    return Interval(auc, min(low, edge), max(high, 1 - edge))


def _edge(n_units: int, confidence: float) -> float:
    """Return the lower end of the exact binomial interval of ``n_units`` hits in as many."""
    return float(((1 - confidence) / 2) ** (1 / n_units))


def difference_of(
    estimate: Estimate, k: int, other: int, confidence: float = CONFIDENCE
) -> Difference:
    """Return the AUC of classifier ``k`` less that of ``other``; see ``difference_from``."""
    contrast = np.zeros(len(estimate.auc))
    contrast[k] += 1
    contrast[other] -= 1
    variance = float(contrast @ estimate.covariance @ contrast)
    if abs(variance) <= 1e-13 * max(estimate.covariance[k, k], estimate.covariance[other, other]):
        variance = 0.0  # what rounding leaves of two equal classifiers
    aucs = (float(estimate.auc[k]), float(estimate.auc[other]))
    return difference_from(*aucs, variance, estimate.n_units, confidence)


def difference_from(
    auc: float, other: float, variance: float, n_units: int, confidence: float = CONFIDENCE
) -> Difference:
    """Return the difference of two AUCs of the same images, tested by the normal distribution.

    Where they are the same, the p-value is 1. Two that are equal on every image differ by 0 in any
    study. Two that both part all images need not: the ends are as far from 0 as an AUC of 1 may be
    from its true one. Where the variance is not known, as of a single patient of a class, or is 0
    while the AUCs differ, ends and, unless the AUCs are the same, p-value are NaN.

    Args:
        auc, other: the two, from 0 to 1.
        variance: of their difference, over patients.
        n_units: patients of the class that has fewest.
        confidence: of the two-sided interval.
    """
    difference = auc - other
    if not variance > ROUNDING:
        nan = float("nan")
        if abs(difference) >= 1e-12:
            return Difference(difference, nan, nan, nan)
        of_equals = nan if np.isnan(variance) else 0.0
        half = 1 - _edge(n_units, confidence) if auc in (0.0, 1.0) else of_equals
        return Difference(0.0, 0.0 - half, half, 1.0)
    error = float(np.sqrt(variance))
    half = float(norm.ppf((1 + confidence) / 2)) * error
    p_value = float(2 * norm.sf(abs(difference) / error))
    return Difference(difference, difference - half, difference + half, p_value)


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return p-values corrected for how many there are; NaN stays, and is not counted.

    Args:
        p_values: float of shape (n_tests,).

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    given = np.asarray(p_values, np.float64)
    corrected = np.full(given.shape, np.nan)
    order = [k for k in np.argsort(given, kind="stable") if not np.isnan(given[k])]
    largest = 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * given[k]))
        corrected[k] = largest
    return corrected
