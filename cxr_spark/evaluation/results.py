"""Predictions to the report's tables: results.csv, and one row a configuration over its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

from cxr_spark.evaluation.auc import delong_interval, keras_auc, macro_auc
from cxr_spark.evaluation.paper import paper_test_keras_auc
from cxr_spark.evaluation.thresholds import operate, youden_threshold

RESULT_COLUMNS = (
    "configuration", "backbone", "preprocessing", "head", "weights", "seed",
    "n_train", "n_val", "n_test", "val_auc", "test_auc", "test_auc_low", "test_auc_high",
    "test_keras_auc", "test_accuracy", "test_sensitivity", "test_specificity", "threshold",
    "train_seconds", "paper_test_keras_auc", "demonstration",
)  # fmt: skip

KEYS = ["configuration", "backbone", "preprocessing", "head"]


def evaluate(predictions: pd.DataFrame, positive: int | None) -> dict[str, Any]:
    """Return the measures of one configuration and seed.

    Args:
        predictions: rows of one configuration and seed, in the columns of the predictions table.
        positive: index of the positive class of a two-class task; None for more classes, whose AUC
            is the macro average of one against the rest and whose accuracy is that of the highest
            score; interval, sensitivity, specificity and threshold are then left empty.
    """
    labels, scores = {}, {}
    for split, rows in predictions.groupby("split"):
        labels[split] = rows["label"].to_numpy(np.int64)
        scores[split] = np.stack(rows["score"].to_list()).astype(np.float64)
    counts = {f"n_{split}": len(labels.get(split, ())) for split in ("train", "val", "test")}
    test_keras = keras_auc(labels["test"], scores["test"])
    if positive is None:
        return {
            **counts,
            "val_auc": macro_auc(labels["val"], scores["val"]),
            "test_auc": macro_auc(labels["test"], scores["test"]),
            "test_keras_auc": test_keras,
            "test_accuracy": float(np.mean(scores["test"].argmax(axis=1) == labels["test"])),
        }
    truth = {split: labels[split] == positive for split in ("val", "test")}
    score = {split: scores[split][:, positive] for split in ("val", "test")}
    threshold = youden_threshold(truth["val"], score["val"])
    operating = operate(truth["test"], score["test"], threshold)
    interval = delong_interval(truth["test"], [score["test"]])
    return {
        **counts,
        "val_auc": float(roc_auc_score(truth["val"], score["val"])),
        "test_auc": interval.auc,
        "test_auc_low": interval.low,
        "test_auc_high": interval.high,
        "test_keras_auc": test_keras,
        "test_accuracy": operating.accuracy,
        "test_sensitivity": operating.sensitivity,
        "test_specificity": operating.specificity,
        "threshold": threshold,
    }


def make_results(
    predictions: Iterable[pd.DataFrame],
    records: Iterable[dict[str, Any]],
    positive: int | None,
    demonstration: str,
    *,
    as_paper: bool,
) -> pd.DataFrame:
    """Return results.csv: one row a configuration and seed, in ``RESULT_COLUMNS``.

    Args:
        predictions: of each configuration and seed, one table after the other.
        records: what was stored when each was trained, in the same order: its keys, ``weights`` and
            ``train_seconds``.
        positive: as for ``evaluate``.
        demonstration: why the results say nothing of real X-rays, or an empty string.
        as_paper: whether task and images are the seed paper's, so that its figures stand beside.
    """
    rows = [
        {
            **{key: record[key] for key in (*KEYS, "weights", "seed", "train_seconds")},
            **evaluate(table, positive),
            "paper_test_keras_auc": paper_test_keras_auc(
                record["backbone"], record["preprocessing"], record["head"]
            ) if as_paper else None,
            "demonstration": demonstration,
        }
        for table, record in zip(predictions, records, strict=True)
    ]  # fmt: skip
    results = pd.DataFrame(rows).reindex(columns=list(RESULT_COLUMNS))
    return results.astype({"paper_test_keras_auc": float})


def summarise(
    results: pd.DataFrame, predictions: Iterable[pd.DataFrame], positive: int | None
) -> pd.DataFrame:
    """Return one row a configuration: means over its seeds, and the interval of the mean test AUC.

    Args:
        results: what ``make_results`` returned.
        predictions: the same tables in the same order.
        positive: as for ``evaluate``; None leaves the interval empty.
    """
    tests: dict[str, list[pd.DataFrame]] = {}
    for table, name in zip(predictions, results["configuration"], strict=True):
        tests.setdefault(name, []).append(table[table["split"] == "test"].sort_values("image_id"))
    rows = []
    for keys, of_configuration in results.groupby(KEYS, sort=False):
        numbers = of_configuration.select_dtypes("number").mean().to_dict()
        row = {**dict(zip(KEYS, keys, strict=True)), **numbers, "n_seeds": len(of_configuration)}
        row["test_auc_min"] = of_configuration["test_auc"].min()
        row["test_auc_max"] = of_configuration["test_auc"].max()
        if positive is not None:
            some = tests[row["configuration"]]
            interval = delong_interval(
                some[0]["label"] == positive,
                [np.stack(t["score"].to_list())[:, positive] for t in some],
            )
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
    test = predictions[predictions["split"] == "test"]
    scores = np.stack(test["score"].to_list())[:, positive]
    false_positive, true_positive, _ = roc_curve(test["label"] == positive, scores)
    return false_positive, true_positive
