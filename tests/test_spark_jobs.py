"""Spark's jobs: how they end."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest

from cxr_spark.spark_jobs import cancelled


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
