"""One pass over the images: every backbone runs, features are written, failures come back."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.extraction.account import Failure
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    FEATURE_COLUMNS,
    FEATURE_MAP_COLUMNS,
    MANIFEST_COLUMNS,
    Listing,
    schema,
)
from cxr_spark.extraction.worker import Extraction, make_extractor, result_columns
from cxr_spark.files import location
from cxr_spark.spark import progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

# A task holds at most so many images, so that a lost one costs little; a core has at least so
# many tasks.
IMAGES_A_TASK = 4096
TASKS_A_CORE = 4

# petastorm hands over a row group at a time: 32 MB are 160 feature maps of ResNet50.
ROW_GROUP_BYTES = 32 * 2**20


def run_pass(
    spark: SparkSession,
    manifest: DataFrame,
    listing: Listing,
    backbones: Sequence[LoadedBackbone],
    folder: Path,
    *,
    feature_maps: bool,
) -> list[Failure]:
    """Run all backbones over all images once.

    Args:
        spark: the session.
        manifest: the images found.
        listing: how many they are.
        backbones: which to run.
        folder: where features go, one partition for each fingerprint.
        feature_maps: whether to write feature maps as well.

    Returns:
        The images that could not be used.
    """
    n_usable = listing.n_images - listing.n_refused
    shipped = {Path(file).name for file in spark.sparkContext.listFiles}
    for path in dict.fromkeys(backbone.weights_path for backbone in backbones):
        if path.name not in shipped:  # the digest in its name says that it is the same file
            spark.sparkContext.addFile(str(path))
    extractions = [Extraction(b.identity, b.weights_path.name) for b in backbones]
    began = time.monotonic()
    with progress(spark, "extracting", n_usable):
        failures = _write_features(spark, manifest, extractions, n_usable, folder, feature_maps)
    seconds = time.monotonic() - began
    log.info("extracted: %d images in %.1f s, %.1f images/s", n_usable, seconds, n_usable / seconds)
    return failures


def _write_features(
    spark: SparkSession,
    manifest: DataFrame,
    extractions: list[Extraction],
    n_usable: int,
    folder: Path,
    feature_maps: bool,
) -> list[Failure]:
    """Write the features of all backbones, partitioned by fingerprint; return the failed images."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    cores = spark.sparkContext.defaultParallelism
    n_tasks = min(max(TASKS_A_CORE * cores, math.ceil(n_usable / IMAGES_A_TASK)), n_usable)
    # Tasks and the order within them follow from image_id alone, so that batches, and with them the
    # last digits of features, are the same in every run.
    tasks = (
        manifest.where("error IS NULL")
        .select(*MANIFEST_COLUMNS)
        .repartition(n_tasks, "image_id")
        .sortWithinPartitions("image_id")
    )
    columns = result_columns(feature_maps)
    rows = tasks.mapInPandas(
        make_extractor(extractions, feature_maps=feature_maps), schema(columns)
    )
    failures = Observation("failures")
    # As JSON, since PySpark returns no arrays of structs from an observation.
    failed = F.to_json(F.collect_list(F.when(F.col("error").isNotNull(), F.struct(*ERROR_COLUMNS))))
    kept = {**FEATURE_COLUMNS, **(FEATURE_MAP_COLUMNS if feature_maps else {})}
    (
        rows.observe(failures, failed.alias("rows"))
        .where("error IS NULL")
        .select("fingerprint", *kept)
        .write.option("parquet.block.size", ROW_GROUP_BYTES)
        .partitionBy("fingerprint")
        .parquet(location(folder))
    )
    return [tuple(row[name] for name in ERROR_COLUMNS) for row in json.loads(failures.get["rows"])]
