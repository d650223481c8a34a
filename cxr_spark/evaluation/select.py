"""Which configuration is chosen, by training images alone, and what differs from it on the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.evaluation.auc import macro_auc, roc_auc
from cxr_spark.evaluation.bootstrap import (
    Resamples,
    drawn_difference,
    macro_aucs,
    mean_over_seeds,
)
from cxr_spark.evaluation.intervals import Difference, difference_of, estimate_aucs, holm
from cxr_spark.evaluation.measures import Scored

SELECTION_RULE = (
    "the highest mean ROC AUC over the folds of cross-validation on training images; of equals the "
    "first of the experiment"
)


COMPARISON_COLUMNS = (
    "configuration", "difference", "difference_low", "difference_high", "p_value", "p_holm",
)  # fmt: skip
ALPHA = 0.05  # below which, corrected, a difference is told from none


@dataclass(frozen=True)
class Verdict:
    """What was selected by training images, and how test results differ from it.

    Attributes:
        held_out: of each configuration that was cross-validated.
        selected: the configuration chosen; None where none was cross-validated.
        comparisons: what ``compare`` returns; no row where none is selected.
    """

    held_out: Mapping[str, CrossValidated]
    selected: str | None
    comparisons: pd.DataFrame


@dataclass(frozen=True)
class CrossValidated:
    """One configuration's ROC AUC on images held out of its training, fold by fold.

    Attributes:
        mean, spread: over all folds and repeats: mean and standard deviation.
        n_folds: how many there are, all repeats together.
        aucs: of each, by repeat and fold.
    """

    mean: float
    spread: float
    n_folds: int
    aucs: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def spread_from(self, other: CrossValidated) -> float:
        """Return the standard deviation, over folds that both have, of the difference in AUC.

        Both were trained without the same images in each, which says more of how close two are than
        the spread of either. NaN where they share fewer than two folds.
        """
        shared = self.aucs.keys() & other.aucs.keys()
        differences = [self.aucs[fold] - other.aucs[fold] for fold in shared]
        return float(np.std(differences, ddof=1)) if len(differences) > 1 else float("nan")


def cross_validated(predictions: pd.DataFrame, positive: int | None) -> CrossValidated:
    """Return how well a configuration does on held-out training images.

    Scores of two folds are of two heads, so that each fold has its own AUC.

    Args:
        predictions: rows of the predictions table with ``repeat`` and ``fold``.
        positive: index of the positive class, or None for the macro AUC of more classes.
    """
    aucs: dict[tuple[int, int], float] = {}
    for fold, rows in predictions.groupby(["repeat", "fold"]):
        labels = rows["label"].to_numpy(np.int64)
        scores = np.stack(rows["score"].to_list()).astype(np.float64)
        if positive is None:
            aucs[fold] = macro_auc(labels, scores)
        else:
            aucs[fold] = roc_auc(labels == positive, scores[:, positive])
    found = list(aucs.values())
    spread = float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")
    return CrossValidated(float(np.mean(found)), spread, len(found), aucs)


def select(found: Mapping[str, CrossValidated]) -> str | None:
    """Return the configuration that ``SELECTION_RULE`` chooses; None where none was held out."""
    known = [name for name in found if not np.isnan(found[name].mean)]
    return max(known, key=lambda name: found[name].mean, default=None)


def compare(
    tests: Mapping[str, Sequence[Scored]],
    selected: str,
    positive: int | None,
    resamples: Resamples,
) -> pd.DataFrame:
    """Test every other configuration against the selected one on the same test images.

    Args:
        tests: of each configuration its seeds' test images, all in one order.
        selected: the configuration that they are compared with.
        positive: index of the positive class: two classes are compared by DeLong's test clustered
            by patient. None compares macro AUCs by drawings of patients.
        resamples: those drawings.

    Returns:
        A row for each other configuration: ``configuration``, ``difference`` of its AUC from the
        selected one's with ``difference_low`` and ``difference_high``, ``p_value``, and ``p_holm``,
        corrected for the number of rows.
    """
    chosen = tests[selected]
    rows = []
    for name, seeds in tests.items():
        if name == selected:
            continue
        if positive is None:
            test = _by_drawing(seeds, chosen, resamples)
        else:
            estimate = estimate_aucs(
                chosen[0].labels == positive,
                [[s.scores[:, positive] for s in of] for of in (seeds, chosen)],
                chosen[0].groups,
            )
            test = difference_of(estimate, 0, 1)
        rows.append(
            {
                "configuration": name,
                "difference": test.difference,
                "difference_low": test.low,
                "difference_high": test.high,
                "p_value": test.p_value,
            }
        )
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS[:-1]))
    return table.assign(p_holm=holm(table["p_value"].to_numpy(np.float64)))


def judge(
    held_out: Mapping[str, pd.DataFrame],
    tests: Mapping[str, Sequence[Scored]],
    positive: int | None,
    resamples: Resamples,
    *,
    lacking: Sequence[str] = (),
) -> Verdict:
    """Select by the scores of held-out training images, and compare test scores with the selected.

    Args:
        held_out: of each configuration that was cross-validated, rows of the predictions table.
        tests, positive, resamples: as for ``compare``.
        lacking: configurations that should have been cross-validated and are not: while there is
            one, none is selected.
    """
    found = {name: cross_validated(table, positive) for name, table in held_out.items()}
    selected = None if lacking else select(found)
    if selected is None:
        return Verdict(found, None, pd.DataFrame(columns=list(COMPARISON_COLUMNS)))
    return Verdict(found, selected, compare(tests, selected, positive, resamples))


def _by_drawing(
    seeds: Sequence[Scored], chosen: Sequence[Scored], resamples: Resamples
) -> Difference:
    once = np.ones((1, resamples.weights.shape[1]))
    value, other = (float(_mean_macro(of, once)[0]) for of in (seeds, chosen))
    drawn, drawn_of_chosen = (_mean_macro(of, resamples.weights) for of in (seeds, chosen))
    return drawn_difference(value, other, drawn - drawn_of_chosen, chosen[0].fewest_patients)


def _mean_macro(seeds: Sequence[Scored], weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return mean_over_seeds([macro_aucs(s.labels, s.scores, weights) for s in seeds])
