"""Predictions to the report's tables: results.csv, and one row a configuration over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_curve

from cxr_spark.evaluation.bootstrap import (
    macro_aucs,
    mean_over_seeds,
    percentile_interval,
)
from cxr_spark.evaluation.measures import Scored, draw_resamples, measure, scored
from cxr_spark.evaluation.paper import paper_test_keras_auc
from cxr_spark.evaluation.rules import Rules
from cxr_spark.evaluation.seeds import over_seeds

SHARES = ("accuracy", "sensitivity", "specificity", "ppv", "npv")
RESULT_COLUMNS = (
    "configuration", "backbone", "preprocessing", "head", "weights", "seed",
    "n_train", "n_val", "n_test", "n_test_patients",
    "val_auc", "test_auc", "test_auc_low", "test_auc_high",
    "test_auc_bootstrap_low", "test_auc_bootstrap_high", "test_average_precision",
    "test_keras_auc", "threshold",
    *(f"test_{name}{end}" for name in SHARES for end in ("", "_low", "_high")),
    "test_f1", "test_balanced_accuracy", "test_accuracy_at_half", "test_sensitivity_at_half",
    "test_specificity_at_half", "test_brier", "test_ece",
    "train_seconds", "paper_test_keras_auc", "demonstration",
)  # fmt: skip

KEYS = ["configuration", "backbone", "preprocessing", "head"]


def make_measures(
    predictions: Iterable[pd.DataFrame],
    records: Iterable[dict[str, Any]],
    rules: Rules,
    classes: Sequence[str],
    demonstration: str,
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
        as_paper: whether task and images are the seed paper's, so that its figures stand beside.
    """
    resamples = None
    rows: list[dict[str, Any]] = []
    for table, record in zip(predictions, records, strict=True):
        resamples = resamples or draw_resamples(scored(table, "test"), rules)
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
    results: pd.DataFrame, predictions: Iterable[pd.DataFrame], rules: Rules
) -> pd.DataFrame:
    """Return one row a configuration: means over its seeds, and the interval of the mean test AUC.

    Args:
        results: what ``make_results`` returned.
        predictions: the same tables in the same order.
        rules: how measures are made.
    """
    positive = rules.positive
    tests: dict[str, list[Scored]] = {}
    for table, name in zip(predictions, results["configuration"], strict=True):
        tests.setdefault(name, []).append(scored(table, "test"))
    resamples = None
    if positive is None:
        resamples = draw_resamples(next(iter(tests.values()))[0], rules)
    rows = []
    for keys, of_configuration in results.groupby(KEYS, sort=False):
        numbers = of_configuration.select_dtypes("number").mean().to_dict()
        row = {**dict(zip(KEYS, keys, strict=True)), **numbers, "n_seeds": len(of_configuration)}
        row["test_auc_min"] = of_configuration["test_auc"].min()
        row["test_auc_max"] = of_configuration["test_auc"].max()
        seeds = tests[row["configuration"]]
        if resamples is None:
            assert positive is not None
            joint = over_seeds(
                seeds[0].labels == positive, [s.scores[:, positive] for s in seeds], seeds[0].groups
            )
            interval = joint.interval
            row |= {"test_auc_spread": joint.spread, "seed_share": joint.share}
        else:
            drawn = mean_over_seeds(
                [macro_aucs(s.labels, s.scores, resamples.weights) for s in seeds]
            )
            interval = percentile_interval(row["test_auc"], drawn)
        row |= {
            "test_auc": interval.auc,
            "test_auc_low": interval.low,
            "test_auc_high": interval.high,
        }
        rows.append(row)
    return pd.DataFrame(rows).drop(columns="seed")


def roc_points(
    predictions: pd.DataFrame, positive: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return one configuration and seed's test ROC curve: false and true positive rates, 0 to 1."""
    test = scored(predictions, "test")
    false_positive, true_positive, _ = roc_curve(test.labels == positive, test.scores[:, positive])
    return false_positive, true_positive
