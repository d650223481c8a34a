"""What seeds change, beside what the choice of test images changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_spark.evaluation.intervals import ROUNDING, Interval, estimate_aucs, interval_of


@dataclass(frozen=True)
class OverSeeds:
    """One configuration over its seeds, on the same test images.

    Attributes:
        interval: of the mean AUC, over patients.
        spread: the standard deviation of the AUC over seeds; NaN for one seed.
        share: of the variance of one seed's AUC, what seeds make of it, the rest being the choice
            of test patients; NaN for one seed.
    """

    interval: Interval
    spread: float
    share: float


def over_seeds(
    y_true: npt.ArrayLike,
    y_scores: Sequence[npt.ArrayLike],
    groups: npt.ArrayLike | None = None,
) -> OverSeeds:
    """Join the seeds of a configuration by the mean of their placement values, not of their scores.

    The share is s2 / (s2 + v): s2 is the variance of the AUC over seeds on these images, and v is
    the variance over patients of the mean over seeds.

    Args:
        y_true: bool of shape (n_images,).
        y_scores: of each seed, float of shape (n_images,).
        groups: the patient of each image, or None.
    """
    joint = estimate_aucs(y_true, [y_scores], groups)
    interval = interval_of(joint, 0)
    if len(y_scores) < 2:
        return OverSeeds(interval, float("nan"), float("nan"))
    aucs = [estimate_aucs(y_true, [[score]], groups).auc[0] for score in y_scores]
    of_seeds, of_images = float(np.var(aucs, ddof=1)), float(joint.covariance[0, 0])
    return OverSeeds(interval, float(np.sqrt(of_seeds)), share_of_seeds(of_seeds, of_images))


def share_of_seeds(of_seeds: float, of_images: float) -> float:
    """Return what seeds make of the variance of one seed's AUC; NaN where either is not known.

    Args:
        of_seeds: variance of the AUC over seeds.
        of_images: variance over test patients of the mean over seeds.
    """
    together = of_seeds + of_images
    return of_seeds / together if together > ROUNDING else float("nan")
