"""Spark's jobs for people who watch: what they are called, how far they are, and how they end."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cxr_spark.errors import UserError
from cxr_spark.paths import RemotePath, location
from cxr_spark.session_checks import EXECUTOR_CORES, EXECUTOR_GPUS, HEAP, TASK_CPUS

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkContext, SparkStageInfo
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

# The property by which Spark names a job, and the stages of it.
DESCRIPTION = "spark.job.description"

# How often a job is looked at that runs no task.
LOOK_S = 2.0

# Spark kills a cancelled task's Python worker after two seconds (spark.python.task.killTimeout).
CANCEL_SECONDS = 15.0


def log_level(conf: SparkConf) -> str:
    """Return from which level on the JVM logs in a session of ours."""
    return conf.get("spark.log.level", "ERROR") or "ERROR"


@contextmanager
def described(spark: SparkSession, what: str) -> Iterator[None]:
    """Have Spark's UI and its event log say what the jobs are for that this thread submits."""
    context = spark.sparkContext
    before = context.getLocalProperty(DESCRIPTION)
    context.setLocalProperty(DESCRIPTION, what)
    try:
        yield
    finally:
        context.setLocalProperty(DESCRIPTION, before)  # type: ignore[arg-type]  # None removes it


@contextmanager
def errors_of_tasks() -> Iterator[None]:
    """Tell in one line what a task's ``UserError`` or ``DeviceError`` says.

    Raises:
        UserError: a folder cannot be listed, or the device that Spark gave a task cannot be used.
    """
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        if reason := re.search(r"(?:UserError|DeviceError): (.*)", str(error)):
            raise UserError(reason[1]) from error
        raise


@contextmanager
def cancelled(spark: SparkSession, group: str) -> Iterator[None]:
    """Have Spark end the jobs of a group, and leave the block when none of their tasks runs.

    A cancelled job has ended at once; its tasks run on for some seconds, and write meanwhile. The
    JVM says nothing of their ends.
    """
    context = spark.sparkContext
    with contextlib.suppress(Exception):  # Spark may be gone itself
        context.setLogLevel("OFF")
        context.cancelJobGroup(group)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            until = time.monotonic() + CANCEL_SECONDS
            while any(s.numActiveTasks for s in _stages(context, group)):
                if time.monotonic() > until:
                    break
                time.sleep(0.05)
            context.setLogLevel(log_level(context.getConf()))


def _stages(context: SparkContext, group: str) -> list[SparkStageInfo]:
    """Return what Spark tells of each stage of the jobs of a group."""
    tracker = context.statusTracker()
    return [
        told
        for job in tracker.getJobIdsForGroup(group)
        if (jobs := tracker.getJobInfo(job))
        for stage in jobs.stageIds
        if (told := tracker.getStageInfo(stage))
    ]


def check_seen_by_spark(spark: SparkSession, file: RemotePath) -> None:
    """Refuse a store where Spark does not find what pyarrow has just written there.

    Raises:
        UserError: Spark lacks the connector, or it looks elsewhere.
    """
    context: Any = spark.sparkContext
    where = location(file)
    try:
        path = context._jvm.org.apache.hadoop.fs.Path(where)
        there = bool(path.getFileSystem(context._jsc.hadoopConfiguration()).exists(path))
    except Exception as error:  # of each connector its own
        told = re.sub(r"(?s)^.*?: (?=[\w.]+(?:Exception|Error))", "", str(error)).strip()
        raise UserError(
            f"Expected Spark to reach {location(file.parent)}: it takes the connector's package "
            f"and spark.hadoop.fs.* (conf/README.md). Received: {told.splitlines()[0]}"
        ) from error
    if not there:
        raise UserError(
            f"Expected Spark to see under {location(file.parent)} what was written to {file}. "
            "Received: nothing: endpoint or region of the one are not those of the other "
            "(spark.hadoop.fs.*, conf/README.md)"
        )


@contextmanager
def waiting_told(spark: SparkSession, *, every_s: float = 30.0) -> Iterator[None]:
    """Say, while the block's jobs run no task, that none is taken, and what may keep it from that.

    Spark itself waits for ever, and says so at a level that is not shown.

    Raises:
        UserError: executors are there, and none of them has the cores that a task takes.
    """
    context, conf = spark.sparkContext, spark.sparkContext.getConf()
    keys = (EXECUTOR_CORES, TASK_CPUS, HEAP, EXECUTOR_GPUS)
    asked = [f"{key}={conf.get(key)}" for key in keys if conf.get(key) is not None]
    ended, refused = threading.Event(), list[str]()
    look_s, silent_s = min(every_s, LOOK_S), 0.0

    def watch() -> None:
        nonlocal silent_s
        while not ended.wait(look_s):
            tracker = context.statusTracker()
            stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
            if any(stage and (stage.numActiveTasks or stage.numCompletedTasks) for stage in stages):
                silent_s = 0.0
                continue
            cpus, cores = int(conf.get(TASK_CPUS) or 1), executors_cores(context)
            if cores and max(cores) < cpus:
                refused[:] = [
                    f"Expected {TASK_CPUS} of at most {max(cores)}, the cores of the largest "
                    f"executor of {context.master}, or no task ever starts. "
                    f"Received: {TASK_CPUS}={cpus}"
                ]
                context.cancelAllJobs()  # at each look: executors may be there before the job is
                continue
            silent_s += look_s
            if silent_s < every_s:
                continue
            silent_s = 0.0
            log.warning(
                "waiting: no executor of %s takes a task. Has it workers with so much free (%s), "
                "and a task no more cores than an executor? The master's page says what there is",
                context.master, ", ".join(asked) or "Spark's defaults",
            )  # fmt: skip

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if refused:
            raise UserError(refused[0]) from error
        raise
    finally:
        ended.set()
        thread.join()


def executors_cores(context: SparkContext) -> list[int]:
    """Return the cores of each executor that a cluster has given."""
    told = context._jsc.sc().statusStore().executorList(True)
    executors = [told.apply(k) for k in range(told.size())]
    return [executor.totalCores() for executor in executors if executor.id() != "driver"]


class Progress:
    """Logs, while its block runs, how many images are done by the share of tasks that have ended.

    Jobs are counted whose thread has called ``join``.

    Attributes:
        group: Spark's name for these jobs together.
        n_errors: told beside; for the caller to count.
    """

    def __init__(
        self,
        spark: SparkSession,
        what: str,
        n_images: int,
        n_tasks: int,
        *,
        every_s: float = 10.0,
    ) -> None:
        """Say what is watched: so many images, in so many tasks of all jobs together."""
        self._context = spark.sparkContext
        self._what, self._n_images, self._n_tasks, self._every_s = what, n_images, n_tasks, every_s
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.group = f"{what}-{time.monotonic_ns()}"
        self.n_errors = 0

    def join(self, what: str) -> None:
        """Count the jobs that this thread submits from now on, and call them so in Spark's UI."""
        self._context.setJobGroup(self.group, what)

    def __enter__(self) -> Progress:
        """Begin to log."""
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(self._every_s):
            stages = _stages(self._context, self.group)
            share = sum(stage.numCompletedTasks for stage in stages) / self._n_tasks
            line = _progress_line(min(share, 1.0), self._n_images, time.monotonic() - began)
            log.info("%s: %s, %s errors so far", self._what, line, f"{self.n_errors:,}")


def _progress_line(share: float, n_images: int, seconds: float) -> str:
    """Say what is done; the rate counts the start of the tasks, so it is low at first."""
    done = f"about {share * n_images:,.0f} of {n_images:,} images"
    if share == 0:
        return f"{done}, {seconds:.0f} s so far"
    rate = share * n_images / seconds
    return f"{done}, {rate:,.1f} images/s, about {(1 - share) * seconds / share:.0f} s left"
