"""The average of several configurations' scores, each calibrated first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.evaluation.calibration import Scaling, fit_scaling


@dataclass(frozen=True)
class Averaged:
    """Averaged scores.

    Attributes:
        predictions: rows of the predictions table, in the order of the first member's, with the
            averaged ``score`` and the columns that name a configuration as the first member's.
        scalings: how the scores of each member were changed.
    """

    predictions: pd.DataFrame
    scalings: Sequence[Scaling]


def average(members: Sequence[pd.DataFrame]) -> Averaged:
    """Calibrate each member's scores on validation images, and average them over members.

    Scores of different heads are not of one kind: a SVM's are no probabilities, and a network that
    is sure of all would outvote the others. Platt scaling makes them alike.

    Args:
        members: of each configuration, one seed's rows of the predictions table, of the same images
            in the same order.
    """
    first = members[0]
    validation = (first["split"] == "val").to_numpy()
    labels = first["label"].to_numpy(np.int64)
    scalings, changed = [], []
    for member in members:
        scores = _scores_of(first, member)
        scaling = fit_scaling(labels[validation], scores[validation], "platt")
        scalings.append(scaling)
        changed.append(scaling.apply(scores))
    return Averaged(_with_scores(first, np.mean(changed, axis=0)), scalings)


def average_held_out(members: Sequence[pd.DataFrame], scalings: Sequence[Scaling]) -> pd.DataFrame:
    """Average the scores of held-out images, changed as validation images teach.

    Validation images stand in no fold. To learn from other folds, whose heads were trained on a
    fold's images, would flatter: on labels without any meaning the AUC of 20 members is 0.57 then.

    Args:
        members: of each configuration, its rows of cross-validation, of the same folds.
        scalings: of each member, as ``average`` found them.

    Returns:
        Rows as of ``average``.
    """
    first = members[0]
    changed = [
        scaling.apply(_scores_of(first, member))
        for member, scaling in zip(members, scalings, strict=True)
    ]
    return _with_scores(first, np.mean(changed, axis=0))


def _scores_of(first: pd.DataFrame, member: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return a member's scores, float64 of shape (n_images, n_classes).

    Raises:
        ValueError: its images are not those of the first, in the same order.
    """
    for column in ("image_id", "repeat", "fold"):
        mine, theirs = (table[column].to_numpy() for table in (member, first))
        if len(mine) != len(theirs) or not pd.Series(mine).equals(pd.Series(theirs)):
            raise ValueError(f"Expected members of the same images. Received: other {column}")
    scores: npt.NDArray[np.float64] = np.stack(member["score"].to_list()).astype(np.float64)
    return scores


def _with_scores(first: pd.DataFrame, scores: npt.NDArray[np.float64]) -> pd.DataFrame:
    return first.assign(score=list(scores.astype(np.float32)))
