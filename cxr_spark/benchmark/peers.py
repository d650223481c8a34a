"""Programs that people write, run in turn with ours: adjacent pairs, each a process of its own."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cxr_spark.benchmark.pairs import (
    add_if_brief,
    marginal,
    ours_of,
    quarter_and_whole,
    rates_of,
    run_in_turn,
)
from cxr_spark.benchmark.rows import (
    MeasurementError,
    Row,
    failed_row,
    marginal_rate,
    rate_row,
    ratio_row,
)
from cxr_spark.benchmark.settings import N_WARM_UP
from cxr_spark.benchmark.targets import TARGETS, Measure

# What the programs share; no program itself.
NO_PROGRAMS = ("common", "__init__")
# Takes minutes, and trains as well: compared with our grid, where that section is asked for.
GRID = "paper_grid"
# What bare processes do with neither Spark nor a JVM; it takes --cores and states decode_share.
CEILING = "ceiling"
LIMIT_SECONDS = 3600.0

# Runs ours over so many images and returns the seconds of its whole process.
Ours = Callable[[int], float]


@dataclass(frozen=True)
class Peer:
    """One program with one backbone.

    Attributes:
        program: takes --images, --backbone, --weights and --limit, and prints JSON with
            ``images_per_s``, over its work alone.
        name_of_images: in the table.
        images: the image root.
        backbone: its name.
        weights: 'random', or a weights file.
        cores: for its --cores, as many as ours has; None where it takes none, or ours has a
            cluster's.
        judges: whether ratios against it have targets: not where ours runs on a cluster or in a
            lower precision.
    """

    program: Path
    name_of_images: str
    images: Path
    backbone: str
    weights: str
    cores: int | None = None
    judges: bool = True

    @property
    def name(self) -> str:
        """The name of its file without .py."""
        return self.program.stem


def find_programs(folder: Path) -> list[Path]:
    """Return the programs in a folder of peers."""
    return [file for file in sorted(folder.glob("*.py")) if file.stem not in NO_PROGRAMS]


@functools.cache
def takes_cores(program: Path) -> bool:
    """Return whether a program's --help tells of a flag --cores."""
    try:
        _, said = run_process([sys.executable, str(program), "--help"])
    except MeasurementError:  # what is wrong with it is told when it is run
        return False
    return re.search(r"--cores(?![\w-])", said) is not None


def measure_peer(
    peer: Peer, ours: Ours, n_images: int, repeat: int, *, first: Ours | None = None
) -> list[Row]:
    """Return the rows of marginal rates and of whole processes; one row if either side fails.

    A marginal rate takes a quarter and the whole: of our whole processes, and of the work that a
    peer states, from which its imports are gone already.

    Args:
        peer: the program to compare with.
        ours: runs ours.
        n_images: the whole.
        repeat: how many pairs.
        first: runs ours as the first process with new weights, which freezes the backbone; it is
            compared as well where whole processes have a target.
    """
    what, sizes = _against(peer), quarter_and_whole(n_images)
    target, judged = _target(peer, "marginal"), _target(peer, "whole process")
    beside = _First(ours, None if judged is None else first, n_images)
    try:
        ours(min(N_WARM_UP, n_images))  # a backbone is frozen once for all later processes
        turns = run_in_turn(what, beside.run, partial(run_peer, peer), sizes, repeat)
    except MeasurementError as error:
        return [failed_row(f"marginal, {what}", error, target=target)]
    whole = [(n_images / mine, other.n_images / other.total) for _, (mine, other) in turns.runs]
    against, rate, rows = f"{peer.name}.py", partial(marginal, n_images), list[Row]()
    try:
        pairs, note = rates_of(turns, rate, marginal_of)
        note = add_if_brief(note, ours_of(turns))
        rows.append(ratio_row(f"marginal, {what}", against, pairs, target=target, note=note))
    except MeasurementError as error:
        rows.append(failed_row(f"marginal, {what}", error, target=target))
    rows.append(ratio_row(f"whole process, {what}", against, whole, target=judged, note=turns.note))
    rows += beside.rows(peer, [other for _, (_, other) in turns.runs])
    ends = [(quarter, total) for (quarter, _), (total, _) in turns.runs if total > quarter]
    if ends:
        fixed = [total - n_images / rate(quarter, total) for quarter, total in ends]
        told = "of our whole process: what does not grow with images"
        rows.append(rate_row(f"fixed part, {what}", fixed, unit="s", note=told))
    return rows


class _First:
    """Ours over all images once more in each turn, as the first process with new weights."""

    def __init__(self, ours: Ours, first: Ours | None, n_images: int) -> None:
        self._ours, self._first, self._n_images = ours, first, n_images
        self._seconds: list[float] = []
        self._failed: MeasurementError | None = None

    def run(self, n_images: int) -> float:
        """Run ours; and the first process, where it is asked for and these are all the images."""
        seconds = self._ours(n_images)
        if self._first is not None and n_images == self._n_images and self._failed is None:
            try:
                self._seconds.append(self._first(n_images))
            except MeasurementError as error:
                self._failed = error
        return seconds

    def rows(self, peer: Peer, others: Sequence[PeerRun]) -> list[Row]:
        """Return the row of it against a program's runs of the same turns, or no row."""
        if self._first is None:
            return []
        what = f"first process, {_against(peer)}"
        pairs = [
            (other.n_images / seconds, other.n_images / other.total)
            for seconds, other in zip(self._seconds, others, strict=False)  # the last turn may fail
        ]
        if not pairs:
            return [failed_row(what, self._failed or MeasurementError("it was not run"))]
        ended = f"; ended by {self._failed}" if self._failed else ""
        note = f"ours freezes the backbone first, as with new weights{ended}"
        return [ratio_row(what, f"{peer.name}.py", pairs, note=note)]


def _target(peer: Peer, measure: Measure) -> float | None:
    return TARGETS.get((peer.name, measure, peer.backbone)) if peer.judges else None


def measure_whole(peer: Peer, ours: Ours, n_images: int, repeat: int) -> list[Row]:
    """Return the row of whole processes alone, of programs that take minutes."""
    what, target = _against(peer), _target(peer, "whole process")
    try:
        ours(min(N_WARM_UP, n_images))
        turns = run_in_turn(what, ours, partial(run_peer, peer), (n_images,), repeat)
    except MeasurementError as error:
        return [failed_row(f"whole process, {what}", error, target=target)]
    pairs = [(n_images / mine, other.n_images / other.total) for ((mine, other),) in turns.runs]
    against = f"{peer.name}.py"
    return [ratio_row(f"whole process, {what}", against, pairs, target=target, note=turns.note)]


def _against(peer: Peer) -> str:
    return f"{peer.backbone}, {peer.name_of_images} against {peer.name}"


@dataclass(frozen=True)
class PeerRun:
    """What a program did.

    Attributes:
        n_images: how many images.
        work: seconds, as it states them.
        total: seconds of its process.
        decoding: seconds of its work that were decoding, where it states their share; else None.
    """

    n_images: int
    work: float
    total: float
    decoding: float | None


def marginal_of(quarter: PeerRun, whole: PeerRun) -> float:
    """Return images a second of a program's work between two runs."""
    return marginal_rate(quarter.n_images, quarter.work, whole.n_images, whole.work)


def run_peer(
    peer: Peer, n_images: int, *, cores: int | None = None, core: int | None = None
) -> PeerRun:
    """Run a program.

    Args:
        peer: the program.
        n_images: its --limit.
        cores: its --cores, where they are not those that ``peer`` names.
        core: the only one that it may use.

    Raises:
        MeasurementError: it failed, or printed no rate.
    """
    cores = peer.cores if cores is None else cores
    seconds, output = run_process(
        [
            sys.executable, str(peer.program), "--images", str(peer.images),
            "--backbone", peer.backbone, "--weights", peer.weights, "--limit", str(n_images),
            *([] if cores is None else ["--cores", str(cores)]),
        ],
        core=core,
    )  # fmt: skip
    stated = next(filter(None, map(_stated, reversed(output.splitlines()))), None)
    if stated is None:
        raise MeasurementError(f"{peer.program.name} printed no JSON with images_per_s")
    rate, n_done, decode_share = stated
    n_done = n_images if n_done is None else n_done
    if not 0 < rate < float("inf") or n_done < 1:
        raise MeasurementError(f"{peer.program.name} printed {rate} images/s of {n_done} images")
    work = n_done / rate
    return PeerRun(n_done, work, seconds, None if decode_share is None else decode_share * work)


def _stated(line: str) -> tuple[float, int | None, float | None] | None:
    """Return the rate, the images and the decoding that a line of output states, if it does."""
    try:
        stated = json.loads(line)
        n_images, share = stated.get("images"), stated.get("decode_share")
        return (
            float(stated["images_per_s"]),
            None if n_images is None else int(n_images),
            None if share is None else float(share),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    core: int | None = None,
) -> tuple[float, str]:
    """Run a command in an environment without this driver's JVM; return seconds and its output.

    Args:
        command: what to run.
        environment: to be added.
        core: the only one that it may use.

    Raises:
        MeasurementError: it failed, or took longer than an hour; says its last line. What it has
            started is ended with it.
    """
    name = next((Path(part).name for part in command if part.endswith(".py")), command[0])
    if core is not None:
        command = ["taskset", "--cpu-list", str(core), *command]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env={**_environment(), **(environment or {})}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            told, failed = process.communicate(timeout=LIMIT_SECONDS)
        except BaseException as error:
            # What it has started would compute on beside the next measurement.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise MeasurementError(f"{name} took longer than {LIMIT_SECONDS:.0f} s") from None
            raise
    seconds = time.perf_counter() - began
    if process.returncode:
        said = (failed.strip() or told.strip() or "it said nothing").splitlines()[-1]
        raise MeasurementError(f"{name} failed with status {process.returncode}: {said[:200]}")
    return seconds, told


def _environment() -> dict[str, str]:
    """Return this environment without what spark-submit put into it for this driver alone."""
    own = ("PYSPARK_GATEWAY", "PYSPARK_SUBMIT", "PYSPARK_DRIVER", "SPARK_ENV_LOADED", "_SPARK_")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}
