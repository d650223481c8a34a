"""How our extraction grows with its images: in time by a line, in memory not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cxr_spark.benchmark.ours import Trial
from cxr_spark.benchmark.rows import MeasurementError, Row, rate_row, ratio_row
from cxr_spark.benchmark.targets import MEMORY

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.25
N_TOLD = 8  # values of the curve in a row's note


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
    explained = 1 - off.var() / np.var(seconds)
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
        MeasurementError: a job failed, or no worker was seen.
    """
    pairs, curve = [], list[float]()
    for k in range(trial.repeat):
        log.info("memory: %s, pair %d of %d", trial.name, k + 1, trial.repeat)
        tenth, _ = _watched(trial, max(1, trial.n_images // 10))
        whole, curve = _watched(trial, trial.n_images)
        pairs.append((tenth, whole))
    told = [curve[i * (len(curve) - 1) // (N_TOLD - 1)] for i in range(N_TOLD)]
    note = f"resident over the last run: {', '.join(f'{mb:,.0f}' for mb in told)}"
    what = f"memory of one worker, a tenth, {trial.name}"
    return [ratio_row(what, "all of them", pairs, target=MEMORY, unit="MB", note=note)]


def _watched(trial: Trial, n_images: int) -> tuple[float, list[float]]:
    """Run our job with one worker; return its peak and what was resident over time, in MB."""
    with _looking() as seen:
        trial.extract(n_images, master="local[1]")
    if not seen:
        raise MeasurementError("no Python worker of Spark was seen in /proc")
    # Where Spark has started another one for a moment, the one that extracts is the larger.
    looks = max(seen.values(), key=max)
    return max(peak for peak, _ in looks), [resident for _, resident in looks]


@contextmanager
def _looking() -> Iterator[dict[int, list[tuple[float, float]]]]:
    """Look at the Python workers of Spark that this process has started, while the block runs.

    Yields:
        For each worker's process what it had at its peak and what was resident, in MB, each time.
    """
    seen: dict[int, list[tuple[float, float]]] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            for pid, told in _workers():
                seen.setdefault(pid, []).append((_mb(told["VmHWM"]), _mb(told["VmRSS"])))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _workers() -> list[tuple[int, dict[str, str]]]:
    """Return Spark's Python workers below this process, and what the system says of each.

    A daemon of Spark's forks them: they have its command line, and so has their parent.
    """
    status, daemons = dict[int, dict[str, str]](), set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            lines = (folder / "status").read_text(encoding="utf-8").splitlines()
            told = (line.partition(":") for line in lines)
            status[int(folder.name)] = {name: value.strip() for name, _, value in told}
            if b"pyspark.daemon" in (folder / "cmdline").read_bytes():
                daemons.add(int(folder.name))

    def parent(pid: int) -> int:
        return int(status[pid]["PPid"]) if pid in status else 0

    def is_below(pid: int) -> bool:
        while pid and pid != os.getpid():
            pid = parent(pid)
        return pid != 0

    return [
        (pid, status[pid])
        for pid in daemons
        if parent(pid) in daemons and "VmHWM" in status[pid] and is_below(pid)
    ]


def _mb(kilobytes: str) -> float:
    return int(kilobytes.removesuffix(" kB")) / 1024
