from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.config import TrainingConfig
from cxr_spark.errors import UserError
from cxr_spark.training.heads import HEADS
from cxr_spark.training.inputs import InMemory
from cxr_spark.training.trainer import train_head

N = 240


@pytest.fixture
def problem(rng: np.random.Generator):
    labels = np.arange(N) % 2
    splits = np.array(["train"] * 160 + ["val"] * 40 + ["test"] * 40)
    pooled = rng.normal(size=(N, 12)).astype(np.float32)
    pooled[:, 0] += 4 * labels
    return pooled, labels.astype(np.int64), splits


def as_maps(pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = np.repeat(pooled[:, None, :], 4, axis=1).reshape(N, 2, 2, 12)
    scale = np.abs(maps).max(axis=(1, 2, 3))
    return (maps / scale[:, None, None, None]).astype(np.float16), scale


def train(problem, head: str = "gap", seed: int = 0, **training: object):
    pooled, labels, splits = problem
    inputs = InMemory(pooled) if head == "gap" else InMemory(*as_maps(pooled))
    config = TrainingConfig(**{"epochs": 20, "batch_size": 16, "learning_rate": 0.01, **training})
    return train_head(HEADS[head], inputs, labels, splits, n_classes=2, training=config, seed=seed)


@pytest.mark.parametrize("head", ["gap", "fc1024"])
def test_a_head_learns_what_can_be_learnt(problem, head: str) -> None:
    _, labels, splits = problem
    trained = train(problem, head)
    test = splits == "test"
    assert trained.scores.shape == (N, 2)
    assert np.mean(trained.scores[test].argmax(axis=1) == labels[test]) > 0.85
    assert len(trained.history["val_auc"]) == 20
    assert trained.history["loss"][-1] < trained.history["loss"][0]


@pytest.mark.parametrize("head", ["gap", "fc1024"])
def test_the_same_seed_gives_the_same_scores_and_another_does_not(problem, head: str) -> None:
    one, same, other = (train(problem, head, seed, epochs=2) for seed in (0, 0, 1))
    assert np.array_equal(one.scores, same.scores)
    assert one.history == same.history
    assert not np.array_equal(one.scores, other.scores)


def test_test_images_do_not_touch_training(problem) -> None:
    pooled, labels, splits = problem
    changed = pooled.copy()
    changed[splits == "test"] = 99
    swapped = np.where(splits == "test", 1 - labels, labels)
    one, two = train(problem), train((changed, swapped, splits))
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_a_head_that_diverges_is_told_and_one_that_is_dead_is_warned_of(problem, caplog) -> None:
    pooled, labels, splits = problem
    with pytest.raises(UserError, match="finite scores of the head gap, seed 0"):
        train((pooled * np.float32(np.nan), labels, splits), epochs=1)
    with caplog.at_level("WARNING"):
        train((np.zeros_like(pooled), labels, splits), epochs=1)
    assert "nothing was learnt" in caplog.text


def test_early_stopping_ends_before_the_last_epoch(problem) -> None:
    stopped = train(problem, epochs=200, learning_rate=0.5, early_stopping=2)
    assert len(stopped.history["loss"]) < 200


def test_a_saved_model_has_no_optimizer_and_gives_the_same_scores(problem, tmp_path) -> None:
    import zipfile

    import h5py
    import keras

    trained = train(problem, "fc1024", epochs=1)
    file = tmp_path / "head.keras"
    trained.model.save(file)
    with zipfile.ZipFile(file) as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as weights:
        assert "optimizer" not in weights
    loaded = keras.models.load_model(file, safe_mode=True)
    maps, scale = as_maps(problem[0])
    features = maps.astype(np.float32) * scale[:, None, None, None]
    assert loaded(features).numpy() == pytest.approx(trained.scores, abs=1e-6)
