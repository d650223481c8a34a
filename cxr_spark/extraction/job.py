"""Extraction on a cluster: which images, which backbones are still to run, and their commit."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.account import Failure, account_errors
from cxr_spark.extraction.listing import accept_listing, stage_listing
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.one_pass import run_pass, ship, warm_workers
from cxr_spark.extraction.store import (
    LISTING_COLUMNS,
    MANIFEST_COLUMNS,
    ExtractionRecord,
    Listing,
    clear_store,
    commit,
    list_extractions,
    read_record,
    schema,
    write_record,
)
from cxr_spark.extraction.worker import Extraction
from cxr_spark.files import location
from cxr_spark.spark import describe_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractionRequest:
    """What is to be extracted, and where to.

    Attributes:
        experiment: names the adapter and the limit.
        images: the image root, at the same path on driver and executors.
        features: the features folder, at the same path on driver and executors.
        feature_maps: whether to store feature maps beside pooled features.
        demonstration: why the features say nothing of real X-rays, or an empty string.
    """

    experiment: Experiment
    images: Path
    features: Path
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

    Extractions that the store already holds, of the same images, are not computed again.

    Args:
        spark: the session.
        request: what, and where to.
        load: returns the backbones, which may still be loading when this begins.
        overwrite: whether to empty the features folder first.

    Returns:
        The record of each backbone's extraction, in the order of ``load``.

    Raises:
        UserError: the features folder was made of other images, or no image could be used.
    """
    features = request.features
    created, accepted = not features.exists(), False
    staging = features / f"_staging-{uuid.uuid4().hex}"
    try:
        backbones = load()
        missing = backbones if overwrite else _missing(request, backbones)
        # Before a job runs: one that starts meanwhile could find a file that is half there.
        extractions = ship(spark, missing)
        with ThreadPoolExecutor(1) as pool:
            warmed = pool.submit(_warm, spark, extractions)
            listing = stage_listing(spark, request.experiment, request.images, staging / "manifest")
            warmed.result()
        if listing.n_images == listing.n_refused:
            raise UserError(
                "Expected at least one image whose path the adapter recognises. "
                f"Received: {listing.n_images} images, of which none does"
            )
        if overwrite:
            clear_store(features, listing, [b.identity.fingerprint for b in backbones])
        accept_listing(features, staging / "manifest", listing)
        accepted = True
        todo = _missing(request, backbones)
        for backbone in backbones:
            state = "to be computed" if backbone in todo else "already in the store"
            log.info(
                "%s: extraction %s, %s",
                backbone.identity.backbone,
                backbone.identity.fingerprint,
                state,
            )
        if todo:
            manifest = _read(spark, features / "manifest", LISTING_COLUMNS)
            failures = run_pass(
                spark, manifest, listing, todo, staging / "features",
                feature_maps=request.feature_maps,
            )  # fmt: skip
            for backbone in todo:
                _commit(spark, request, backbone, listing, failures, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if accepted and not list_extractions(features):  # a manifest alone would bind the folder
            shutil.rmtree(features / "manifest")
        if created and features.exists() and not any(features.iterdir()):
            features.rmdir()
    return [_record_of(request, backbone) for backbone in backbones]


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
    """Have the workers load what is to be computed.

    Raises:
        UserError: the device that Spark gave to tasks cannot be used.
    """
    from pyspark.errors import PySparkException

    if not extractions:
        return
    try:
        warm_workers(spark, extractions)
    except PySparkException as error:
        if reason := re.search(r"DeviceError: (.*)", str(error)):
            raise UserError(reason[1]) from error
        raise


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


def _read(spark: SparkSession, folder: Path, columns: dict[str, str]) -> DataFrame:
    """Return stored columns; to have Spark look for their types would take it a job."""
    return spark.read.schema(schema(columns)).parquet(location(folder))


def _commit(
    spark: SparkSession,
    request: ExtractionRequest,
    backbone: LoadedBackbone,
    listing: Listing,
    failures: list[Failure],
    staging: Path,
) -> None:
    """Account for every image of one backbone's extraction and move it into its place."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    identity = backbone.identity
    staged = staging / "features" / f"fingerprint={identity.fingerprint}"
    staged_errors = staging / "errors" / f"fingerprint={identity.fingerprint}"
    if not staged.is_dir():
        reasons = "; ".join(sorted({error for *_, error in failures})[:3])
        raise UserError(
            f"Expected at least one image that can be used. Received: {listing.n_images} images, "
            f"all with errors ({reasons})"
        )
    manifest = _read(spark, request.features / "manifest", LISTING_COLUMNS)
    rows = _read(spark, staged, MANIFEST_COLUMNS)
    errors = account_errors(spark, manifest, rows, failures)
    written = Observation("errors")
    counted = errors.observe(written, F.count("*").alias("n_errors"))
    counted.coalesce(1).write.parquet(location(staged_errors))
    record = ExtractionRecord(
        identity=identity,
        weights=backbone.weights,
        feature_map_shape=backbone.graph.feature_map_shape if request.feature_maps else None,
        n_images=listing.n_images,
        n_rows=rows.count(),
        n_errors=written.get["n_errors"],
        listing_digest=listing.digest,
        limit=listing.limit,
        demonstration=request.demonstration,
        spark=describe_session(spark),
    )
    commit(request.features, staged, staged_errors, record)
    log.info(
        "%s: %d images in = %d rows + %d errors%s",
        identity.backbone,
        record.n_images,
        record.n_rows,
        record.n_errors,
        f", their reasons in {request.features / 'errors'}" if record.n_errors else "",
    )
