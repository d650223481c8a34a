from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_spark.config import Experiment
from cxr_spark.dataset.tasks import Task
from cxr_spark.errors import UserError
from cxr_spark.training.assign import Assigned
from cxr_spark.training.classifiers import Classifier
from cxr_spark.training.fit import Training
from cxr_spark.training.fit_classifier import fit_classifier
from cxr_spark.training.folds import Fold, make_folds
from cxr_spark.training.heads import Head, build_head
from cxr_spark.training.inputs import InMemory
from cxr_spark.training.spaces import PREFIX, SPACES, TUNED, Between
from cxr_spark.training.trainer import NoScores
from cxr_spark.training.tune import settle

N = 200


def make_training(
    rng: np.random.Generator, trials: int = 4, n_classes: int = 2, repeats: int = 2
) -> tuple[Training, list[Fold]]:
    labels = rng.integers(n_classes, size=N)
    features = rng.normal(size=(N, 6)) + 0.8 * np.eye(6)[labels]
    splits = np.array(["train", "train", "train", "val", "test"])[np.arange(N) % 5]
    experiment = Experiment(
        backbones=["ResNet50"],
        heads=["tuned_logistic"],
        tuning={"trials": trials},  # type: ignore[arg-type]
        cross_validation={"folds": 3, "repeats": repeats},  # type: ignore[arg-type]
        training={"epochs": 2},  # type: ignore[arg-type]
        standardise=True,
    )
    task = Task("findings", tuple("abc"[:n_classes]), {}, 1 if n_classes == 2 else None)
    assigned = Assigned(task, labels, splits)
    assert experiment.cross_validation is not None
    folds = make_folds(labels, [None] * N, splits, experiment.cross_validation, seed=0)
    return Training(experiment, InMemory(features.astype(np.float32)), assigned), folds


@pytest.mark.parametrize("name", SPACES)
def test_trials_are_within_their_space_and_the_table_comes_first(name: str) -> None:
    tuned = TUNED[PREFIX + name]
    drawn = tuned.draw(50, seed=0)
    assert len(drawn) == 50
    assert drawn[0] == {}
    assert drawn == tuned.draw(50, seed=0) != tuned.draw(50, seed=1)
    assert json.loads(json.dumps(drawn)) == drawn
    for parameter, values in SPACES[name].items():
        tried = [trial[parameter] for trial in drawn[1:]]
        if isinstance(values, Between):
            assert values.low <= min(tried) < max(tried) <= values.high
            assert len(set(tried)) >= 10
        else:
            stored = [list(v) if isinstance(v, tuple) else v for v in values]
            assert all(any(value == other for other in stored) for value in tried)
            assert all(value in tried for value in stored)


@pytest.mark.parametrize("name", SPACES)
def test_what_is_drawn_can_be_trained_and_saved(
    name: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Parameters that an estimator or a network does not know would fail here."""
    tuned = TUNED[PREFIX + name]
    features = rng.normal(size=(150, 8)).astype(np.float32)
    labels = np.arange(150) % 2
    for parameters in tuned.draw(4, seed=0):
        head = tuned.with_parameters(json.loads(json.dumps(parameters)))
        assert head.name == tuned.name
        if isinstance(head, Classifier):
            fitted = fit_classifier(head, features, labels, np.arange(150), seed=0)
            estimator = fitted.model[-1]
            assert {**estimator.get_params(), **parameters} == estimator.get_params()
        else:
            shape = (8,) if head.takes == "pooled" else (2, 2, 8)
            assert build_head(head, shape, 2).output_shape == (None, 2)
            assert isinstance(head.dense, tuple)


def test_a_forest_is_tried_with_fewer_trees_than_it_has_at_last() -> None:
    tuned = TUNED["tuned_random_forest"]
    parameters = {"min_samples_leaf": 3}
    tried, trained = tuned.trial(parameters), tuned.with_parameters(parameters)
    assert isinstance(tried, Classifier)
    assert isinstance(trained, Classifier)
    assert tried.estimator(0).get_params() == {
        **trained.estimator(0).get_params(), "n_estimators": 100
    }  # fmt: skip
    assert trained.estimator(0).n_estimators == 500


def slow_search(
    training: Training, folds: list[Fold], parameters: dict[str, Any]
) -> tuple[float, list[float]]:
    """The same in plain words: for each fold, the others one by one by heads that saw neither."""
    tuned, aucs = TUNED["tuned_logistic"], []
    values, labels = training.inputs.values, training.assigned.labels  # type: ignore[attr-defined]
    train = set(np.flatnonzero(training.assigned.splits == "train"))
    for left_out in folds:
        of_fold = []
        for asked in folds:
            if asked.repeat != left_out.repeat or asked.fold == left_out.fold:
                continue
            seen = sorted(train - set(left_out.held_out) - set(asked.held_out))
            head = tuned.with_parameters(parameters)
            assert isinstance(head, Classifier)
            fitted = fit_classifier(head, values, labels, np.array(seen), seed=0)
            rows = asked.held_out
            of_fold.append(roc_auc_score(labels[rows], fitted.scores[rows, 1]))
        aucs.append(of_fold)
    return float(np.mean(aucs)), [float(np.mean(of_fold)) for of_fold in aucs]


def test_a_search_finds_what_a_slow_one_does(rng: np.random.Generator, tmp_path: Path) -> None:
    training, folds = make_training(rng)
    file = tmp_path / "tuning" / "x.json"
    settled = settle(training, TUNED["tuned_logistic"], folds, file)
    trials = json.loads(file.read_text())["trials"]
    drawn = [trial["parameters"] for trial in trials]
    slow = [slow_search(training, folds, parameters) for parameters in drawn]
    assert [trial["auc"] for trial in trials] == pytest.approx([auc for auc, _ in slow])
    tuned = TUNED["tuned_logistic"]
    best = int(np.argmax([auc for auc, _ in slow]))
    assert settled.head == tuned.with_parameters(drawn[best])
    assert len(settled.by_fold) == 6
    for k, head in enumerate(settled.by_fold):
        chosen = int(np.argmax([without[k] for _, without in slow]))
        assert head == tuned.with_parameters(drawn[chosen])
    assert settled.search is not None
    assert settled.search["untuned_auc"] == trials[0]["auc"] <= settled.search["auc"]
    assert (settled.search["n_trials"], settled.search["n_fits"]) == (4, 4 * 6)


def test_labels_without_meaning_are_told_from_nothing(tmp_path: Path) -> None:
    """The best of many trials flatters itself; what images it had no part in say must not."""
    flattered, honest = [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        training, folds = make_training(rng, trials=12)
        training.inputs.values[:] = rng.normal(size=(N, 6))  # type: ignore[attr-defined]
        file = tmp_path / str(seed) / "x.json"
        settled = settle(training, TUNED["tuned_nearest_neighbours"], folds, file)
        assert settled.search is not None
        flattered.append(settled.search["auc"])
        for fold, head in zip(folds, settled.by_fold, strict=True):
            ((_, scores),) = training.fit_folds(head, [fold], 0)
            truth = training.assigned.labels[fold.held_out]
            honest.append(roc_auc_score(truth, scores[:, 1]))
    assert np.mean(flattered) > 0.53
    spread = np.std(np.reshape(honest, (24, 6)).mean(axis=1), ddof=1) / np.sqrt(24)
    assert abs(np.mean(honest) - 0.5) < 3 * spread
    assert spread < 0.02


def test_neither_test_images_nor_held_out_ones_choose(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    training, folds = make_training(rng, trials=6)
    labels = training.assigned.labels.copy()
    before = settle(training, TUNED["tuned_logistic"], folds, tmp_path / "a" / "x.json")
    outside = ~np.isin(np.arange(N), [i for fold in folds for i in fold.held_out])
    assert set(training.assigned.splits[outside]) == {"val", "test"}
    training.assigned.labels[outside] = 1 - labels[outside]
    training.inputs.values[outside] = 99  # type: ignore[attr-defined]
    after = settle(training, TUNED["tuned_logistic"], folds, tmp_path / "b" / "x.json")
    assert before == after
    one, two = (
        json.loads((tmp_path / name / "x.json").read_text())["trials"] for name in ("a", "b")
    )
    assert one == two
    assert len({trial["auc"] for trial in one}) > 1


@pytest.mark.parametrize("name", ["tuned_gap", "tuned_dnn3"])
def test_networks_are_searched_as_classifiers_are(
    name: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    training, folds = make_training(rng, trials=2, n_classes=3, repeats=1)
    settled = settle(training, TUNED[name], folds, tmp_path / "t" / "x.json")
    assert isinstance(settled.head, Head)
    assert settled.head.name == name
    trials = json.loads((tmp_path / "t" / "x.json").read_text())["trials"]
    assert len({trial["auc"] for trial in trials}) == 2


def test_a_search_goes_on_where_it_was_killed(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, folds = make_training(rng)
    file = tmp_path / "t" / "x.json"
    whole = settle(training, TUNED["tuned_logistic"], folds, file)
    trials = json.loads(file.read_text())
    file.write_text(json.dumps({"trials": trials["trials"][:3]}))
    fits = []
    fit = Training.fit_folds
    monkeypatch.setattr(Training, "fit_folds", lambda *a: (fits.append(1), fit(*a))[1])
    assert settle(training, TUNED["tuned_logistic"], folds, file) == whole
    assert len(fits) == 1
    assert json.loads(file.read_text()) == trials


def test_damaged_trials_are_told(rng: np.random.Generator, tmp_path: Path) -> None:
    training, folds = make_training(rng)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"Expected the trials of a search. Received: .*x\.json"):
        settle(training, TUNED["tuned_logistic"], folds, tmp_path / "x.json")


@pytest.mark.parametrize("error", [NoScores("no numbers"), ValueError("too few images")])
def test_a_trial_without_scores_is_the_worst_and_no_end(
    error: Exception, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, folds = make_training(rng, trials=3)
    from cxr_spark.training import tune

    fit = Training.fit_folds

    def sometimes(self: Training, head: Classifier, *rest: Any):
        if head.parameters.get("C") is not None:
            raise error
        return fit(self, head, *rest)

    monkeypatch.setattr(tune.Training, "fit_folds", sometimes)
    settled = settle(training, TUNED["tuned_logistic"], folds, tmp_path / "t" / "x.json")
    assert settled.search is not None
    assert settled.search["parameters"] == {}
