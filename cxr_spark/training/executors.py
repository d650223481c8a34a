"""Heads on executors: which configuration is begun first, what comes back, what went wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.errors import RunFailed
from cxr_spark.paths import absolute
from cxr_spark.placement import Placement, placement_of
from cxr_spark.session_checks import why_python_failed
from cxr_spark.spark_jobs import cancelled
from cxr_spark.training.heads import Head
from cxr_spark.training.spaces import Tuned
from cxr_spark.training.tally import Tally
from cxr_spark.training.work import Shared, Work
from cxr_spark.training.worker import (
    HeadFailed,
    Listed,
    Outcome,
    Shipped,
    installed_versions,
    make_trainer,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
# Clients of NFS take a folder for what it was for so long (acdirmax).
SEEN_WITHIN_S = 90.0


def train_on_executors(spark: SparkSession, shared: Shared, works: Sequence[Work]) -> None:
    """Train configurations, one a task; executors write them into the run folder.

    Results do not pass through the driver: a head may take 400 MB. Each file is written beside and
    moved into place, the record of a head last, so that a task which is killed leaves nothing that
    counts, and one that Spark runs twice leaves what one would.

    Labels, splits and folds are sent, not made again: some 0.3 kB an image, a fraction of the
    features that every worker reads, and nobody can hold out other images than the driver meant.

    Raises:
        UserError: a configuration cannot be trained, or an executor does not see the folders.
        RunFailed: an executor failed for another reason.
    """
    context, placement = spark.sparkContext, placement_of(spark)
    ordered = longest_first(works)
    shipped = context.broadcast(
        Shipped(uuid.uuid4().hex, _absolute(shared), ordered, installed_versions())
    )
    outcomes = context.accumulator([], Listed())
    trainer = make_trainer(shipped, outcomes, placement)
    group, n = f"heads-{time.monotonic_ns()}", len(ordered)
    reports = _Reports(spark, placement, ordered)

    def run() -> list[str]:
        context.setJobGroup(group, f"heads: {n} configurations")
        tasks = spark.range(0, n, 1, n).mapInPandas(trainer, "outcome string")
        return [row["outcome"] for row in tasks.collect()]

    log.info("training: %d configurations on executors, a task each", n)
    pool = ThreadPoolExecutor(1)
    job = pool.submit(run)
    try:
        while not job.done():
            wait([job], timeout=LOOK_EVERY_S)
            reports.take(outcomes.value)
        reports.take(_result(job, ordered))  # what an accumulator may have missed
    except BaseException:
        with cancelled(spark, group):
            pool.shutdown()
        raise
    finally:
        pool.shutdown()
        with contextlib.suppress(Exception):  # Spark may be gone itself
            shipped.destroy()
    _await_files(shared.run, ordered)


def _result(job: Future[list[str]], works: Sequence[Work]) -> list[str]:
    """Return the outcomes of a job that has ended.

    Raises:
        RunFailed: it has failed; says why.
    """
    try:
        return job.result()
    except Exception as error:
        raise RunFailed(
            f"heads could not be trained on executors: {why_failed(str(error), works)}. What is "
            "trained is kept: the same command goes on, and without --distribute-heads on the "
            "driver"
        ) from error


def longest_first(works: Sequence[Work]) -> list[Work]:
    """Return works so that the last to begin is none that takes long.

    A search is hundreds of fits; heads on maps and those with hidden layers take Keras' ``fit`` for
    every seed, and softmax heads are trained all seeds together.
    """

    def burden(work: Work) -> tuple[bool, bool, int]:
        of = work.head.of if isinstance(work.head, Tuned) else work.head
        kind = 1 if not isinstance(of, Head) else 0 if of.is_softmax_of_pooled else 2
        return isinstance(work.head, Tuned), work.head.takes == "feature_map", kind

    return sorted(works, key=burden, reverse=True)


def why_failed(text: str, works: Sequence[Work]) -> str:
    """Return in a line what Spark's account of a failed job says.

    Args:
        text: the account: messages and stack traces of Python and Java.
        works: in the order of the tasks.
    """
    if found := re.search(rf"{HeadFailed.__name__}: (.*)", text):
        return found[1]
    if reason := why_python_failed(text):
        return reason
    task = re.search(r"Task (\d+) in stage", text)
    where = f"{works[int(task[1])].configuration.name}: " if task else ""
    if "Python worker exited unexpectedly" in text:
        return f"{where}its Python worker was killed; was there too little memory beside the heap?"
    if found := re.search(r"Reason: (.*)", text):
        return f"{where}{found[1]}"
    return where + next((line.strip() for line in text.splitlines() if line.strip()), "no reason")


class _Reports:
    """Takes in outcomes, each once, and tells of them."""

    def __init__(self, spark: SparkSession, placement: Placement, works: Sequence[Work]):
        self._context, self._task_cpus = spark.sparkContext, placement.task_cpus
        self._works, self._tally = works, Tally(works)
        self._seen: set[int] = set()

    def take(self, texts: Iterable[str]) -> None:
        """Tell of what is new.

        Raises:
            UserError, RunFailed: the first that failed, as it did on its executor.
        """
        for outcome in map(Outcome.from_json, texts):
            if outcome.index in self._seen:
                continue
            self._seen.add(outcome.index)
            work = self._works[outcome.index]
            for line in outcome.warnings:
                log.warning("%s: %s", work.configuration.name, line.strip())
            if outcome.failed:
                raise outcome.error()
            n_at_once = self._context.defaultParallelism // self._task_cpus
            self._tally.add(work, outcome.seconds, n_at_once)


def _absolute(shared: Shared) -> Shared:
    """Return it with paths that an executor takes for the same, without what may be a secret."""
    return replace(
        shared,
        features=absolute(shared.features),
        run=Path(os.path.abspath(shared.run)),
        experiment=shared.experiment.model_copy(update={"mlflow": None}),
    )


def _await_files(run: Path, works: Sequence[Work]) -> None:
    """Wait until this machine sees what executors have written.

    Raises:
        RunFailed: it does not.
    """
    deadline = time.monotonic() + SEEN_WITHIN_S
    while lacking := [work for work in works if not work.is_done(run)]:
        if time.monotonic() > deadline:
            raise RunFailed(
                f"executors have trained {len(works)} configurations, and {run} on the driver "
                f"lacks {len(lacking)} of them, {lacking[0].configuration.name} for one: --run "
                "must be the same folder on all machines"
            )
        time.sleep(1)
