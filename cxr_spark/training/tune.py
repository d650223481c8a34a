"""The search for a head's parameters, on training images alone."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.errors import UserError
from cxr_spark.files import without_nan, write_json
from cxr_spark.training.classifiers import Classifier
from cxr_spark.training.fit import Training
from cxr_spark.training.folds import Fold
from cxr_spark.training.head_table import HeadRow
from cxr_spark.training.heads import Head
from cxr_spark.training.spaces import Tuned
from cxr_spark.training.trainer import NoScores

log = logging.getLogger(__name__)

SEARCH_RULE = (
    "the highest mean ROC AUC over the folds of the first division of training images, of "
    "parameters drawn at random and those of the head that is tuned"
)
SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class Trial:
    """Parameters, and how well a head that has them tells held-out training images apart.

    Attributes:
        parameters: of the head; empty for those that it has untuned.
        auc: its mean ROC AUC over folds, macro for more than two classes; 0 where it has no scores.
        auc_without: for each fold of cross-validation, the same of images outside of it.
    """

    parameters: dict[str, Any]
    auc: float
    auc_without: list[float]


@dataclass(frozen=True)
class Settled:
    """What a head is trained as.

    Attributes:
        head: with each seed.
        by_fold: for each fold of cross-validation, where parameters are those that images outside
            of it chose: held-out images must not have chosen what they are asked about.
        search: for the record: the rule, its trials and the parameters found; None if not tuned.
    """

    head: Head | Classifier
    by_fold: Sequence[Head | Classifier]
    search: dict[str, Any] | None = None


def settle(training: Training, head: HeadRow, folds: Sequence[Fold], file: Path) -> Settled:
    """Return a head as it is trained: as it stands in its table, or as a search finds it.

    Args:
        training: what heads are trained on.
        head: the row of the table.
        folds: of cross-validation. A search takes those of the first repeat.
        file: where the trials of a search are kept, to go on after a kill.
    """
    if not isinstance(head, Tuned):
        return Settled(head, [head] * len(folds))
    trials = _search(training, head, folds, file)
    best = _best([trial.auc for trial in trials])
    by_fold = [_best([trial.auc_without[k] for trial in trials]) for k in range(len(folds))]
    return Settled(
        head.with_parameters(trials[best].parameters),
        [head.with_parameters(trials[k].parameters) for k in by_fold],
        {
            "rule": SEARCH_RULE,
            "n_trials": len(trials),
            "n_folds": len(_of_first_repeat(folds)),
            "parameters": trials[best].parameters,
            "auc": trials[best].auc,
            "untuned_auc": trials[0].auc,
        },
    )


def _search(training: Training, tuned: Tuned, folds: Sequence[Fold], file: Path) -> Sequence[Trial]:
    """Return all trials; those that the file holds are not tried again."""
    settings = training.experiment
    drawn = tuned.draw(settings.tuning.trials, settings.split.seed)
    trials = _read(file, drawn)
    began, last, n_read = time.monotonic(), time.monotonic(), len(trials)
    file.parent.mkdir(exist_ok=True)
    for parameters in drawn[n_read:]:
        trials.append(_try(training, tuned.trial(parameters), folds, parameters))
        write_json(file, {"trials": [without_nan(asdict(trial)) for trial in trials]})
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - began) / (len(trials) - n_read) * (len(drawn) - len(trials))
            log.info(
                "  %s: %d of %d trials, highest AUC on held-out images %.4f, about %.0f s left",
                tuned.name, len(trials), len(drawn), max(trial.auc for trial in trials), left,
            )  # fmt: skip
    return trials


def _read(file: Path, drawn: Sequence[dict[str, Any]]) -> list[Trial]:
    """Return the trials that the file holds, as far as they are those that were drawn."""
    try:
        stored = [Trial(**trial) for trial in json.loads(file.read_text("utf-8"))["trials"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected the trials of a search. Received: {file} ({error}). Remove it and run train "
            "again."
        ) from error
    if [trial.parameters for trial in stored] != list(drawn[: len(stored)]):
        return []
    return stored


def _try(
    training: Training,
    head: Head | Classifier,
    folds: Sequence[Fold],
    parameters: dict[str, Any],
) -> Trial:
    scored = []
    try:
        for fold, scores in training.fit_folds(
            head, _of_first_repeat(folds), training.experiment.split.seed
        ):
            scored.append((fold.held_out, scores))
    except NoScores as error:
        log.info("  %s: %s: %s", head.name, parameters, error)
        return Trial(parameters, 0.0, [0.0] * len(folds))
    labels = training.assigned.labels
    nothing = np.empty(0, np.int64)
    return Trial(
        parameters,
        _mean_auc(labels, scored, nothing),
        [_mean_auc(labels, scored, fold.held_out) for fold in folds],
    )


def _mean_auc(
    labels: npt.NDArray[np.int64],
    scored: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]],
    without: npt.NDArray[np.int64],
) -> float:
    """Return the mean AUC over parts of images, each without some; parts that lack a class apart.

    Args:
        labels: int64 of shape (n_images,).
        scored: of each part the positions of its images, and their scores.
        without: positions of images that are not asked.
    """
    from sklearn.metrics import roc_auc_score

    n_classes = len(np.unique(labels))
    aucs = []
    for rows, scores in scored:
        kept = ~np.isin(rows, without)
        truth, score = labels[rows[kept]], scores[kept]
        if len(np.unique(truth)) < n_classes:
            continue
        if n_classes == 2:
            aucs.append(roc_auc_score(truth, score[:, 1]))
        else:
            aucs.append(np.mean([roc_auc_score(truth == k, score[:, k]) for k in range(n_classes)]))
    return float(np.mean(aucs)) if aucs else 0.0


def _of_first_repeat(folds: Sequence[Fold]) -> list[Fold]:
    return [fold for fold in folds if fold.repeat == 0]


def _best(aucs: Sequence[float]) -> int:
    """Return the position of the highest; of equals the first."""
    return int(np.argmax(aucs))
