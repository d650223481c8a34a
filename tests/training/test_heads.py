from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from cxr_spark.config import TrainingConfig
from cxr_spark.training.heads import HEADS, Head, Standardisation, build_head, class_weights

SHAPES = {"pooled": (6,), "feature_map": (2, 3, 6)}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_head_gives_scores_that_add_to_one(name: str, n_classes: int) -> None:
    shape = SHAPES[HEADS[name].takes]
    model = build_head(HEADS[name], shape, n_classes)
    scores = model(np.ones((4, *shape), np.float32)).numpy()
    assert scores.shape == (4, n_classes)
    assert scores.sum(axis=1) == pytest.approx(np.ones(4))


def test_a_head_is_trained_as_the_experiment_says_but_for_what_it_says_itself() -> None:
    asked = TrainingConfig(epochs=7, learning_rate=0.5)
    assert HEADS["gap"].training(asked) == asked
    own = Head("own", epochs=3, early_stopping=2).training(asked)
    assert (own.epochs, own.learning_rate, own.early_stopping) == (3, 0.5, 2)


def test_balanced_classes_weigh_alike() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    weights = class_weights(HEADS["gap_balanced"], labels, 3)
    assert weights == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(3), y=labels)
    )
    assert class_weights(HEADS["gap"], labels, 3).tolist() == [1, 1, 1]


def test_hidden_layers_are_dropped_from() -> None:
    names = [type(layer).__name__ for layer in build_head(HEADS["dnn3"], (6,), 2).layers]
    assert names == ["InputLayer", *["Dense", "Dropout"] * 3, "Dense"]
    sizes = [layer.units for layer in build_head(HEADS["dnn3"], (6,), 2).layers[1::2]]
    assert sizes == [1024, 512, 256, 2]


def test_the_papers_heads_have_the_papers_parameters() -> None:
    assert build_head(HEADS["gap"], (2048,), 2).count_params() == 2048 * 2 + 2
    dense = 7 * 7 * 576 * 1024 + 1024
    assert build_head(HEADS["fc1024"], (7, 7, 576), 2).count_params() == dense + 1024 * 2 + 2


def test_standardisation_also_serves_tiny_and_constant_channels(rng: np.random.Generator) -> None:
    features = (rng.normal(3, 2, (500, 6)) * 1e-10).astype(np.float32)
    features[:, 2] = 7e-10
    wide = features.astype(np.float64)
    std = wide.std(axis=0)
    std[2] = 0
    model = build_head(HEADS["gap"], (6,), 2, Standardisation(wide.mean(axis=0), std))
    standardised = model.get_layer("standardise")(features).numpy()
    varying = np.delete(standardised, 2, axis=1)
    assert varying.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-4)
    assert varying.std(axis=0) == pytest.approx(np.ones(5), rel=1e-4)
    assert not standardised[:, 2].any()
