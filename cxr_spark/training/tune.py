"""The search for a head's parameters, on training images alone."""

from __future__ import annotations

import itertools
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
    "the highest mean ROC AUC on training images that two folds at a time hold out, of parameters "
    "drawn at random and those of the head that is tuned"
)
SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class Trial:
    """Parameters, and how well a head that has them tells held-out training images apart.

    Attributes:
        parameters: of the head; empty for those that it has untuned.
        auc: its mean ROC AUC on held-out folds, macro for more than two classes; 0 where it has no
            scores.
        auc_without: for each fold of cross-validation, the same of heads that were neither trained
            on its images nor asked about them.
    """

    parameters: dict[str, Any]
    auc: float
    auc_without: list[float]


@dataclass(frozen=True)
class Settled:
    """What a head is trained as.

    Attributes:
        head: with each seed.
        by_fold: for each fold of cross-validation, with parameters that its images had no part in
            choosing: neither as held-out ones nor in the training of what was compared.
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
        folds: of cross-validation, three or more a repeat for a search.
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
            "n_fits": len(trials) * len(_pairs(folds)),
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
    """Train a head without each two folds of a repeat, and ask it about both.

    To choose for a fold by heads that were trained on it would flatter: on labels without any
    meaning the AUC is 0.56 then, in place of 0.50. One fit without two folds serves both.
    """
    labels, pairs = training.assigned.labels, _pairs(folds)
    found: list[list[float]] = [[] for _ in folds]
    without = [_without_both(folds[j], folds[k]) for j, k in pairs]
    try:
        fitted = training.fit_folds(head, without, training.experiment.split.seed)
        for (j, k), (both, scores) in zip(pairs, fitted, strict=True):
            of_j = np.isin(both.held_out, folds[j].held_out)
            found[k].append(_auc(labels[both.held_out[of_j]], scores[of_j]))
            found[j].append(_auc(labels[both.held_out[~of_j]], scores[~of_j]))
    except (NoScores, ValueError) as error:  # scikit-learn's where images are too few for it
        log.info("  %s: %s: %s", head.name, parameters, error)
        return Trial(parameters, 0.0, [0.0] * len(folds))
    return Trial(
        parameters,
        float(np.mean(list(itertools.chain(*found)))),
        [float(np.mean(aucs)) for aucs in found],
    )


def _pairs(folds: Sequence[Fold]) -> list[tuple[int, int]]:
    """Return the positions of each two folds of one repeat."""
    return [
        (j, k)
        for j, k in itertools.combinations(range(len(folds)), 2)
        if folds[j].repeat == folds[k].repeat
    ]


def _without_both(one: Fold, other: Fold) -> Fold:
    held_out = np.sort(np.concatenate([one.held_out, other.held_out]))
    return Fold(one.repeat, one.fold, np.setdiff1d(one.train, other.held_out), held_out)


def _auc(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> float:
    """Return the ROC AUC of two classes, or the mean over more, each against the rest."""
    from sklearn.metrics import roc_auc_score

    n_classes = scores.shape[1]
    asked = [1] if n_classes == 2 else range(n_classes)
    return float(np.mean([roc_auc_score(labels == k, scores[:, k]) for k in asked]))


def _best(aucs: Sequence[float]) -> int:
    """Return the position of the highest; of equals the first."""
    return int(np.argmax(aucs))
