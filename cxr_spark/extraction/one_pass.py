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
from cxr_spark.extraction.worker import (
    Extraction,
    Placement,
    make_extractor,
    make_warmer,
    result_columns,
)
from cxr_spark.files import location
from cxr_spark.spark import progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

# A task holds at most so many images, so that a lost one costs little; what runs one task at a
# time, a core or a GPU with its cores, has at least so many of them.
IMAGES_A_TASK = 4096
TASKS_A_SLOT = 4

PARQUET: dict[str, str | int] = {
    # petastorm hands over a row group at a time: 32 MB are 160 feature maps of ResNet50.
    "parquet.block.size": 32 * 2**20,
    # Level 3, the default, makes maps no smaller (0.65 and 0.64 of their size) in twice the time.
    "parquet.compression.codec.zstd.level": 1,
    # No two features are equal: to look for repeated ones is in vain.
    "parquet.enable.dictionary#feature_map": "false",
    "parquet.enable.dictionary#pooled.list.element": "false",
}


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
    extractions = ship(spark, backbones)
    began = time.monotonic()
    with progress(spark, "extracting", n_usable):
        failures = _write_features(spark, manifest, extractions, n_usable, folder, feature_maps)
    seconds = time.monotonic() - began
    log.info("extracted: %d images in %.1f s, %.1f images/s", n_usable, seconds, n_usable / seconds)
    return failures


def ship(spark: SparkSession, backbones: Sequence[LoadedBackbone]) -> list[Extraction]:
    """Send the graphs that executors do not have yet, and return what tasks are told of them."""
    shipped = {Path(file).name for file in spark.sparkContext.listFiles}
    for path in dict.fromkeys(backbone.graph.path for backbone in backbones):
        if path.name not in shipped:  # the digest in its name says that it is the same file
            spark.sparkContext.addFile(str(path))
    return [
        Extraction(b.identity, b.graph.path.name, b.graph.input_name, b.graph.output_names)
        for b in backbones
    ]


def warm_workers(spark: SparkSession, extractions: list[Extraction]) -> None:
    """Have the workers load the graphs: to import TensorFlow alone takes one more than a second."""
    placement = placement_of(spark)
    warmer = make_warmer(extractions, placement)
    n_slots = slots(spark, placement)
    spark.range(0, n_slots, 1, n_slots).mapInPandas(warmer, "id bigint").count()


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

    placement = placement_of(spark)
    n_tasks = min(
        max(TASKS_A_SLOT * slots(spark, placement), math.ceil(n_usable / IMAGES_A_TASK)), n_usable
    )
    # Tasks of one size, so that no core waits for another's; what is in them follows from the
    # manifest and their number, so that batches are the same in every run on as many cores.
    tasks = (
        manifest.where("error IS NULL")
        .select(*MANIFEST_COLUMNS)
        .repartition(n_tasks)
        .sortWithinPartitions("image_id")
    )
    columns = result_columns(feature_maps)
    (image_size,) = {extraction.identity.image_size for extraction in extractions}
    extractor = make_extractor(extractions, image_size, placement, feature_maps=feature_maps)
    rows = tasks.mapInPandas(extractor, schema(columns))
    failures = Observation("failures")
    # As JSON, since PySpark returns no arrays of structs from an observation.
    failed = F.to_json(F.collect_list(F.when(F.col("error").isNotNull(), F.struct(*ERROR_COLUMNS))))
    kept = {**FEATURE_COLUMNS, **(FEATURE_MAP_COLUMNS if feature_maps else {})}
    (
        rows.observe(failures, failed.alias("rows"))
        .where("error IS NULL")
        .select("fingerprint", *kept)
        .write.options(**PARQUET)
        .partitionBy("fingerprint")
        .parquet(location(folder))
    )
    return [tuple(row[name] for name in ERROR_COLUMNS) for row in json.loads(failures.get["rows"])]


def placement_of(spark: SparkSession) -> Placement:
    """Return what a task of this session computes on, from Spark's own settings."""
    conf = spark.sparkContext.getConf()
    return Placement(
        task_cpus=int(conf.get("spark.task.cpus", "1") or 1),
        one_gpu_an_executor=conf.get("spark.executor.resource.gpu.amount") == "1",
    )


def slots(spark: SparkSession, placement: Placement) -> int:
    """Return how many tasks run at once."""
    return max(1, spark.sparkContext.defaultParallelism // placement.task_cpus)
