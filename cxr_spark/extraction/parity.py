"""Lower precisions: compared with float32 where they are to run, before any feature is made."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cxr_spark.dataset.pack_reader import PackReader
from cxr_spark.dataset.root import list_images, source_of
from cxr_spark.engine.forward import MAX_PRECISION_LOSS
from cxr_spark.engine.pipeline import BATCH_SIZE, prepare
from cxr_spark.errors import UserError
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.one_pass import ship
from cxr_spark.extraction.worker import make_comparer
from cxr_spark.placement import placement_of
from cxr_spark.spark_jobs import described, errors_of_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)


def settle_precision(
    spark: SparkSession, backbones: Sequence[LoadedBackbone], images: str
) -> list[LoadedBackbone]:
    """Return each backbone as it is, or in float32 where its precision changes too much.

    A task runs both graphs on the first batch, on the device that Spark gives it and by the code
    that extracts: what a GPU makes of float16 cannot be told from what a processor makes of it.

    Args:
        spark: the session.
        backbones: those that have an ``exact`` one are compared with it.
        images: the image root.

    Raises:
        UserError: no image can be used, or the device cannot.
    """
    if all(backbone.exact is None for backbone in backbones):
        return list(backbones)
    size = BATCH_SIZE["GPU" if placement_of(spark).on_gpu else "CPU"]
    pixels = _first_images(images, size, backbones[0].identity.image_size)
    settled = []
    for backbone in backbones:
        exact, name = backbone.exact, backbone.identity.backbone
        if exact is None:
            settled.append(backbone)
            continue
        loss = _compare(spark, exact, backbone, pixels)
        told = f"{backbone.identity.precision} differs from float32 by {loss:.1e} (relative L2"
        if loss < MAX_PRECISION_LOSS:  # not so where it is NaN
            log.info("%s: %s)", name, told)
            settled.append(backbone)
        else:
            log.warning(
                "%s: %s, at most %.0e is allowed); using float32", name, told, MAX_PRECISION_LOSS
            )
            settled.append(exact)
    return settled


def _compare(
    spark: SparkSession,
    exact: LoadedBackbone,
    lower: LoadedBackbone,
    pixels: list[npt.NDArray[Any]],
) -> float:
    """Have a task run both, and return how far their features are apart."""
    first, second = ship(spark, [exact, lower])
    comparer = make_comparer(first, second, pixels, placement_of(spark))
    with described(spark, f"comparing {lower.identity.precision} with float32"), errors_of_tasks():
        (row,) = spark.range(0, 1, 1, 1).mapInPandas(comparer, "loss double").collect()
    return float(row["loss"])


def _first_images(
    images: str, n_images: int, image_size: tuple[int, int]
) -> list[npt.NDArray[Any]]:
    """Return the pixels of the first images that can be used, at most so many."""
    with PackReader() as packs:
        sources = (source_of(found, packs) for found in list_images(images))
        prepared = (prepare(source, image_size) for source in sources)
        usable = (image.pixels for image in prepared if image.pixels is not None)
        pixels = list(itertools.islice(usable, n_images))
    if not pixels:
        raise UserError(
            f"Expected at least one image that can be used under --images. Received: {images}"
        )
    return pixels
