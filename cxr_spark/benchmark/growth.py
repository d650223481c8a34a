"""How our extraction grows with its images: in time by a line, in memory not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxr_spark.benchmark.ours import Trial
from cxr_spark.benchmark.rows import MeasurementError, Row, rate_row, ratio_row
from cxr_spark.benchmark.targets import MEMORY

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.25
# In the command lines of Spark's Python workers: a daemon forks them, which has it as well.
WORKER = b"pyspark.daemon"


def measure_growth(trial: Trial) -> list[Row]:
    """Fit a line to whole processes over an eighth, a quarter, half and all of the images.

    Args:
        trial: what is run; each size as often as it says.

    Raises:
        MeasurementError: a job failed.
    """
    trial.warm_up()
    parts = [trial.n_images // part for part in (8, 4, 2, 1)]
    sizes, seconds = parts * trial.repeat, list[float]()
    for k, size in enumerate(sizes):
        log.info("growth: %s, %d of %d", trial.name, k + 1, len(sizes))
        seconds.append(trial.extract(size))
    slope, fixed = np.polyfit(sizes, seconds, 1)
    off = np.array(seconds) - fixed - slope * np.array(sizes)
    explained = 1 - off.var() / max(float(np.var(seconds)), 1e-12)
    note = (
        f"{slope * 1e3:.2f} ms an image; no run is farther than {np.abs(off).max():.2f} s from "
        f"the line, R2 {explained:.4f}"
    )
    line = rate_row(f"line, what does not grow, {trial.name}", [float(fixed)], unit="s", note=note)
    whole = [
        rate_row(f"{size:,} images, {trial.name}", seconds[i :: len(parts)], unit="s")
        for i, size in enumerate(parts)
    ]
    return [line, *whole]


def measure_memory(trial: Trial) -> list[Row]:
    """Measure the peak resident memory of one Python worker over a tenth of the images and all.

    Args:
        trial: what is run, here with ``local[1]``.

    Raises:
        MeasurementError: a job failed, no worker was seen, or several of them shared the images.
    """
    pairs, curve = [], list[tuple[float, float]]()
    for k in range(trial.repeat):
        log.info("memory: %s, pair %d of %d", trial.name, k + 1, trial.repeat)
        tenth, _ = _watched(trial, max(1, trial.n_images // 10))
        whole, curve = _watched(trial, trial.n_images)
        pairs.append((tenth, whole))
    what = f"memory of one worker, a tenth, {trial.name}"
    row = ratio_row(what, "all of them", pairs, target=MEMORY, unit="MB")
    return [dataclasses.replace(row, curve=tuple(curve))]


def _watched(trial: Trial, n_images: int) -> tuple[float, list[tuple[float, float]]]:
    """Run our job with one worker; return its peak, and (seconds, resident) over time, in MB."""
    with looking(WORKER, forked=True) as seen:
        trial.extract(n_images, master="local[1]")
    peaks = {pid: max(look.peak for look in looks) for pid, looks in seen.items()}
    if not peaks:
        raise MeasurementError("no Python worker of Spark was seen in /proc")
    largest = max(peaks, key=lambda pid: peaks[pid])
    # Spark may start another one for a moment, which loads nothing.
    if n := sum(peak > peaks[largest] / 2 for peak in peaks.values()) - 1:
        raise MeasurementError(f"{n + 1} Python workers shared what one was to do")
    began = seen[largest][0].at
    curve = [(look.at - began, look.resident) for look in seen[largest]]
    return peaks[largest], curve


class Look(NamedTuple):
    """What a process had at a moment.

    Attributes:
        at: seconds of a clock.
        peak: the most that was resident until then, in MB.
        resident: in MB.
    """

    at: float
    peak: float
    resident: float


@contextmanager
def looking(marker: bytes, *, forked: bool = False) -> Iterator[dict[int, list[Look]]]:
    """Look at processes that this one starts, directly or not, while the block runs.

    Args:
        marker: what stands in their command lines.
        forked: whether it is those alone whose parent has the marker as well.

    Yields:
        The looks at each, by its number.
    """
    seen: dict[int, list[Look]] = {}
    ended, failures = threading.Event(), list[Exception]()
    before = {pid for pid, _ in _processes(marker, forked=forked)}

    def look() -> None:
        try:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                for pid, told in _processes(marker, forked=forked):
                    if pid in before:
                        continue
                    peak, resident = _mb(told["VmHWM"]), _mb(told["VmRSS"])
                    seen.setdefault(pid, []).append(Look(time.monotonic(), peak, resident))
        except Exception as error:  # it is raised where the looks are wanted
            failures.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
    if failures:
        raise MeasurementError(f"the looks at memory ended: {failures[0]!r}")


def _processes(marker: bytes, *, forked: bool) -> list[tuple[int, dict[str, str]]]:
    """Return the processes of a command line below this one, and what the system says of each."""
    status, marked = dict[int, dict[str, str]](), set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            lines = (folder / "status").read_text("utf-8", "replace").splitlines()
            told = (line.partition(":") for line in lines)
            status[int(folder.name)] = {name: value.strip() for name, _, value in told}
            if marker in (folder / "cmdline").read_bytes():
                marked.add(int(folder.name))

    def parent(pid: int) -> int:
        return int(status[pid]["PPid"]) if pid in status else 0

    def is_below(pid: int) -> bool:
        while pid and pid != os.getpid():
            pid = parent(pid)
        return pid != 0

    return [
        (pid, status[pid])
        for pid in marked
        if "VmHWM" in status[pid] and is_below(pid) and (not forked or parent(pid) in marked)
    ]


def _mb(kilobytes: str) -> float:
    return int(kilobytes.removesuffix(" kB")) / 1024
