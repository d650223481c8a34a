from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.bootstrap import draw_patients
from cxr_spark.evaluation.intervals import difference_of, estimate_aucs, holm
from cxr_spark.evaluation.measures import Scored
from cxr_spark.evaluation.select import CrossValidated, compare, cross_validated, select

N = 160


def make_scored(rng: np.random.Generator, signal: float, n_classes: int = 2) -> Scored:
    labels = np.arange(N) // 2 % n_classes
    logits = rng.normal(size=(N, n_classes)) + signal * np.eye(n_classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array([f"i{i:03d}" for i in range(N)])
    return Scored(names, labels, scores, np.array([f"p{i // 2}" for i in range(N)]))


def test_folds_have_an_auc_each(rng: np.random.Generator) -> None:
    one = make_scored(rng, 1.0)
    table = pd.DataFrame(
        {
            "repeat": np.repeat([0, 1], N // 2),
            "fold": np.arange(N) // 4 % 2,
            "label": one.labels,
            "score": list(one.scores),
        }
    )
    expected = [
        roc_auc_score(rows["label"] == 1, np.stack(rows["score"])[:, 1])
        for _, rows in table.groupby(["repeat", "fold"])
    ]
    found = cross_validated(table, 1)
    assert found.n_folds == 4
    assert list(found.aucs.values()) == pytest.approx(expected)
    assert (found.mean, found.spread) == pytest.approx(
        (np.mean(expected), np.std(expected, ddof=1))
    )
    alone = cross_validated(table[(table["repeat"] == 0) & (table["fold"] == 0)], None)
    assert np.isnan(alone.spread)
    assert alone.mean == pytest.approx(expected[0])  # of two classes the macro AUC is that of one


def test_two_are_as_close_as_their_difference_by_fold() -> None:
    one = CrossValidated(0.9, 0.1, 3, {(0, 0): 0.8, (0, 1): 0.9, (1, 0): 1.0})
    other = CrossValidated(0.87, 0.1, 3, {(1, 0): 0.97, (0, 1): 0.86, (0, 0): 0.78})
    assert one.spread_from(other) == pytest.approx(np.std([0.02, 0.04, 0.03], ddof=1))
    assert np.isnan(one.spread_from(CrossValidated(0.8, 0.1, 1, {(0, 0): 0.8})))


def test_the_best_on_training_images_is_selected() -> None:
    found = {"a": CrossValidated(0.9, 0.1, 5), "b": CrossValidated(0.95, 0.1, 5)}
    assert select(found) == "b"
    assert select({**found, "c": CrossValidated(0.95, 0.0, 5)}) == "b"
    assert select({}) is None
    assert select({**found, "d": CrossValidated(float("nan"), 0.1, 5)}) == "b"
    assert select({"d": CrossValidated(float("nan"), 0.1, 5)}) is None


def test_two_classes_are_compared_by_patient(rng: np.random.Generator) -> None:
    tests = {
        name: [make_scored(rng, signal) for _ in range(2)]
        for name, signal in (("weak", 0.3), ("chosen", 2.0), ("as good", 2.0))
    }
    resamples = draw_patients(tests["weak"][0].labels, n_resamples=2)
    table = compare(tests, "chosen", 1, resamples)
    assert table["configuration"].tolist() == ["weak", "as good"]
    first = tests["chosen"][0]
    estimate = estimate_aucs(
        first.labels == 1,
        [[s.scores[:, 1] for s in tests[name]] for name in ("weak", "as good", "chosen")],
        first.groups,
    )
    for k, row in enumerate(table.to_dict("records")):
        expected = difference_of(estimate, k, 2)
        assert row["difference"] == pytest.approx(expected.difference)
        assert row["p_value"] == pytest.approx(expected.p_value)
    assert table["p_holm"].to_numpy() == pytest.approx(holm(table["p_value"]))
    assert table["p_holm"][0] < 0.001
    assert table["p_holm"][1] > 0.05


def test_three_classes_are_compared_by_the_same_drawings(rng: np.random.Generator) -> None:
    tests = {
        name: [make_scored(rng, signal, 3)]
        for name, signal in (("weak", 0.3), ("chosen", 2.0), ("as good", 2.0))
    }
    tests["same"] = tests["chosen"]
    first = tests["chosen"][0]
    resamples = draw_patients(first.labels, first.groups, n_resamples=400)
    table = compare(tests, "chosen", None, resamples).set_index("configuration")
    assert table["difference"]["weak"] < table["difference_high"]["weak"] < 0
    assert table["p_value"]["weak"] < 1e-4
    assert table["p_value"]["as good"] > 0.05
    assert (table["difference"]["same"], table["p_value"]["same"]) == (0, 1)


def test_a_configuration_alone_is_compared_with_none(rng: np.random.Generator) -> None:
    tests = {"chosen": [make_scored(rng, 1.0)]}
    resamples = draw_patients(tests["chosen"][0].labels, n_resamples=2)
    assert len(compare(tests, "chosen", 1, resamples)) == 0
