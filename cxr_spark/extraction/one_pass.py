"""One pass over images, shard by shard: every backbone runs, features and failures come back."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.backbones import BACKBONES
from cxr_spark.extraction.account import read_columns
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.shards import Failure
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    FEATURE_COLUMNS,
    FEATURE_MAP_COLUMNS,
    MANIFEST_COLUMNS,
    schema,
)
from cxr_spark.extraction.worker import (
    Extraction,
    Extractor,
    make_extractor,
    make_warmer,
    result_columns,
)
from cxr_spark.paths import AnyPath, location
from cxr_spark.placement import Placement, placement_of
from cxr_spark.spark_jobs import Progress, cancelled, described, errors_of_tasks

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

# A task of one backbone has at most so many images, so that what a kill loses is minutes.
IMAGES_A_TASK = {"core": 4096, "GPU": 16_384}
SPEED_OF_GPU = 16  # of a core's, at the least
# A run has at least so many shards, where each can take so long: a shard costs 0.3 s of its own.
SHARDS_A_RUN, SECONDS_A_SHARD = 4, 8.0
# Of a core an image, about, at least, and a byte of JPEG or PNG: see PLANNING.md.
DECODE_SECONDS, SECONDS_A_BYTE = 0.002, 1.8e-8
# What runs one task at a time has so many of a long run, lest the last is waited for.
TASKS_A_SLOT = 8
SHARDS_AT_ONCE = 2

PARQUET: dict[str, str | int] = {
    # petastorm hands over a row group at a time: 32 MB are 160 feature maps of ResNet50.
    "parquet.block.size": 32 * 2**20,
    # Level 3, the default, makes maps no smaller (0.65 and 0.64 of their size) in twice the time.
    "parquet.compression.codec.zstd.level": 1,
    # No two features are equal: to look for repeated ones is in vain.
    "parquet.enable.dictionary#feature_map": "false",
    "parquet.enable.dictionary#pooled.list.element": "false",
}


@dataclass(frozen=True)
class PassedShard:
    """One shard, written.

    Attributes:
        name: new in every run.
        folder: holds one folder ``fingerprint=...`` a backbone; none where no image was of use.
        failures: the images that could not be used.
    """

    name: str
    folder: AnyPath
    failures: tuple[Failure, ...]


def run_pass(
    spark: SparkSession,
    images: DataFrame,
    n_images: int,
    backbones: Sequence[LoadedBackbone],
    folder: AnyPath,
    *,
    image_bytes: float = 0.0,
    feature_maps: bool,
    warmed: Callable[[], object],
    done: Callable[[PassedShard], None],
) -> None:
    """Run all backbones over images once, shard by shard.

    Each shard is a Spark job; two run at once, so that no core waits while one ends.

    Args:
        spark: the session.
        images: rows of ``MANIFEST_COLUMNS``.
        n_images: how many they are, at least one.
        backbones: which to run.
        folder: where shards are written.
        image_bytes: of a file, on average; 0 if unknown.
        feature_maps: whether to write feature maps as well.
        warmed: waits until the workers have loaded their graphs.
        done: called with each shard, in this thread, as soon as it is written.
    """
    placement = placement_of(spark)
    n_slots = slots(spark, placement)
    n_least = least_images(
        [b.identity.backbone for b in backbones], backbones[0].identity.image_size, n_slots,
        placement, image_bytes,
    )  # fmt: skip
    n_most = most_images(len(backbones), placement)
    n_shards, n_tasks = plan_shards(n_images, n_slots, n_most, n_least)
    pieces = folder / f"pieces-{uuid.uuid4().hex}"
    with described(spark, f"cutting {n_images:,} images into {n_shards * n_tasks} tasks"):
        _cut_images(images, n_images, n_shards, n_tasks, pieces)
    warmed()
    extractions = ship(spark, backbones)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{uuid.uuid4().hex[:6]}"
    watched = Progress(spark, "extracting", n_images, n_shards * n_tasks)
    began = time.monotonic()

    def write(k: int) -> PassedShard:
        watched.join(f"extracting features, shard {k + 1} of {n_shards}")
        staged, place = folder / f"{stamp}-{k:05d}", pieces / f"shard={k}"
        rows = read_columns(spark, place, MANIFEST_COLUMNS).select(*MANIFEST_COLUMNS)
        extractor = make_extractor(
            extractions, extractions[0].identity.image_size, placement, feature_maps=feature_maps
        )
        failures = _write_features(rows, extractor, staged, feature_maps=feature_maps)
        return PassedShard(staged.name, staged, failures)

    with watched, _a_task_for_each_file(spark), ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        written = [pool.submit(write, k) for k in range(n_shards)]
        try:
            for shard in as_completed(written):
                watched.n_errors += len(shard.result().failures)
                done(shard.result())
        except BaseException:
            for shard in written:
                shard.cancel()
            with cancelled(spark, watched.group):
                pool.shutdown()
            raise
    seconds = time.monotonic() - began
    log.info("extracted: %d images in %.1f s, %.1f images/s", n_images, seconds, n_images / seconds)


def least_images(
    backbones: Sequence[str],
    image_size: tuple[int, int],
    n_slots: int,
    placement: Placement,
    image_bytes: float = 0.0,
) -> int:
    """Return how many images keep a cluster busy for ``SECONDS_A_SHARD``, about."""
    decoding = max(DECODE_SECONDS, image_bytes * SECONDS_A_BYTE)
    area = image_size[0] * image_size[1] / 224**2
    forward = area * sum(BACKBONES[name].core_seconds for name in backbones)
    seconds = decoding + forward
    if placement.on_gpu:  # where threads decode meanwhile
        seconds = max(decoding / placement.task_cpus, forward / SPEED_OF_GPU)
    return max(1, round(SECONDS_A_SHARD * n_slots / seconds))


def most_images(n_backbones: int, placement: Placement) -> int:
    """Return how many images a task has at most."""
    return max(1, IMAGES_A_TASK["GPU" if placement.on_gpu else "core"] // n_backbones)


def plan_shards(n_images: int, n_slots: int, n_most: int, n_least: int) -> tuple[int, int]:
    """Return the number of shards, and of the tasks of each.

    A shard fills the cluster with tasks. It is no larger than what one may lose, and no run of some
    length has so few shards that a kill costs much of it.

    Args:
        n_images: to be computed.
        n_slots: tasks that run at once.
        n_most: images of a task, at least one.
        n_least: images of all slots together below which a shard's own cost, and a task's, would
            tell.
    """
    rounds = max(1, n_images // n_least)
    n_shards = max(math.ceil(n_images / (n_slots * n_most)), min(SHARDS_A_RUN, rounds))
    n_tasks = n_slots * max(1, min(TASKS_A_SLOT, rounds) // n_shards)
    return n_shards, max(1, min(n_tasks, n_images // n_shards))


def _cut_images(
    images: DataFrame, n_images: int, n_shards: int, n_tasks: int, folder: AnyPath
) -> None:
    """Write images into ``folder/shard=i/piece=j``: a file for each task.

    Images are cut in the order of a hash of their names into tasks of one size, so that no core
    waits for another's at the end. A shard is then one stage, whose tasks are there while those of
    the shard before it run; one that had to shuffle its images first would leave cores idle.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    place = F.row_number().over(Window.orderBy(F.xxhash64("image_id"), "image_id")) - 1
    piece = F.floor(place * F.lit(n_shards * n_tasks) / F.lit(n_images)).cast("int")
    (
        images.withColumn("piece", piece)
        .withColumn("shard", F.floor(F.col("piece") / n_tasks).cast("int"))
        .write.partitionBy("shard", "piece")
        .parquet(location(folder))
    )


@contextmanager
def _a_task_for_each_file(spark: SparkSession) -> Iterator[None]:
    """Have Spark read each small file by a task of its own; it would give one task many."""
    key, most = "spark.sql.files.openCostInBytes", "spark.sql.files.maxPartitionBytes"
    before = spark.conf.get(key)
    spark.conf.set(key, spark.conf.get(most) or "128MB")
    try:
        yield
    finally:
        with suppress(Exception):  # Spark may be gone itself
            spark.conf.set(key, before or "4MB")


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
    """Have the workers load the graphs: to import TensorFlow alone takes one more than a second.

    Raises:
        UserError: the device that Spark gave to tasks cannot be used.
    """
    placement = placement_of(spark)
    warmer = make_warmer(extractions, placement)
    n_slots = slots(spark, placement)
    with described(spark, "loading backbones in the Python workers"), errors_of_tasks():
        spark.range(0, n_slots, 1, n_slots).mapInPandas(warmer, "id bigint").count()


def _write_features(
    images: DataFrame, extractor: Extractor, folder: AnyPath, *, feature_maps: bool
) -> tuple[Failure, ...]:
    """Write the features of all backbones, partitioned by fingerprint; return the failed images."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    rows = images.mapInPandas(extractor, schema(result_columns(feature_maps)))
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
    told = json.loads(failures.get["rows"])
    return tuple(tuple(row[name] for name in ERROR_COLUMNS) for row in told)


def slots(spark: SparkSession, placement: Placement) -> int:
    """Return how many tasks run at once."""
    return max(1, spark.sparkContext.defaultParallelism // placement.task_cpus)
