"""What was run with what: the sections of experiment.json."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_spark.dataset.splits import patients_in_two_splits
from cxr_spark.extraction.store import ExtractionRecord
from cxr_spark.installed import installed_version
from cxr_spark.training.assign import SPLITS, Assigned
from cxr_spark.training.reader import ImageKeys

SHOWN_ERRORS = 20
SHOWN_PATIENTS = 20


def describe_run(
    records: Sequence[ExtractionRecord],
    images: ImageKeys,
    assigned: Assigned,
    errors: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the sections that training adds to experiment.json.

    Args:
        records: of the extractions that are trained on.
        images: the keys of their images.
        assigned: the task, and the split of each image.
        errors: the rows of the errors table of one of the extractions.
    """
    first = records[0]
    task = assigned.task
    return {
        "demonstration": next((r.demonstration for r in records if r.demonstration), ""),
        "task": {"name": task.name, "classes": list(task.classes), "positive": task.positive},
        "images": {
            "listing_digest": first.listing_digest,
            "limit": first.limit,
            "n_images": first.n_images,
            "n_rows": first.n_rows,
            "n_errors": first.n_errors,
            "errors": errors[:SHOWN_ERRORS],
            "errors_by_stage": dict(sorted(Counter(error["stage"] for error in errors).items())),
            **_count_images(images, assigned),
        },
        "extractions": [
            {"fingerprint": r.fingerprint, "weights": r.weights, "identity": vars(r.identity)}
            for r in records
        ],
        "spark": first.spark,
        "versions": versions(),
    }


def _count_images(images: ImageKeys, assigned: Assigned) -> dict[str, Any]:
    splits = assigned.splits.tolist()
    patients = images.patient_id.tolist()
    counts = Counter(zip(splits, images.finding.tolist(), strict=True))
    pairs = set(zip(patients, splits, strict=True))
    development = np.where(assigned.splits == "test", "test", "development").tolist()
    overlaps = {
        f"{one}-{other}": len(patients_in_two_splits(patients, splits, one, other))
        for one, other in (("train", "val"), ("train", "test"), ("val", "test"))
    }
    shared = patients_in_two_splits(patients, development, "development", "test")
    overlaps["development-test"] = len(shared)
    by_patient = Counter(zip(patients, development, strict=True))
    return {
        "by_split_and_finding": [
            {"split": split, "finding": finding, "n": n}
            for (split, finding), n in sorted(counts.items())
        ],
        "patients_by_split": {
            split: sum(s == split and p is not None for p, s in pairs) for split in SPLITS
        },
        "identical_within": _count_identical(images, assigned),
        "patients_in_two_splits": overlaps,
        "patients_outside_and_in_test": [
            {
                "patient_id": patient,
                "n_outside": by_patient[patient, "development"],
                "n_test": by_patient[patient, "test"],
            }
            for patient in sorted(shared)[:SHOWN_PATIENTS]
        ],
    }


def _count_identical(images: ImageKeys, assigned: Assigned) -> dict[str, dict[str, int]]:
    """Return, for each split, groups of images that have the same pixels, and their images."""
    if images.pixels_digest is None:
        return {}
    found = {}
    for split in SPLITS:
        counts = Counter(images.pixels_digest[assigned.splits == split].tolist())
        sizes = [n for n in counts.values() if n > 1]
        found[split] = {"n_groups": len(sizes), "n_images": sum(sizes)}
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the results depend on."""
    packages = (
        "cxr_spark", "pyspark", "petastorm", "pyarrow", "numpy", "pandas", "tensorflow", "keras",
        "scikit-learn", "scipy", "skops", "opencv-python-headless", "pillow",
    )  # fmt: skip
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for package in packages:
        found[package] = installed_version(package) or "not installed as a package"
    return found
