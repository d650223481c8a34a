"""The Spark session, and the code that executors need."""

from __future__ import annotations

import logging
import re
import signal
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_spark.errors import RunFailed, UserError
from cxr_spark.session_checks import (
    LOCAL,
    MASTER,
    TASK_CPUS,
    Settings,
    check_settings,
    check_versions,
    fitting_workers,
    images_in_worker,
)
from cxr_spark.spark_jobs import described, log_level, waiting_told

if TYPE_CHECKING:
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

# What Spark's own pages hide (the default of spark.redaction.regex), further names that clouds give
# to keys, and addresses that hold a user.
SECRET = re.compile(
    r"secret|password|pwd=|token|(access|account|api|private|shared|storage)[._-]?key|credential"
    r"|passphrase|\bsas\b|://\S*@",
    re.IGNORECASE,
)
REDACTED = "*********(redacted)"


@contextmanager
def open_session(
    name: str,
    *,
    meanwhile: Callable[[], object] = lambda: None,
    worker_mb: Callable[[int], int] | None = None,
) -> Iterator[SparkSession]:
    """Yield the session of this job, with the package shipped to its executors, and stop it after.

    Master and resources come from spark-submit; ``DEFAULTS`` fill what it leaves open.

    Args:
        name: of the application.
        meanwhile: called when the JVM begins to start Spark, which takes it some seconds; whatever
            it sets going in another thread does not hold up Python's part of the start.
        worker_mb: as ``check_settings`` takes it.

    Raises:
        UserError: there is no Java, a setting would fail the run later, or executors have other
            packages than the driver.
        RunFailed: the JVM has ended before the block.
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
    settings = dict(conf.getAll())
    master = settings.get(MASTER, "local[*]")
    if all_cores := local_cores(master):
        settings[MASTER] = master.replace("*", str(all_cores))
        if worker_mb is not None and (fewer := _cores_that_fit(master, settings, worker_mb)):
            settings[MASTER] = master.replace("*", str(fewer))
            conf.set(MASTER, settings[MASTER])
    check_settings(settings, worker_mb)
    builder = SparkSession.builder.appName(name).config(conf=conf)
    meanwhile()
    on_interrupt = signal.getsignal(signal.SIGINT)
    spark = builder.getOrCreate()
    if threading.current_thread() is threading.main_thread():
        # PySpark sets its own, which asks a JVM that Ctrl-C has ended as well.
        signal.signal(signal.SIGINT, on_interrupt)
    spark.sparkContext.setLogLevel(log_level(conf))
    with tempfile.TemporaryDirectory(prefix="cxr_spark-") as folder:
        try:
            spark.sparkContext.addPyFile(str(_zip_package(Path(folder))))
            with described(spark, "asking executors for their packages"), waiting_told(spark):
                check_versions(spark)
            yield spark
        except Exception as error:
            if _jvm_has_ended(spark):
                raise RunFailed(
                    "Spark's JVM has ended by itself, as where the system kills what takes too "
                    "much memory. What was computed is kept: give the same command again"
                ) from error
            raise
        finally:
            if not _jvm_has_ended(spark):
                spark.stop()


def _jvm_has_ended(spark: SparkSession) -> bool:
    try:
        spark.sparkContext._jvm.java.lang.System.nanoTime()  # type: ignore[union-attr]
    except Exception:  # py4j has several for it, and the system has its own
        return True
    return False


def _cores_that_fit(master: str, settings: Settings, worker_mb: Callable[[int], int]) -> int | None:
    """Return how many cores a master of all of them, ``local[*]``, is to take for want of memory.

    Args:
        master: as given.
        settings: Spark's, with the number of cores in the master.
        worker_mb: as ``check_settings`` takes it.

    Returns:
        None where memory is enough, or for less than one, or the number of cores is the user's.
    """
    found = LOCAL.fullmatch(master)
    needed = worker_mb(images_in_worker(settings))
    fitting = fitting_workers(settings, needed)
    if found is None or found[1] != "*" or not fitting:
        return None
    cores = fitting * int(settings.get(TASK_CPUS, "1"))
    log.warning(
        "memory: a Python worker takes %d MB with these backbones; local[*] is local[%d]",
        needed,
        cores,
    )
    return cores


def local_cores(master: str) -> int | None:
    """Return how many cores a master that is this process has; None for a cluster.

    Where it has all, Java is asked, as Spark asks: in a container it heeds the quota.
    """
    found = LOCAL.fullmatch(master)
    if found is None:
        return None
    if found[1] != "*":
        return int(found[1] or 1)
    from pyspark import SparkContext

    SparkContext._ensure_initialized()
    jvm: Any = SparkContext._jvm
    return int(jvm.java.lang.Runtime.getRuntime().availableProcessors())


def _zip_package(folder: Path) -> Path:
    """Write this package's source as a zip; executors sent it need its dependencies only."""
    package, archive = Path(__file__).parent, folder / "cxr_spark_package.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for source in sorted(package.rglob("*.py")):
            file.write(source, source.relative_to(package.parent))
    return archive


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
