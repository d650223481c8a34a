"""The listing of an image root in a features folder: one folder holds one set of images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.config import Experiment
from cxr_spark.dataset.manifest import even_sample, read_listing
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import (
    LISTING_COLUMNS,
    Listing,
    read_listing_record,
    write_listing_record,
)
from cxr_spark.files import location

log = logging.getLogger(__name__)

# What makes two listings the same: not where the images lie, but what their paths say of them.
DIGESTED = [name for name in LISTING_COLUMNS if name != "path"]

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def stage_listing(
    spark: SparkSession, experiment: Experiment, images: Path, folder: Path
) -> Listing:
    """Write every image found under a root to ``folder``, as Parquet, and return what they are.

    Args:
        spark: the session.
        experiment: names the adapter and the limit.
        images: the image root.
        folder: a new folder.
    """
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    dataset = experiment.dataset
    found = read_listing(spark, str(images), dataset.adapter, dataset.patient_pattern)
    limit = experiment.limit
    if limit is not None:
        n_found = found.count()
        if limit < n_found:
            found = even_sample(found, limit, n_found)
        else:
            limit = None
    log.info("listing the images under %s", images)
    written = Observation("listing")
    (
        found.select(*LISTING_COLUMNS)
        .observe(
            written,
            F.count("*").alias("n_images"),
            F.count("error").alias("n_refused"),
            F.bit_xor(F.xxhash64(*DIGESTED)).alias("digest"),
        )
        .write.parquet(location(folder))
    )
    row = written.get
    digest = (row["digest"] or 0) & (2**64 - 1)  # null where there is no image
    return Listing(row["n_images"], row["n_refused"], f"{digest:016x}", limit)


def accept_listing(features: Path, staged: Path, listing: Listing) -> None:
    """Make the staged listing the store's manifest; refuse it where the store has other images."""
    stored = read_listing_record(features)
    if stored is None:
        if (features / "manifest").exists():
            raise UserError(
                f"Expected --features to be new or a features folder. Received: {features}, whose "
                "manifest/ is not ours. Give another --features."
            )
        write_listing_record(staged, listing)
        staged.rename(features / "manifest")
    elif not stored.is_of_same_images(listing):
        raise UserError(
            "Expected the features folder of the same images. "
            f"Received: {features}, made of {stored.n_images} images, where --images (and --limit) "
            f"now give {listing.n_images}; names, sizes, times or what dataset: reads of paths "
            "differ. Give another --features, or --overwrite to start afresh."
        )
