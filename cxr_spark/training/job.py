"""A grid of heads: extractions, images in their splits, what is missing, and who trains it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord, read_errors
from cxr_spark.paths import AnyPath
from cxr_spark.training.assign import Assigned, assign
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.describe import describe_run
from cxr_spark.training.fit import Training
from cxr_spark.training.folds import Fold, make_folds
from cxr_spark.training.inputs import told
from cxr_spark.training.joined import check_memory, join_backbones, open_joined
from cxr_spark.training.reader import ImageKeys, read_keys
from cxr_spark.training.run_folder import (
    begin_run,
    check_run,
    check_same_features,
    clear_unfinished,
    update_experiment,
)
from cxr_spark.training.tally import Tally
from cxr_spark.training.work import Shared, Work, find_missing, train_work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run was trained on: its extractions, their images, and the split of each."""

    records: Sequence[ExtractionRecord]
    images: ImageKeys
    assigned: Assigned


def train(
    experiment: Experiment,
    features: AnyPath,
    run: Path,
    session: Callable[[], AbstractContextManager[SparkSession | None]] = nullcontext,
) -> Trained:
    """Train every configuration and seed of the experiment and store heads and predictions.

    Configurations that the run folder already holds are not trained again.

    Args:
        experiment: what to train.
        features: the features folder.
        run: the run folder.
        session: opens the session on whose executors heads are trained, once what can be known to
            be wrong has been looked for and before anything is written; by default they are
            trained in this process.

    Returns:
        What they were trained on.

    Raises:
        UserError: the features do not serve the experiment, a class has no image in a split, or the
            run folder is of another experiment.
        RunFailed: executors could not train a configuration.
    """
    check_run(run, experiment)
    chosen = choose_extractions(features, experiment)
    records = list(chosen.values())
    sources = join_backbones(chosen, experiment.concatenations)
    check_memory(features, sources.values(), experiment)
    images = read_keys(features, records[0])
    assigned = assign(experiment, images)
    if not experiment.overwrite:
        fingerprints = {record.fingerprint for record in records}
        check_same_features(run, fingerprints, (records[0].listing_digest, records[0].n_rows))
    with session() as spark:
        begin_run(run, experiment)
        errors = read_errors(features, records[0])
        update_experiment(run, **describe_run(records, images, assigned, errors))
        for folder in ("heads", "predictions"):
            (run / folder).mkdir(exist_ok=True)
        clear_unfinished(run)
        folds = _folds(experiment, images, assigned)
        works = find_missing(run, sources, experiment, folds)
        shared = Shared(experiment, features, run, images, assigned, folds)
        if spark is None:
            _train_here(shared, works)
        elif works:
            from cxr_spark.training.executors import train_on_executors

            train_on_executors(spark, shared, works)
    return Trained(records, images, assigned)


def _train_here(shared: Shared, works: Sequence[Work]) -> None:
    """Train one configuration after the other, those on the same inputs together."""
    tally = Tally(works)
    for (joined, takes), same_inputs in itertools.groupby(works, key=lambda work: work.inputs):
        inputs = open_joined(
            shared.features, joined, takes, shared.images.image_id,
            memory_gb=shared.experiment.training.memory_gb,
        )  # fmt: skip
        with contextlib.closing(inputs), told(inputs):
            training = Training(shared.experiment, inputs, shared.assigned)
            for work in same_inputs:
                began = time.monotonic()
                train_work(shared, work, training)
                tally.add(work, time.monotonic() - began)


def _folds(experiment: Experiment, images: ImageKeys, assigned: Assigned) -> list[Fold]:
    """Return the folds of cross-validation; none where images are too few, with a warning.

    Raises:
        UserError: images are too few, and a head is tuned by them.
    """
    if experiment.cross_validation is None:
        return []
    try:
        return make_folds(
            assigned.labels, images.patient_id.tolist(), assigned.splits,
            experiment.cross_validation, seed=experiment.split.seed,
            pixels_digest=images.pixels_digest,
        )  # fmt: skip
    except UserError as error:
        if experiment.tuned_heads:
            raise
        log.warning("no cross-validation, so that no configuration is selected: %s", error)
        return []
