"""The sections that need Spark or stored features, each ending in rows whatever happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.benchmark.extraction import load, measure_extraction, timed_extract
from cxr_spark.benchmark.heads import measure_reader, measure_training
from cxr_spark.benchmark.images import ImageSet
from cxr_spark.benchmark.ours import Submitter, peer_weights, write_properties
from cxr_spark.benchmark.peers import GRID, Peer, find_programs, measure_peer, measure_whole
from cxr_spark.benchmark.rows import MeasurementError, Row, failed_row, rate_row
from cxr_spark.benchmark.settings import Settings
from cxr_spark.spark import open_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from cxr_spark.extraction.load import LoadedBackbone

log = logging.getLogger(__name__)

Add = Callable[[Sequence[Row]], None]


def run_spark_sections(
    settings: Settings,
    sets: Sequence[ImageSet],
    folder: Path,
    jobs: Path,
    core_rates: dict[tuple[str, str], float],
    add: Add,
) -> None:
    """Run extraction, reader, training and peers, as far as they are asked for.

    Args:
        settings: what is asked for.
        sets: the images.
        folder: a temporary folder.
        jobs: the folder of the jobs.
        core_rates: of the engine section, by name of the images and backbone.
        add: takes the rows of each section.
    """
    properties = folder / "spark.conf"
    if settings.peers is not None:
        write_properties(properties)
    if settings.extracts:
        _in_session(settings, sets, folder, core_rates, add)
    elif "training" in settings.sections:
        add(_rows("training", lambda: measure_training(settings, folder, None)))
    if settings.peers is not None:  # with no session open, which would hold a cluster's cores
        programs = find_programs(settings.peers)
        if "grid" not in settings.sections and any(p.stem == GRID for p in programs):
            programs = [program for program in programs if program.stem != GRID]
            add([failed_row(GRID, "not run: add grid to --sections, which takes minutes")])
        for images in sets:
            submitter = Submitter(jobs, properties, images.root, settings.weights, folder)
            _run_peers(settings, programs, images, submitter, add)


def _in_session(
    settings: Settings,
    sets: Sequence[ImageSet],
    folder: Path,
    core_rates: dict[tuple[str, str], float],
    add: Add,
) -> None:
    began = time.perf_counter()
    with open_session("cxr_spark benchmark") as spark:
        add([rate_row("opening the session", [time.perf_counter() - began], unit="s")])
        for name in settings.backbones:
            try:
                backbone, row = load(settings, name, sets[-1], folder)
                add([row])
                _measure_backbone(spark, settings, sets, backbone, folder, core_rates, add)
            except Exception as error:
                add([_failed(f"extraction by {name}", error)])
    if "training" in settings.sections and not settings.feature_maps:
        add(_rows("training", lambda: measure_training(settings, folder, None)))


def _measure_backbone(
    spark: SparkSession,
    settings: Settings,
    sets: Sequence[ImageSet],
    backbone: LoadedBackbone,
    folder: Path,
    core_rates: dict[tuple[str, str], float],
    add: Add,
) -> None:
    name, features = backbone.identity.backbone, folder / "whole"
    if "extraction" in settings.sections:
        for images in sets:
            rate = core_rates.get((images.name, name))
            measure = partial(measure_extraction, spark, settings, images, backbone, folder, rate)
            add(_rows(f"extraction, {name}, {images.name}", measure))
    else:
        n_images = len(sets[-1].paths)
        timed_extract(spark, settings, sets[-1], backbone, folder, n_images)
    if "reader" in settings.sections:
        add(_rows(f"reader, {name}", partial(measure_reader, settings, features)))
    if "training" in settings.sections and settings.feature_maps:
        train = partial(measure_training, settings, folder, features)
        add(_rows(f"training, {name}", train))


def _run_peers(
    settings: Settings,
    programs: Sequence[Path],
    images: ImageSet,
    submitter: Submitter,
    add: Add,
) -> None:
    n_images = len(images.paths)
    for program in programs:
        for backbone in settings.backbones:
            try:
                weights = peer_weights(settings, backbone)
            except MeasurementError as error:
                add([failed_row(f"{backbone} by {program.stem}", error)])
                continue
            peer = Peer(program, images.name, images.root, backbone, weights)
            if program.stem == GRID:
                measure = partial(measure_whole, peer, partial(submitter.grid, backbone))
            else:
                measure = partial(measure_peer, peer, partial(submitter.extract, backbone))
            what = f"{backbone} by {program.stem}"
            add(_rows(what, partial(measure, n_images, settings.repeat)))


def _rows(what: str, measure: Callable[[], list[Row]]) -> list[Row]:
    try:
        return measure()
    except Exception as error:  # whatever it is, the other sections go on
        return [_failed(what, error)]


def _failed(what: str, error: Exception) -> Row:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    log.error("%s: %s", what, reason)
    return failed_row(what, reason[:300])
