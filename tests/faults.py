"""Runs that are to be disturbed: jobs as processes of their own, and what is killed of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq

from cxr_spark.extraction.store import check_files, list_extractions
from tests.conftest import QUICK_JAVA, ROOT

# ResNet50 takes some 40 ms an image of this size: long enough for shards, and to be hit.
CONFIG = """
backbones: [ResNet50]
weights: random
image_size: 192
heads: [gap]
standardise: true
seeds: [0, 1, 2]
training: {epochs: 3}
"""

QUICK_EXECUTORS = ("--conf", f"spark.executor.extraJavaOptions={QUICK_JAVA}")


class Run:
    """One job under spark-submit, in a session of its own, its output in a file."""

    def __init__(self, folder: Path, master: str, job: str, *arguments: str, **extra: str) -> None:
        """Start it."""
        binaries = Path(sys.executable).parent
        self.log = folder / f"{job}-{time.monotonic_ns()}.log"
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    binaries / "spark-submit",
                    "--properties-file", ROOT / "conf" / "spark-local.conf",
                    "--master", master, "--driver-memory", "1g",
                    "--conf", "spark.executor.memory=700m", *QUICK_EXECUTORS,
                    "--conf", "spark.driver.host=127.0.0.1",
                    "--conf", "spark.scheduler.minRegisteredResourcesRatio=1.0",
                    f"jobs/{job}.py", *arguments,
                ],
                cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={
                    **os.environ, "PYSPARK_PYTHON": sys.executable,
                    "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", **extra,
                },
            )  # fmt: skip

    @property
    def said(self) -> str:
        """All output so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(timeout=seconds)

    def wait_until(self, holds: Callable[[], object], seconds: float = 120) -> None:
        """Wait for something while the run lives."""
        until = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.said[-3000:]
            assert time.monotonic() < until, self.said[-3000:]
            time.sleep(0.05)

    def sleep_until(self, seconds: float) -> None:
        """Wait for a moment, counted from the start."""
        time.sleep(max(0.0, self.began + seconds - time.monotonic()))

    def kill(self) -> None:
        """Kill the driver, its JVM and its Python, with no chance to clean up."""
        tree = psutil.Process(self.process.pid)
        for process in [tree, *tree.children(recursive=True)]:
            process.kill()
        self.process.wait()

    def interrupt(self) -> None:
        """Do as Ctrl-C does in a terminal: a signal to all of its process group."""
        os.killpg(self.process.pid, signal.SIGINT)


def find_processes(words: str, *, under: psutil.Process | None = None) -> list[psutil.Process]:
    """Return the processes whose command line holds some words."""
    found = []
    for process in under.children(recursive=True) if under else psutil.process_iter():
        try:
            if words in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def python_workers(executors: list[psutil.Process]) -> list[psutil.Process]:
    """Return the Python workers that compute: children of the daemon of an executor."""
    found = {}
    for executor in executors:
        with contextlib.suppress(psutil.Error):  # some end while they are looked at
            for daemon in find_processes("pyspark.daemon", under=executor):
                found.update({p.pid: p for p in daemon.children() if is_alive(p)})
    return list(found.values())


def busy(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that compute now, the busiest first: those that are in a task."""

    def seconds(process: psutil.Process) -> float:
        with contextlib.suppress(psutil.Error):
            return float(sum(process.cpu_times()[:2]))
        return 0.0

    before = {process: seconds(process) for process in processes}
    time.sleep(0.2)
    used = {process: seconds(process) - before[process] for process in processes}
    return sorted((p for p in processes if used[p] >= 0.05), key=lambda p: -used[p])


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs, and is not merely remembered."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def n_committed(features: Path) -> int:
    """Return how many shards a run has committed so far."""
    return len(list(features.glob("_parts/*/*/_shard.json")))


def read_features(features: Path) -> pd.DataFrame:
    """Return the rows of the one extraction of a folder, which must be whole."""
    (record,) = list_extractions(features)
    check_files(features, record)
    assert not (features / "_parts").exists()
    assert not [path.name for path in features.iterdir() if path.name.startswith("_")]
    rows = pq.ParquetDataset(features / record.fingerprint).read().to_pandas()
    assert (len(rows), record.n_rows + record.n_errors) == (record.n_rows, record.n_images)
    return rows.sort_values("image_id", ignore_index=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 1e-5) -> None:
    """Compare features as a set by image: none missing, none twice, each so near (relative L2)."""
    assert found["image_id"].tolist() == expected["image_id"].tolist()
    one, two = np.stack(found["pooled"]), np.stack(expected["pooled"])
    distance = np.linalg.norm(one - two, axis=1) / np.linalg.norm(two, axis=1)
    assert distance.max() <= tolerance
