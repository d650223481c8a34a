from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.checksums import sum_text, sum_words


@pytest.mark.parametrize("dtype", ["f4", "f2", "u1"])
@pytest.mark.parametrize("shape", [(8,), (2, 3, 5), (7,), (1,)])
def test_every_bit_of_a_row_changes_its_sum_alone(
    rng: np.random.Generator, dtype: str, shape: tuple[int, ...]
) -> None:
    values = rng.integers(0, 256, (3, int(np.prod(shape)) * np.dtype(dtype).itemsize), np.uint8)
    rows = values.view(dtype).reshape(3, *shape)
    before = sum_words(rows)
    assert before.dtype == np.int64
    for i in range(values.shape[1]):
        for bit in range(8):
            values[1, i] ^= 1 << bit
            changed = sum_words(values.view(dtype).reshape(3, *shape))
            assert (changed != before).tolist() == [False, True, False]
            values[1, i] ^= 1 << bit
    assert np.array_equal(sum_words(rows), before)


def test_a_row_of_several_arrays_has_one_sum(rng: np.random.Generator) -> None:
    maps, scale = rng.random((4, 2, 2, 8)).astype("<f2"), rng.random(4).astype(np.float32)
    other = scale.copy()
    other[2] += 1
    assert np.flatnonzero(sum_words(maps, scale) != sum_words(maps, other)).tolist() == [2]
    assert np.array_equal(sum_words(maps[::2], scale[::2]), sum_words(maps, scale)[::2])


def test_text_of_one_column_is_not_that_of_the_next() -> None:
    sums = sum_text([["a", "ab", None, ""], ["bc", "c", "x", "x"]])
    assert sums.dtype == np.int64
    assert len({*sums[:3]}) == 3
    assert sums[2] == sums[3]
