"""Heads that are networks: they make class scores of a backbone's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cxr_spark.config import TrainingConfig


@dataclass(frozen=True)
class Head:
    """One head: a network of dense layers whose last is a softmax over classes.

    Attributes:
        name: its name in configurations.
        takes: 'pooled' vectors or whole 'feature_map's, which it flattens.
        dense: units of each hidden layer, ReLU.
        dropout: share of units dropped after each hidden layer while training.
        weight_decay: decoupled from the gradient, as Adam's in Loshchilov and Hutter (2019).
        class_weights: 'balanced' weighs images so that classes count alike.
        epochs, learning_rate, early_stopping: where they are not those of the experiment.
        source: whose head it is.
    """

    name: str
    takes: Literal["pooled", "feature_map"] = "pooled"
    dense: tuple[int, ...] = ()
    dropout: float = 0.0
    weight_decay: float = 0.0
    class_weights: Literal["balanced"] | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    early_stopping: int | None = None
    source: str = ""

    @property
    def is_softmax_of_pooled(self) -> bool:
        """Whether it is a softmax over pooled features and nothing else."""
        return self.takes == "pooled" and not self.dense

    def training(self, training: TrainingConfig) -> TrainingConfig:
        """Return how it is trained: as the experiment says where it does not say otherwise."""
        own = {name: getattr(self, name) for name in ("epochs", "learning_rate", "early_stopping")}
        return training.model_copy(update={k: v for k, v in own.items() if v is not None})


PAPER = "G. Paterakis, N. Gounakis, Z. Asma, the seed study"
HEADS = {
    head.name: head
    for head in (
        # Features are pooled as they are extracted, so that the study's global average pooling and
        # softmax is a softmax over pooled features.
        Head("gap", source=PAPER),
        Head("fc1024", "feature_map", dense=(1024,), source=PAPER),
        # Its third layer is not stated; half of the second is taken.
        Head("dnn3", dense=(1024, 512, 256), dropout=0.5, source="Almaslukh 2021, on DenseNet121"),
        Head("gap_balanced", class_weights="balanced", source="gap with class weights"),
    )
}


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each channel over the training images, float64 (channels,)."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def build_head(
    head: Head,
    input_shape: tuple[int, ...],
    n_classes: int,
    standardisation: Standardisation | None = None,
) -> Any:
    """Build a ``keras.Model`` from features to softmax scores of shape (n_images, n_classes).

    Args:
        head: a row of the table.
        input_shape: (channels,) of pooled features or (height, width, channels) of feature maps.
        n_classes: how many classes the task has.
        standardisation: makes a first layer that subtracts the mean and divides by the standard
            deviation; a channel that is constant becomes 0. Keras' own Normalization would not do:
            it takes deviations below 1e-7, usual in untrained backbones, for 1e-7.
    """
    import keras

    features = keras.Input(input_shape, name="features")
    hidden = features
    if standardisation is not None:
        varies = standardisation.std > 0
        scale = np.divide(
            1.0, standardisation.std, out=np.zeros_like(standardisation.std), where=varies
        )
        offset = -standardisation.mean * scale
        hidden = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="standardise")(hidden)
    if head.takes == "feature_map":
        hidden = keras.layers.Flatten()(hidden)
    for units in head.dense:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
        if head.dropout:
            hidden = keras.layers.Dropout(head.dropout)(hidden)
    scores = keras.layers.Dense(n_classes, activation="softmax", name="scores")(hidden)
    return keras.Model(features, scores, name=head.name)


def class_weights(
    head: Head, labels: npt.NDArray[np.int64], n_classes: int
) -> npt.NDArray[np.float32]:
    """Return the weight of an image of each class, float32 of shape (n_classes,).

    Args:
        head: says whether classes are balanced; else every weight is 1.
        labels: int64 of shape (n_images,), of the training images.
        n_classes: how many classes the task has.

    Source: the formula of scikit-learn's ``class_weight='balanced'``.
    """
    if head.class_weights is None:
        return np.ones(n_classes, np.float32)
    counts = np.bincount(labels, minlength=n_classes)
    weights: npt.NDArray[np.float32] = (len(labels) / (n_classes * counts)).astype(np.float32)
    return weights
