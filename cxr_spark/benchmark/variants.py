"""Our extraction in other ways, each a whole process: with maps, on one core, backbones at once."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from functools import partial

from cxr_spark.benchmark.machine import count_cores
from cxr_spark.benchmark.ours import Trial
from cxr_spark.benchmark.pairs import (
    add_if_brief,
    marginal,
    ours_of,
    quarter_and_whole,
    rates_of,
    run_in_turn,
)
from cxr_spark.benchmark.peers import CEILING, Peer, PeerRun, run_peer
from cxr_spark.benchmark.rows import MeasurementError, Row, ratio_row
from cxr_spark.benchmark.targets import CORES, MAPS, PASS


def measure_maps(trial: Trial) -> list[Row]:
    """Measure the marginal rate with ``--feature-maps`` against that without.

    Args:
        trial: what is run, in both ways.

    Raises:
        MeasurementError: a job failed, or no rate follows.
    """
    what, n_images = f"--feature-maps, {trial.name}", trial.n_images
    for stored in (True, False):  # whose graphs differ
        trial.warm_up(feature_maps=stored)
    ours, theirs = (partial(trial.extract, feature_maps=stored) for stored in (True, False))
    turns = run_in_turn(what, ours, theirs, quarter_and_whole(n_images), trial.repeat)
    rate = partial(marginal, n_images)
    pairs, note = rates_of(turns, rate, rate)
    note = add_if_brief(note, ours_of(turns))
    target = MAPS if trial.submitter.precision == "float32" else None
    return [ratio_row(what, "ours without", pairs, target=target, note=note)]


def measure_cores(trial: Trial, bare: Peer | None) -> list[Row]:
    """Measure how much faster all cores are than one, against how much bare processes gain.

    Args:
        trial: what is run, with ``local[N]`` for a master.
        bare: the program of bare processes, which takes ``--cores``; None compares with N.

    Raises:
        MeasurementError: there is only one core, a job failed, or no rate follows.
    """
    n_cores, core = count_cores(), min(os.sched_getaffinity(0))
    if n_cores < 2:
        raise MeasurementError("this process may use one core only")
    what = f"from one core to {n_cores}, {trial.name}"
    trial.warm_up()

    def ours(n_images: int) -> tuple[float, float]:
        many = trial.extract(n_images, master=f"local[{n_cores}]")
        return many, trial.extract(n_images, master="local[1]", core=core)

    def theirs(n_images: int) -> tuple[float, float]:
        if bare is None:  # as many times as fast
            return n_images / n_cores, float(n_images)
        many = run_peer(bare, n_images, cores=n_cores)
        return many.work, run_peer(bare, n_images, cores=1, core=core).work

    def gain(quarter: tuple[float, float], whole: tuple[float, float]) -> float:
        many, one = (marginal(trial.n_images, q, w) for q, w in zip(quarter, whole, strict=True))
        return many / one

    turns = run_in_turn(what, ours, theirs, quarter_and_whole(trial.n_images), trial.repeat)
    pairs, note = rates_of(turns, gain, gain)
    # Of one core it is twice as many seconds.
    note = add_if_brief(note, [(quarter[0], whole[0]) for quarter, whole in ours_of(turns)])
    if bare is None:
        return [ratio_row(what, "as many times", pairs, unit="times", note=note)]
    target = CORES if bare.judges else None
    return [ratio_row(what, f"{bare.name}.py", pairs, target=target, unit="times", note=note)]


def measure_pass(trial: Trial, bare: Sequence[Peer]) -> list[Row]:
    """Measure several backbones in one pass against their forward passes and one decoding.

    Args:
        trial: what is run.
        bare: the program of bare processes with each of the backbones; it states ``decode_share``.

    Raises:
        MeasurementError: a job failed, no rate follows, or a program states no share.
    """
    what = f"{len(trial.backbones)} backbones in one pass, {trial.images}"
    trial.warm_up()

    def theirs(n_images: int) -> float:
        runs = [run_peer(peer, n_images) for peer in bare]
        decoding = [_decoding(peer, run) for peer, run in zip(bare, runs, strict=True)]
        return sum(run.work for run in runs) - sum(decoding) + statistics.median(decoding)

    turns = run_in_turn(
        what, trial.extract, theirs, quarter_and_whole(trial.n_images), trial.repeat
    )
    rate = partial(marginal, trial.n_images)
    pairs, note = rates_of(turns, rate, rate)
    told = f"forward passes and one decoding of {CEILING}.py"
    note = "; ".join(filter(None, [", ".join(trial.backbones), note]))
    note = add_if_brief(note, ours_of(turns))
    target = PASS if all(peer.judges for peer in bare) else None
    return [ratio_row(what, told, pairs, target=target, note=note)]


def _decoding(peer: Peer, run: PeerRun) -> float:
    if run.decoding is None:
        raise MeasurementError(f"{peer.program.name} printed no decode_share")
    return run.decoding
