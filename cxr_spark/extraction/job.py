"""Extraction on a cluster: which images, which backbones are still to run, and their commit."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.config import Experiment
from cxr_spark.errors import RunFailed, UserError
from cxr_spark.extraction.begun import Outputs
from cxr_spark.extraction.listing import (
    MANIFEST_RECORD,
    REPLACED,
    accept_listing,
    is_missing,
    move_listing,
    remove_listing,
    stage_listing,
)
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.lock import LOCK_NAME, locked
from cxr_spark.extraction.one_pass import ship, warm_workers
from cxr_spark.extraction.parity import settle_precision
from cxr_spark.extraction.resume import Job, complete
from cxr_spark.extraction.shards import clear_parts, has_parts, recover
from cxr_spark.extraction.store import (
    RECORD_NAME,
    ExtractionRecord,
    list_extractions,
    read_record,
    record_files,
    write_record,
)
from cxr_spark.extraction.worker import Extraction
from cxr_spark.files import disk_is_full, refuse_links
from cxr_spark.paths import (
    AnyPath,
    RemotePath,
    StoreError,
    move,
    moves_at_once,
    remove_tree,
)
from cxr_spark.spark_jobs import check_seen_by_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

STAGING = "_staging-"
WAIT_FOR_LISTING_S = 1.0


@dataclass(frozen=True)
class ExtractionRequest:
    """What is to be extracted, and where to.

    Attributes:
        experiment: names the adapter and the limit, and what to do with errors and changed images.
        images: the image root: a folder at the same path on driver and executors, or a URI.
        features: the features folder: at the same path on driver and executors, or by a URI.
        feature_maps: whether to store feature maps beside pooled features.
        demonstration: why the features say nothing of real X-rays, or an empty string.
    """

    experiment: Experiment
    images: str
    features: AnyPath
    feature_maps: bool
    demonstration: str = ""


def extract(
    spark: SparkSession,
    request: ExtractionRequest,
    load: Callable[[], Sequence[LoadedBackbone]],
    *,
    overwrite: bool = False,
) -> list[ExtractionRecord]:
    """Extract the features of all images by all backbones into a feature store.

    What the store already holds is not computed again: whole extractions, shards of one that was
    stopped, and the images of a folder that others have joined since.

    Args:
        spark: the session.
        request: what, and where to.
        load: returns the backbones, which may still be loading when this begins; those of a lower
            precision are first compared with float32, and run in float32 where that loses too much.
        overwrite: whether to empty the features folder first.

    Returns:
        The record of each backbone's extraction, in the order of ``load``.

    Raises:
        UserError: the features folder was made of other images, another run writes to it, or no
            image could be used.
        RunFailed: too many images could not be used, a backbone gave no features, or the disk is
            full.
    """
    features = request.features
    if isinstance(features, Path):
        refuse_links(features, "features")
    created = not features.exists()
    features.mkdir(parents=True, exist_ok=True)
    try:
        with locked(features) as check:
            if isinstance(features, RemotePath):
                check_seen_by_spark(spark, features / LOCK_NAME)
            _clear_staging(features)
            if not overwrite:
                recover(features)
            return _extract(spark, request, load, check, overwrite=overwrite)
    except Exception as error:
        if disk_is_full(error):
            raise RunFailed(_tell_room(features)) from error
        raise
    finally:
        if created and isinstance(features, Path) and features.exists():
            with suppress(OSError):  # something lies in it
                features.rmdir()


def _extract(
    spark: SparkSession,
    request: ExtractionRequest,
    load: Callable[[], Sequence[LoadedBackbone]],
    check: Callable[[], None],
    *,
    overwrite: bool,
) -> list[ExtractionRecord]:
    features, accepted = request.features, False
    staging = features / f"{STAGING}{uuid.uuid4().hex}"
    try:
        backbones = settle_precision(spark, load(), request.images)
        missing = backbones if overwrite else _missing(request, backbones)
        # Before a job runs: one that starts meanwhile could find a file that is half there.
        extractions = ship(spark, missing)
        with ThreadPoolExecutor(1) as pool:
            warmed = pool.submit(_warm, spark, extractions)
            listing = stage_listing(spark, request.experiment, request.images, staging / "manifest")
            if listing.n_images == listing.n_refused:
                raise UserError(
                    "Expected at least one image whose path the adapter recognises. "
                    f"Received: {listing.n_images} images, of which none does"
                )
            check()
            if overwrite:
                clear_extractions(features, [b.identity.fingerprint for b in backbones])
            refresh, staged = request.experiment.refresh, staging / "manifest"
            try:
                listing = accept_listing(spark, features, staged, listing, refresh=refresh)
            except UserError:
                if not overwrite:
                    raise
                clear_store(features)  # it is of other images
                listing = accept_listing(spark, features, staged, listing, refresh=refresh)
            accepted = True
            outputs = Outputs(features, staging, request.feature_maps, check)
            job = Job(spark, request.experiment, outputs, listing, request.demonstration)
            complete(job, backbones, warmed=warmed.result)
    finally:
        try:
            check()  # nothing of another run's is removed
            _clear_staging(features)
            # A manifest alone would bind the folder.
            if accepted and not record_files(features) and not has_parts(features):
                _remove(features, "manifest")
        except (RunFailed, StoreError) as error:  # not over what ended the run
            log.warning("what this run leaves in %s was not removed: %s", features, error)
    return [_record_of(request, backbone) for backbone in backbones]


def _tell_room(features: AnyPath) -> str:
    free = ""
    if isinstance(features, Path):
        free = f"{shutil.disk_usage(features).free / 2**20:,.0f} MB are free under {features}; "
    return (
        f"no room is left on a disk: {free}Spark also writes "
        "to its scratch folders (spark.local.dir, by default /tmp). What was computed is kept: "
        "make room and give the same command again"
    )


def _clear_staging(features: AnyPath) -> None:
    """Remove what killed runs were writing when they were, but for a manifest set aside."""
    for replaced in features.glob(f"{STAGING}*/{REPLACED}"):
        is_whole = moves_at_once(replaced) or (replaced / MANIFEST_RECORD).exists()
        if is_whole and is_missing(features / "manifest"):
            move_listing(replaced, features / "manifest")
    for folder in features.glob(f"{STAGING}*"):
        remove_tree(folder, ignore_errors=True)


def clear_extractions(features: AnyPath, fingerprints: Sequence[str]) -> None:
    """Remove the named extractions, and those that are damaged or of an earlier version.

    Where none is left, their manifest goes as well, so that images are listed anew.
    """
    for fingerprint in {*fingerprints, *_damaged(features)}:
        clear_parts(features, fingerprint)
        (features / fingerprint / RECORD_NAME).unlink(missing_ok=True)  # first: it vouches for all
        remove_tree(features / fingerprint, ignore_errors=True)
        remove_tree(features / "errors" / f"fingerprint={fingerprint}", ignore_errors=True)
    if not record_files(features) and not has_parts(features):
        clear_store(features)


def clear_store(features: AnyPath) -> None:
    """Remove all that a features folder holds of ours; what is not the store's stays."""
    clear_parts(features)
    for record in record_files(features):
        record.unlink()
        remove_tree(record.parent)
    if (features / "manifest" / MANIFEST_RECORD).exists():
        for name in ("errors", "manifest"):
            _remove(features, name)


def _remove(features: AnyPath, name: str) -> None:
    """Remove a folder at once, or such that what is left is known for ours."""
    if not (features / name).exists():
        return
    if not moves_at_once(features):
        (remove_listing if name == "manifest" else remove_tree)(features / name)
    else:
        staging = features / f"{STAGING}{uuid.uuid4().hex}"
        staging.mkdir()
        move(features / name, staging / name)
        remove_tree(staging)


def _damaged(features: AnyPath) -> list[str]:
    """Return the fingerprints of extractions whose record cannot be read."""
    damaged = []
    for file in record_files(features):
        try:
            read_record(file.parent)
        except UserError:
            damaged.append(file.parent.name)
    return damaged


def _record_of(request: ExtractionRequest, backbone: LoadedBackbone) -> ExtractionRecord:
    """Return the record of a finished extraction; one that is used again takes on a warning."""
    record = read_record(request.features / backbone.identity.fingerprint)
    if request.demonstration and record.demonstration != request.demonstration:
        record = dataclasses.replace(
            record, weights=backbone.weights, demonstration=request.demonstration
        )
        write_record(request.features / backbone.identity.fingerprint, record)
    return record


def _warm(spark: SparkSession, extractions: list[Extraction]) -> None:
    """Have the workers load what is to be computed, once the listing has been submitted.

    The listing takes a core for a moment; behind the workers' seconds of loading it would wait.

    Raises:
        UserError: the device that Spark gave to tasks cannot be used.
    """
    if not extractions:
        return
    deadline = time.monotonic() + WAIT_FOR_LISTING_S
    while not spark.sparkContext.statusTracker().getActiveJobsIds():
        if time.monotonic() > deadline:  # it has ended already
            break
        time.sleep(0.01)
    warm_workers(spark, extractions)


def _missing(
    request: ExtractionRequest, backbones: Sequence[LoadedBackbone]
) -> list[LoadedBackbone]:
    """Return the backbones of which the store does not hold all that is asked for."""
    serving = {
        record.fingerprint
        for record in list_extractions(request.features)
        if record.feature_map_shape is not None or not request.feature_maps
    }
    return [backbone for backbone in backbones if backbone.identity.fingerprint not in serving]
