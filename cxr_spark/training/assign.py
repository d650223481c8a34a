"""The label and the split of every image, the same for every configuration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_spark.config import Experiment
from cxr_spark.dataset.splits import assign_splits, patients_in_two_splits
from cxr_spark.dataset.tasks import Task, make_task
from cxr_spark.errors import UserError
from cxr_spark.training.reader import ImageKeys

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Assigned:
    """The labels and splits that every configuration shares, in the order of ``image_id``."""

    task: Task
    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.str_]


def assign(experiment: Experiment, images: ImageKeys) -> Assigned:
    """Give every image its label and its split.

    Raises:
        UserError: patients or a test part are missing, or a class has no image in a split.
    """
    task = make_task(experiment.task, images.finding.tolist(), experiment.positive)
    labels = task.labels(images.finding.tolist())
    split = experiment.split
    if split.unit == "patient" and any(patient is None for patient in images.patient_id):
        raise UserError(
            "Expected a patient for every image, as split.unit: patient needs. "
            "Received: images without. Set split.unit: image, or dataset.patient_pattern."
        )
    official = images.official_split.tolist()
    if "test" not in official and split.test_fraction is None:
        raise UserError(
            "Expected an official test part or split.test_fraction, the share of images to test "
            "on. Received: neither"
        )
    splits = assign_splits(
        (images.patient_id if split.unit == "patient" else images.image_id).tolist(),
        images.finding.tolist(),
        official,
        validation_fraction=split.validation_fraction,
        test_fraction=split.test_fraction,
        seed=split.seed,
    )
    for part in SPLITS:
        for index, name in enumerate(task.classes):
            if not np.any(labels[splits == part] == index):
                raise UserError(
                    f"Expected images of every class in every split. Received: no {name} in {part} "
                    f"({np.count_nonzero(splits == part)} images). "
                    "Use more images or another split."
                )
    if split.unit == "patient":
        shared = patients_in_two_splits(images.patient_id.tolist(), splits.tolist(), "train", "val")
        assert not shared, f"patients in training and validation: {sorted(shared)[:5]}"
    return Assigned(task, labels, splits)
