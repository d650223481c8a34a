from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.training.reader import Rows
from cxr_spark.training.shuffle import rebatch

N = 53


def groups(size: int) -> list[Rows]:
    positions = np.random.default_rng(1).permutation(N)
    cuts = np.split(positions, range(size, N, size))
    return [Rows(some, (some[:, None] * 10.0, some.astype(np.float32))) for some in cuts]


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("capacity", [1, 8, 20, 100])
@pytest.mark.parametrize("seed", [None, 0])
def test_each_wanted_row_comes_once_with_its_own_values(
    size: int, capacity: int, seed: int | None
) -> None:
    wanted = np.arange(N) % 3 != 0
    rng = None if seed is None else np.random.default_rng(seed)
    found = list(rebatch(groups(size), wanted, batch_size=8, capacity=capacity, rng=rng))
    assert [len(batch.positions) for batch in found] == [8, 8, 8, 8, 3]
    positions = np.concatenate([batch.positions for batch in found])
    assert sorted(positions) == np.flatnonzero(wanted).tolist()
    for batch in found:
        assert np.array_equal(batch.arrays[0], batch.positions[:, None] * 10.0)
        assert np.array_equal(batch.arrays[1], batch.positions)
    if seed is None:
        stored = np.concatenate([group.positions for group in groups(size)])
        assert positions.tolist() == stored[wanted[stored]].tolist()


def test_a_buffer_mixes_rows_of_several_groups_and_goes_by_its_seed() -> None:
    def first_batch(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        batches = rebatch(groups(5), np.ones(N, bool), batch_size=5, capacity=25, rng=rng)
        return next(iter(batches)).positions.tolist()

    assert first_batch(0) == first_batch(0) != first_batch(1)
    of_group = {at: i for i, group in enumerate(groups(5)) for at in group.positions.tolist()}
    assert len({of_group[at] for at in first_batch(0)}) > 1


def test_nothing_wanted_is_no_batch() -> None:
    found = rebatch(groups(5), np.zeros(N, bool), batch_size=5, capacity=25)
    assert list(found) == []
