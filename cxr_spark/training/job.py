"""The grid on the driver: extractions, images in their splits, each configuration in turn."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord, write_json
from cxr_spark.training.assign import Assigned, assign
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.describe import describe_run
from cxr_spark.training.heads import HEADS
from cxr_spark.training.reader import ImageKeys, read_errors, read_inputs, read_keys
from cxr_spark.training.run_folder import (
    Configuration,
    begin_run,
    check_run,
    check_same_features,
    update_experiment,
    write_predictions,
)
from cxr_spark.training.trainer import TrainedHead, standardise, train_head

log = logging.getLogger(__name__)


def train(experiment: Experiment, features: Path, run: Path) -> None:
    """Train every configuration and seed of the experiment and store heads and predictions.

    Configurations that the run folder already holds are not trained again.

    Raises:
        UserError: the features do not serve the experiment, a class has no image in a split, or the
            run folder is of another experiment.
    """
    check_run(run, experiment)
    extractions = choose_extractions(features, experiment)
    images = read_keys(features, next(iter(extractions.values())))
    assigned = assign(experiment, images)
    records = list(extractions.values())
    if not experiment.overwrite:
        check_same_features(run, records)
    begin_run(run, experiment)
    errors = read_errors(features, records[0])
    update_experiment(run, **describe_run(records, images, assigned, errors))
    for folder in ("heads", "predictions"):
        (run / folder).mkdir(exist_ok=True)
    heads = sorted(experiment.heads, key=lambda head: HEADS[head].takes, reverse=True)
    missing = [
        (key, head, seed)
        for key in extractions
        for head in heads
        for seed in experiment.seeds
        if not (run / "heads" / f"{_name(key, head, seed)}.json").exists()
    ]
    total = len(extractions) * len(heads) * len(experiment.seeds)
    if len(missing) < total:
        log.info(
            "training: %d of %d configurations are in the run folder already",
            total - len(missing),
            total,
        )
    began = time.monotonic()
    done = 0
    for key, record in extractions.items():
        for takes in ("pooled", "feature_map"):
            work = [
                (head, seed) for k, head, seed in missing if k == key and HEADS[head].takes == takes
            ]
            if not work:
                continue
            inputs = _inputs(features, record, images, takes)
            standardisation = (
                standardise(inputs, assigned.splits) if experiment.standardise else None
            )
            for head, seed in work:
                trained = train_head(
                    head, inputs, assigned.labels, assigned.splits,
                    n_classes=len(assigned.task.classes), training=experiment.training, seed=seed,
                    standardisation=standardisation,
                )  # fmt: skip
                _store(run, Configuration(*key, head), seed, record, trained, images, assigned)
                done += 1
                left = (time.monotonic() - began) / done * (len(missing) - done)
                log.info(
                    "training: %d of %d, %s in %.1f s, validation AUC (Keras) %.4f, "
                    "about %.0f s left",
                    done, len(missing), _name(key, head, seed), trained.seconds,
                    trained.history["val_auc"][-1], left,
                )  # fmt: skip


def _name(key: tuple[str, str], head: str, seed: int) -> str:
    return f"{Configuration(*key, head).name}-seed{seed}"


def _inputs(
    features: Path, record: ExtractionRecord, images: ImageKeys, takes: str
) -> tuple[npt.NDArray[Any], ...]:
    own = read_inputs(features, record, takes)
    if not np.array_equal(own.image_id, images.image_id):
        raise UserError(
            "Expected the same images in every extraction. "
            f"Received: {record.describe()}, whose images differ. Extract again with --overwrite."
        )
    return own.arrays


def _store(
    run: Path,
    configuration: Configuration,
    seed: int,
    record: ExtractionRecord,
    trained: TrainedHead,
    images: ImageKeys,
    assigned: Assigned,
) -> None:
    """Store one trained head; its .json is written last and says that all of it is there."""
    name = f"{configuration.name}-seed{seed}"
    names = {
        "configuration": configuration.name,
        "backbone": configuration.backbone,
        "preprocessing": configuration.preprocessing,
        "head": configuration.head,
        "seed": seed,
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
    write_predictions(run / "predictions" / f"{name}.parquet", predictions)
    beside = run / "heads" / f"_{name}.keras"
    trained.model.save(beside)
    beside.replace(run / "heads" / f"{name}.keras")
    write_json(
        run / "heads" / f"{name}.json",
        {
            **names,
            "extraction": record.fingerprint,
            "weights": record.weights,
            "train_seconds": round(trained.seconds, 3),
            "history": trained.history,
        },
    )
