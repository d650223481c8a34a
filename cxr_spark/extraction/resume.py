"""What each extraction still lacks, computed shard by shard, and its end."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from cxr_spark.extraction.begun import Begun, Outputs, begun
from cxr_spark.extraction.listing import Listing
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.one_pass import PARQUET, PassedShard, run_pass
from cxr_spark.extraction.shards import (
    Failure,
    clear_parts,
    commit_shard,
    finish,
)
from cxr_spark.extraction.store import (
    FEATURE_COLUMNS,
    FEATURE_MAP_COLUMNS,
    MANIFEST_COLUMNS,
    ExtractionRecord,
)
from cxr_spark.paths import AnyPath, location, remove_tree
from cxr_spark.spark import describe_session
from cxr_spark.spark_jobs import described

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one run of extract works on, whatever the backbone.

    Attributes:
        spark: the session.
        experiment: says how many errors end the run, and whether all are tried again.
        outputs: where features go.
        listing: what the manifest is.
        demonstration: for the records: why features say nothing of real X-rays, or empty.
    """

    spark: SparkSession
    experiment: Experiment
    outputs: Outputs
    listing: Listing
    demonstration: str

    @property
    def final(self) -> tuple[str, ...]:
        """The stages whose errors are not tried again."""
        return () if self.experiment.refresh else FINAL_STAGES


def complete(
    job: Job, backbones: Sequence[LoadedBackbone], *, warmed: Callable[[], object]
) -> None:
    """Compute and commit whatever the extractions of some backbones lack of a listing.

    Backbones that lack the same images run in one pass.

    Args:
        job: what of, and where to.
        backbones: with the graphs for what is asked.
        warmed: waits until the workers have loaded their graphs.

    Raises:
        UserError: no image could be used, or a device cannot.
        RunFailed: see ``extract``.
    """
    passes: dict[tuple[int, int], tuple[Remaining, list[Begun]]] = {}
    for backbone in backbones:
        state = begun(job.outputs, backbone)
        if _is_complete(job, state):
            _check_errors(job, state.failures)
            _tell(backbone, "already in the store")
            continue
        _check_maps(job.outputs, state)
        with described(job.spark, f"finding the images that {backbone.identity.backbone} lacks"):
            state, remaining = _look(job, state)
        n_there = job.listing.n_usable - remaining.n_images
        _tell(
            backbone,
            f"{remaining.n_images:,} images to be computed"
            + (f", {n_there:,} already in the store" if n_there else ""),
        )
        key = (remaining.n_images, remaining.digest)
        passes.setdefault(key, (remaining, []))[1].append(state)
    for remaining, states in passes.values():
        failures = _of_stages(states[0].failures, job.final)
        _check_errors(job, failures)
        if remaining.n_images:
            _pass(job, remaining, states, failures, warmed)
        for state in states:
            name = state.backbone.identity.backbone
            with described(job.spark, f"accounting for every image of {name}"):
                _finish(job, begun(job.outputs, state.backbone))


def _tell(backbone: LoadedBackbone, what: str) -> None:
    identity = backbone.identity
    log.info("%s: extraction %s, %s", identity.backbone, identity.fingerprint, what)


def _is_complete(job: Job, state: Begun) -> bool:
    """Return whether a data set holds all of a listing, and nothing would be tried again.

    Where it has maps and none are asked for, nothing can be.
    """
    if state.finished is None or state.shards:
        return False
    again = len(_of_stages(state.failures, job.final)) < len(state.failures)
    can_compute = job.outputs.feature_maps or state.finished.feature_map_shape is None
    return state.finished.listing_digest == job.listing.digest and not (again and can_compute)


def _of_stages(failures: Sequence[Failure], stages: tuple[str, ...]) -> list[Failure]:
    return [failure for failure in failures if failure[3] in stages]


def _look(job: Job, state: Begun) -> tuple[Begun, Remaining]:
    """Return what an extraction lacks, and what there is of it once stale rows are gone."""
    spark, outputs = job.spark, job.outputs
    files = state.files(outputs.features)
    manifest = outputs.manifest(spark)
    if not files and not state.failures:
        images = manifest.where("error IS NULL").select(*MANIFEST_COLUMNS)
        return state, Remaining(images, job.listing.n_usable, 0)
    while True:
        failures = _of_stages(state.failures, job.final)
        remaining = find_remaining(spark, manifest, files, failures)
        if not remaining.n_stale:
            return state, remaining
        usable = manifest.where("error IS NULL")  # as find_remaining counts, or this would not end
        outputs.check()
        _drop_stale(job, state, usable, stale_files(spark, usable, files))
        state = begun(outputs, state.backbone)
        files = state.files(outputs.features)


def _drop_stale(job: Job, state: Begun, usable: DataFrame, stale: list[AnyPath]) -> None:
    """Take rows of images that are gone or have changed out of the files that hold them.

    A shard that holds one is removed; the rest of a data set's file is written anew, as a shard.
    """
    for shard in state.shards:
        if set(shard.files) & set(stale):
            remove_tree(shard.folder)
    place = job.outputs.features / state.backbone.identity.fingerprint
    of_set = [file for file in stale if file.parent == place]
    if not of_set:
        return
    columns = {**FEATURE_COLUMNS}
    if state.finished and state.finished.feature_map_shape:
        columns |= FEATURE_MAP_COLUMNS
    rows = read_columns(job.spark, of_set, columns)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}-kept"
    staged = job.outputs.staging / name
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
    job: Job,
    remaining: Remaining,
    states: Sequence[Begun],
    known: Sequence[Failure],
    warmed: Callable[[], object],
) -> None:
    """Compute what some extractions lack, all the same images, and commit each shard."""
    failures = list(known)

    def done(shard: PassedShard) -> None:
        _check_features(shard.failures)
        job.outputs.check()
        for state in states:
            folder = shard.folder / f"fingerprint={state.backbone.identity.fingerprint}"
            commit_shard(state.parts, shard.name, folder, shard.failures)
        failures.extend(shard.failures)
        _check_errors(job, failures)

    run_pass(
        job.spark, remaining.images, remaining.n_images, [state.backbone for state in states],
        job.outputs.staging, image_bytes=job.listing.n_bytes / job.listing.n_images,
        feature_maps=job.outputs.feature_maps, warmed=warmed, done=done,
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


def _check_errors(job: Job, failures: Sequence[Failure]) -> None:
    """End a run of which too many images could not be used.

    Raises:
        RunFailed: there are more than ten, and more than the share that is allowed.
    """
    listing, allowed = job.listing, job.experiment.max_error_fraction
    n_errors = listing.n_refused + len(failures)
    if n_errors <= max(ERRORS_ALLOWED, allowed * listing.n_images):
        return
    refused = job.outputs.manifest(job.spark).where("error IS NOT NULL").select("image_id", "error")
    reasons = [(row["image_id"], "path", row["error"]) for row in refused.toLocalIterator()]
    reasons += [(image_id, stage, error) for image_id, _, _, stage, error in failures]
    for line in most_frequent(reasons):
        log.error("  %s", line)
    raise RunFailed(
        f"{n_errors:,} of {listing.n_images:,} images could not be used so far, more than "
        f"max_error_fraction {allowed:g} allows; the most frequent reasons "
        "stand above. What was computed is kept: mend the files and add --refresh to the command, "
        "or raise --max-error-fraction"
    )


def _finish(job: Job, state: Begun) -> None:
    """Account for every image of one backbone's extraction and move it into its place."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    spark, outputs, listing = job.spark, job.outputs, job.listing
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
        demonstration=job.demonstration,
        spark=describe_session(spark),
        files={},
    )
    outputs.check()
    finish(outputs.features, state.parts, staged_errors, record, kept=state.kept)
    log.info(
        "%s: %d images in = %d rows + %d errors%s",
        identity.backbone,
        record.n_images,
        record.n_rows,
        record.n_errors,
        f", their reasons in {outputs.features / 'errors'}" if record.n_errors else "",
    )
