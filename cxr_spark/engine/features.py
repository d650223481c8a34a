"""Features that cannot be: what a backbone gives whose weights, pixels or precision are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Relative to the largest value; float32 rounds at 1.2e-7.
SAME = 1e-6


def find_degenerate(
    pooled: npt.NDArray[np.float32], pixels: Sequence[npt.NDArray[Any]]
) -> str | None:
    """Return what is wrong with the pooled features of some images, or None.

    Args:
        pooled: float32 of shape (n_images, channels).
        pixels: of each image, of one shape.

    Returns:
        'NaN or infinite', 'all zero', or 'the same for images that differ'.
    """
    if not np.isfinite(pooled).all():
        return "NaN or infinite"
    largest = np.abs(pooled).max(initial=0.0)
    if largest == 0:
        return "all zero"
    same = np.ptp(pooled, axis=0).max() <= SAME * largest
    # Copies of one picture may well have the same features.
    if same and any(not np.array_equal(pixels[0], other) for other in pixels[1:]):
        return "the same for images that differ"
    return None
