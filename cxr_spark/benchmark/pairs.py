"""Two sides run in turn, so that a drift of the machine's speed is in both of a pair alike."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from cxr_spark.benchmark.rows import MeasurementError, NoRateError, Pair, marginal_rate

log = logging.getLogger(__name__)

# Between a quarter of the images and all of them, for a rate to be told from the machine's moods.
LEAST_SECONDS = 10.0

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")
Run = TypeVar("Run")
Rate = TypeVar("Rate")


class Turns(NamedTuple, Generic[Ours, Theirs]):
    """What two sides returned.

    Attributes:
        runs: for each repetition what ours and the other returned, for each number of images.
        note: why there are fewer repetitions than were asked for, or an empty string.
    """

    runs: list[list[tuple[Ours, Theirs]]]
    note: str


def quarter_and_whole(n_images: int) -> tuple[int, int]:
    """Return the two numbers of images between which a marginal rate is taken."""
    return n_images // 4, n_images


def marginal(n_images: int, quarter: float, whole: float) -> float:
    """Return images a second from the seconds over a quarter of the images and over all of them.

    Raises:
        NoRateError: no rate follows.
    """
    n_quarter, n_whole = quarter_and_whole(n_images)
    return marginal_rate(n_quarter, quarter, n_whole, whole)


def ours_of(turns: Turns[Ours, Any]) -> list[tuple[Ours, Ours]]:
    """Return what ours returned for a quarter of the images and for all, in each repetition."""
    return [(quarter, whole) for (quarter, _), (whole, _) in turns.runs]


def add_if_brief(note: str, ends: Sequence[tuple[float, float]]) -> str:
    """Return a note, to which is added where our rate is that of so few seconds that it is noise.

    Args:
        note: of what else there is to say, or an empty string.
        ends: our seconds over a quarter of the images and over all of them, in each repetition.
    """
    between = statistics.median(whole - quarter for quarter, whole in ends)
    if between >= LEAST_SECONDS:
        return note
    brief = f"of {between:.1f} s, and rates of less than {LEAST_SECONDS:.0f} s are noise"
    return "; ".join(filter(None, [note, f"{brief}: give more images"]))


def run_in_turn(
    what: str,
    ours: Callable[[int], Ours],
    theirs: Callable[[int], Theirs],
    sizes: tuple[int, ...],
    repeat: int,
) -> Turns[Ours, Theirs]:
    """Run both sides over each number of images, one right after the other.

    Who goes first changes from one repetition to the next, so that a drift favours neither. A run
    that fails ends them; repetitions before it count.

    Args:
        what: the name of the measurement, for progress.
        ours: runs ours over so many images.
        theirs: runs the other.
        sizes: the numbers of images, of one repetition.
        repeat: how many repetitions.

    Raises:
        MeasurementError: a run of the first repetition failed.
    """
    done: list[list[tuple[Ours, Theirs]]] = []
    for k in range(repeat):
        log.info("%s, pair %d of %d", what, k + 1, repeat)
        try:
            done.append(
                [_pair(ours, theirs, n_images, ours_first=k % 2 == 1) for n_images in sizes]
            )
        except MeasurementError as error:
            if not done:
                raise
            return Turns(done, f"ended after {k} of {repeat} pairs: {error}")
    return Turns(done, "")


def _pair(
    ours: Callable[[int], Ours], theirs: Callable[[int], Theirs], n_images: int, *, ours_first: bool
) -> tuple[Ours, Theirs]:
    if ours_first:
        mine = ours(n_images)
        return mine, theirs(n_images)
    other = theirs(n_images)
    return ours(n_images), other


def rates_of(
    turns: Turns[Ours, Theirs],
    ours: Callable[[Ours, Ours], float],
    theirs: Callable[[Theirs, Theirs], float],
) -> tuple[list[Pair], str]:
    """Return the pairs of rates that follow from runs over a quarter of the images and over all.

    Args:
        turns: what ``run_in_turn`` returned for the two sizes.
        ours: makes a rate of what ours returned for the quarter and for the whole.
        theirs: likewise of the other's.

    Returns:
        The pairs, and a note of those that are missing.

    Raises:
        NoRateError: none follows from any of them.
    """

    def rate(run: list[tuple[Ours, Theirs]]) -> Pair:
        (our_quarter, their_quarter), (our_whole, their_whole) = run
        return ours(our_quarter, our_whole), theirs(their_quarter, their_whole)

    found, left_out = with_a_rate(turns.runs, rate)
    return [pair for _, pair in found], "; ".join(filter(None, [turns.note, left_out]))


def with_a_rate(
    runs: Sequence[Run], rate: Callable[[Run], Rate]
) -> tuple[list[tuple[Run, Rate]], str]:
    """Return those of the runs from which a rate follows, each with it, and a note of the others.

    Raises:
        NoRateError: none follows from any of them.
    """
    found, reasons = list[tuple[Run, Rate]](), list[NoRateError]()
    for run in runs:
        try:
            found.append((run, rate(run)))
        except NoRateError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return found, f"{len(reasons)} left out: {reasons[0]}" if reasons else ""
