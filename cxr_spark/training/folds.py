"""Folds of cross-validation: which training images train and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.config import CrossValidationConfig
from cxr_spark.errors import UserError


@dataclass(frozen=True)
class Fold:
    """One part held out.

    Attributes:
        repeat, fold: which, from 0.
        train: int64, positions of the images that a head is trained on.
        held_out: int64, positions of those that it is then asked about.
    """

    repeat: int
    fold: int
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]


def make_folds(
    labels: npt.NDArray[np.int64],
    patient_ids: Sequence[str | None],
    splits: npt.NDArray[np.str_],
    settings: CrossValidationConfig,
    *,
    seed: int,
    pixels_digest: npt.NDArray[Any] | None = None,
) -> list[Fold]:
    """Divide the training split in folds of about equal classes, a patient's images together.

    Validation images stay out of all of them: they stop training early where that is asked for. An
    image that tells no patient is one of its own. Patients of whom two images have the same pixels
    are one.

    Args:
        labels: int64 of shape (n_images,).
        patient_ids: of all images.
        splits: 'train', 'val' or 'test', of shape (n_images,).
        settings: how many folds, how often.
        seed: of the division; each repeat divides differently.
        pixels_digest: of each image's pixels, of shape (n_images,), where it is known.

    Raises:
        UserError: a class has fewer patients than there are folds, or is missing in one.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.flatnonzero(splits == "train")
    groups = np.array(
        [f"image {i}" if patient_ids[i] is None else f"patient {patient_ids[i]}" for i in rows]
    )
    if pixels_digest is not None:
        groups = _joined(groups, pixels_digest[rows])
    for label in np.unique(labels):
        n_groups = len(np.unique(groups[labels[rows] == label]))
        if n_groups < settings.folds:
            raise UserError(
                f"Expected at least as many training patients of each class as folds. Received: "
                f"{n_groups} of class {label} and cross_validation.folds {settings.folds}. "
                "Set fewer folds, or cross_validation: null."
            )
    folds = []
    for repeat in range(settings.repeats):
        divide = StratifiedGroupKFold(settings.folds, shuffle=True, random_state=seed + repeat)
        for fold, (train, held_out) in enumerate(divide.split(rows, labels[rows], groups)):
            folds.append(Fold(repeat, fold, rows[train], rows[held_out]))
    for made in folds:
        for part in (made.train, made.held_out):
            if len(np.unique(labels[part])) < len(np.unique(labels)):
                raise UserError(
                    "Expected images of every class on both sides of each fold. Received: fold "
                    f"{made.fold} of repeat {made.repeat}, which lacks one. Set fewer folds, "
                    "or cross_validation: null."
                )
    return folds


def _joined(groups: npt.NDArray[np.str_], digests: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """Return groups, one in place of those that images of the same digest tie together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, group = np.unique(groups, return_inverse=True)
    _, digest = np.unique(digests.astype(str), return_inverse=True)
    n = len(names) + digest.max() + 1
    ties = coo_array((np.ones(len(group)), (group, len(names) + digest)), shape=(n, n))
    _, component = connected_components(ties, directed=False)
    joined: npt.NDArray[np.str_] = component[group].astype(str)
    return joined
