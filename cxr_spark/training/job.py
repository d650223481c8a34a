"""The grid on the driver: extractions, images in their splits, each configuration in turn."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord, read_errors
from cxr_spark.files import replacing, write_json
from cxr_spark.training.assign import Assigned, assign
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.describe import describe_run
from cxr_spark.training.fit import Training
from cxr_spark.training.folds import Fold, make_folds
from cxr_spark.training.head_table import HeadRow, head_table
from cxr_spark.training.inputs import told
from cxr_spark.training.joined import check_memory, join_backbones, open_joined
from cxr_spark.training.reader import ImageKeys, read_keys
from cxr_spark.training.run_folder import (
    Configuration,
    begin_run,
    check_run,
    check_same_features,
    clear_unfinished,
    cross_name,
    head_name,
    is_trained,
    predictions_file,
    trials_file,
    update_experiment,
    write_predictions,
)
from cxr_spark.training.trainer import TrainedHead
from cxr_spark.training.tune import Settled, settle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What the run folder lacks of one configuration: seeds, and whether cross-validation."""

    configuration: Configuration
    head: HeadRow
    records: tuple[ExtractionRecord, ...]
    seeds: tuple[int, ...]
    cross_validates: bool

    @property
    def inputs(self) -> tuple[tuple[ExtractionRecord, ...], str]:
        """What it is trained on; work on the same inputs stands side by side."""
        return self.records, self.head.takes


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
    sources = join_backbones(chosen, experiment.concatenations)
    check_memory(features, sources.values(), experiment)
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
    clear_unfinished(run)
    folds = _folds(experiment, images, assigned)
    works = _missing(run, sources, experiment, folds)
    done: list[tuple[_Work, float]] = []
    for (joined, takes), same_inputs in itertools.groupby(works, key=lambda work: work.inputs):
        inputs = open_joined(
            features, joined, takes, images.image_id, memory_gb=experiment.training.memory_gb
        )
        with contextlib.closing(inputs), told(inputs):
            training = Training(experiment, inputs, assigned)
            for work in same_inputs:
                began = time.monotonic()
                trials = trials_file(run, work.configuration.name)
                settled = settle(training, work.head, folds, trials)
                _fit(run, work, training, images, settled)
                if work.cross_validates:
                    _cross_validate(run, work, training, images, folds, settled)
                done.append((work, time.monotonic() - began))
                log.info(
                    "training: %d of %d, %s in %.1f s, about %.0f s left",
                    len(done), len(works), work.configuration.name, done[-1][1],
                    _seconds_left(done, works[len(done) :]),
                )  # fmt: skip
    return Trained(records, images, assigned)


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


def _missing(
    run: Path,
    sources: Mapping[tuple[str, str], tuple[ExtractionRecord, ...]],
    experiment: Experiment,
    folds: Sequence[Fold],
) -> list[_Work]:
    """Return what the run folder does not hold yet, work on the same inputs side by side."""
    table = head_table(experiment)
    named = [table[name] for name in experiment.heads]
    heads = sorted(named, key=lambda head: head.takes, reverse=True)
    settings = experiment.cross_validation
    works, n_there = [], 0
    for key, records in sources.items():
        for head in heads:
            if len(records) > 1 and head.takes != "pooled":
                continue  # the maps of two backbones have different grids
            configuration = Configuration(*key, head.name)
            there = [is_trained(run, configuration.name, seed) for seed in experiment.seeds]
            wanted = bool(folds) and (
                head.takes == "pooled" or bool(settings and settings.feature_maps)
            )
            work = _Work(
                configuration,
                head,
                records,
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


def _fit(run: Path, work: _Work, training: Training, images: ImageKeys, settled: Settled) -> None:
    """Train and store the seeds that the run folder lacks."""
    there = {seed for seed in work.seeds if is_trained(run, work.configuration.name, seed)}
    seeds = (
        work.seeds
        if training.trains_together(settled.head)
        else [seed for seed in work.seeds if seed not in there]
    )
    for seed, trained in training.fit_seeds(settled.head, seeds):
        if seed not in there:
            _store(run, work, seed, trained, images, training.assigned, settled.search)
            told = trained.history.get("val_auc")
            log.info(
                "  seed %d: trained in %.1f s%s", seed, trained.seconds,
                f", Keras' metric on validation {told[-1]:.4f}" if told else "",
            )  # fmt: skip


def _cross_validate(
    run: Path,
    work: _Work,
    training: Training,
    images: ImageKeys,
    folds: Sequence[Fold],
    settled: Settled,
) -> None:
    """Store the scores of images that were held out, in the columns of all predictions."""
    seed = training.experiment.split.seed  # the same whatever seeds a command names
    alike = itertools.groupby(
        zip(settled.by_fold, folds, strict=True), key=lambda head_and_fold: head_and_fold[0]
    )
    tables = [
        _predictions(
            work.configuration, seed, images, training.assigned, scores, fold.held_out
        ).assign(split="val", repeat=fold.repeat, fold=fold.fold)
        for head, group in alike
        for fold, scores in training.fit_folds(head, [fold for _, fold in group], seed)
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
    run: Path,
    work: _Work,
    seed: int,
    trained: TrainedHead,
    images: ImageKeys,
    assigned: Assigned,
    search: dict[str, Any] | None,
) -> None:
    """Store one trained head; its .json is written last and says that all of it is there."""
    configuration = work.configuration
    name = head_name(configuration.name, seed)
    predictions = _predictions(configuration, seed, images, assigned, trained.scores)
    write_predictions(predictions_file(run, name), predictions)
    with replacing(run / "heads" / f"{name}{trained.suffix}") as beside:
        trained.save(beside)
    write_json(
        run / "heads" / f"{name}.json",
        {
            **vars(configuration),
            "configuration": configuration.name,
            "seed": seed,
            "takes": work.head.takes,
            "classes": list(assigned.task.classes),
            "extraction": "+".join(record.fingerprint for record in work.records),
            "weights": ", ".join(dict.fromkeys(record.weights for record in work.records)),
            **({} if search is None else {"search": search}),
            "train_seconds": round(trained.seconds, 3),
            "history": trained.history,
        },
    )
