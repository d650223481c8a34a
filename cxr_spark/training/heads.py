"""The table of heads: small networks that make class scores of a backbone's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Head:
    """One head: what it takes, and the layers before its softmax.

    Attributes:
        name: its name in configurations.
        takes: 'pooled' vectors or whole 'feature_map's.
        hidden: returns the layers between its input and its softmax.
    """

    name: str
    takes: Literal["pooled", "feature_map"]
    hidden: Callable[[], list[Any]]

    @property
    def is_softmax_of_pooled(self) -> bool:
        """Whether it is a softmax over pooled features and nothing else."""
        return self.takes == "pooled" and self.hidden is list


def _flatten_dense_1024() -> list[Any]:
    from keras import layers

    return [layers.Flatten(), layers.Dense(1024, activation="relu")]


# The two heads of the seed study. Features are pooled as they are extracted, so that the study's
# global average pooling and softmax is a softmax over pooled features.
HEADS = {
    head.name: head
    for head in (
        Head("gap", "pooled", list),
        Head("fc1024", "feature_map", _flatten_dense_1024),
    )
}


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each channel over the training images, float64 (channels,)."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def build_head(
    name: str,
    input_shape: tuple[int, ...],
    n_classes: int,
    standardisation: Standardisation | None = None,
) -> Any:
    """Build a ``keras.Model`` from features to softmax scores of shape (n_images, n_classes).

    Args:
        name: a key of ``HEADS``.
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
    for layer in HEADS[name].hidden():
        hidden = layer(hidden)
    scores = keras.layers.Dense(n_classes, activation="softmax", name="scores")(hidden)
    return keras.Model(features, scores, name=name)
