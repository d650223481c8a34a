"""One configuration: its heads over seeds, and over the folds of cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cxr_spark.config import Experiment
from cxr_spark.training.assign import Assigned
from cxr_spark.training.classifiers import Classifier
from cxr_spark.training.fit_classifier import fit_classifier
from cxr_spark.training.folds import Fold
from cxr_spark.training.heads import Head, Standardisation
from cxr_spark.training.inputs import InMemory, Inputs
from cxr_spark.training.replicas import Replica, train_replicas
from cxr_spark.training.standardise import standardise
from cxr_spark.training.trainer import TrainedHead, check_scores, train_head


@dataclass(frozen=True)
class Training:
    """What heads are trained on, and how.

    Attributes:
        experiment: says how.
        inputs: the features of all images.
        assigned: their labels and splits.
    """

    experiment: Experiment
    inputs: Inputs
    assigned: Assigned

    def fit_seeds(
        self, head: Head | Classifier, seeds: Sequence[int]
    ) -> Iterator[tuple[int, TrainedHead]]:
        """Train a head with each seed, and yield it with its seed."""
        splits = self.assigned.splits
        yield from zip(seeds, self._fit(head, seeds, [splits] * len(seeds)), strict=True)

    def fit_folds(
        self, head: Head | Classifier, folds: Sequence[Fold], seed: int
    ) -> Iterator[tuple[Fold, npt.NDArray[np.float32]]]:
        """Train a head for each fold, and yield the scores of the images that it held out."""
        if isinstance(head, Classifier):
            for fold in folds:
                yield fold, self._fit_classifier(head, seed, fold.train, fold.held_out).scores
            return
        splits = [self._splits_of(fold) for fold in folds]
        trained = self._fit(head, [seed] * len(folds), splits)
        for fold, one in zip(folds, trained, strict=True):
            yield fold, one.scores[fold.held_out]

    def trains_together(self, head: Head | Classifier) -> bool:
        """Return whether several heads of a kind are trained in one go."""
        return (
            isinstance(self.inputs, InMemory)
            and isinstance(head, Head)
            and head.is_softmax_of_pooled
        )

    @cached_property
    def _scaling(self) -> Standardisation:
        """That of the training split, once for all heads and seeds: maps may stream for minutes."""
        return standardise(self.inputs, self.assigned.splits)

    def _scaling_of(self, splits: npt.NDArray[np.str_]) -> Standardisation | None:
        if not self.experiment.standardise:
            return None
        if splits is self.assigned.splits:
            return self._scaling
        return standardise(self.inputs, splits)

    def _splits_of(self, fold: Fold) -> npt.NDArray[np.str_]:
        """Return the splits of a fold: what it holds out neither trains nor validates."""
        splits = self.assigned.splits.copy()
        splits[fold.held_out] = "test"
        return splits

    def _fit(
        self, head: Head | Classifier, seeds: Sequence[int], splits: Sequence[npt.NDArray[np.str_]]
    ) -> Iterator[TrainedHead]:
        """Train a head for each seed and its splits: together where that is faster."""
        experiment, inputs, labels = self.experiment, self.inputs, self.assigned.labels
        n_classes = len(self.assigned.task.classes)
        if isinstance(head, Classifier):
            for seed, s in zip(seeds, splits, strict=True):
                yield self._fit_classifier(head, seed, np.flatnonzero(s == "train"))
            return
        how = head.training(experiment.training)
        scalings = [self._scaling_of(s) for s in splits]
        if self.trains_together(head):
            assert isinstance(inputs, InMemory), "as trains_together says"
            replicas = [
                Replica(seed, np.flatnonzero(s == "train"), np.flatnonzero(s == "val"), scaling)
                for seed, s, scaling in zip(seeds, splits, scalings, strict=True)
            ]
            trained = train_replicas(
                head, inputs.values, labels, replicas,
                n_classes=n_classes, training=how,
            )  # fmt: skip
            for seed, one in zip(seeds, trained, strict=True):
                check_scores(head.name, seed, one.scores)
                yield one
            return
        for seed, s, scaling in zip(seeds, splits, scalings, strict=True):
            yield train_head(
                head, inputs, labels, s, n_classes=n_classes, training=how,
                seed=seed, standardisation=scaling,
            )  # fmt: skip

    def _fit_classifier(
        self,
        classifier: Classifier,
        seed: int,
        train: npt.NDArray[np.int64],
        scored: npt.NDArray[np.int64] | None = None,
    ) -> TrainedHead:
        assert isinstance(self.inputs, InMemory), "train refuses what does not fit"
        return fit_classifier(
            classifier, self.inputs.values, self.assigned.labels, train, seed=seed, scored=scored
        )
