"""Mean and deviation of each channel, over training images that may stream past."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.training.heads import Standardisation
from cxr_spark.training.inputs import Inputs, untuned


def standardise(inputs: Inputs, splits: npt.NDArray[np.str_]) -> Standardisation:
    """Return mean and standard deviation of each channel over the training images, in float64.

    Images are read once; batches are merged as by Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances" (1979), so that no difference of large
    squares is taken.

    Args:
        inputs: the features.
        splits: 'train', 'val' or 'test', of shape (n_images,).
    """
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def moments(features: Any) -> tuple[Any, Any]:
        flat = tf.reshape(tf.cast(features, tf.float64), (-1, features.shape[-1]))
        mean, variance = tf.nn.moments(flat, axes=[0])
        return mean, variance

    channels = inputs.shape[-1]
    per_image = int(np.prod(inputs.shape[:-1]))
    mean, squares, count = np.zeros(channels), np.zeros(channels), 0
    rows = np.flatnonzero(splits == "train")
    for features, positions in untuned(inputs.batches(rows, batch_size=64).prefetch(1)):
        n = len(positions) * per_image
        batch_mean, batch_variance = (value.numpy() for value in moments(features))
        delta = batch_mean - mean
        squares += batch_variance * n + np.square(delta) * (count * n / (count + n))
        mean += delta * (n / (count + n))
        count += n
    variance = squares / count
    # What rounding leaves of a constant channel is no variation.
    variance[variance <= 1e-14 * np.square(mean)] = 0
    return Standardisation(mean, np.sqrt(variance))
