"""The sections that need Spark or stored features, each ending in rows whatever happens."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_spark.benchmark.drawn_features import draw_features
from cxr_spark.benchmark.extraction import load, measure_extraction, timed_extract
from cxr_spark.benchmark.growth import measure_growth, measure_memory
from cxr_spark.benchmark.heads import N_ROWS, measure_reader, measure_training
from cxr_spark.benchmark.images import ImageSet
from cxr_spark.benchmark.ours import (
    Submitter,
    Trial,
    peer_weights,
    write_properties,
)
from cxr_spark.benchmark.peers import (
    CEILING,
    GRID,
    Peer,
    find_programs,
    measure_peer,
    measure_whole,
    takes_cores,
)
from cxr_spark.benchmark.rows import MeasurementError, Row, failed_row, rate_row
from cxr_spark.benchmark.settings import Settings
from cxr_spark.benchmark.variants import measure_cores, measure_maps, measure_pass
from cxr_spark.spark import local_cores, open_session

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
    master = write_properties(properties) if settings.submits else ""
    if settings.extracts:
        _in_session(settings, sets, folder, core_rates, add)
        if "reader" in settings.sections:
            add(_rows("reader, pooled, drawn", partial(_drawn_reader, settings, folder)))
    elif "training" in settings.sections:
        add(_rows("training", lambda: measure_training(settings, folder, None)))
    if not settings.submits:
        return
    # From here on with no session open, which would hold a cluster's cores.
    cores = local_cores(master)
    programs = [] if settings.peers is None else find_programs(settings.peers)

    def submitter(images: ImageSet) -> Submitter:
        given = settings.weights, folder, settings.precision
        return Submitter(jobs, properties, images.root, *given)

    for images in sets:
        _run_variants(settings, programs, images, submitter(images), add, cores)
    if settings.pairs:
        if "grid" not in settings.sections and any(p.stem == GRID for p in programs):
            programs = [program for program in programs if program.stem != GRID]
            add([failed_row(GRID, "not run: add grid to --sections, which takes minutes")])
        for images in sets:
            _run_peers(settings, programs, images, submitter(images), add, cores)


def _in_session(
    settings: Settings,
    sets: Sequence[ImageSet],
    folder: Path,
    core_rates: dict[tuple[str, str], float],
    add: Add,
) -> None:
    began = time.perf_counter()
    with open_session("cxr_spark benchmark") as spark:
        opened = time.perf_counter() - began
        add(
            [
                rate_row("starting Spark's JVM, before Python", [_jvm_seconds(spark)], unit="s"),
                rate_row("opening the session", [opened], unit="s"),
            ]
        )
        for name in settings.backbones:
            try:
                backbone, row = load(settings, name, folder)
                add([row])
                _measure_backbone(spark, settings, sets, backbone, folder, core_rates, add)
            except Exception as error:
                add([_failed(f"extraction by {name}", error)])
    if "training" in settings.sections and not settings.feature_maps:
        add(_rows("training", lambda: measure_training(settings, folder, None)))


def _drawn_reader(settings: Settings, folder: Path) -> list[Row]:
    features, n_rows = folder / "drawn", settings.limit or N_ROWS
    log.info("reader: drawing %d rows", n_rows)
    try:
        draw_features(features, n_rows)
        return measure_reader(settings, features)
    finally:
        shutil.rmtree(features, ignore_errors=True)


def _jvm_seconds(spark: SparkSession) -> float:
    """Return how long before this process its JVM was started: spark-submit's part of a start."""
    jvm: Any = spark.sparkContext._jvm
    started = jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getStartTime() / 1e3
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    since_boot = int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot - float(started)


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


def _run_variants(
    settings: Settings,
    programs: Sequence[Path],
    images: ImageSet,
    submitter: Submitter,
    add: Add,
    cores: int | None,
) -> None:
    """Run the sections of our own job in other ways, each in a process of its own."""
    local = cores is not None
    bare = next((program for program in programs if program.stem == CEILING), None)
    n_images, repeat, sections = len(images.paths), settings.repeat, settings.sections
    for name in settings.backbones:
        trial = Trial(submitter, (name,), images.name, n_images, repeat)
        if "maps" in sections:
            add(_rows(f"--feature-maps, {trial.name}", partial(measure_maps, trial)))
        if "growth" in sections:
            add(_rows(f"line, {trial.name}", partial(measure_growth, trial)))
            memory = partial(measure_memory, trial) if local else _not_on_a_cluster
            add(_rows(f"memory, {trial.name}", memory))
        if "cores" in sections:

            def gain(trial: Trial = trial, name: str = name) -> list[Row]:
                peer = None if bare is None else _peer(settings, bare, images, name, cores)
                return measure_cores(trial, peer)

            add(_rows(f"cores, {trial.name}", gain if local else _not_on_a_cluster))
    if "pass" in sections:

        def one_pass() -> list[Row]:
            if bare is None:
                raise MeasurementError(f"not run: needs {CEILING}.py in the folder of --peers")
            peers = [_peer(settings, bare, images, name, cores) for name in settings.backbones]
            trial = Trial(submitter, settings.backbones, images.name, n_images, repeat)
            return measure_pass(trial, peers)

        add(_rows(f"{len(settings.backbones)} backbones in one pass, {images.name}", one_pass))


def _not_on_a_cluster() -> list[Row]:
    raise MeasurementError("not run: with a local master only, whose processes can be looked at")


def _peer(
    settings: Settings, program: Path, images: ImageSet, backbone: str, cores: int | None
) -> Peer:
    """Return a program with a backbone's weights, and as many cores as our master has.

    Where that is a cluster, what the program does on this one machine judges nothing; nor does what
    it does in float32 judge a lower precision.

    Raises:
        MeasurementError: the weights are not there.
    """
    weights = peer_weights(settings, backbone)
    given = cores if cores is not None and takes_cores(program) else None
    alike = cores is not None and settings.precision == "float32"
    return Peer(program, images.name, images.root, backbone, weights, given, judges=alike)


def _run_peers(
    settings: Settings,
    programs: Sequence[Path],
    images: ImageSet,
    submitter: Submitter,
    add: Add,
    cores: int | None,
) -> None:
    n_images = len(images.paths)
    for program in programs:
        for backbone in settings.backbones:
            try:
                peer = _peer(settings, program, images, backbone, cores)
            except MeasurementError as error:
                add([failed_row(f"{backbone} by {program.stem}", error)])
                continue
            if program.stem == GRID:
                measure = partial(measure_whole, peer, partial(submitter.grid, backbone))
            else:
                measure = partial(
                    measure_peer, peer, partial(submitter.extract, [backbone]),
                    first=partial(submitter.extract_first, [backbone]),
                )  # fmt: skip
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
