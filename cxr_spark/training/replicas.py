"""Many softmax heads on pooled features at once: seeds and folds of one configuration.

A head of some thousand weights takes Keras' ``fit`` longer to ask for than to compute. Here
one Keras layer holds them all, each with its own images, order and weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.config import TrainingConfig
from cxr_spark.training.adam import fused_adam
from cxr_spark.training.heads import Head, Standardisation, build_head, class_weights
from cxr_spark.training.trainer import TrainedHead

VALUES_A_STEP = 2**23  # 32 MB of features; of more replicas some are trained after the others


@dataclass(frozen=True)
class Replica:
    """One head to be trained.

    Attributes:
        seed: of its initialisation and the order of its images.
        train, val: int64, the positions of the images that train and validate it.
        standardisation: of the channels, or None to take features as they are.
    """

    seed: int
    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    standardisation: Standardisation | None = None


def train_replicas(
    head: Head,
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    replicas: Sequence[Replica],
    *,
    n_classes: int,
    training: TrainingConfig,
) -> list[TrainedHead]:
    """Train heads without hidden layers as ``train_head`` does each, but together.

    Which others are trained beside it changes a head by rounding alone.

    Args:
        head: one that takes pooled features and has no hidden layer.
        features: float32 of shape (n_images, channels), of all images.
        labels: int64 of shape (n_images,), class indices.
        replicas: what to train.
        n_classes: how many classes the task has.
        training: epochs, batch size, learning rate, patience.
    """
    n_each = max(1, VALUES_A_STEP // (training.batch_size * features.shape[1]))
    # Adam moves weights in a step without images too: all of a group take equally many.
    steps = [-(-len(replica.train) // training.batch_size) for replica in replicas]
    trained: dict[int, TrainedHead] = {}
    for n_steps in sorted(set(steps)):
        alike = [k for k, n in enumerate(steps) if n == n_steps]
        for start in range(0, len(alike), n_each):
            group = alike[start : start + n_each]
            some = [replicas[k] for k in group]
            heads = _train(head, features, labels, some, n_classes, training)
            trained.update(zip(group, heads, strict=True))
    return [trained[k] for k in range(len(replicas))]


def _train(
    head: Head,
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    replicas: Sequence[Replica],
    n_classes: int,
    training: TrainingConfig,
) -> list[TrainedHead]:
    import keras
    import tensorflow as tf

    keras.backend.clear_session()
    tf.config.experimental.enable_op_determinism()
    began = time.perf_counter()
    models = []
    for replica in replicas:
        keras.utils.set_random_seed(replica.seed)
        models.append(build_head(head, features.shape[1:], n_classes, replica.standardisation))
    together = _Together(
        models, features, labels, n_classes,
        fused_adam(training.learning_rate, weight_decay=head.weight_decay),
    )  # fmt: skip
    of_classes = [class_weights(head, labels[r.train], n_classes) for r in replicas]
    orders = [np.random.default_rng(replica.seed) for replica in replicas]
    progress = [_Progress(training.early_stopping) for _ in replicas]
    for _ in range(training.epochs):
        fits = together.fit_epoch(
            [r.train for r in replicas], orders, training.batch_size, of_classes
        )
        validations = together.evaluate([r.val for r in replicas])
        for k, running in enumerate(progress):
            running.add(fits[k], validations[k], together.weights(k))
        if all(running.stopped for running in progress):
            break
    seconds = (time.perf_counter() - began) / len(replicas)
    trained = []
    for model, running in zip(models, progress, strict=True):
        model.get_layer("scores").set_weights(running.weights)
        scores = np.concatenate(
            [model(features[i : i + 4096]).numpy() for i in range(0, len(features), 4096)]
        )
        trained.append(TrainedHead(model, running.history, scores, seconds))
    return trained


class _Together:
    """The heads in one layer, and a step of all of them."""

    def __init__(
        self,
        models: Sequence[Any],
        features: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        n_classes: int,
        optimizer: Any,
    ):
        import keras
        import tensorflow as tf

        n, channels = len(models), features.shape[1]
        scores = keras.layers.EinsumDense(
            "brc,rck->brk", (n, n_classes), bias_axes="rk", activation="softmax"
        )
        rows = keras.Input((n, channels))
        hidden = rows
        scalings = [model.get_layer("standardise") for model in models if len(model.layers) > 2]
        if scalings:
            scale, offset = (
                np.array([getattr(s, name) for s in scalings], np.float32)
                for name in ("scale", "offset")
            )
            hidden = hidden * scale + offset
        self._model = keras.Model(rows, scores(hidden))
        stacked = zip(*(model.get_layer("scores").get_weights() for model in models), strict=True)
        scores.set_weights([np.stack(values) for values in stacked])
        self._scores = scores
        self._features = tf.constant(features)
        self._targets = tf.one_hot(labels, n_classes)
        self._labels = labels
        self._optimizer = optimizer
        self._optimizer.build(self._model.trainable_variables)
        self._step = tf.function(self._fit_batch, reduce_retracing=True)
        self._predict = tf.function(self._score_batch, reduce_retracing=True)

    def weights(self, k: int) -> list[npt.NDArray[np.float32]]:
        """Return kernel and bias of one head."""
        return [np.array(variable[k]) for variable in self._scores.weights]

    def fit_epoch(
        self,
        rows: Sequence[npt.NDArray[np.int64]],
        orders: Sequence[np.random.Generator],
        batch_size: int,
        of_classes: Sequence[npt.NDArray[np.float32]],
    ) -> list[dict[str, float]]:
        """Show every head its images once, each in its own order; return loss and AUC of each."""
        shuffled = [order.permutation(part) for order, part in zip(orders, rows, strict=True)]
        return self._run(shuffled, batch_size, self._step, of_classes)

    def evaluate(self, rows: Sequence[npt.NDArray[np.int64]]) -> list[dict[str, float]]:
        """Return loss and AUC of each head on its images."""
        even = [np.ones(self._targets.shape[1], np.float32)] * len(rows)
        return self._run(rows, 256, self._predict, even)

    def _run(
        self,
        rows: Sequence[npt.NDArray[np.int64]],
        batch_size: int,
        run: Any,
        of_classes: Sequence[npt.NDArray[np.float32]],
    ) -> list[dict[str, float]]:
        import keras
        import tensorflow as tf

        # Heads have different numbers of images: what fills up the shorter ones weighs nothing.
        longest = max(len(part) for part in rows)
        at = np.stack([np.resize(part, longest) for part in rows], axis=1)
        held = np.arange(longest)[:, None] < np.array([len(part) for part in rows])
        losses, scores = [], []
        for start in range(0, longest, batch_size):
            some = held[start : start + batch_size]
            rows_now = at[start : start + batch_size]
            weights = some / np.maximum(some.sum(axis=0), 1)
            for k, of_class in enumerate(of_classes):
                weights[:, k] *= of_class[self._labels[rows_now[:, k]]]
            loss, score = run(tf.constant(rows_now), tf.constant(weights, tf.float32))
            losses.append(loss.numpy() * some.sum(axis=0))
            scores.append(score.numpy())
        joined = np.concatenate(scores)
        found = []
        for k, part in enumerate(rows):
            metric = keras.metrics.AUC()
            metric.update_state(np.eye(joined.shape[2])[self._labels[part]], joined[: len(part), k])
            loss = float(np.sum(losses, axis=0)[k] / len(part))
            found.append({"loss": loss, "auc": float(metric.result())})
        return found

    def _fit_batch(self, rows: Any, weights: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            losses, scores = self._score_batch(rows, weights, training=True)
            # Of a sum, so that each head's gradient is its own.
            loss = tf.reduce_sum(losses)
        variables = self._model.trainable_variables
        self._optimizer.apply(tape.gradient(loss, variables), variables)
        return losses, scores

    def _score_batch(self, rows: Any, weights: Any, training: bool = False) -> tuple[Any, Any]:
        import keras
        import tensorflow as tf

        scores = self._model(tf.gather(self._features, rows), training=training)
        losses = keras.losses.binary_crossentropy(tf.gather(self._targets, rows), scores)
        return tf.reduce_sum(losses * weights, axis=0), scores


class _Progress:
    """The history of one head, and its weights: the last, or the best where it stops early."""

    def __init__(self, patience: int | None):
        self.history: dict[str, list[float]] = {}
        self.weights: list[npt.NDArray[np.float32]] = []
        self.stopped = False
        self._patience = patience
        self._best, self._since = np.inf, 0

    def add(
        self,
        fit: dict[str, float],
        validation: dict[str, float],
        weights: list[npt.NDArray[np.float32]],
    ) -> None:
        """Take one epoch on, unless it has stopped before."""
        if self.stopped:
            return
        measures = {**fit, **{f"val_{name}": value for name, value in validation.items()}}
        for name, value in measures.items():
            self.history.setdefault(name, []).append(value)
        if self._patience is None:
            self.weights = weights
            return
        self._since += 1
        if validation["loss"] < self._best or not self.weights:
            self._best, self._since, self.weights = validation["loss"], 0, weights
        self.stopped = self._since >= self._patience
