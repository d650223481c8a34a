"""The extraction section: the whole of ``extract()`` in the session of spark-submit."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.benchmark.images import ImageSet
from cxr_spark.benchmark.pairs import with_a_rate
from cxr_spark.benchmark.rows import Row, marginal_rate, rate_row
from cxr_spark.benchmark.settings import IMAGE_SIZE, N_WARM_UP, Settings
from cxr_spark.config import DatasetConfig, Experiment, SplitConfig
from cxr_spark.extraction.job import ExtractionRequest, extract
from cxr_spark.extraction.load import LoadedBackbone, load_backbones

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timed:
    """One run of ``extract()``, in seconds.

    Attributes:
        n_images: images found.
        total: of the whole.
        listing: until the images were listed and the workers warm.
        commit: from the last file of features to the end.
    """

    n_images: int
    total: float
    listing: float
    commit: float


def load(settings: Settings, backbone: str, folder: Path) -> tuple[LoadedBackbone, Row]:
    """Load one backbone as the jobs do, and return it with the row of its seconds."""
    began = time.perf_counter()
    (loaded,) = load_backbones(
        make_experiment(settings, backbone, None), folder, feature_maps=settings.feature_maps
    )
    return loaded, rate_row(
        f"loading {backbone} on the driver", [time.perf_counter() - began], unit="s"
    )


def make_experiment(settings: Settings, backbone: str, limit: int | None) -> Experiment:
    """Return an experiment of one backbone that any layout of split and class folders fits."""
    return Experiment(
        dataset=DatasetConfig(adapter="folder"),
        task="findings",
        split=SplitConfig(unit="image"),
        backbones=[backbone],
        weights=settings.weights,
        precision=settings.precision,  # type: ignore[arg-type]
        image_size=IMAGE_SIZE,
        limit=limit,
    )


def measure_extraction(
    spark: SparkSession,
    settings: Settings,
    images: ImageSet,
    backbone: LoadedBackbone,
    folder: Path,
    core_rate: float | None,
) -> list[Row]:
    """Measure the marginal rate and the fixed part of extraction by one backbone.

    Args:
        spark: the session.
        settings: what is asked for.
        images: the images; a quarter of them and all of them are extracted, in turn.
        backbone: the one that runs.
        folder: where features go, each run in a new folder in it; the last one stays, as 'whole'.
        core_rate: images/s of the compute core on the same images, or None.
    """
    name = backbone.identity.backbone
    n_whole = len(images.paths)
    warm_up = timed_extract(spark, settings, images, backbone, folder, min(N_WARM_UP, n_whole))
    runs = []
    for k in range(settings.repeat):
        log.info("extraction: %s, %s, %d of %d", name, images.name, k + 1, settings.repeat)
        quarter = timed_extract(spark, settings, images, backbone, folder, n_whole // 4)
        runs.append((quarter, timed_extract(spark, settings, images, backbone, folder, n_whole)))
    found, left_out = with_a_rate(runs, _rate)
    rates, wholes = [rate for _, rate in found], [whole for (_, whole), _ in found]
    what = f"extraction, {name}, {images.name}"
    core = "" if core_rate is None else f"the compute core alone gave {core_rate:,.0f}"
    rate = rate_row(what, rates, note="; ".join(filter(None, [core, left_out])))
    first = rate_row(
        f"first extraction, {name}, {images.name}", [warm_up.total], unit="s",
        note=f"of {warm_up.n_images} images: workers start and load graphs",
    )  # fmt: skip
    return [rate, first, *_fixed_part(what, wholes, rates)]


def _rate(run: tuple[Timed, Timed]) -> float:
    """Return the marginal rate of a run over a quarter of the images and one over all of them."""
    quarter, whole = run
    return marginal_rate(quarter.n_images, quarter.total, whole.n_images, whole.total)


def _fixed_part(what: str, wholes: Sequence[Timed], rates: Sequence[float]) -> list[Row]:
    fixed = [w.total - w.n_images / rate for w, rate in zip(wholes, rates, strict=True)]
    parts = {
        "listing": statistics.median(w.listing for w in wholes),
        "commit": statistics.median(w.commit for w in wholes),
    }
    rest = statistics.median(fixed) - sum(parts.values())
    told = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items())
    return [
        rate_row(
            f"{what}: fixed part", fixed, unit="s",
            note=f"{told}, planning and first tasks {rest:.2f} s (what is left)",
        )
    ]  # fmt: skip


def timed_extract(
    spark: SparkSession,
    settings: Settings,
    images: ImageSet,
    backbone: LoadedBackbone,
    folder: Path,
    n_images: int,
) -> Timed:
    """Extract an even sample of ``n_images`` into ``folder/whole``, made anew."""
    features = folder / "whole"
    shutil.rmtree(features, ignore_errors=True)
    request = ExtractionRequest(
        experiment=make_experiment(settings, backbone.identity.backbone, n_images),
        images=str(images.root),
        features=features,
        feature_maps=settings.feature_maps,
    )
    started, began = time.time(), time.perf_counter()
    (record,) = extract(spark, request, lambda: [backbone])
    total, now = time.perf_counter() - began, time.time()
    written = max(
        file.stat().st_mtime for file in (features / record.fingerprint).glob("*.parquet")
    )
    listed = (features / "manifest" / "_manifest.json").stat().st_mtime
    return Timed(record.n_images, total, listed - started, now - written)
