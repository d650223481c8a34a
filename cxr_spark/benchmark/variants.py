"""Our extraction in other ways, each a whole process: with maps, on one core, backbones at once."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from cxr_spark.benchmark.machine import count_cores
from cxr_spark.benchmark.ours import Submitter
from cxr_spark.benchmark.peers import CEILING, Peer, PeerRun, marginal_of, run_peer
from cxr_spark.benchmark.rows import MeasurementError, Pair, Row, marginal_rate, ratio_row
from cxr_spark.benchmark.settings import N_WARM_UP
from cxr_spark.benchmark.targets import CORES, MAPS, PASS

log = logging.getLogger(__name__)


def measure_maps(
    submitter: Submitter, backbone: str, images: str, n_images: int, repeat: int
) -> list[Row]:
    """Measure the marginal rate with ``--feature-maps`` against that without.

    Args:
        submitter: starts our job.
        backbone: the one that runs.
        images: their name in the table.
        n_images: the whole; a quarter is the other end.
        repeat: how many pairs.

    Raises:
        MeasurementError: a job failed, or no rate follows.
    """
    what = f"--feature-maps, {backbone}, {images}"
    maps, plain = (
        partial(submitter.extract, [backbone], feature_maps=stored) for stored in (True, False)
    )
    for way in (maps, plain):
        way(min(N_WARM_UP, n_images))
    ours, theirs = partial(_marginal, maps, n_images), partial(_marginal, plain, n_images)
    pairs = list(_in_turn(what, ours, theirs, repeat))
    return [ratio_row(what, "ours without", pairs, target=MAPS)]


def measure_cores(
    submitter: Submitter, bare: Peer | None, backbone: str, images: str, n_images: int, repeat: int
) -> list[Row]:
    """Measure how much faster all cores are than one, against how much bare processes gain.

    Args:
        submitter: starts our job, with ``local[N]`` for a master.
        bare: the program of bare processes, which takes ``--cores``; None compares with N.
        backbone: the one that runs.
        images: their name in the table.
        n_images: the whole; a quarter is the other end.
        repeat: how many pairs.

    Raises:
        MeasurementError: there is only one core, a job failed, or no rate follows.
    """
    n_cores, core = count_cores(), min(os.sched_getaffinity(0))
    if n_cores < 2:
        raise MeasurementError("this process may use one core only")
    what = f"from one core to {n_cores}, {backbone}, {images}"
    submitter.extract([backbone], min(N_WARM_UP, n_images))

    def ours() -> float:
        run = partial(submitter.extract, [backbone])
        many = _marginal(partial(run, master=f"local[{n_cores}]"), n_images)
        return many / _marginal(partial(run, master="local[1]", core=core), n_images)

    def theirs() -> float:
        if bare is None:
            return float(n_cores)

        def rate(cores: int, core: int | None) -> float:
            options = ("--cores", str(cores))
            quarter, whole = (run_peer(bare, n, *options, core=core) for n in _ends(n_images))
            return marginal_of(quarter, whole)

        return rate(n_cores, None) / rate(1, core)

    pairs = list(_in_turn(what, ours, theirs, repeat))
    if bare is None:
        return [ratio_row(what, "as many times", pairs, unit="times")]
    return [ratio_row(what, f"{bare.name}.py", pairs, target=CORES, unit="times")]


def measure_pass(
    submitter: Submitter, bare: Sequence[Peer], images: str, n_images: int, repeat: int
) -> list[Row]:
    """Measure several backbones in one pass against their forward passes and one decoding.

    Args:
        submitter: starts our job.
        bare: the program of bare processes with each of the backbones; it states ``decode_share``.
        images: their name in the table.
        n_images: the whole; a quarter is the other end.
        repeat: how many pairs.

    Raises:
        MeasurementError: a job failed, no rate follows, or a program states no share.
    """
    names = [peer.backbone for peer in bare]
    what = f"{len(names)} backbones in one pass, {images}"
    run = partial(submitter.extract, names)
    run(min(N_WARM_UP, n_images))

    def theirs() -> float:
        forward, decoding = 0.0, []
        for peer in bare:
            quarter, whole = (run_peer(peer, n) for n in _ends(n_images))
            decoding.append(_decoding(peer, whole) - _decoding(peer, quarter))
            forward += whole.work - quarter.work - decoding[-1]
        quarter_n, whole_n = _ends(n_images)
        return (whole_n - quarter_n) / (forward + statistics.median(decoding))

    pairs = list(_in_turn(what, partial(_marginal, run, n_images), theirs, repeat))
    told = f"forward passes and one decoding of {CEILING}.py"
    return [ratio_row(what, told, pairs, target=PASS, note=", ".join(names))]


def _decoding(peer: Peer, run: PeerRun) -> float:
    if run.decoding is None:
        raise MeasurementError(f"{peer.program.name} printed no decode_share")
    return run.decoding


def _ends(n_images: int) -> tuple[int, int]:
    return n_images // 4, n_images


def _marginal(run: Callable[[int], float], n_images: int) -> float:
    quarter, whole = _ends(n_images)
    return marginal_rate(quarter, run(quarter), whole, run(whole))


def _in_turn(
    what: str, ours: Callable[[], float], theirs: Callable[[], float], repeat: int
) -> Iterator[Pair]:
    """Yield adjacent pairs; whoever goes first changes."""
    for k in range(repeat):
        log.info("%s, pair %d of %d", what, k + 1, repeat)
        if k % 2:
            yield ours(), theirs()
        else:
            other = theirs()
            yield ours(), other
