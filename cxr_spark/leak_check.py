"""The leak check of a run: stored images of two splits compared, and what was found written."""

from __future__ import annotations

import csv
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.errors import UserError
from cxr_spark.evaluation.leaks import (
    MAX_FITTED,
    MIN_COMPONENTS,
    THRESHOLD,
    Leak,
    Leaks,
    choose_compared,
    evenly,
    find_leaks,
    fit_space,
)
from cxr_spark.extraction.store import ExtractionRecord
from cxr_spark.paths import AnyPath
from cxr_spark.training.job import Trained
from cxr_spark.training.reader import stream_inputs
from cxr_spark.training.run_folder import read_experiment, update_experiment

log = logging.getLogger(__name__)

LEAK_COLUMNS = [field.name for field in dataclasses.fields(Leak)]


def check_leaks(run: Path, features: AnyPath, trained_on: Trained) -> None:
    """Write leaks.csv, and the section ``leaks`` of experiment.json, where a run lacks them.

    Features are those of the run's first extraction.
    """
    if "leaks" in read_experiment(run) and (run / "leaks.csv").exists():
        return
    began = time.monotonic()
    record, images = trained_on.records[0], trained_on.images
    splits = trained_on.assigned.splits
    assert images.pixels_digest is not None, "read_keys reads it"
    compared = choose_compared(splits)
    vectors = _project(features, record, images.image_id, splits, compared)
    if vectors.shape[1] < MIN_COMPONENTS:
        compared, vectors = compared[:0], vectors[:0]
    leaks = find_leaks(images.image_id, splits, images.pixels_digest, compared, vectors)
    _tell(leaks, record, len(compared), len(splits), time.monotonic() - began)
    _write(run / "leaks.csv", leaks)
    update_experiment(
        run,
        leaks={
            "extraction": record.fingerprint,
            "backbone": record.identity.backbone,
            "threshold": THRESHOLD,
            "n_images": len(splits),
            "n_compared": len(compared),
            "n_listed": len(leaks.pairs),
            "counts": [dataclasses.asdict(count) for count in leaks.counts],
        },
    )


def _project(
    features: AnyPath,
    record: ExtractionRecord,
    image_id: npt.NDArray[Any],
    splits: npt.NDArray[np.str_],
    compared: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Return the vectors of the images to compare, in a space fitted to those that train."""
    fitted = evenly(compared[splits[compared] == "train"], MAX_FITTED)
    space = fit_space(_read(features, record, image_id, fitted, lambda pooled: pooled))
    return _read(features, record, image_id, compared, space.project)


def _read(
    features: AnyPath,
    record: ExtractionRecord,
    image_id: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32]:
    """Read the store a part of a row group at a time, and keep what is made of the wanted rows."""
    place = np.full(len(image_id), -1)
    place[rows] = np.arange(len(rows))
    values: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)
    for group in stream_inputs(features, record, "pooled", image_id):
        at = place[group.positions]
        found = change(group.arrays[0][at >= 0])
        if not len(values):
            values = np.empty((len(rows), found.shape[1]), np.float32)
        values[at[at >= 0]] = found
    return values


def _tell(
    leaks: Leaks, record: ExtractionRecord, n_compared: int, n_images: int, seconds: float
) -> None:
    n_pairs = {
        by: sum(count.n_pairs for count in leaks.counts if count.by == by)
        for by in ("pixels", "features")
    }
    log.info(
        "leaks: across splits %d pairs of images have the same pixels, and %d more nearly the same "
        "features of %s; found in %.1f s",
        n_pairs["pixels"], n_pairs["features"], record.identity.backbone, seconds,
    )  # fmt: skip
    if n_compared < n_images:
        log.warning(
            "leaks: %d of %d images were compared by features: %s",
            n_compared, n_images,
            "an even sample, since all pairs are too many" if n_compared
            else f"training images differ in fewer than {MIN_COMPONENTS} directions",
        )  # fmt: skip
    if len(leaks.pairs) < sum(n_pairs.values()):
        log.warning("leaks: leaks.csv lists the %d most alike", len(leaks.pairs))


def _write(file: Path, leaks: Leaks) -> None:
    rows = pd.DataFrame([dataclasses.asdict(pair) for pair in leaks.pairs], columns=LEAK_COLUMNS)
    beside = file.with_name(f"_{file.name}")
    # All quoted: a name may hold a carriage return, which csv would leave bare.
    rows.to_csv(beside, index=False, float_format="%.6f", quoting=csv.QUOTE_NONNUMERIC)
    beside.replace(file)


def read_leaks(run: Path) -> pd.DataFrame | None:
    """Return leaks.csv, or None where a run has none.

    Raises:
        UserError: the file is damaged.
    """
    file = run / "leaks.csv"
    if not file.exists():
        return None
    try:
        leaks = pd.read_csv(file, keep_default_na=False, dtype=dict.fromkeys(LEAK_COLUMNS[:5], str))
        return leaks[LEAK_COLUMNS].astype({"similarity": float})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Expected the leaks of a run. Received: {file} ({error}). "
            "Remove it and run train again."
        ) from error
