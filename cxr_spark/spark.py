"""The Spark session, the code and files that executors need, and progress for people who watch."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_spark.errors import UserError
from cxr_spark.session_checks import check_settings, check_versions

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkStageInfo
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

# Set where spark-submit and its properties file leave them open.
DEFAULTS = {
    # 256 encoded X-rays at a time: the default of 10,000 would be 2 GB of them.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.python.worker.reuse": "true",
    "spark.sql.session.timeZone": "UTC",
    # One file is open for each backbone, instead of sorting every feature map.
    "spark.sql.maxConcurrentOutputFileWriters": "64",
    "spark.sql.parquet.compression.codec": "zstd",
    # Rows of names alone are shuffled, a million of them 100 MB: 200 files a task cost more.
    "spark.sql.shuffle.partitions": "16",
    "spark.ui.showConsoleProgress": "false",
}

# What Spark's own pages hide (the default of spark.redaction.regex), two words more, and addresses
# that hold a user's password.
SECRET = re.compile(
    r"secret|password|token|access[.]?key|credential|passphrase|://[^/\s]*:[^/\s]*@", re.IGNORECASE
)
REDACTED = "*********(redacted)"

# The property by which Spark names a job, and the stages of it.
DESCRIPTION = "spark.job.description"

# Spark kills a cancelled task's Python worker after two seconds (spark.python.task.killTimeout).
CANCEL_SECONDS = 15.0


@contextmanager
def open_session(
    name: str, *, meanwhile: Callable[[], object] = lambda: None, worker_mb: int = 0
) -> Iterator[SparkSession]:
    """Yield the session of this job, with the package shipped to its executors, and stop it after.

    Master and resources come from spark-submit; ``DEFAULTS`` fill what it leaves open.

    Args:
        name: of the application.
        meanwhile: called when the JVM begins to start Spark, which takes it some seconds; whatever
            it sets going in another thread does not hold up Python's part of the start.
        worker_mb: what a Python worker will take, by ``memory.worker_mb``; 0 where that is unknown.

    Raises:
        UserError: there is no Java, a setting would fail the run later, or executors have other
            packages than the driver.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        SparkContext._ensure_initialized()  # the JVM of spark-submit holds its configuration
    except PySparkRuntimeError as error:
        raise UserError(
            "Expected Java 17 or 21, on the PATH or under JAVA_HOME, for Spark. "
            f"Received: {error.getCondition()}"
        ) from error
    conf = SparkConf()
    for key, value in DEFAULTS.items():
        conf.setIfMissing(key, value)
    check_settings(dict(conf.getAll()), worker_mb)
    builder = SparkSession.builder.appName(name).config(conf=conf)
    meanwhile()
    on_interrupt = signal.getsignal(signal.SIGINT)
    spark = builder.getOrCreate()
    if threading.current_thread() is threading.main_thread():
        # PySpark sets its own, which asks a JVM that Ctrl-C has ended as well.
        signal.signal(signal.SIGINT, on_interrupt)
    spark.sparkContext.setLogLevel(_log_level(conf))
    with tempfile.TemporaryDirectory(prefix="cxr_spark-") as folder:
        try:
            spark.sparkContext.addPyFile(str(_zip_package(Path(folder))))
            with described(spark, "asking executors for their packages"):
                check_versions(spark)
            yield spark
        finally:
            spark.stop()


def _log_level(conf: SparkConf) -> str:
    return conf.get("spark.log.level", "ERROR") or "ERROR"


def _zip_package(folder: Path) -> Path:
    """Write this package's source as a zip; executors sent it need its dependencies only."""
    package, archive = Path(__file__).parent, folder / "cxr_spark_package.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for source in sorted(package.rglob("*.py")):
            file.write(source, source.relative_to(package.parent))
    return archive


@contextmanager
def described(spark: SparkSession, what: str) -> Iterator[None]:
    """Have Spark's UI and its event log say what the jobs are for that this thread submits."""
    context = spark.sparkContext
    before = context.getLocalProperty(DESCRIPTION)
    context.setLocalProperty(DESCRIPTION, what)
    try:
        yield
    finally:
        context.setLocalProperty(DESCRIPTION, before)


class Progress:
    """Logs, while its block runs, how many images are done by the share of tasks that have ended.

    Jobs are counted whose thread has called ``join``.
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
        self._group = f"{what}-{time.monotonic_ns()}"
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._cancelled = False
        self.n_errors = 0

    def join(self, what: str) -> None:
        """Count the jobs that this thread submits from now on, and call them so in Spark's UI."""
        self._context.setJobGroup(self._group, what)

    def cancel(self) -> None:
        """Have Spark end the jobs that are counted, and say nothing of their tasks' ends."""
        self._cancelled = True
        with contextlib.suppress(Exception):  # Spark may be gone itself
            self._context.setLogLevel("OFF")
            self._context.cancelJobGroup(self._group)

    def __enter__(self) -> Progress:
        """Begin to log."""
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._ended.set()
        self._watcher.join()
        if self._cancelled:
            with contextlib.suppress(Exception):
                self._wait_for_cancelled()
                self._context.setLogLevel(_log_level(self._context.getConf()))

    def _wait_for_cancelled(self) -> None:
        """Wait for tasks that still run: a cancelled job has ended, and they write on meanwhile."""
        until = time.monotonic() + CANCEL_SECONDS
        while any(stage.numActiveTasks for stage in self._stages()) and time.monotonic() < until:
            time.sleep(0.05)

    def _stages(self) -> list[SparkStageInfo]:
        """Return what Spark tells of each stage of the jobs that are counted."""
        tracker = self._context.statusTracker()
        return [
            told
            for job in tracker.getJobIdsForGroup(self._group)
            if (jobs := tracker.getJobInfo(job))
            for stage in jobs.stageIds
            if (told := tracker.getStageInfo(stage))
        ]

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(self._every_s):
            share = sum(stage.numCompletedTasks for stage in self._stages()) / self._n_tasks
            line = _progress_line(min(share, 1.0), self._n_images, time.monotonic() - began)
            errors = f", {self.n_errors:,} errors" if self.n_errors else ""
            log.info("%s: %s%s", self._what, line, errors)


@contextmanager
def cancelled(spark: SparkSession, group: str) -> Iterator[None]:
    """Have Spark end the jobs of a group, and say nothing of their tasks' ends in the block."""
    context = spark.sparkContext
    with contextlib.suppress(Exception):  # Spark may be gone itself
        context.setLogLevel("OFF")
        context.cancelJobGroup(group)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            context.setLogLevel(_log_level(context.getConf()))


def _progress_line(share: float, n_images: int, seconds: float) -> str:
    """Say what is done; the rate counts the start of the tasks, so it tells little at first."""
    done = f"about {share * n_images:,.0f} of {n_images:,} images"
    if share < 0.25:
        return f"{done}, {seconds:.0f} s so far"
    rate = share * n_images / seconds
    return f"{done}, {rate:,.1f} images/s, about {(1 - share) * seconds / share:.0f} s left"


def describe_session(spark: SparkSession) -> dict[str, Any]:
    """Return versions and the settings of a session, for the record of what it made.

    A setting whose name or value looks like a secret is named, and its value is not.
    """
    shown = (
        "spark.master",
        "spark.executor.",
        "spark.driver.memory",
        "spark.task.",
        "spark.sql.",
        "spark.python.",
    )
    conf = spark.sparkContext.getConf().getAll()
    return {
        "version": spark.version,
        "default_parallelism": spark.sparkContext.defaultParallelism,
        "conf": {
            key: REDACTED if SECRET.search(key) or SECRET.search(value) else value
            for key, value in sorted(conf)
            if key.startswith(shown) and "JavaOptions" not in key
        },
    }
