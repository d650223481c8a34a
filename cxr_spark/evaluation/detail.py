"""One configuration and seed looked at closely: its curves, its calibration, its worst errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit

from cxr_spark.evaluation.bands import N_RESAMPLES, Band, precision_recall_band, roc_band
from cxr_spark.evaluation.bootstrap import Resamples, draw_patients
from cxr_spark.evaluation.calibration import Reliability, reliability
from cxr_spark.evaluation.measures import Scored, calibrated, scored
from cxr_spark.evaluation.rules import Rules

N_WRONG = 8
SURE = 1e-7  # log odds of scores nearer to 0 or 1 are taken as those of this


class ClassCurves(NamedTuple):
    """One class against the rest, with bands over test patients.

    Attributes:
        label: of the class.
        roc: sensitivity by 1 - specificity.
        precision_recall: precision by recall.
    """

    label: int
    roc: Band
    precision_recall: Band


@dataclass(frozen=True)
class Detail:
    """What is shown of one configuration and seed, all of test images.

    Attributes:
        curves: of the positive class; where there are more than two, of each in the test part.
        reliability: of the positive score, or for more classes of the highest, scaled as rules say.
        wrong: the test images that are called wrong most confidently: ``image_id``, ``label``,
            ``called`` and the ``score`` of what they are called. Of two classes those farthest from
            the threshold in log odds come first, whichever side they are on; of more classes those
            of the largest score.
    """

    curves: tuple[ClassCurves, ...]
    reliability: Reliability
    wrong: pd.DataFrame


def look_closely(
    predictions: pd.DataFrame, rules: Rules, threshold: float | None, n_wrong: int = N_WRONG
) -> Detail:
    """Return what is shown of one configuration and seed.

    Args:
        predictions: its rows of the predictions table.
        rules: how measures are made.
        threshold: of the positive score, for two classes.
        n_wrong: how many errors are listed at most.
    """
    val, test = scored(predictions, "val"), scored(predictions, "test")
    scores = calibrated(val, test, rules)
    if rules.positive is None:
        labels = np.unique(test.labels).tolist()
        called = test.scores.argmax(axis=1)
        confidence = test.scores.max(axis=1)
        found = reliability(scores.argmax(axis=1) == test.labels, scores.max(axis=1))
    else:
        assert threshold is not None, "two classes have one"
        labels = [rules.positive]
        truth, score = test.labels == rules.positive, test.scores[:, rules.positive]
        called = np.where(score >= threshold, rules.positive, 1 - rules.positive)
        confidence = np.abs(_log_odds(score) - _log_odds(np.asarray(threshold)))
        found = reliability(truth, scores[:, rules.positive])
    resamples = draw_patients(test.labels, test.groups, n_resamples=N_RESAMPLES)
    curves = tuple(_curves(test, label, resamples) for label in labels)
    errors = pd.DataFrame(
        {
            "image_id": test.image_id,
            "label": test.labels,
            "called": called,
            "score": test.scores[np.arange(len(called)), called],
            "confidence": confidence,
        }
    )[called != test.labels]
    worst = errors.sort_values(["confidence", "image_id"], ascending=[False, True], kind="stable")
    wrong = worst.drop(columns="confidence").head(n_wrong).reset_index(drop=True)
    return Detail(curves, found, wrong)


def _log_odds(score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    odds: npt.NDArray[np.float64] = logit(np.clip(score, SURE, 1 - SURE))
    return odds


def _curves(test: Scored, label: int, resamples: Resamples) -> ClassCurves:
    one = test.labels == label, test.scores[:, label], resamples
    return ClassCurves(label, roc_band(*one), precision_recall_band(*one))
