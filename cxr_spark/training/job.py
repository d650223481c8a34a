"""The grid on the driver: extractions, images in their splits, each configuration in turn."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord, read_errors
from cxr_spark.files import write_json
from cxr_spark.training.assign import Assigned, assign
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.classifiers import Classifier
from cxr_spark.training.describe import describe_run
from cxr_spark.training.fit import Training
from cxr_spark.training.folds import Fold, make_folds
from cxr_spark.training.head_table import HeadRow, head_table
from cxr_spark.training.inputs import GIGABYTE, open_inputs, told
from cxr_spark.training.reader import ImageKeys, feature_shape, read_keys
from cxr_spark.training.run_folder import (
    Configuration,
    begin_run,
    check_run,
    check_same_features,
    cross_name,
    head_name,
    is_trained,
    predictions_file,
    update_experiment,
    write_predictions,
)
from cxr_spark.training.trainer import TrainedHead

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What the run folder lacks of one configuration: seeds, and whether cross-validation."""

    configuration: Configuration
    head: HeadRow
    record: ExtractionRecord
    seeds: tuple[int, ...]
    cross_validates: bool

    @property
    def inputs(self) -> tuple[ExtractionRecord, str]:
        """What it is trained on; work on the same inputs stands side by side."""
        return self.record, self.head.takes


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
    _check_memory(features, chosen.values(), experiment)
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
    folds = _folds(experiment, images, assigned)
    works = _missing(run, chosen, experiment, folds)
    done: list[tuple[_Work, float]] = []
    for (record, takes), same_inputs in itertools.groupby(works, key=lambda work: work.inputs):
        inputs = open_inputs(
            features, record, takes, images.image_id, memory_gb=experiment.training.memory_gb
        )
        with contextlib.closing(inputs), told(inputs):
            training = Training(experiment, inputs, assigned)
            for work in same_inputs:
                began = time.monotonic()
                _fit(run, work, training, images)
                if work.cross_validates:
                    _cross_validate(run, work, training, folds, images)
                done.append((work, time.monotonic() - began))
                log.info(
                    "training: %d of %d, %s in %.1f s, about %.0f s left",
                    len(done), len(works), work.configuration.name, done[-1][1],
                    _seconds_left(done, works[len(done) :]),
                )  # fmt: skip
    return Trained(records, images, assigned)


def _check_memory(
    features: Path, records: Iterable[ExtractionRecord], experiment: Experiment
) -> None:
    """Refuse classifiers whose features would have to be streamed, before anything is written.

    Raises:
        UserError: names the classifier and what it would take.
    """
    table = head_table(experiment)
    named = [name for name in experiment.heads if isinstance(table[name], Classifier)]
    for record in records if named else ():
        n_bytes = 4 * record.n_rows * feature_shape(features, record, "pooled")[0]
        if n_bytes > experiment.training.memory_gb * GIGABYTE:
            raise UserError(
                f"Expected pooled features that fit training.memory_gb, as {named[0]} needs. "
                f"Received: {n_bytes / GIGABYTE:.2f} GB of {record.identity.backbone} and "
                f"{experiment.training.memory_gb:g}. Raise it, or leave {', '.join(named)} out."
            )


def _folds(experiment: Experiment, images: ImageKeys, assigned: Assigned) -> list[Fold]:
    """Return the folds of cross-validation; none where images are too few, with a warning."""
    if experiment.cross_validation is None:
        return []
    try:
        return make_folds(
            assigned.labels, images.patient_id.tolist(), assigned.splits,
            experiment.cross_validation, seed=experiment.split.seed,
        )  # fmt: skip
    except UserError as error:
        log.warning("no cross-validation, so that no configuration is selected: %s", error)
        return []


def _missing(
    run: Path,
    chosen: dict[tuple[str, str], ExtractionRecord],
    experiment: Experiment,
    folds: Sequence[Fold],
) -> list[_Work]:
    """Return what the run folder does not hold yet, work on the same inputs side by side."""
    table = head_table(experiment)
    named = [table[name] for name in experiment.heads]
    heads = sorted(named, key=lambda head: head.takes, reverse=True)
    settings = experiment.cross_validation
    works, n_there = [], 0
    for key, record in chosen.items():
        for head in heads:
            configuration = Configuration(*key, head.name)
            there = [is_trained(run, configuration.name, seed) for seed in experiment.seeds]
            wanted = bool(folds) and (
                head.takes == "pooled" or bool(settings and settings.feature_maps)
            )
            work = _Work(
                configuration,
                head,
                record,
                # All of them: heads that are trained together differ by rounding from others.
                () if all(there) else tuple(experiment.seeds),
                wanted and not predictions_file(run, cross_name(configuration.name)).exists(),
            )
            n_there += sum(there)
            if work.seeds or work.cross_validates:
                works.append(work)
    if n_there:
        log.info("training: %d heads are trained already", n_there)
    return works


def _seconds_left(done: Sequence[tuple[_Work, float]], left: Sequence[_Work]) -> float:
    """Return the time for what is left, each head as long as it took so far, or as all did."""
    seconds = defaultdict(list)
    for work, taken in done:
        seconds[work.configuration.head].append(taken)
    overall = [taken for _, taken in done]
    return sum(float(np.mean(seconds[work.configuration.head] or overall)) for work in left)


def _fit(run: Path, work: _Work, training: Training, images: ImageKeys) -> None:
    """Train and store the seeds that the run folder lacks."""
    there = {seed for seed in work.seeds if is_trained(run, work.configuration.name, seed)}
    seeds = (
        work.seeds
        if training.trains_together(work.head)
        else [seed for seed in work.seeds if seed not in there]
    )
    for seed, trained in training.fit_seeds(work.head, seeds):
        if seed not in there:
            _store(run, work, seed, trained, images, training.assigned)
            told = trained.history.get("val_auc")
            log.info(
                "  seed %d: trained in %.1f s%s", seed, trained.seconds,
                f", Keras' metric on validation {told[-1]:.4f}" if told else "",
            )  # fmt: skip


def _cross_validate(
    run: Path, work: _Work, training: Training, folds: Sequence[Fold], images: ImageKeys
) -> None:
    """Store the scores of images that were held out, in the columns of all predictions."""
    seed = training.experiment.split.seed  # the same whatever seeds a command names
    tables = [
        _predictions(
            work.configuration, seed, images, training.assigned, scores, fold.held_out
        ).assign(split="val", repeat=fold.repeat, fold=fold.fold)
        for fold, scores in training.fit_folds(work.head, folds, seed)
    ]
    write_predictions(
        predictions_file(run, cross_name(work.configuration.name)),
        pd.concat(tables, ignore_index=True),
    )


def _predictions(
    configuration: Configuration,
    seed: int,
    images: ImageKeys,
    assigned: Assigned,
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64] | slice = slice(None),
) -> pd.DataFrame:
    """Return the predictions table of some images."""
    return pd.DataFrame(
        {
            **vars(configuration),
            "configuration": configuration.name,
            "seed": seed,
            "split": assigned.splits[rows],
            "image_id": images.image_id[rows],
            "patient_id": images.patient_id[rows],
            "label": assigned.labels[rows],
            "repeat": None,
            "fold": None,
            "score": list(scores),
        }
    )


def _store(
    run: Path, work: _Work, seed: int, trained: TrainedHead, images: ImageKeys, assigned: Assigned
) -> None:
    """Store one trained head; its .json is written last and says that all of it is there."""
    configuration = work.configuration
    name = head_name(configuration.name, seed)
    predictions = _predictions(configuration, seed, images, assigned, trained.scores)
    write_predictions(predictions_file(run, name), predictions)
    beside = run / "heads" / f"_{name}{trained.suffix}"
    trained.save(beside)
    beside.replace(run / "heads" / f"{name}{trained.suffix}")
    write_json(
        run / "heads" / f"{name}.json",
        {
            **vars(configuration),
            "configuration": configuration.name,
            "seed": seed,
            "takes": work.head.takes,
            "classes": list(assigned.task.classes),
            "extraction": work.record.fingerprint,
            "weights": work.record.weights,
            "train_seconds": round(trained.seconds, 3),
            "history": trained.history,
        },
    )
