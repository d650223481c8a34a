from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.training.adam import fused_adam


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_the_fused_step_is_that_of_keras(rng: np.random.Generator, size: float) -> None:
    import keras

    start = rng.normal(size=(7, 5)).astype(np.float32)
    fused, plain = keras.Variable(start), keras.Variable(start)
    optimizers = fused_adam(0.01), keras.optimizers.Adam(0.01)
    for _ in range(20):
        gradient = (rng.normal(size=(7, 5)) * size).astype(np.float32)
        for optimizer, variable in zip(optimizers, (fused, plain), strict=True):
            optimizer.apply_gradients([(gradient, variable)])
    assert fused.numpy() == pytest.approx(plain.numpy(), rel=1e-5, abs=1e-6)
    assert np.abs(fused.numpy() - start).max() > 0.05
