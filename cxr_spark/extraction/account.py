"""The account of every image: what was found is a row of features or a row of errors, once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from cxr_spark.extraction.shards import Failure
from cxr_spark.extraction.store import ERROR_COLUMNS, MANIFEST_COLUMNS, schema
from cxr_spark.paths import AnyPath, location

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# What makes a row of features that of an image: the file as it was when it was listed.
IMAGE_KEY = ["image_id", "length", "modified"]
# The bytes were had, and will say the same again; a file that could not be read may be back.
FINAL_STAGES = ("decode",)
_REASONS_TOLD = 10
# So few errors never end a run, whatever share of a small folder they are.
ERRORS_ALLOWED = 10


def read_columns(
    spark: SparkSession, places: AnyPath | Sequence[AnyPath], columns: dict[str, str]
) -> DataFrame:
    """Return stored columns; to have Spark look for their types would take it a job."""
    paths = places if isinstance(places, Sequence) else [places]
    return spark.read.schema(schema(columns)).parquet(*(location(path) for path in paths))


@dataclass(frozen=True)
class Remaining:
    """What one extraction has still to do.

    Attributes:
        images: rows of ``MANIFEST_COLUMNS``.
        n_images: how many they are.
        digest: of their names; extractions of one digest run in one pass.
        n_stale: rows of features whose image is not in the manifest, or not as it was.
    """

    images: DataFrame
    n_images: int
    digest: int
    n_stale: int = 0


def find_remaining(
    spark: SparkSession, manifest: DataFrame, files: Sequence[AnyPath], failures: Sequence[Failure]
) -> Remaining:
    """Return the images that have neither features nor a reason that would be found again.

    Args:
        spark: the session.
        manifest: every image found.
        files: the Parquet files that hold the features there are.
        failures: the images that are not to be tried again.
    """
    from pyspark.sql import functions as F  # noqa: N812

    usable = manifest.where("error IS NULL").select(*MANIFEST_COLUMNS)
    final = F.broadcast(_failures_table(spark, failures))
    images, n_stale = usable.join(final, ["image_id", "length"], "left_anti"), 0
    if files:
        rows = read_columns(spark, files, MANIFEST_COLUMNS)
        images = images.join(rows, IMAGE_KEY, "left_anti")
        n_stale = rows.join(usable, IMAGE_KEY, "left_anti").count()
    (row,) = images.agg(
        F.count("*").alias("n"), F.bit_xor(F.xxhash64("image_id")).alias("digest")
    ).collect()
    return Remaining(images, row["n"], row["digest"] or 0, n_stale)


def stale_files(
    spark: SparkSession, manifest: DataFrame, files: Sequence[AnyPath]
) -> list[AnyPath]:
    """Return the files with rows whose image is not in the manifest, or not as it was."""
    stale = []
    for file in files:
        rows = read_columns(spark, file, MANIFEST_COLUMNS)
        if not rows.join(manifest, IMAGE_KEY, "left_anti").isEmpty():
            stale.append(file)
    return stale


def account_errors(
    spark: SparkSession, manifest: DataFrame, rows: DataFrame, failures: Sequence[Failure]
) -> DataFrame:
    """Return the errors table: every image of the manifest not among the rows, with its reason.

    Args:
        spark: the session.
        manifest: every image found; ``error`` says why a path was not recognised (stage 'path').
        rows: the features of one backbone.
        failures: what executors reported (stages 'read' and 'decode'); of several of an image the
            last counts.

    Returns:
        Rows of ``ERROR_COLUMNS``. An image that is neither among the rows nor has a reason gets the
        stage 'lost'.
    """
    from pyspark.sql import functions as F  # noqa: N812

    missing = manifest.join(rows.select("image_id"), "image_id", "left_anti")
    reported = _failures_table(spark, list({f[0]: f for f in failures}.values())).select(
        "image_id", "stage", F.col("error").alias("reported")
    )
    lost = "neither a row of features nor a reason was written for it"
    return (
        missing.join(F.broadcast(reported), "image_id", "left")
        .withColumn(
            "stage",
            F.coalesce("stage", F.when(F.col("error").isNotNull(), F.lit("path")), F.lit("lost")),
        )
        .withColumn("error", F.coalesce("reported", "error", F.lit(lost)))
        .select(*ERROR_COLUMNS)
    )


def _failures_table(spark: SparkSession, failures: Sequence[Failure]) -> DataFrame:
    # As Arrow: of Python's rows Spark would make its own in a Python worker, started for it.
    columns = zip(*failures, strict=True) if failures else [()] * len(ERROR_COLUMNS)
    kinds = [pa.int64() if kind == "bigint" else pa.string() for kind in ERROR_COLUMNS.values()]
    table = pa.table(
        [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)],
        names=list(ERROR_COLUMNS),
    )
    return spark.createDataFrame(table, schema(ERROR_COLUMNS))


def most_frequent(reasons: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return lines of the most frequent reasons, numbers in them taken for the same.

    Args:
        reasons: (image_id, stage, error).
    """
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for image_id, stage, error in reasons:
        kind = (stage, re.sub(r"\d+", "N", error))
        counts[kind] += 1
        first.setdefault(kind, (image_id, error))
    return [
        f"{n} x {kind[0]}: {first[kind][1]} (first: {first[kind][0]})"
        for kind, n in counts.most_common(_REASONS_TOLD)
    ]
