"""The account of every image: what was found is a row of features or a row of errors, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from cxr_spark.extraction.store import ERROR_COLUMNS, schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Failure = tuple[str, str, int, str, str]  # in the order of ERROR_COLUMNS


def account_errors(
    spark: SparkSession, manifest: DataFrame, rows: DataFrame, failures: list[Failure]
) -> DataFrame:
    """Return the errors table: every image of the manifest not among the rows, with its reason.

    Args:
        spark: the session.
        manifest: every image found; ``error`` says why a path was not recognised (stage 'path').
        rows: the features of one backbone.
        failures: what executors reported (stages 'read' and 'decode'), repeated where a task was.

    Returns:
        Rows of ``ERROR_COLUMNS``. An image that is neither among the rows nor has a reason gets the
        stage 'lost'.
    """
    from pyspark.sql import functions as F  # noqa: N812

    # As Arrow: of Python's rows Spark would make its own in a Python worker, started for it.
    columns = zip(*failures, strict=True) if failures else [()] * len(ERROR_COLUMNS)
    kinds = [pa.int64() if kind == "bigint" else pa.string() for kind in ERROR_COLUMNS.values()]
    table = pa.table(
        [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)],
        names=list(ERROR_COLUMNS),
    )
    missing = manifest.join(rows.select("image_id"), "image_id", "left_anti")
    reported = (
        spark.createDataFrame(table, schema(ERROR_COLUMNS))
        .dropDuplicates(["image_id"])
        .select("image_id", "stage", F.col("error").alias("reported"))
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
