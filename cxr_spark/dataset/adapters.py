"""What an image's path says: finding, patient, official split. One pure function a layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cxr_spark.errors import UserError, one_of

OFFICIAL_SPLITS = ("train", "val", "test")


class UnrecognisedPath(ValueError):
    """One image's path does not follow the layout; the image becomes a row of the errors table."""


@dataclass(frozen=True)
class PathFacts:
    """What a path says; ``patient_id`` and ``official_split`` are None where it names none."""

    finding: str
    patient_id: str | None
    official_split: str | None


Adapter = Callable[[str], PathFacts]

# Files of the Kermany data set as distributed for machine learning, and as originally released.
# One file has a number more than the others: person447_virus_921_1.jpeg.
_PNEUMONIA = re.compile(r"(?P<patient>person\d+)_(?P<finding>bacteria|virus)_\d+(_\d+)?")
_NORMAL = re.compile(r"(?P<patient>(NORMAL2-)?IM-\d+)-\d+(-\d+)?")
_ORIGINAL = re.compile(r"(?P<finding>NORMAL|BACTERIA|VIRUS)-(?P<patient>\d+)-\d+")
_CLASS_OF_FINDING = {"NORMAL": "NORMAL", "BACTERIA": "PNEUMONIA", "VIRUS": "PNEUMONIA"}


def parse_kermany(image_id: str) -> PathFacts:
    """Read ``{train,val,test}/{NORMAL,PNEUMONIA}/<name>``, in either of Kermany's naming schemes.

    Args:
        image_id: path relative to the image root, '/' separated.

    Raises:
        UnrecognisedPath: the folders or the name follow neither scheme, or contradict each other.

    Source: Kermany et al., Cell 172 (2018), Mendeley Data doi 10.17632/rscbjbr9sj.
    """
    parts = image_id.split("/")
    if (
        len(parts) != 3
        or parts[0] not in OFFICIAL_SPLITS
        or parts[1] not in _CLASS_OF_FINDING.values()
    ):
        raise UnrecognisedPath(
            "expected {train,val,test}/{NORMAL,PNEUMONIA}/<name> under the image root"
        )
    split, folder, name = parts
    stem = name.rpartition(".")[0]
    if match := _PNEUMONIA.fullmatch(stem):
        finding = match["finding"].upper()
    elif match := _NORMAL.fullmatch(stem):
        finding = "NORMAL"
    elif match := _ORIGINAL.fullmatch(stem):
        finding = match["finding"]
    else:
        raise UnrecognisedPath("the name follows neither of the Kermany data set's naming schemes")
    if _CLASS_OF_FINDING[finding] != folder:
        raise UnrecognisedPath(f"the name says {finding} and the folder says {folder}")
    return PathFacts(finding, match["patient"], split)


def parse_folder(image_id: str, patient_pattern: str | None = None) -> PathFacts:
    """Read ``[train|val|test/]<finding>/.../<name>``: a sub-folder a class, official splits or not.

    Args:
        image_id: path relative to the image root, '/' separated.
        patient_pattern: regular expression searched in ``image_id``; its first group, or all of its
            match where it has no group, is the patient.

    Raises:
        UnrecognisedPath: the image lies in no sub-folder, or the pattern is not found.
    """
    parts = image_id.split("/")
    split = parts.pop(0) if parts[0] in OFFICIAL_SPLITS else None
    if len(parts) < 2:
        raise UnrecognisedPath("expected [train|val|test/]<class>/<name> under the image root")
    patient = None
    if patient_pattern is not None:
        match = re.search(patient_pattern, image_id)
        if match is None:
            raise UnrecognisedPath(
                f"dataset.patient_pattern {patient_pattern} is not found in the path"
            )
        patient = match[1] if match.re.groups else match[0]
        if not patient:
            raise UnrecognisedPath(
                f"dataset.patient_pattern {patient_pattern} found an empty patient"
            )
    return PathFacts(parts[0], patient, split)


# What the top of an image root must hold, for the message about a root that holds none of it.
LAYOUTS = {
    "kermany": "{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg",
    "folder": "[train|val|test/]<class>/*.jpeg",
}


def make_adapter(name: str, patient_pattern: str | None = None) -> Adapter:
    """Return the function that reads paths of the layout ``name``, one of ``LAYOUTS``.

    Raises:
        UserError: the layout is unknown, or ``patient_pattern`` is no regular expression or out of
            place.
    """
    if name not in LAYOUTS:
        raise one_of("dataset.adapter", name, LAYOUTS)
    if name == "kermany":
        if patient_pattern is not None:
            raise UserError(
                "Expected no dataset.patient_pattern with the adapter kermany: "
                "its names tell patients."
            )
        return parse_kermany
    if patient_pattern is not None:
        try:
            re.compile(patient_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                "Expected dataset.patient_pattern to be a regular expression. "
                f"Received: {patient_pattern!r} ({error})"
            ) from error
    return partial(parse_folder, patient_pattern=patient_pattern)
