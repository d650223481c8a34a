"""One configuration of a grid: what a run folder lacks of it, and how that is trained and stored.

Where it is trained, on the driver or on an executor, is none of this module's business.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.extraction.store import ExtractionRecord
from cxr_spark.files import replacing, write_json
from cxr_spark.paths import AnyPath
from cxr_spark.training.assign import Assigned
from cxr_spark.training.fit import Training
from cxr_spark.training.folds import Fold
from cxr_spark.training.head_table import HeadRow, head_table
from cxr_spark.training.reader import ImageKeys
from cxr_spark.training.run_folder import (
    Configuration,
    cross_name,
    head_name,
    is_trained,
    predictions_file,
    trials_file,
    write_predictions,
)
from cxr_spark.training.trainer import TrainedHead
from cxr_spark.training.tune import Settled, settle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """What all configurations of a run have in common.

    Attributes:
        experiment: says how heads are trained.
        features, run: the folders.
        images: the keys of all images.
        assigned: their labels and splits.
        folds: of cross-validation; none where there is none.
    """

    experiment: Experiment
    features: AnyPath
    run: Path
    images: ImageKeys
    assigned: Assigned
    folds: Sequence[Fold]


@dataclass(frozen=True)
class Work:
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

    def is_done(self, run: Path) -> bool:
        """Return whether the run folder lacks nothing of it any more."""
        name = self.configuration.name
        crossed = not self.cross_validates or predictions_file(run, cross_name(name)).exists()
        return crossed and all(is_trained(run, name, seed) for seed in self.seeds)


def find_missing(
    run: Path,
    sources: Mapping[tuple[str, str], tuple[ExtractionRecord, ...]],
    experiment: Experiment,
    folds: Sequence[Fold],
) -> list[Work]:
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
            work = Work(
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


def train_work(shared: Shared, work: Work, training: Training) -> None:
    """Train and store what a configuration lacks.

    Args:
        shared: what it has in common with others.
        work: the configuration, and what is lacking.
        training: what its heads are trained on, by ``work.inputs``.
    """
    trials = trials_file(shared.run, work.configuration.name)
    settled = settle(training, work.head, shared.folds, trials)
    _fit(shared, work, training, settled)
    if work.cross_validates:
        _cross_validate(shared, work, training, settled)


def _fit(shared: Shared, work: Work, training: Training, settled: Settled) -> None:
    """Train and store the seeds that the run folder lacks."""
    there = {seed for seed in work.seeds if is_trained(shared.run, work.configuration.name, seed)}
    seeds = (
        work.seeds
        if training.trains_together(settled.head)
        else [seed for seed in work.seeds if seed not in there]
    )
    for seed, trained in training.fit_seeds(settled.head, seeds):
        if seed not in there:
            _store(shared, work, seed, trained, settled.search)
            told = trained.history.get("val_auc")
            log.info(
                "  seed %d: trained in %.1f s%s", seed, trained.seconds,
                f", Keras' metric on validation {told[-1]:.4f}" if told else "",
            )  # fmt: skip


def _cross_validate(shared: Shared, work: Work, training: Training, settled: Settled) -> None:
    """Store the scores of images that were held out, in the columns of all predictions."""
    seed = shared.experiment.split.seed  # the same whatever seeds a command names
    alike = itertools.groupby(
        zip(settled.by_fold, shared.folds, strict=True), key=lambda head_and_fold: head_and_fold[0]
    )
    tables = [
        _predictions(shared, work.configuration, seed, scores, fold.held_out).assign(
            split="val", repeat=fold.repeat, fold=fold.fold
        )
        for head, group in alike
        for fold, scores in training.fit_folds(head, [fold for _, fold in group], seed)
    ]
    write_predictions(
        predictions_file(shared.run, cross_name(work.configuration.name)),
        pd.concat(tables, ignore_index=True),
    )


def _predictions(
    shared: Shared,
    configuration: Configuration,
    seed: int,
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64] | slice = slice(None),
) -> pd.DataFrame:
    """Return the predictions table of some images."""
    images, assigned = shared.images, shared.assigned
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
    shared: Shared, work: Work, seed: int, trained: TrainedHead, search: dict[str, Any] | None
) -> None:
    """Store one trained head; its .json is written last and says that all of it is there."""
    run, configuration = shared.run, work.configuration
    name = head_name(configuration.name, seed)
    predictions = _predictions(shared, configuration, seed, trained.scores)
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
            "classes": list(shared.assigned.task.classes),
            "extraction": "+".join(record.fingerprint for record in work.records),
            "weights": ", ".join(dict.fromkeys(record.weights for record in work.records)),
            **({} if search is None else {"search": search}),
            "train_seconds": round(trained.seconds, 3),
            "history": trained.history,
        },
    )
