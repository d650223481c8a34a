"""One configuration and seed looked at closely: its curves, its calibration, its worst errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import precision_recall_curve

from cxr_spark.evaluation.calibration import Reliability, reliability
from cxr_spark.evaluation.measures import calibrated, scored
from cxr_spark.evaluation.rules import Rules

N_WRONG = 8


@dataclass(frozen=True)
class Detail:
    """What is shown of one configuration and seed, all of test images.

    Attributes:
        precision_recall: recall and precision, each of shape (n_points,); None for more than two
            classes.
        reliability: of the positive score, or for more classes of the highest, scaled as rules say.
        wrong: the test images that are called wrong by the largest score: ``image_id``, ``label``,
            ``called`` and the ``score`` of what they are called.
    """

    precision_recall: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None
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
    curve = None
    if rules.positive is None:
        called = test.scores.argmax(axis=1)
        found = reliability(scores.argmax(axis=1) == test.labels, scores.max(axis=1))
    else:
        assert threshold is not None, "two classes have one"
        truth, score = test.labels == rules.positive, test.scores[:, rules.positive]
        called = np.where(score >= threshold, rules.positive, 1 - rules.positive)
        precision, recall, _ = precision_recall_curve(truth, score)
        curve = recall, precision
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
    return Detail(curve, found, worst.head(n_wrong).reset_index(drop=True))
