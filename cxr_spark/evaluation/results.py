"""Predictions to the report's tables: results.csv, and one row a configuration over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_curve

from cxr_spark.evaluation.auc import macro_auc
from cxr_spark.evaluation.bootstrap import (
    Resamples,
    drawn_interval,
    drawn_variance,
    macro_aucs,
    mean_over_seeds,
    percentile_interval,
    weighted_aucs,
)
from cxr_spark.evaluation.measures import Scored, draw_resamples, measure, scored
from cxr_spark.evaluation.paper import paper_test_keras_auc
from cxr_spark.evaluation.rules import Rules
from cxr_spark.evaluation.seeds import over_seeds, share_of_seeds
from cxr_spark.evaluation.select import ALPHA, COMPARISON_COLUMNS, Verdict, judge

SHARES = ("accuracy", "sensitivity", "specificity", "ppv", "npv")
RESULT_COLUMNS = (
    "configuration", "backbone", "preprocessing", "head", "weights", "seed",
    "n_train", "n_val", "n_test", "n_test_patients",
    "val_auc", "test_auc", "test_auc_low", "test_auc_high",
    "test_auc_bootstrap_low", "test_auc_bootstrap_high", "test_average_precision",
    "test_keras_auc", "threshold",
    *(f"test_{name}{end}" for name in SHARES for end in ("", "_low", "_high")),
    "test_f1", "test_balanced_accuracy", *(f"test_{name}_at_half" for name in SHARES),
    "test_f1_at_half", "test_balanced_accuracy_at_half", "test_brier", "test_ece",
    "train_seconds", "paper_test_keras_auc",
    "cv_auc", "cv_spread", "cv_difference_spread", "selected", "difference", "p_holm",
    "demonstration",
)  # fmt: skip

KEYS = ["configuration", "backbone", "preprocessing", "head"]


@dataclass(frozen=True)
class RunResults:
    """All that is computed from the predictions of a run.

    Attributes:
        rows: what ``make_measures`` returns.
        results: results.csv, what ``make_results`` returns.
        summary: what ``summarise`` returns.
        verdict: what was selected, and how the others compare.
    """

    rows: list[dict[str, Any]]
    results: pd.DataFrame
    summary: pd.DataFrame
    verdict: Verdict


def evaluate_run(
    predictions: Sequence[pd.DataFrame],
    records: Sequence[dict[str, Any]],
    held_out: Mapping[str, pd.DataFrame],
    rules: Rules,
    classes: Sequence[str],
    demonstration: str,
    *,
    as_paper: bool,
    lacking: Sequence[str] = (),
) -> RunResults:
    """Return the measures of a run, which configuration is selected, and how others compare.

    Args:
        predictions, records, rules, classes, demonstration, as_paper: as for ``make_measures``.
        held_out: by configuration, the predictions of cross-validation.
        lacking: as for ``judge``.
    """
    tests: dict[str, list[Scored]] = {}
    for table, record in zip(predictions, records, strict=True):
        tests.setdefault(record["configuration"], []).append(scored(table, "test"))
    resamples = draw_resamples(next(iter(tests.values()))[0], rules)
    rows = make_measures(
        predictions, records, rules, classes, demonstration, resamples, as_paper=as_paper
    )
    verdict = judge(held_out, tests, rules.positive, resamples, lacking=lacking)
    summary = summarise(make_results(rows), tests, rules, verdict, resamples)
    of_configuration = summary.set_index("configuration")
    for row in rows:
        for name in RESULT_COLUMNS[RESULT_COLUMNS.index("cv_auc") : -1]:
            row[name] = of_configuration[name][row["configuration"]].item()
    return RunResults(rows, make_results(rows), summary, verdict)


def make_measures(
    predictions: Iterable[pd.DataFrame],
    records: Iterable[dict[str, Any]],
    rules: Rules,
    classes: Sequence[str],
    demonstration: str,
    resamples: Resamples,
    *,
    as_paper: bool,
) -> list[dict[str, Any]]:
    """Return results.json: the measures of each configuration and seed.

    Args:
        predictions: of each configuration and seed, one table after the other.
        records: what was stored when each was trained, in the same order: its keys, ``weights`` and
            ``train_seconds``.
        rules: how measures are made.
        classes: the names of the task's classes, by label.
        demonstration: why the results say nothing of real X-rays, or an empty string.
        resamples: drawings of test patients.
        as_paper: whether task and images are the seed paper's, so that its figures stand beside.
    """
    rows: list[dict[str, Any]] = []
    for table, record in zip(predictions, records, strict=True):
        rows.append(
            {
                **{key: record[key] for key in (*KEYS, "weights", "seed", "train_seconds")},
                **measure(table, rules, classes, resamples),
                "paper_test_keras_auc": paper_test_keras_auc(
                    record["backbone"], record["preprocessing"], record["head"]
                ) if as_paper else None,
                "demonstration": demonstration,
            }
        )  # fmt: skip
    return rows


def make_results(measures: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return results.csv: one row a configuration and seed, in ``RESULT_COLUMNS``."""
    results = pd.DataFrame(list(measures)).reindex(columns=list(RESULT_COLUMNS))
    return results.astype({"paper_test_keras_auc": float})


def summarise(
    results: pd.DataFrame,
    tests: Mapping[str, Sequence[Scored]],
    rules: Rules,
    verdict: Verdict,
    resamples: Resamples,
) -> pd.DataFrame:
    """Return one row a configuration: means over its seeds, and the interval of the mean test AUC.

    Args:
        results: what ``make_results`` returned.
        tests: of each configuration, its seeds' test images.
        rules: how measures are made.
        resamples: drawings of test patients.
        verdict: what was selected: ``cv_auc`` and ``cv_spread`` of each configuration, and
            ``cv_difference_spread``, of its difference from the selected one's by fold; whether it
            is ``selected``, its ``difference`` from the selected one with interval and ``p_holm``,
            and whether it is ``distinguishable`` from it.
    """
    compared = verdict.comparisons.set_index("configuration").to_dict("index")
    rows = []
    for keys, of_configuration in results.groupby(KEYS, sort=False):
        numbers = of_configuration.select_dtypes("number").mean().to_dict()
        if len(of_configuration) > 1:  # the mean of several intervals' ends is no interval's end
            ends = [name for name in numbers if name.endswith(("_low", "_high"))]
            numbers |= dict.fromkeys(ends, float("nan"))
        row = {**dict(zip(KEYS, keys, strict=True)), **numbers, "n_seeds": len(of_configuration)}
        row["test_auc_min"] = of_configuration["test_auc"].min()
        row["test_auc_max"] = of_configuration["test_auc"].max()
        name = row["configuration"]
        row |= _over_seeds(tests[name], row["test_auc"], rules.positive, resamples)
        held_out = verdict.held_out.get(name)
        row["cv_auc"] = held_out.mean if held_out else float("nan")
        row["cv_spread"] = held_out.spread if held_out else float("nan")
        chosen = verdict.held_out.get(verdict.selected or "")
        row["cv_difference_spread"] = float("nan")
        if held_out is not None and chosen is not None and held_out is not chosen:
            row["cv_difference_spread"] = held_out.spread_from(chosen)
        row["selected"] = name == verdict.selected
        row |= {c: compared.get(name, {}).get(c, float("nan")) for c in COMPARISON_COLUMNS[1:]}
        row["distinguishable"] = bool(row["p_holm"] < ALPHA)
        rows.append(row)
    return pd.DataFrame(rows).drop(columns="seed")


def _over_seeds(
    seeds: Sequence[Scored], mean: float, positive: int | None, resamples: Resamples
) -> dict[str, float]:
    """Return intervals, spread over seeds and their share of the variance, of the mean test AUC."""
    if positive is not None:
        truth = seeds[0].labels == positive
        scores = [s.scores[:, positive] for s in seeds]
        joined = mean_over_seeds([weighted_aucs(truth, s, resamples.weights) for s in scores])
        joint = over_seeds(truth, scores, seeds[0].groups)
        interval, spread, share = joint.interval, joint.spread, joint.share
    else:
        drawn = [macro_aucs(s.labels, s.scores, resamples.weights) for s in seeds]
        joined = mean_over_seeds(drawn)
        interval = drawn_interval(mean, joined, seeds[0].fewest_patients)
        aucs = [macro_auc(s.labels, s.scores) for s in seeds]
        spread = float(np.std(aucs, ddof=1)) if len(aucs) > 1 else float("nan")
        share = share_of_seeds(spread**2, drawn_variance(joined, seeds[0].fewest_patients))
    beside = percentile_interval(interval.auc, joined)
    return {
        "test_auc": interval.auc,
        "test_auc_low": interval.low,
        "test_auc_high": interval.high,
        "test_auc_bootstrap_low": beside.low,
        "test_auc_bootstrap_high": beside.high,
        "test_auc_spread": spread,
        "seed_share": share,
    }


def roc_points(
    predictions: pd.DataFrame, positive: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return one configuration and seed's test ROC curve: false and true positive rates, 0 to 1."""
    test = scored(predictions, "test")
    false_positive, true_positive, _ = roc_curve(test.labels == positive, test.scores[:, positive])
    return false_positive, true_positive
