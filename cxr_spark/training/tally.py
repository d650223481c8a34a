"""What is trained of a grid so far, told to people who watch."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cxr_spark.training.work import Work

log = logging.getLogger(__name__)


class Tally:
    """Counts configurations that are done, and tells of each as it ends."""

    def __init__(self, works: Sequence[Work]):
        """Count from 0 of these."""
        self._n, self._left = len(works), list(works)
        self._done: list[tuple[Work, float]] = []

    def add(self, work: Work, seconds: float, n_at_once: int = 1) -> None:
        """Take on one that is done, and say how long the rest takes with so many at once."""
        self._left.remove(work)
        self._done.append((work, seconds))
        log.info(
            "training: %d of %d, %s in %.1f s, about %.0f s left",
            len(self._done), self._n, work.configuration.name, seconds,
            self._seconds_left() / max(1, min(n_at_once, len(self._left))),
        )  # fmt: skip

    def _seconds_left(self) -> float:
        """Return the time for what is left, each head as long as it took so far, or as all did."""
        seconds = defaultdict(list)
        for work, taken in self._done:
            seconds[work.configuration.head].append(taken)
        overall = [taken for _, taken in self._done]
        return sum(
            float(np.mean(seconds[work.configuration.head] or overall)) for work in self._left
        )
