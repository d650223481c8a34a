"""The grid on the driver: extractions, images in their splits, each configuration in turn."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.extraction.store import ExtractionRecord, read_errors
from cxr_spark.files import write_json
from cxr_spark.training.assign import Assigned, assign
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.describe import describe_run
from cxr_spark.training.heads import HEADS
from cxr_spark.training.inputs import open_inputs, told
from cxr_spark.training.reader import ImageKeys, read_keys
from cxr_spark.training.run_folder import (
    Configuration,
    begin_run,
    check_run,
    check_same_features,
    head_name,
    update_experiment,
    write_predictions,
)
from cxr_spark.training.standardise import standardise
from cxr_spark.training.trainer import TrainedHead, train_head

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Fit:
    """One head to train: a configuration, its extraction and a seed."""

    configuration: Configuration
    record: ExtractionRecord
    seed: int

    @property
    def name(self) -> str:
        return head_name(self.configuration.name, self.seed)

    @property
    def inputs(self) -> tuple[ExtractionRecord, str]:
        """What it is trained on; fits of the same inputs follow one another."""
        return self.record, HEADS[self.configuration.head].takes


@dataclass(frozen=True)
class Trained:
    """What a run was trained on: its extractions, their images, and the split of each."""

    records: Sequence[ExtractionRecord]
    images: ImageKeys
    assigned: Assigned


def train(experiment: Experiment, features: Path, run: Path) -> Trained:
    """Train every configuration and seed of the experiment and store heads and predictions.

    Configurations that the run folder already holds are not trained again.

    Returns:
        What they were trained on.

    Raises:
        UserError: the features do not serve the experiment, a class has no image in a split, or the
            run folder is of another experiment.
    """
    check_run(run, experiment)
    chosen = choose_extractions(features, experiment)
    records = list(chosen.values())
    images = read_keys(features, records[0])
    assigned = assign(experiment, images)
    if not experiment.overwrite:
        fingerprints = {record.fingerprint for record in records}
        check_same_features(run, fingerprints, (records[0].listing_digest, records[0].n_rows))
    begin_run(run, experiment)
    errors = read_errors(features, records[0].fingerprint)
    update_experiment(run, **describe_run(records, images, assigned, errors))
    for folder in ("heads", "predictions"):
        (run / folder).mkdir(exist_ok=True)
    fits = _missing(run, chosen, experiment)
    done: list[tuple[_Fit, float]] = []
    for (record, takes), same_inputs in itertools.groupby(fits, key=lambda fit: fit.inputs):
        inputs = open_inputs(
            features, record, takes, images.image_id, memory_gb=experiment.training.memory_gb
        )
        with contextlib.closing(inputs), told(inputs):
            standardisation = (
                standardise(inputs, assigned.splits) if experiment.standardise else None
            )
            for fit in same_inputs:
                began = time.monotonic()
                trained = train_head(
                    fit.configuration.head, inputs, assigned.labels, assigned.splits,
                    n_classes=len(assigned.task.classes), training=experiment.training,
                    seed=fit.seed, standardisation=standardisation,
                )  # fmt: skip
                _store(run, fit, trained, images, assigned)
                done.append((fit, time.monotonic() - began))
                log.info(
                    "training: %d of %d, %s in %.1f s, Keras' metric on validation %.4f, "
                    "about %.0f s left",
                    len(done), len(fits), fit.name, trained.seconds,
                    trained.history["val_auc"][-1], _seconds_left(done, fits[len(done) :]),
                )  # fmt: skip
    return Trained(records, images, assigned)


def _missing(
    run: Path, chosen: dict[tuple[str, str], ExtractionRecord], experiment: Experiment
) -> list[_Fit]:
    """Return what the run folder does not hold yet, fits of the same inputs side by side."""
    heads = sorted(experiment.heads, key=lambda head: HEADS[head].takes, reverse=True)
    fits = [
        _Fit(Configuration(*key, head), record, seed)
        for key, record in chosen.items()
        for head in heads
        for seed in experiment.seeds
    ]
    missing = [fit for fit in fits if not (run / "heads" / f"{fit.name}.json").exists()]
    if len(missing) < len(fits):
        log.info("training: %d of %d are trained already", len(fits) - len(missing), len(fits))
    return missing


def _seconds_left(done: Sequence[tuple[_Fit, float]], left: Sequence[_Fit]) -> float:
    """Return the time for what is left, each head as long as it took so far, or as all did."""
    seconds = defaultdict(list)
    for fit, taken in done:
        seconds[fit.configuration.head].append(taken)
    overall = [taken for _, taken in done]
    return sum(float(np.mean(seconds[fit.configuration.head] or overall)) for fit in left)


def _store(
    run: Path, fit: _Fit, trained: TrainedHead, images: ImageKeys, assigned: Assigned
) -> None:
    """Store one trained head; its .json is written last and says that all of it is there."""
    names = {
        "configuration": fit.configuration.name,
        "backbone": fit.configuration.backbone,
        "preprocessing": fit.configuration.preprocessing,
        "head": fit.configuration.head,
        "seed": fit.seed,
    }
    predictions = pd.DataFrame(
        {
            **names,
            "split": assigned.splits,
            "image_id": images.image_id,
            "patient_id": images.patient_id,
            "label": assigned.labels,
            "repeat": None,
            "fold": None,
            "score": list(trained.scores),
        }
    )
    write_predictions(run / "predictions" / f"{fit.name}.parquet", predictions)
    beside = run / "heads" / f"_{fit.name}.keras"
    trained.model.save(beside)
    beside.replace(run / "heads" / f"{fit.name}.keras")
    write_json(
        run / "heads" / f"{fit.name}.json",
        {
            **names,
            "takes": HEADS[fit.configuration.head].takes,
            "classes": list(assigned.task.classes),
            "extraction": fit.record.fingerprint,
            "weights": fit.record.weights,
            "train_seconds": round(trained.seconds, 3),
            "history": trained.history,
        },
    )
