from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.config import TrainingConfig
from cxr_spark.training.heads import HEADS, Head, Standardisation, class_weights
from cxr_spark.training.replicas import Replica, train_replicas

N = 240


@pytest.fixture
def problem(rng: np.random.Generator):
    labels = np.arange(N) % 2
    pooled = rng.normal(size=(N, 12)).astype(np.float32)
    pooled[:, 0] += 2 * labels
    return pooled, labels.astype(np.int64)


def make_replica(seed: int, n_train: int = 160, **changes: object) -> Replica:
    return Replica(seed, np.arange(n_train), np.arange(200, N), **changes)  # type: ignore[arg-type]


def train(
    problem,
    replicas: list[Replica],
    n_classes: int = 2,
    head: Head = HEADS["gap"],
    **training: object,
):
    pooled, labels = problem
    config = TrainingConfig(**{"epochs": 5, "batch_size": 16, "learning_rate": 0.01, **training})
    return train_replicas(
        head, pooled, labels % n_classes, replicas, n_classes=n_classes, training=config
    )


def by_keras(
    problem, replica: Replica, n_classes: int, config: TrainingConfig, head: Head = HEADS["gap"]
):
    """The same head by Keras' own fit, given the images in the same order."""
    import keras

    from cxr_spark.training.heads import build_head

    pooled, labels = problem
    keras.utils.set_random_seed(replica.seed)
    model = build_head(head, pooled.shape[1:], n_classes, replica.standardisation)
    model.compile(
        keras.optimizers.Adam(config.learning_rate, weight_decay=head.weight_decay or None),
        "binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    order = np.random.default_rng(replica.seed)
    targets = np.eye(n_classes, dtype=np.float32)[labels % n_classes]
    history: dict[str, list[float]] = {}
    for _ in range(config.epochs):
        rows = order.permutation(replica.train)
        fitted = model.fit(
            pooled[rows], targets[rows], batch_size=config.batch_size, shuffle=False, verbose=0,
            validation_data=(pooled[replica.val], targets[replica.val]),
            sample_weight=class_weights(head, labels[replica.train] % n_classes, n_classes)[
                labels[rows] % n_classes
            ],
        )  # fmt: skip
        for name, values in fitted.history.items():
            history.setdefault(name, []).extend(values)
    return model, history


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("standardised", [False, True])
def test_each_is_what_keras_trains(problem, n_classes: int, standardised: bool) -> None:
    scaling = Standardisation(np.full(12, 0.3), np.linspace(0, 2, 12)) if standardised else None
    # 150 images are no whole number of batches, and the second head has fewer than the first
    replicas = [
        make_replica(0, 150, standardisation=scaling),
        make_replica(1, 83, standardisation=scaling),
    ]
    problem = (problem[0], np.arange(N) % n_classes)
    config = TrainingConfig(epochs=3, batch_size=16, learning_rate=0.01)
    trained = train(problem, replicas, n_classes, epochs=3)
    for one, replica in zip(trained, replicas, strict=True):
        model, history = by_keras(problem, replica, n_classes, config)
        assert one.scores == pytest.approx(model(problem[0]).numpy(), abs=2e-5)
        assert one.model(problem[0]).numpy() == pytest.approx(one.scores, abs=1e-6)
        for name, values in history.items():
            assert one.history[name] == pytest.approx(values, abs=2e-4), name


def test_class_weights_and_weight_decay_are_keras_own(problem) -> None:
    head = Head("own", class_weights="balanced", weight_decay=0.1)
    pooled, labels = problem
    labels = np.where(np.arange(N) % 6 == 0, labels, 1)
    config = TrainingConfig(epochs=3, batch_size=16, learning_rate=0.01)
    (one,) = train((pooled, labels), [make_replica(0, 150)], head=head, epochs=3)
    model, history = by_keras((pooled, labels), make_replica(0, 150), 2, config, head)
    assert one.scores == pytest.approx(model(pooled).numpy(), abs=2e-5)
    assert one.history["loss"] == pytest.approx(history["loss"], abs=2e-4)
    (plain,) = train((pooled, labels), [make_replica(0, 150)], epochs=3)
    assert np.abs(plain.scores - one.scores).max() > 0.01


def test_others_beside_it_change_nothing(problem) -> None:
    replicas = [make_replica(seed, 100 + seed) for seed in range(7)]
    together = train(problem, replicas)
    for replica, one in zip(replicas, together, strict=True):
        (alone,) = train(problem, [replica])
        assert alone.scores == pytest.approx(one.scores, abs=2e-6)
        assert alone.history["val_loss"] == pytest.approx(one.history["val_loss"], abs=2e-6)


def test_the_same_replicas_give_the_same_numbers(problem) -> None:
    replicas = [make_replica(seed, 100 + seed) for seed in range(3)]
    for one, same in zip(train(problem, replicas), train(problem, replicas), strict=True):
        assert np.array_equal(one.scores, same.scores)
        assert one.history == same.history


def test_many_wide_heads_are_trained_in_parts(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = [make_replica(seed) for seed in range(5)]
    together = train(problem, replicas)
    monkeypatch.setattr("cxr_spark.training.replicas.VALUES_A_STEP", 2 * 16 * 12)
    for one, other in zip(together, train(problem, replicas), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=2e-6)


def test_each_stops_early_for_itself_with_its_best_weights(problem) -> None:
    replicas = [make_replica(seed) for seed in range(3)]
    trained = train(problem, replicas, epochs=60, learning_rate=0.5, early_stopping=2)
    lengths = [len(one.history["loss"]) for one in trained]
    assert max(lengths) < 60
    assert len(set(lengths)) > 1
    for replica, one in zip(replicas, trained, strict=True):
        losses = one.history["val_loss"]
        best = int(np.argmin(losses)) + 1
        assert len(losses) == best + 2
        (then,) = train(problem, [replica], epochs=best, learning_rate=0.5)
        assert one.scores == pytest.approx(then.scores, abs=1e-4)


def test_held_out_images_do_not_touch_training(problem) -> None:
    pooled, labels = problem
    (one,) = train(problem, [make_replica(0)])
    changed = pooled.copy()
    changed[160:] = 99
    (two,) = train((changed, np.where(np.arange(N) < 160, labels, 1 - labels)), [make_replica(0)])
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        assert np.array_equal(a, b)
