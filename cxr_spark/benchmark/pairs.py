"""Two sides run in turn, so that a drift of the machine's speed is in both of a pair alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from cxr_spark.benchmark.rows import marginal_rate

log = logging.getLogger(__name__)

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")


def quarter_and_whole(n_images: int) -> tuple[int, int]:
    """Return the two numbers of images between which a marginal rate is taken."""
    return n_images // 4, n_images


def marginal(n_images: int, quarter: float, whole: float) -> float:
    """Return images a second from the seconds over a quarter of the images and over all of them.

    Raises:
        MeasurementError: no rate follows.
    """
    n_quarter, n_whole = quarter_and_whole(n_images)
    return marginal_rate(n_quarter, quarter, n_whole, whole)


def run_in_turn(
    what: str,
    ours: Callable[[int], Ours],
    theirs: Callable[[int], Theirs],
    sizes: tuple[int, ...],
    repeat: int,
) -> Iterator[list[tuple[Ours, Theirs]]]:
    """Run both sides over each number of images, one right after the other.

    Who goes first changes from one repetition to the next, so that a drift favours neither.

    Args:
        what: the name of the measurement, for progress.
        ours: runs ours over so many images.
        theirs: runs the other.
        sizes: the numbers of images, of one repetition.
        repeat: how many repetitions.

    Yields:
        For each repetition what the two sides returned, for each of ``sizes``.
    """
    for k in range(repeat):
        log.info("%s, pair %d of %d", what, k + 1, repeat)
        pairs = []
        for n_images in sizes:
            if k % 2:
                mine = ours(n_images)
                pairs.append((mine, theirs(n_images)))
            else:
                other = theirs(n_images)
                pairs.append((ours(n_images), other))
        yield pairs
