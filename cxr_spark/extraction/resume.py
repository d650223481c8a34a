"""What each extraction still lacks, computed shard by shard, and its end."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.config import Experiment
from cxr_spark.errors import RunFailed, UserError
from cxr_spark.extraction.account import (
    ERRORS_ALLOWED,
    FINAL_STAGES,
    IMAGE_KEY,
    Remaining,
    account_errors,
    find_remaining,
    most_frequent,
    read_columns,
    stale_files,
)
from cxr_spark.extraction.listing import Listing
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.one_pass import PARQUET, PassedShard, run_pass
from cxr_spark.extraction.shards import (
    Failure,
    Shard,
    clear_parts,
    commit_shard,
    finish,
    parts_of,
    read_shards,
)
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    FEATURE_COLUMNS,
    FEATURE_MAP_COLUMNS,
    LISTING_COLUMNS,
    MANIFEST_COLUMNS,
    RECORD_NAME,
    ExtractionRecord,
    check_files,
    read_record,
)
from cxr_spark.files import location
from cxr_spark.spark import describe_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """Where features go.

    Attributes:
        features: the features folder.
        staging: a folder in it, for what is not committed.
        feature_maps: whether maps are asked for.
    """

    features: Path
    staging: Path
    feature_maps: bool

    def manifest(self, spark: SparkSession) -> DataFrame:
        """Return every image found."""
        return read_columns(spark, self.features / "manifest", LISTING_COLUMNS)


@dataclass(frozen=True)
class Begun:
    """What there is of one backbone's extraction.

    Attributes:
        backbone: that computes it.
        parts: the folder of its shards.
        finished: the record of the data set that its shards join; None where there is none, or one
            that lacks maps.
        shards: computed since.
        failures: images that could not be used, of the data set and of its shards, in their order.
    """

    backbone: LoadedBackbone
    parts: Path
    finished: ExtractionRecord | None
    shards: tuple[Shard, ...]
    failures: tuple[Failure, ...]

    @property
    def kept(self) -> list[str]:
        """The names of the files of the data set that stay."""
        replaced = {name for shard in self.shards for name in shard.replaces}
        names = self.finished.files if self.finished else {}
        return [name for name in names if name not in replaced]

    def files(self, features: Path) -> list[Path]:
        """Return the Parquet files of all features there are."""
        place = features / self.backbone.identity.fingerprint
        return [place / name for name in self.kept] + [f for s in self.shards for f in s.files]


def begun(outputs: Outputs, backbone: LoadedBackbone) -> Begun:
    """Read what there is of a backbone's extraction.

    Raises:
        UserError: the data set is damaged.
    """
    fingerprint = backbone.identity.fingerprint
    place, finished, failures = outputs.features / fingerprint, None, list[Failure]()
    if (place / RECORD_NAME).exists():
        finished = read_record(place)
        if finished.feature_map_shape is None and outputs.feature_maps:
            finished = None
        else:
            check_files(outputs.features, finished)
            failures += _stored_failures(outputs.features, fingerprint)
    has_maps = outputs.feature_maps or bool(finished and finished.feature_map_shape)
    parts = parts_of(outputs.features, fingerprint, feature_maps=has_maps)
    shards = read_shards(parts)
    failures += [failure for shard in shards for failure in shard.failures]
    return Begun(backbone, parts, finished, tuple(shards), tuple(failures))


def _stored_failures(features: Path, fingerprint: str) -> list[Failure]:
    folder = features / "errors" / f"fingerprint={fingerprint}"
    try:
        rows = pq.ParquetDataset(folder).read(columns=list(ERROR_COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Expected the errors table of an extraction. Received: {folder} ({error}). "
            "Extract again with --overwrite."
        ) from error
    return [tuple(row[name] for name in ERROR_COLUMNS) for row in rows if row["stage"] != "path"]


def complete(
    spark: SparkSession,
    experiment: Experiment,
    outputs: Outputs,
    listing: Listing,
    backbones: Sequence[LoadedBackbone],
    demonstration: str,
    *,
    warmed: Callable[[], object],
) -> None:
    """Compute and commit whatever the extractions of some backbones lack of a listing.

    Backbones that lack the same images run in one pass.

    Args:
        spark: the session.
        experiment: how many errors end the run.
        outputs: where to.
        listing: what the manifest is.
        backbones: with the graphs for what is asked.
        demonstration: for the records.
        warmed: waits until the workers have loaded their graphs.

    Raises:
        UserError: no image could be used, or a device cannot.
        RunFailed: see ``extract``.
    """
    passes: dict[tuple[int, int], tuple[Remaining, list[Begun]]] = {}
    final = () if experiment.refresh else FINAL_STAGES
    for backbone in backbones:
        state = begun(outputs, backbone)
        if _is_complete(state, listing, outputs, final):
            _tell(backbone, "already in the store")
            continue
        _check_maps(outputs, state)
        state, remaining = _look(spark, outputs, listing, state, final)
        n_there = listing.n_images - listing.n_refused - remaining.n_images
        _tell(
            backbone,
            f"{remaining.n_images:,} images to be computed"
            + (f", {n_there:,} already in the store" if n_there else ""),
        )
        key = (remaining.n_images, remaining.digest)
        passes.setdefault(key, (remaining, []))[1].append(state)
    for remaining, states in passes.values():
        failures = _of_stages(states[0].failures, final)
        _check_errors(spark, experiment, outputs, listing, failures)
        if remaining.n_images:
            _pass(spark, experiment, outputs, listing, remaining, states, failures, warmed)
        for state in states:
            now = begun(outputs, state.backbone)
            _finish(spark, outputs, listing, now, demonstration)


def _tell(backbone: LoadedBackbone, what: str) -> None:
    identity = backbone.identity
    log.info("%s: extraction %s, %s", identity.backbone, identity.fingerprint, what)


def _is_complete(state: Begun, listing: Listing, outputs: Outputs, final: tuple[str, ...]) -> bool:
    """Return whether a data set holds all of a listing, and nothing would be tried again.

    Where it has maps and none are asked for, nothing can be.
    """
    if state.finished is None or state.shards:
        return False
    again = len(_of_stages(state.failures, final)) < len(state.failures)
    can_compute = outputs.feature_maps or state.finished.feature_map_shape is None
    return state.finished.listing_digest == listing.digest and not (again and can_compute)


def _of_stages(failures: Sequence[Failure], stages: tuple[str, ...]) -> list[Failure]:
    return [failure for failure in failures if failure[3] in stages]


def _look(
    spark: SparkSession,
    outputs: Outputs,
    listing: Listing,
    state: Begun,
    final: tuple[str, ...],
) -> tuple[Begun, Remaining]:
    """Return what an extraction lacks, and what there is of it once stale rows are gone."""
    files = state.files(outputs.features)
    manifest = outputs.manifest(spark)
    if not files and not state.failures:
        images = manifest.where("error IS NULL").select(*MANIFEST_COLUMNS)
        return state, Remaining(images, listing.n_images - listing.n_refused, 0)
    while True:
        failures = _of_stages(state.failures, final)
        remaining = find_remaining(spark, manifest, files, failures)
        if not remaining.n_stale:
            return state, remaining
        usable = manifest.where("error IS NULL")  # as find_remaining counts, or this would not end
        _drop_stale(spark, outputs, state, usable, stale_files(spark, usable, files))
        state = begun(outputs, state.backbone)
        files = state.files(outputs.features)


def _drop_stale(
    spark: SparkSession, outputs: Outputs, state: Begun, usable: DataFrame, stale: list[Path]
) -> None:
    """Take rows of images that are gone or have changed out of the files that hold them.

    A shard that holds one is removed; the rest of a data set's file is written anew, as a shard.
    """
    for shard in state.shards:
        if set(shard.files) & set(stale):
            shutil.rmtree(shard.folder)
    place = outputs.features / state.backbone.identity.fingerprint
    of_set = [file for file in stale if file.parent == place]
    if not of_set:
        return
    columns = {**FEATURE_COLUMNS}
    if state.finished and state.finished.feature_map_shape:
        columns |= FEATURE_MAP_COLUMNS
    rows = read_columns(spark, of_set, columns)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}-kept"
    staged = outputs.staging / name
    (
        rows.join(usable, IMAGE_KEY, "left_semi")
        .select(*columns)
        .write.options(**PARQUET)
        .parquet(location(staged))
    )
    commit_shard(state.parts, name, staged, [], [file.name for file in of_set])


def _check_maps(outputs: Outputs, state: Begun) -> None:
    if state.finished and state.finished.feature_map_shape and not outputs.feature_maps:
        raise UserError(
            "Expected --feature-maps where other images are to join an extraction with maps. "
            f"Received: {state.finished.describe()}, and none"
        )


def _pass(
    spark: SparkSession,
    experiment: Experiment,
    outputs: Outputs,
    listing: Listing,
    remaining: Remaining,
    states: Sequence[Begun],
    known: Sequence[Failure],
    warmed: Callable[[], object],
) -> None:
    """Compute what some extractions lack, all the same images, and commit each shard."""
    failures = list(known)

    def done(shard: PassedShard) -> None:
        _check_features(shard.failures)
        for state in states:
            folder = shard.folder / f"fingerprint={state.backbone.identity.fingerprint}"
            commit_shard(state.parts, shard.name, folder, shard.failures)
        failures.extend(shard.failures)
        _check_errors(spark, experiment, outputs, listing, failures)

    run_pass(
        spark, remaining.images, remaining.n_images, [state.backbone for state in states],
        outputs.staging, feature_maps=outputs.feature_maps, warmed=warmed, done=done,
    )  # fmt: skip


def _check_features(failures: Sequence[Failure]) -> None:
    """Refuse a shard in which a backbone gave what are no features.

    Raises:
        RunFailed: names the backbone and the image.
    """
    for image_id, _, _, stage, error in failures:
        if stage == "features":
            raise RunFailed(
                f"{error} (image {image_id}). Nothing of it is stored. Look at the weights, the "
                "preprocessing and the precision."
            )


def _check_errors(
    spark: SparkSession,
    experiment: Experiment,
    outputs: Outputs,
    listing: Listing,
    failures: Sequence[Failure],
) -> None:
    """End a run of which too many images could not be used.

    Raises:
        RunFailed: there are more than ten, and more than the share that is allowed.
    """
    n_errors = listing.n_refused + len(failures)
    if n_errors <= max(ERRORS_ALLOWED, experiment.max_error_fraction * listing.n_images):
        return
    refused = outputs.manifest(spark).where("error IS NOT NULL").select("image_id", "error")
    reasons = [(row["image_id"], "path", row["error"]) for row in refused.toLocalIterator()]
    reasons += [(image_id, stage, error) for image_id, _, _, stage, error in failures]
    for line in most_frequent(reasons):
        log.error("  %s", line)
    raise RunFailed(
        f"{n_errors:,} of {listing.n_images:,} images could not be used so far, more than "
        f"max_error_fraction {experiment.max_error_fraction:g} allows; the most frequent reasons "
        "stand above. What was computed is kept: mend the files and add --refresh to the command, "
        "or raise --max-error-fraction"
    )


def _finish(
    spark: SparkSession,
    outputs: Outputs,
    listing: Listing,
    state: Begun,
    demonstration: str,
) -> None:
    """Account for every image of one backbone's extraction and move it into its place."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    backbone, files = state.backbone, state.files(outputs.features)
    identity = backbone.identity
    if not files:
        clear_parts(outputs.features, identity.fingerprint)
        reasons = "; ".join(sorted({error for *_, error in state.failures})[:3])
        raise UserError(
            f"Expected at least one image that can be used. Received: {listing.n_images} images, "
            f"all with errors ({reasons})"
        )
    rows = read_columns(spark, files, MANIFEST_COLUMNS)
    errors = account_errors(spark, outputs.manifest(spark), rows, state.failures)
    written = Observation("errors")
    counted = errors.observe(written, F.count("*").alias("n_errors"))
    staged_errors = outputs.staging / "errors" / identity.fingerprint
    counted.coalesce(1).write.parquet(location(staged_errors))
    shape = backbone.graph.feature_map_shape if outputs.feature_maps else None
    record = ExtractionRecord(
        identity=identity,
        weights=backbone.weights,
        feature_map_shape=state.finished.feature_map_shape if state.finished else shape,
        n_images=listing.n_images,
        n_rows=rows.count(),
        n_errors=written.get["n_errors"],
        listing_digest=listing.digest,
        limit=listing.limit,
        demonstration=demonstration,
        spark=describe_session(spark),
        files={},
    )
    finish(outputs.features, state.parts, staged_errors, record, kept=state.kept)
    log.info(
        "%s: %d images in = %d rows + %d errors%s",
        identity.backbone,
        record.n_images,
        record.n_rows,
        record.n_errors,
        f", their reasons in {outputs.features / 'errors'}" if record.n_errors else "",
    )
