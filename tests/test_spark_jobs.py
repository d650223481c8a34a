"""Spark's jobs: how they end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_spark.errors import UserError
from cxr_spark.spark_jobs import Progress, _progress_line, cancelled, waiting_told


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


class Seq(list[Any]):
    """A list as Scala's sequences are seen from Python."""

    def size(self) -> int:
        return len(self)

    def apply(self, k: int) -> Any:
        return self[k]


def waiting_on(
    n_active: int, executors: dict[str, int], cancel: Callable[[], None] = lambda: None
) -> Any:
    """A session of a cluster with executors of so many cores, on which a stage runs some tasks."""
    stage = SimpleNamespace(numActiveTasks=n_active, numCompletedTasks=0)
    tracker = SimpleNamespace(getActiveStageIds=lambda: [1], getStageInfo=lambda _: stage)
    conf = {"spark.task.cpus": "8", "spark.executor.memory": "64g"}

    def told(name: str, cores: int) -> Any:
        return SimpleNamespace(id=lambda: name, totalCores=lambda: cores)

    listed = Seq(told(*item) for item in executors.items())
    store = SimpleNamespace(executorList=lambda _: listed)
    context = SimpleNamespace(
        master="spark://HOST:7077", getConf=lambda: conf, statusTracker=lambda: tracker,
        _jsc=SimpleNamespace(sc=lambda: SimpleNamespace(statusStore=lambda: store)),
        cancelAllJobs=cancel,
    )  # fmt: skip
    return SimpleNamespace(sparkContext=context)


def test_tasks_larger_than_every_executor_end_in_one_line() -> None:
    """Also where the job is submitted only after executors have been looked at."""
    looked, submitted, ended = Event(), Event(), Event()

    def cancel() -> None:
        looked.set()
        if submitted.is_set():
            ended.set()

    def run() -> None:
        with waiting_told(waiting_on(0, {"driver": 64, "0": 4, "1": 2}, cancel), every_s=0.02):
            looked.wait(5)
            submitted.set()
            ended.wait(5)
            raise RuntimeError("the job was cancelled")

    told = "of at most 4, the cores of the largest executor of spark://HOST:7077.*Received.*=8"
    with pytest.raises(UserError, match=told):
        run()
    assert ended.is_set()


def test_a_failure_of_another_kind_is_raised_as_it_is() -> None:
    def run() -> None:
        with waiting_told(waiting_on(0, {"0": 8}), every_s=0.02):
            time.sleep(0.1)
            raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        run()


def test_progress_is_told_while_another_thread_runs_the_job(
    spark, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tasks of the first job wait until its progress has been told."""
    go_on = tmp_path / "go_on"

    def wait(batches):
        for batch in batches:
            until = time.monotonic() + 60
            while batch["id"][0] >= 2 and not go_on.exists() and time.monotonic() < until:
                time.sleep(0.02)
            yield batch

    def run(progress: Progress) -> None:
        progress.join("squaring, part 1")
        spark.range(0, 4, 1, 4).mapInPandas(wait, "id bigint").count()

    with (
        caplog.at_level(logging.INFO, logger="cxr_spark"),
        Progress(spark, "squaring", 400, 4, every_s=0.1) as progress,
    ):
        progress.n_errors = 7
        job = Thread(target=run, args=(progress,))
        job.start()
        until = time.monotonic() + 60
        while "about 200 of 400" not in caplog.text and time.monotonic() < until:
            time.sleep(0.05)
        go_on.touch()
        job.join()
    line = r"squaring: about 200 of 400 images, [\d.]+ images/s, about \d+ s left, 7 errors so far"
    assert any(re.fullmatch(line, record.getMessage()) for record in caplog.records)


@pytest.mark.parametrize("n_active", [0, 1])
def test_a_job_that_no_executor_takes_is_told(
    n_active: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="cxr_spark"),
        waiting_told(waiting_on(n_active, {"0": 8}), every_s=0.02),
    ):
        until = time.monotonic() + (5 if n_active == 0 else 0.2)
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.02)
    told = (
        "waiting: no executor of spark://HOST:7077 takes a task. Has it workers with so much free "
        "(spark.task.cpus=8, spark.executor.memory=64g)"
    )
    assert (told in caplog.text) == (n_active == 0)
