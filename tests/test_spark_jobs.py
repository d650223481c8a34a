"""Spark's jobs: how they end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_spark.spark_jobs import _progress_line, cancelled, waiting_told


def test_a_cancelled_job_writes_no_more_once_the_block_has_ended(spark, tmp_path: Path) -> None:
    """Spark tells of its end at once, and kills the Python worker of its task two seconds later."""
    written = tmp_path / "written"

    def write_on(batches):
        for batch in batches:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with written.open("a") as file:
                    file.write(".")
                time.sleep(0.01)
            yield batch

    def run() -> None:
        spark.sparkContext.setJobGroup("writers", "writing without end")
        with pytest.raises(Exception, match="cancelled"):
            spark.range(0, 1, 1, 1).mapInPandas(write_on, "id bigint").count()

    job = Thread(target=run)
    job.start()
    while job.is_alive() and not written.exists():
        time.sleep(0.05)
    with cancelled(spark, "writers"):
        job.join()
    there = written.stat().st_size
    time.sleep(0.5)
    assert written.stat().st_size == there


@pytest.mark.parametrize(
    ("share", "seconds", "line"),
    [
        (0.0, 12.0, "about 0 of 8,000 images, 12 s so far"),
        (0.1, 20.0, "about 800 of 8,000 images, 40.0 images/s, about 180 s left"),
        (1.0, 50.0, "about 8,000 of 8,000 images, 160.0 images/s, about 0 s left"),
    ],
)
def test_the_line_of_progress_has_rate_and_time_once_a_task_has_ended(
    share: float, seconds: float, line: str
) -> None:
    assert _progress_line(share, 8000, seconds) == line


def waiting_on(n_active: int) -> Any:
    """A session of a cluster, on which a stage runs so many tasks."""
    stage = SimpleNamespace(numActiveTasks=n_active, numCompletedTasks=0)
    tracker = SimpleNamespace(getActiveStageIds=lambda: [1], getStageInfo=lambda _: stage)
    conf = {"spark.task.cpus": "8", "spark.executor.memory": "64g"}
    context = SimpleNamespace(
        master="spark://HOST:7077", getConf=lambda: conf, statusTracker=lambda: tracker
    )
    return SimpleNamespace(sparkContext=context)


@pytest.mark.parametrize("n_active", [0, 1])
def test_a_job_that_no_executor_takes_is_told(
    n_active: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="cxr_spark"),
        waiting_told(waiting_on(n_active), every_s=0.02),
    ):
        until = time.monotonic() + (5 if n_active == 0 else 0.2)
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.02)
    told = (
        "waiting: no executor of spark://HOST:7077 takes a task. Has it workers with so much free "
        "(spark.task.cpus=8, spark.executor.memory=64g)"
    )
    assert (told in caplog.text) == (n_active == 0)
