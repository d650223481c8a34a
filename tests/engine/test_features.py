from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.engine.features import find_degenerate

DIFFERENT = [np.full((2, 2), k, np.uint8) for k in range(3)]
GOOD = np.array([[1.0, 0.0], [1.0, 2.0], [1.0, 3.0]], np.float32)


@pytest.mark.parametrize(
    ("pooled", "pixels", "problem"),
    [
        (GOOD, DIFFERENT, None),
        (GOOD * np.float32(1e-10), DIFFERENT, None),
        (np.where(GOOD == 3, np.nan, GOOD), DIFFERENT, "NaN or infinite"),
        (np.where(GOOD == 3, -np.inf, GOOD), DIFFERENT, "NaN or infinite"),
        (0 * GOOD, DIFFERENT, "all zero"),
        (GOOD[[0, 0, 0]], DIFFERENT, "the same for images that differ"),
        (GOOD[[0, 0, 0]] * (1 + 1e-8), DIFFERENT, "the same for images that differ"),
        (GOOD[[0, 0, 0]], [DIFFERENT[0]] * 3, None),
        (GOOD[:1], DIFFERENT[:1], None),
    ],
    ids=["good", "tiny", "nan", "infinite", "zero", "constant", "rounded", "copies", "one"],
)
def test_features_that_cannot_be_are_told(pooled, pixels, problem) -> None:
    assert find_degenerate(pooled.astype(np.float32), pixels) == problem
