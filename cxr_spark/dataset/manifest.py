"""An image root as a Spark DataFrame: a row for every image found, read of its path or refused."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from cxr_spark.dataset.adapters import LAYOUTS, Adapter, PathFacts, UnrecognisedPath, make_adapter
from cxr_spark.dataset.listing import FoundImage
from cxr_spark.dataset.root import absolute, check_root, list_images, no_images
from cxr_spark.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS_A_BATCH = 10_000
SCHEMA = (
    "position bigint, image_id string, path string, length bigint, modified timestamp, "
    "patient_id string, finding string, official_split string, error string"
)
FOUND_SCHEMA = (
    "position bigint, image_id string, path string, length bigint, modified_us bigint, "
    "problem string"
)


def check_images(images: str, adapter: str, patient_pattern: str | None) -> None:
    """Refuse, before Spark starts, a root that is missing or has no image of the adapter's layout.

    A pack must be whole as well.

    Raises:
        UserError: says which of these it is.
    """
    check_root(images)
    parse = make_adapter(adapter, patient_pattern)
    found, reason = 0, ""
    for image in list_images(images):
        try:
            parse(image.image_id)
            return
        except UnrecognisedPath as error:
            reason = reason or f"{image.image_id}: {error}"
            found += 1
    if not found:
        raise no_images(images)
    raise UserError(
        f"Expected {LAYOUTS[adapter]} under --images, the layout of dataset.adapter {adapter}. "
        f"Received: {images}, where none of {found} images fits ({reason})"
    )


def read_paths(
    image_ids: Sequence[str], adapter: str, patient_pattern: str | None, *, limit: int | None
) -> list[tuple[str, PathFacts]]:
    """Return what paths say, without Spark: (image_id, facts) of those that are recognised.

    Args:
        image_ids: sorted.
        adapter: the layout.
        patient_pattern: of the ``folder`` adapter.
        limit: as for ``even_sample``.
    """
    parse = make_adapter(adapter, patient_pattern)
    if limit is not None and limit < len(image_ids):
        image_ids = [image_ids[i * len(image_ids) // limit] for i in range(limit)]
    recognised = []
    for image_id in image_ids:
        with contextlib.suppress(UnrecognisedPath):
            recognised.append((image_id, parse(image_id)))
    return recognised


def read_listing(
    spark: SparkSession, images: str, adapter: str, patient_pattern: str | None
) -> DataFrame:
    """Return every image under a root, in the columns of ``SCHEMA``.

    ``position`` counts the images in the order of their paths. An image whose path the adapter does
    not recognise has an ``error`` and no finding.
    """

    def make_row() -> Callable[[int, FoundImage], tuple[object, ...]]:
        parse = make_adapter(adapter, patient_pattern)
        return lambda position, image: _row(position, image, parse)

    return _list_in_one_task(spark, images, SCHEMA, make_row)


def read_found(spark: SparkSession, images: str) -> DataFrame:
    """Return every image under a root, whatever its path says, in the columns of ``FOUND_SCHEMA``.

    ``position`` counts the images in the order of their paths; ``problem`` is null but of a folder
    that could not be walked.
    """

    def make_row() -> Callable[[int, FoundImage], tuple[object, ...]]:
        return lambda position, image: (
            position, image.image_id, image.path, image.length, image.modified_us,
            image.problem or None,
        )  # fmt: skip

    return _list_in_one_task(spark, images, FOUND_SCHEMA, make_row)


def _list_in_one_task(
    spark: SparkSession,
    images: str,
    schema: str,
    make_row: Callable[[], Callable[[int, FoundImage], tuple[object, ...]]],
) -> DataFrame:
    """Have one task on an executor walk the root and stream what it finds.

    So the driver holds none of it. Times, which rows have as microseconds, become timestamps where
    the schema says so.
    """
    root = absolute(images)
    kinds = dict(column.split() for column in schema.split(", "))

    def list_in_task(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for _ in frames:  # the one row; Spark ends a worker that leaves some of its input
            yield from list_once()

    def list_once() -> Iterator[pd.DataFrame]:
        row, numbered = make_row(), enumerate(list_images(root))
        while chunk := list(itertools.islice(numbered, ROWS_A_BATCH)):
            rows = pd.DataFrame([row(*one) for one in chunk], columns=list(kinds))
            for name in (name for name, kind in kinds.items() if kind == "timestamp"):
                rows[name] = pd.to_datetime(rows[name], unit="us")
            yield rows

    return spark.range(0, 1, 1, 1).mapInPandas(list_in_task, schema)


def _row(position: int, image: FoundImage, parse: Adapter) -> tuple[object, ...]:
    found = (position, image.image_id, image.path, image.length, image.modified_us)
    if image.problem:
        return (*found, None, None, None, image.problem)
    try:
        facts = parse(image.image_id)
    except UnrecognisedPath as error:
        return (*found, None, None, None, str(error))
    return (*found, facts.patient_id, facts.finding, facts.official_split, None)


def even_sample(listing: DataFrame, limit: int, n_images: int) -> DataFrame:
    """Return ``limit`` of ``n_images`` rows, evenly over the sorted paths: those at i * n // limit.

    Every split and class of a sorted folder is in such a sample.
    """
    from pyspark.sql import functions as F  # noqa: N812

    i = F.floor((F.col("position") * limit + n_images - 1) / n_images)
    return listing.where((i < limit) & (F.floor(i * n_images / limit) == F.col("position")))
