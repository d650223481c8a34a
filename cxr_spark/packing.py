"""Packing on a cluster: one task lists the images, others copy them, a part of the pack each."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cxr_spark.dataset.manifest import even_sample, read_found
from cxr_spark.dataset.pack import (
    INDEX,
    INDEX_COLUMNS,
    PackRecord,
    foreign_names,
    is_pack,
    read_pack_record,
    write_pack_record,
)
from cxr_spark.dataset.pack_reader import PackReader
from cxr_spark.dataset.pack_writer import ROWS_A_GROUP, PartWriter, open_part
from cxr_spark.dataset.phantoms import MARKER, holds_phantoms
from cxr_spark.dataset.remote import read_ahead, read_remote
from cxr_spark.dataset.root import as_listed, check_root, list_images, no_images
from cxr_spark.errors import RunFailed, UserError
from cxr_spark.extraction.account import most_frequent
from cxr_spark.extraction.lock import LOCK_NAME, locked
from cxr_spark.extraction.store import schema
from cxr_spark.files import Source, check_writable, disk_is_full
from cxr_spark.filesystems import is_remote
from cxr_spark.paths import location
from cxr_spark.spark import open_session
from cxr_spark.spark_jobs import Progress, described, errors_of_tasks

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

# A part is one task's work, and what a reader opens: no more of either.
IMAGES_A_PART = 8192
BYTES_A_PART = 512 * 2**20
_REPLACED = "replaced"


def run_pack(images: str, out: Path, *, limit: int | None, overwrite: bool) -> None:
    """Pack the images under a root into a new folder.

    Args:
        images: the image root.
        out: the pack; moved to this place when it is whole.
        limit: how many images, an even sample over the sorted paths; None for all.
        overwrite: whether to replace a pack that is there.

    Raises:
        UserError: a flag cannot serve.
        RunFailed: the disk is full, or images were lost on the way.
    """
    out = Path(os.path.abspath(out))
    if limit is not None and limit < 1:
        raise UserError(f"Expected --limit of at least 1. Received: {limit}")
    check_out(images, out, overwrite=overwrite)
    check_root(images)
    if next(list_images(images), None) is None:
        raise no_images(str(images))
    with open_session(f"cxr_spark pack {out.name}") as spark:
        pack(spark, images, out, limit=limit, overwrite=overwrite)


def check_out(images: str | Path, out: Path, *, overwrite: bool) -> None:
    """Refuse a place where no pack can be made, and one that holds anything but a pack.

    Raises:
        UserError: says which it is.
    """
    for folder in (out.parent, out):
        check_writable(folder, "out")
    if not is_remote(images) and Path(images).resolve().is_relative_to(out.resolve()):  # removed
        raise UserError(f"Expected --out to be no folder that holds --images. Received: {out}")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_pack(out):
        raise UserError(
            f"Expected --out to be a new folder. Received: {out}, which holds what is no pack, or "
            "not all of one. Give another --out, or remove it."
        )
    if foreign := foreign_names(out):  # which would go with it
        raise UserError(
            f"Expected --out to hold a pack and nothing else. Received: {out / foreign[0]}. "
            "Take it out, or give another --out."
        )
    if not overwrite:
        raise UserError(
            f"Expected --out to be a new folder. Received: {out}, a pack of "
            f"{read_pack_record(out).n_images:,} images. Give another --out, or --overwrite."
        )


def pack(
    spark: SparkSession, images: str | Path, out: Path, *, limit: int | None, overwrite: bool
) -> PackRecord:
    """Pack as ``run_pack`` does, in a session; the new pack is made beside ``out`` and moved."""
    staging = out.with_name(f"_packing-{out.name}")
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, "out"):
        _clear(staging, out)
        try:
            record = _write_pack(spark, images, staging, limit)
            check_out(images, out, overwrite=overwrite)  # another run may have made it meanwhile
            if out.exists():
                out.rename(staging / _REPLACED)
            (staging / "pack").rename(out)
        except Exception as error:
            if disk_is_full(error):
                free = shutil.disk_usage(staging).free / 2**20
                raise RunFailed(
                    f"no room is left on a disk: {free:,.0f} MB are free at {out.parent}. A pack "
                    "takes as many bytes as its images. Nothing of it is left"
                ) from error
            raise
        finally:
            _clear(staging, out)
            shutil.rmtree(staging, ignore_errors=True)
    return record


def _clear(staging: Path, out: Path) -> None:
    """Remove what an earlier run left, but for a pack that was set aside and not replaced."""
    if (staging / _REPLACED).exists() and not out.exists():
        (staging / _REPLACED).rename(out)
    for entry in staging.iterdir():
        if entry.name != LOCK_NAME:
            shutil.rmtree(entry, ignore_errors=True)


def _write_pack(
    spark: SparkSession, images: str | Path, staging: Path, limit: int | None
) -> PackRecord:
    from pyspark.sql import functions as F  # noqa: N812

    began, folder = time.monotonic(), staging / "pack"
    folder.mkdir()
    with described(spark, f"listing the images under {images}"), errors_of_tasks():
        found, limit = _choose(read_found(spark, str(images)), limit)
        found, n_images, n_bytes = _stage_found(spark, found, staging / "found")
    if not n_images:
        raise no_images(str(images))
    n_parts = plan_parts(n_images, n_bytes, spark.sparkContext.defaultParallelism)
    # The order in which extraction cuts images into tasks, so that each reads parts from their
    # beginning to their end.
    order = (F.xxhash64("image_id"), F.col("image_id"))
    placed = (
        found.repartitionByRange(n_parts, *order)
        .sortWithinPartitions(*order)
        .mapInPandas(make_packer(str(folder)), schema(INDEX_COLUMNS))
    )
    with Progress(spark, "packing", n_images, n_parts) as watched:
        watched.join(f"packing images, {n_parts} parts")
        _write_index(placed, staging / "index", folder / INDEX)
    record = _describe(folder, str(images), limit)
    if record.n_images != n_images:
        raise RunFailed(
            f"{n_images:,} images were found, and {record.n_images:,} packed. Nothing of it is left"
        )
    if holds_phantoms(images):  # or features of the pack would pass for those of X-rays
        remote = is_remote(images)
        (folder / MARKER).write_bytes(
            read_remote(str(images), MARKER) if remote else Path(images, MARKER).read_bytes()
        )
    write_pack_record(folder, record)
    log.info(
        "packed: %d images in = %d with their bytes + %d that could not be read; %d parts, "
        "%.1f MB, %.1f s",
        n_images, n_images - record.n_errors, record.n_errors, len(record.parts),
        sum(size for size, _ in record.parts.values()) / 2**20, time.monotonic() - began,
    )  # fmt: skip
    return record


def _choose(found: DataFrame, limit: int | None) -> tuple[DataFrame, int | None]:
    """Return the images to be packed, and the limit if it cuts any off."""
    if limit is None or limit >= (n_found := found.count()):
        return found, None
    return even_sample(found, limit, n_found), limit


def _stage_found(spark: SparkSession, found: DataFrame, folder: Path) -> tuple[DataFrame, int, int]:
    """Write the list of what is to be packed; return it, and how many images and bytes they are."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    counted = Observation("found")
    n_bytes = F.sum(F.greatest("length", F.lit(0)))
    (
        found.observe(counted, F.count("*").alias("n_images"), n_bytes.alias("n_bytes"))
        .write.parquet(location(folder))
    )  # fmt: skip
    staged = spark.read.schema(found.schema).parquet(location(folder))
    return staged, counted.get["n_images"], counted.get["n_bytes"] or 0


def plan_parts(n_images: int, n_bytes: int, n_slots: int) -> int:
    """Return how many parts a pack has, which is how many tasks copy images.

    Args:
        n_images: at least one.
        n_bytes: of all images.
        n_slots: tasks that run at once; a small pack has so many parts at most.
    """
    needed = max(math.ceil(n_images / IMAGES_A_PART), math.ceil(n_bytes / BYTES_A_PART))
    return max(needed, min(n_slots, math.ceil(n_images / ROWS_A_GROUP)))


def make_packer(folder: str) -> Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Return the function for ``mapInPandas`` that copies a task's images into a part.

    It takes rows of what was found and yields where each image lies. The part's name is new in each
    attempt, and those that nothing names are removed in the end.
    """

    def copy(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        from pyspark import TaskContext

        context = TaskContext.get()
        number = context.partitionId() if context else 0
        part, name = None, f"part-{number:05d}-{uuid.uuid4().hex[:8]}.parquet"
        with ExitStack() as opened:
            packs = opened.enter_context(PackReader())
            for rows in frames:
                if part is None:
                    part = opened.enter_context(open_part(Path(folder) / name))
                images = list(rows.itertuples(index=False))
                sources = iter(
                    read_ahead([_source(image, packs) for image in images if not image.problem])
                )
                placed = [
                    _copy(image, None if image.problem else next(sources), part, name)
                    for image in images
                ]
                yield pd.DataFrame(placed, columns=list(INDEX_COLUMNS))

    return copy


def _source(image: Any, packs: PackReader) -> Source:
    return as_listed(image.image_id, image.path, image.length, image.modified_us, packs)


def _copy(image: Any, source: Source | None, part: PartWriter, name: str) -> tuple[object, ...]:
    """Add an image to a part, or why it has no bytes, in the words that extraction has."""
    content, error = None, image.problem
    if source is not None:
        try:
            content = source.read()
        except OSError as failed:
            error = failed.strerror or str(failed)
    place = part.add(image.image_id, image.length, image.modified_us, content, error)
    told = (image.image_id, image.length, image.modified_us, image.problem)
    return (image.position, *told, error, name, *place)


def _write_index(placed: DataFrame, folder: Path, file: Path) -> None:
    """Write where each image lies, in the order of their paths, into one file."""
    placed.repartition(1).sortWithinPartitions("position").write.parquet(location(folder))
    (written,) = folder.glob("part-*.parquet")
    written.rename(file)


def _describe(folder: Path, images: str, limit: int | None) -> PackRecord:
    """Return a pack's record, say why images have no bytes, and remove parts of failed attempts."""
    import pyarrow.parquet as pq

    counts, errors = Counter[str](), list[tuple[str, str, str]]()
    with pq.ParquetFile(folder / INDEX) as index:
        for batch in index.iter_batches(columns=["image_id", "part", "problem", "error"]):
            counts.update(batch.column("part").to_pylist())
            for row in batch.filter(batch.column("error").is_valid()).to_pylist():
                stage = "path" if row["problem"] else "read"
                errors.append((row["image_id"], stage, row["error"]))
    for file in folder.glob("part-*.parquet"):
        if file.name not in counts:
            file.unlink()
    for line in most_frequent(errors):
        log.warning("  %s", line)
    parts = {name: ((folder / name).stat().st_size, n_rows) for name, n_rows in counts.items()}
    index_bytes = (folder / INDEX).stat().st_size
    return PackRecord(images, limit, counts.total(), len(errors), index_bytes, parts)
