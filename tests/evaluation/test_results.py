from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.intervals import holm
from cxr_spark.evaluation.measures import draw_resamples, scored
from cxr_spark.evaluation.results import (
    RESULT_COLUMNS,
    evaluate_run,
    make_measures,
    make_results,
    roc_points,
)
from cxr_spark.evaluation.rules import Rules
from cxr_spark.files import without_nan


def make_predictions(rng: np.random.Generator, n_classes: int = 2) -> pd.DataFrame:
    n = 120
    labels = np.arange(n) % n_classes
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "split": np.repeat(["train", "val", "test"], n // 3),
            "image_id": [f"i{i:03d}" for i in range(n)],
            "patient_id": [None if i % 5 == 0 else f"p{i // 2}" for i in range(n)],
            "label": labels,
            "score": list(scores.astype(np.float32)),
        }
    )


def make_record(seed: int, head: str = "gap") -> dict[str, object]:
    return {
        "configuration": f"ResNet50-none-{head}",
        "backbone": "ResNet50",
        "preprocessing": "none",
        "head": head,
        "weights": "imagenet",
        "seed": seed,
        "train_seconds": 1.0,
    }


def tabulate(predictions: list, records: list, positive: int | None, *, as_paper: bool = True):
    n_classes = len(predictions[0]["score"].iloc[0])
    classes = ["A", "B", "C"][:n_classes]
    rules = Rules(positive)
    resamples = draw_resamples(scored(predictions[0], "test"), rules)
    return make_measures(predictions, records, rules, classes, "", resamples, as_paper=as_paper)


def test_results_have_the_columns_and_the_papers_figure(rng: np.random.Generator) -> None:
    predictions = [make_predictions(rng), make_predictions(rng)]
    records = [make_record(0), make_record(1, "fc1024")]
    results = make_results(tabulate(predictions, records, 1))
    assert tuple(results.columns) == RESULT_COLUMNS
    assert results["paper_test_keras_auc"].tolist() == [0.89, 0.8038]
    assert results[["n_train", "n_val", "n_test"]].to_numpy().tolist() == [[40, 40, 40]] * 2
    test = predictions[0][80:]
    scores = np.stack(test["score"])[:, 1]
    assert results["test_auc"][0] == pytest.approx(roc_auc_score(test["label"], scores))
    assert results["test_auc_low"][0] < results["test_auc"][0] < results["test_auc_high"][0]


def test_the_positive_class_may_be_the_first(rng: np.random.Generator) -> None:
    predictions = make_predictions(rng)
    first, second = (
        make_results(tabulate([predictions], [make_record(0)], positive)) for positive in (0, 1)
    )
    assert first["test_auc"][0] == pytest.approx(second["test_auc"][0])  # softmax: mirrored
    assert first["test_sensitivity"][0] != second["test_sensitivity"][0]


def test_three_classes_have_a_macro_auc_and_no_threshold(rng: np.random.Generator) -> None:
    predictions = make_predictions(rng, 3)
    measures = tabulate([predictions], [make_record(0)], None, as_paper=False)
    results = make_results(measures)
    empty = ["test_sensitivity", "test_specificity", "threshold", "paper_test_keras_auc"]
    assert results[empty].isna().all(axis=None)
    test = predictions[80:]
    scores = np.stack(test["score"]).astype(float)
    expected = roc_auc_score(
        test["label"], scores / scores.sum(axis=1, keepdims=True), multi_class="ovr"
    )
    assert results["test_auc"][0] == pytest.approx(expected, abs=1e-6)
    assert results["test_accuracy"][0] == pytest.approx((scores.argmax(1) == test["label"]).mean())
    assert results["test_auc_low"][0] < results["test_auc"][0] < results["test_auc_high"][0]
    confusion = np.array(measures[0]["confusion"])
    assert confusion.sum(axis=1).tolist() == test["label"].value_counts().sort_index().tolist()
    assert np.trace(confusion) / 40 == pytest.approx(results["test_accuracy"][0])
    of_class = measures[0]["classes"][2]
    assert of_class["class"] == "C"
    assert of_class["sensitivity"] == pytest.approx(confusion[2, 2] / confusion[2].sum())
    assert of_class["auc"] == pytest.approx(roc_auc_score(test["label"] == 2, scores[:, 2]))


def test_summary_is_the_mean_over_seeds(rng: np.random.Generator) -> None:
    predictions = [make_predictions(rng) for _ in range(3)]
    records = [make_record(seed) for seed in range(3)]
    results = make_results(tabulate(predictions, records, 1))
    summary = evaluate_run(
        predictions, records, {}, Rules(1), ["A", "B"], "", as_paper=True
    ).summary
    assert len(summary) == 1
    assert summary["test_auc"][0] == pytest.approx(results["test_auc"].mean())
    assert summary["n_seeds"][0] == 3
    assert summary["test_auc_min"][0] == results["test_auc"].min()


def make_held_out(rng: np.random.Generator, signal: float) -> pd.DataFrame:
    table = make_predictions(rng)
    labels = table["label"].to_numpy()
    score = np.clip(0.5 + signal * (labels - 0.5) + 0.2 * rng.normal(size=len(labels)), 0, 1)
    scores = list(np.stack([1 - score, score], axis=1))
    return table.assign(split="val", repeat=0, fold=np.arange(len(labels)) // 2 % 5, score=scores)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_training_images_select_and_test_images_compare(
    rng: np.random.Generator, n_classes: int
) -> None:
    """The selected configuration is not the best on test images, and nobody asks them."""
    predictions = [make_predictions(rng, n_classes) for _ in range(3)]
    heads = ["gap", "fc1024", "gap2"]
    records = [make_record(0, head) for head in heads]
    names = [str(record["configuration"]) for record in records]
    held_out = {names[0]: make_held_out(rng, 0.1), names[1]: make_held_out(rng, 0.6)}
    rules = Rules(1 if n_classes == 2 else None, n_resamples=200)
    classes = ["A", "B", "C"][:n_classes]
    found = evaluate_run(predictions, records, held_out, rules, classes, "", as_paper=False)
    assert found.verdict.selected == names[1]
    assert found.results["selected"].tolist() == [False, True, False]
    assert found.summary["cv_auc"].notna().tolist() == [True, True, False]
    assert found.results["p_holm"].notna().tolist() == [True, False, True]
    assert found.results["difference"][0] == pytest.approx(
        found.results["test_auc"][0] - found.results["test_auc"][1]
    )
    swapped = [table.assign(label=1 - table["label"]) for table in predictions]
    if n_classes == 2:
        other = evaluate_run(swapped, records, held_out, rules, classes, "", as_paper=False)
        assert other.verdict.selected == names[1]


def test_among_some_of_them_none_is_selected(rng: np.random.Generator) -> None:
    records = [make_record(0, head) for head in ("gap", "fc1024")]
    predictions = [make_predictions(rng) for _ in records]
    names = [str(record["configuration"]) for record in records]
    found = evaluate_run(
        predictions, records, {names[1]: make_held_out(rng, 0.1)}, Rules(1), ["A", "B"], "",
        as_paper=False, lacking=names[:1],
    )  # fmt: skip
    assert found.verdict.selected is None
    assert found.summary["cv_auc"].notna().tolist() == [False, True]


def test_without_cross_validation_nothing_is_selected(rng: np.random.Generator) -> None:
    records = [make_record(0, head) for head in ("gap", "fc1024")]
    predictions = [make_predictions(rng) for _ in records]
    found = evaluate_run(predictions, records, {}, Rules(1), ["A", "B"], "", as_paper=False)
    assert found.verdict.selected is None
    assert not found.summary["selected"].any()
    assert found.summary["p_holm"].isna().all()


def test_roc_curve_runs_from_corner_to_corner(rng: np.random.Generator) -> None:
    false_positive, true_positive = roc_points(make_predictions(rng), 1)
    assert (false_positive[0], true_positive[0]) == (0, 0)
    assert (false_positive[-1], true_positive[-1]) == (1, 1)


def with_scores(table: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    return table.assign(score=list(scores.astype(np.float32)))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.filterwarnings("error")
def test_perfect_constant_and_equal_scores_leave_nothing_that_json_lacks(
    rng: np.random.Generator, n_classes: int
) -> None:
    """What is undefined is null in results.json, and a p-value of equals is 1."""
    usual = make_predictions(rng, n_classes)
    right = np.eye(n_classes)[usual["label"]]
    tables = {
        "usual": usual,
        "equal": usual.copy(),
        "perfect": with_scores(usual, 0.8 * right + 0.2 / n_classes),
        "perfect2": with_scores(usual, 0.5 * right + 0.5 / n_classes),
        "constant": with_scores(usual, np.full_like(right, 1 / n_classes)),
    }
    rules = Rules(1 if n_classes == 2 else None, calibration="platt", n_resamples=100)
    classes = ["A", "B", "C"][:n_classes]
    found = {}
    for selected in ("usual", "perfect"):
        predictions, records, held_out = [], [], {}
        for head, table in tables.items():
            record = make_record(0, head)
            predictions += [table, table]  # two seeds that are the same
            records += [record, make_record(1, head)]
            held_out[str(record["configuration"])] = make_held_out(rng, 1.0 * (head == selected))
        run = evaluate_run(predictions, records, held_out, rules, classes, "", as_paper=False)
        stored = without_nan(
            {
                "comparisons": run.verdict.comparisons.to_dict("records"),
                "configurations": run.summary.to_dict("records"),
                "rows": run.rows,
            }
        )
        text = json.dumps(stored, allow_nan=False)  # and nothing that only str makes a text of
        assert json.loads(text) == stored
        found[selected] = {row["head"]: row for row in stored["configurations"]}

    assert found["usual"]["equal"]["difference"] == 0
    assert found["usual"]["equal"]["p_value"] == 1
    assert found["usual"]["equal"]["seed_share"] == 0
    perfect = found["usual"]["perfect"]
    assert perfect["test_auc"] == perfect["test_auc_high"] == 1
    test = usual[80:]
    patients = test["patient_id"].fillna(test["image_id"]).groupby(test["label"]).nunique()
    assert perfect["test_auc_low"] == pytest.approx(0.025 ** (1 / patients.min()))
    assert perfect["seed_share"] is None
    assert 0 < perfect["p_value"] < 1
    constant = found["usual"]["constant"]
    assert (constant["test_auc"], constant["test_auc_low"]) == (0.5, None)
    assert 0 < constant["p_value"] < 1e-3

    alike = found["perfect"]["perfect2"]
    assert (alike["difference"], alike["p_value"], alike["distinguishable"]) == (0, 1, False)
    assert alike["difference_low"] == pytest.approx(perfect["test_auc_low"] - 1)
    undefined = found["perfect"]["constant"]
    assert undefined["difference"] == -0.5
    assert [undefined[name] for name in ("difference_low", "p_value", "p_holm")] == [None] * 3
    others = [found["perfect"][head]["p_value"] for head in ("usual", "equal", "perfect2")]
    adjusted = [found["perfect"][head]["p_holm"] for head in ("usual", "equal", "perfect2")]
    assert adjusted == pytest.approx(holm(others))  # the undefined one is not counted
