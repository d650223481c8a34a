"""One head, one seed: trained, with its history and its scores."""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.config import TrainingConfig
from cxr_spark.errors import UserError
from cxr_spark.training.adam import fused_adam
from cxr_spark.training.heads import Head, Standardisation, build_head, class_weights
from cxr_spark.training.inputs import Inputs, untuned

log = logging.getLogger(__name__)

SECONDS_BETWEEN_EPOCH_LINES = 15.0
VALUES_A_BATCH = 2**22  # while scoring: 16 MB of features


@dataclass(frozen=True)
class TrainedHead:
    """A head after training.

    Attributes:
        model: an uncompiled ``keras.Model``, so that saving it stores no optimizer state, or a
            fitted scikit-learn pipeline.
        history: by epoch: ``loss``, ``auc`` (Keras' metric), ``val_loss``, ``val_auc``; empty for
            what has no epochs.
        scores: float32 of shape (n_images, n_classes), of every image in the order of the inputs.
        seconds: how long the training took, without scoring.
    """

    model: Any
    history: dict[str, list[float]]
    scores: npt.NDArray[np.float32]
    seconds: float

    @property
    def suffix(self) -> str:
        """How the name of a file of it ends."""
        return ".keras" if hasattr(self.model, "layers") else ".skops"

    def save(self, file: Path) -> None:
        """Write the model: Keras' own format, or skops', which needs no pickle to be read."""
        if self.suffix == ".keras":
            self.model.save(file)
            return
        import skops.io

        skops.io.dump(self.model, file)


def train_head(
    head: Head,
    inputs: Inputs,
    labels: npt.NDArray[np.int64],
    splits: npt.NDArray[np.str_],
    *,
    n_classes: int,
    training: TrainingConfig,
    seed: int,
    standardisation: Standardisation | None = None,
) -> TrainedHead:
    """Train a head as the seed study did: softmax, binary cross-entropy on one-hot labels, Adam.

    Keras computes that loss of a softmax layer from its logits, as if each class had a sigmoid, and
    so ``loss`` and ``val_loss`` are not those of the softmax scores.

    Args:
        head: a row of the table of heads.
        inputs: the features of all images, in memory or streamed.
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
    model = build_head(head, inputs.shape, n_classes, standardisation)
    targets = tf.one_hot(labels, n_classes)

    weights = tf.constant(class_weights(head, labels[splits == "train"], n_classes)[labels])

    def part(split: str, **how: Any) -> Any:
        rows = np.flatnonzero(splits == split)
        batches = inputs.batches(rows, batch_size=training.batch_size, **how)
        weighed = head.class_weights is not None and split == "train"

        def batch(features: Any, at: Any) -> tuple[Any, ...]:
            pair = features, tf.gather(targets, at)
            return (*pair, tf.gather(weights, at)) if weighed else pair

        return untuned(batches.map(batch).prefetch(1))

    compiled = keras.Model(model.inputs, model.outputs)
    compiled.compile(
        optimizer=fused_adam(training.learning_rate, weight_decay=head.weight_decay),
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
        part("train", seed=seed),
        validation_data=part("val", keep=True),
        epochs=training.epochs,
        callbacks=callbacks,
        shuffle=False,  # the data set shuffles itself
        verbose=0,
    )
    seconds = time.perf_counter() - began
    history = {name: [float(value) for value in values] for name, values in fitted.history.items()}
    scores = _score(model, inputs, (len(labels), n_classes))
    check_scores(head.name, seed, scores)
    return TrainedHead(model, history, scores, seconds)


class NoScores(UserError):
    """A head whose scores are no numbers."""


def check_scores(head: str, seed: int, scores: npt.NDArray[np.float32]) -> None:
    """Refuse scores that are none, and warn of a head that tells no image from another.

    Raises:
        NoScores: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise NoScores(
            f"Expected finite scores of the head {head}, seed {seed}. Received: NaN or infinity. "
            "Lower training.learning_rate, or set standardise: true."
        )
    if np.ptp(scores, axis=0).max() == 0:
        log.warning("  %s, seed %d: every image has one score; nothing was learnt", head, seed)


def _score(model: Any, inputs: Inputs, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the scores of all images, in the order of their positions."""
    scores = np.full(shape, np.nan, np.float32)
    batch_size = max(1, VALUES_A_BATCH // int(np.prod(inputs.shape)))
    batches = inputs.batches(np.arange(len(scores)), batch_size=batch_size)
    for features, positions in untuned(batches.prefetch(1)):
        scores[positions.numpy()] = model(features, training=False).numpy()
    return scores


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
