"""Which images train, validate and test: a function of the set of images and a seed alone."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UNITS = ("patient", "image")


def assign_splits(
    groups: Sequence[str],
    findings: Sequence[str],
    official_split: Sequence[str | None],
    *,
    validation_fraction: float,
    test_fraction: float | None,
    seed: int,
) -> npt.NDArray[np.str_]:
    """Return 'train', 'val' or 'test' for each image, shape (n_images,).

    Images whose official split is 'test' are the test part; where there are none, groups are drawn
    for it. The rest, official train and val merged, is divided in training and validation. A group
    is never divided within what is drawn here; whether it also occurs in an official test part is
    the data set's matter, and counted by ``patients_in_two_splits``.

    Args:
        groups: the patient of each image, or its image_id where single images are drawn.
        findings: the finding of each image; strata are a group's most frequent one, ties
            alphabetical.
        official_split: 'train', 'val', 'test' or None for each image.
        validation_fraction: share of the images outside the test part that validate, 0 to 1.
        test_fraction: share of all images that test, where no official test part exists.
        seed: groups are taken in the order of SHA-256 of ``seed:group``.

    Raises:
        ValueError: there is no official test part and no ``test_fraction``.
    """
    splits = np.full(len(groups), "train", dtype="<U5")
    official = np.array([split == "test" for split in official_split], bool)
    splits[official] = "test"
    rest = np.flatnonzero(~official)
    if not official.any():
        if test_fraction is None:
            raise ValueError("expected an official test part or a test_fraction")
        drawn = _draw(rest, groups, findings, test_fraction, f"test:{seed}")
        splits[drawn] = "test"
        rest = np.setdiff1d(rest, drawn)
    splits[_draw(rest, groups, findings, validation_fraction, str(seed))] = "val"
    return splits


def _draw(
    among: npt.NDArray[np.int64],
    groups: Sequence[str],
    findings: Sequence[str],
    fraction: float,
    seed: str,
) -> npt.NDArray[np.int64]:
    """Return the indices in ``among`` that fill ``fraction`` of each stratum with whole groups."""
    members: dict[str, list[int]] = defaultdict(list)
    for index in among:
        members[groups[index]].append(int(index))
    strata: dict[str, list[str]] = defaultdict(list)
    for group, indices in members.items():
        strata[_stratum(findings[i] for i in indices)].append(group)
    drawn: list[int] = []
    for stratum in sorted(strata):
        target = round(fraction * sum(len(members[group]) for group in strata[stratum]))
        filled = 0
        for group in sorted(strata[stratum], key=lambda group: (_order(seed, group), group)):
            if filled >= target:
                break
            drawn += members[group]
            filled += len(members[group])
    return np.array(sorted(drawn), np.int64)


def _stratum(findings: object) -> str:
    counts = Counter(findings)  # type: ignore[call-overload]
    return str(min(counts, key=lambda finding: (-counts[finding], finding)))


def _order(seed: str, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()


def patients_in_two_splits(
    patient_ids: Sequence[str | None], splits: Sequence[str], one: str, other: str
) -> set[str]:
    """Return patients with images in both of two splits; images without a patient are left out."""
    seen: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(patient_ids, splits, strict=True):
        if patient is not None:
            seen[patient].add(split)
    return {patient for patient, found in seen.items() if {one, other} <= found}
