"""One configuration and seed looked at closely: its curves, its calibration, its worst errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxr_spark.evaluation.bands import N_RESAMPLES, Band, precision_recall_band, roc_band
from cxr_spark.evaluation.bootstrap import draw_patients
from cxr_spark.evaluation.calibration import Reliability, reliability
from cxr_spark.evaluation.measures import calibrated, scored
from cxr_spark.evaluation.rules import Rules

N_WRONG = 8


@dataclass(frozen=True)
class Detail:
    """What is shown of one configuration and seed, all of test images.

    Attributes:
        roc, precision_recall: with bands over test patients; None for more than two classes.
        reliability: of the positive score, or for more classes of the highest, scaled as rules say.
        wrong: the test images that are called wrong by the largest score: ``image_id``, ``label``,
            ``called`` and the ``score`` of what they are called.
    """

    roc: Band | None
    precision_recall: Band | None
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
    roc = precision_recall = None
    if rules.positive is None:
        called = test.scores.argmax(axis=1)
        found = reliability(scores.argmax(axis=1) == test.labels, scores.max(axis=1))
    else:
        assert threshold is not None, "two classes have one"
        truth, score = test.labels == rules.positive, test.scores[:, rules.positive]
        called = np.where(score >= threshold, rules.positive, 1 - rules.positive)
        resamples = draw_patients(test.labels, test.groups, n_resamples=N_RESAMPLES)
        roc = roc_band(truth, score, resamples)
        precision_recall = precision_recall_band(truth, score, resamples)
        found = reliability(truth, scores[:, rules.positive])
    errors = pd.DataFrame(
        {
            "image_id": test.image_id,
            "label": test.labels,
            "called": called,
            "score": test.scores[np.arange(len(called)), called],
        }
    )[called != test.labels]
    worst = errors.sort_values(["score", "image_id"], ascending=[False, True], kind="stable")
    wrong = worst.head(n_wrong).reset_index(drop=True)
    return Detail(roc, precision_recall, found, wrong)
