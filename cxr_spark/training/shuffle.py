"""Row groups into batches, shuffled through a buffer of fixed size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.training.reader import Rows, aligned_empty


def rebatch(
    groups: Iterable[Rows],
    wanted: npt.NDArray[np.bool_],
    *,
    batch_size: int,
    capacity: int,
    rng: np.random.Generator | None = None,
) -> Iterator[Rows]:
    """Yield the wanted rows of row groups in batches, each row once; the last batch may be short.

    Rows wait in a buffer; whenever it is full, one batch of them is drawn from it.

    Args:
        groups: in the order they are read.
        wanted: bool of shape (n_images,), by position.
        batch_size: rows a batch.
        capacity: rows of the buffer; at least ``batch_size``.
        rng: draws the batches; None keeps the order of the rows and buffers one batch alone.
    """
    capacity = max(capacity, batch_size) if rng else batch_size
    buffer: tuple[npt.NDArray[Any], ...] = ()
    free = np.arange(capacity)
    for group in groups:
        columns = (group.positions, *group.arrays)
        buffer = buffer or tuple(_like(values, capacity) for values in columns)
        rows = np.flatnonzero(wanted[group.positions])
        while len(rows):
            now, rows = rows[: len(free)], rows[len(free) :]
            slots, free = free[: len(now)], free[len(now) :]
            for kept, values in zip(buffer, columns, strict=True):
                for slot, row in zip(slots, now, strict=True):
                    kept[slot] = values[row]  # all rows at once would be copied twice
            if not len(free):
                free = _draw(np.arange(capacity), batch_size, rng)
                yield _take(buffer, free)
    left = np.setdiff1d(np.arange(capacity), free)
    left = _draw(left, len(left), rng)
    for start in range(0, len(left), batch_size):
        yield _take(buffer, left[start : start + batch_size])


def _draw(
    slots: npt.NDArray[np.int64], n: int, rng: np.random.Generator | None
) -> npt.NDArray[np.int64]:
    return rng.permutation(slots)[:n] if rng else slots[:n]


def _take(buffer: tuple[npt.NDArray[Any], ...], slots: npt.NDArray[np.int64]) -> Rows:
    positions, *arrays = (take_rows(values, slots) for values in buffer)
    return Rows(positions, tuple(arrays))


def take_rows(values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the given rows in an array that TensorFlow can take without copying it again."""
    taken = _like(values, len(rows))
    np.take(values, rows, axis=0, out=taken, mode="clip")  # any other mode copies once more
    return taken


def _like(values: npt.NDArray[Any], n_rows: int) -> npt.NDArray[Any]:
    return aligned_empty((n_rows, *values.shape[1:]), values.dtype)
