"""One head, one seed: trained on features in memory, with its history and its scores."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.config import TrainingConfig
from cxr_spark.errors import UserError
from cxr_spark.training.heads import Standardisation, build_head
from cxr_spark.training.reader import batches

log = logging.getLogger(__name__)

SECONDS_BETWEEN_EPOCH_LINES = 15.0


@dataclass(frozen=True)
class TrainedHead:
    """A head after training.

    Attributes:
        model: an uncompiled ``keras.Model``, so that saving it stores no optimizer state.
        history: by epoch: ``loss``, ``auc`` (Keras' metric), ``val_loss``, ``val_auc``.
        scores: float32 of shape (n_images, n_classes), of every image in the order of the inputs.
        seconds: how long the training took, without scoring.
    """

    model: Any
    history: dict[str, list[float]]
    scores: npt.NDArray[np.float32]
    seconds: float


def train_head(
    head: str,
    inputs: Sequence[npt.NDArray[Any]],
    labels: npt.NDArray[np.int64],
    splits: npt.NDArray[np.str_],
    *,
    n_classes: int,
    training: TrainingConfig,
    seed: int,
    standardisation: Standardisation | None = None,
) -> TrainedHead:
    """Train a head as the seed study did: softmax, binary cross-entropy on one-hot labels, Adam.

    Args:
        head: a key of ``heads.HEADS``.
        inputs: (pooled,) or (feature_map, scale), each of shape (n_images, ...).
        labels: int64 of shape (n_images,), class indices.
        splits: 'train', 'val' or 'test', of shape (n_images,).
        n_classes: how many classes the task has.
        training: epochs, batch size, learning rate, patience.
        seed: of the head's initialisation and the order of images; the same seed on the same
            machine gives the same scores.
        standardisation: of the channels, or None to take features as they are.
    """
    import keras
    import tensorflow as tf

    keras.backend.clear_session()  # or what earlier heads held, gigabytes of it, stays
    gc.collect()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    began = time.perf_counter()
    model = build_head(head, inputs[0].shape[1:], n_classes, standardisation)
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]

    def part(split: str, shuffle_seed: int | None = None) -> Any:
        rows = np.flatnonzero(splits == split)
        return batches(
            [values[rows] for values in inputs],
            one_hot[rows],
            batch_size=training.batch_size,
            seed=shuffle_seed,
        )

    compiled = keras.Model(model.inputs, model.outputs)
    compiled.compile(
        optimizer=keras.optimizers.Adam(training.learning_rate),
        loss="binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    callbacks = [_epoch_lines(training.epochs)]
    if training.early_stopping is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                "val_loss", patience=training.early_stopping, restore_best_weights=True
            )
        )
    fitted = compiled.fit(
        part("train", shuffle_seed=seed),
        validation_data=part("val"),
        epochs=training.epochs,
        callbacks=callbacks,
        shuffle=False,  # the data set shuffles itself
        verbose=0,
    )
    seconds = time.perf_counter() - began
    history = {name: [float(value) for value in values] for name, values in fitted.history.items()}
    everything = batches(inputs, one_hot, batch_size=256)
    scores = np.concatenate([model(features, training=False).numpy() for features, _ in everything])
    if not np.isfinite(scores).all():
        raise UserError(
            f"Expected finite scores of the head {head}, seed {seed}. Received: NaN or infinity. "
            "Lower training.learning_rate, or set standardise: true."
        )
    if np.ptp(scores, axis=0).max() == 0:
        log.warning("  %s, seed %d: every image has one score; nothing was learnt", head, seed)
    return TrainedHead(model, history, scores, seconds)


def standardise(
    inputs: Sequence[npt.NDArray[Any]], splits: npt.NDArray[np.str_]
) -> Standardisation:
    """Return mean and standard deviation of each channel over the training images, in float64."""
    rows = np.flatnonzero(splits == "train")
    total = np.zeros(inputs[0].shape[-1])
    squares = np.zeros_like(total)
    count = 0
    # The largest magnitude is divided out first: squares of features near 1e-10 stay exact.
    largest = 0.0
    for chunk in _chunks(inputs, rows):
        largest = max(largest, float(np.abs(chunk).max()))
    unit = largest or 1.0
    for chunk in _chunks(inputs, rows):
        flat = chunk.reshape(-1, chunk.shape[-1]) / unit
        total += flat.sum(axis=0)
        squares += np.square(flat).sum(axis=0)
        count += len(flat)
    mean = total / count
    variance = np.maximum(squares / count - np.square(mean), 0)
    # What rounding leaves of a constant channel is no variation.
    variance[variance <= 1e-14 * np.square(mean)] = 0
    return Standardisation(mean * unit, np.sqrt(variance) * unit)


def _chunks(inputs: Sequence[npt.NDArray[Any]], rows: npt.NDArray[np.int64]) -> Any:
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        chunk = inputs[0][some].astype(np.float64)
        if len(inputs) == 2:
            chunk *= inputs[1][some].astype(np.float64)[:, None, None, None]
        yield chunk


def _epoch_lines(epochs: int) -> Any:
    """Return a callback that tells of epochs, at most one line in a while."""
    import keras

    class EpochLines(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            now = time.monotonic()
            if now - self.last >= SECONDS_BETWEEN_EPOCH_LINES and logs:
                self.last = now
                log.info(
                    "  epoch %d of %d: loss %.4f, validation loss %.4f",
                    epoch + 1,
                    epochs,
                    logs["loss"],
                    logs["val_loss"],
                )

    return EpochLines()
