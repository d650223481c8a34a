"""The listing of an image root in a features folder, and what has changed since an earlier one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_spark.config import Experiment
from cxr_spark.dataset.manifest import even_sample, read_listing
from cxr_spark.errors import UserError
from cxr_spark.extraction.account import read_columns
from cxr_spark.extraction.store import LISTING_COLUMNS, parquet_files
from cxr_spark.files import write_json
from cxr_spark.paths import (
    AnyPath,
    RemotePath,
    StoreError,
    copy_tree,
    location,
    map_files,
    move,
    moves_at_once,
    remove_tree,
)
from cxr_spark.spark_jobs import described, errors_of_tasks

log = logging.getLogger(__name__)

# What makes two listings the same: not where the images lie, but what their paths say of them.
DIGESTED = [name for name in LISTING_COLUMNS if name != "path"]
MANIFEST_RECORD = "_manifest.json"
REPLACED = "replaced"  # a manifest that another is about to take the place of
# In a store, which renames nothing: what lies beside it and has no record is ours to remove.
MOVING = "_moving"
_SAID_OF_PATHS = ("patient_id", "finding", "official_split", "error")

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Listing:
    """The images that a features folder is made of.

    Attributes:
        n_images: how many were found.
        n_refused: how many of them have a path that the adapter does not recognise.
        digest: of the set of their names, sizes, times, and what the paths say.
        limit: how many images a sample was cut to; None for all of a folder.
        places: digest of where each image lies; empty in records of before it was kept.
        files: bytes of each of the manifest's Parquet files by name.
        sha256: likewise their digests; empty in records of before they were kept.
        n_bytes: of all images; 0 in records of before it was kept.
    """

    n_images: int
    n_refused: int
    digest: str
    limit: int | None = None
    places: str = ""
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    n_bytes: int = 0

    @property
    def n_usable(self) -> int:
        """How many images are to be computed."""
        return self.n_images - self.n_refused

    def is_of_same_images(self, other: Listing) -> bool:
        """Return whether two listings are of the same images, however they were chosen."""
        return (self.n_images, self.digest) == (other.n_images, other.digest)


def write_listing_record(manifest: AnyPath, listing: Listing) -> Listing:
    """Write the record into a manifest's folder, and return it with the files that are there.

    Without a record the folder is not ours.
    """
    listing = dataclasses.replace(listing, files=_files(manifest), sha256=_digests(manifest))
    write_json(manifest / MANIFEST_RECORD, dataclasses.asdict(listing))
    return listing


def _files(manifest: AnyPath) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in parquet_files(manifest)}


def _digests(manifest: AnyPath) -> dict[str, str]:
    files = parquet_files(manifest)
    return dict(zip((file.name for file in files), map_files(_sha256, files), strict=True))


def _sha256(file: AnyPath) -> str:
    if isinstance(file, RemotePath):  # at once: hashlib would ask for a small part at a time
        return hashlib.sha256(file.read_bytes()).hexdigest()
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_listing_record(features: AnyPath) -> Listing | None:
    """Return the record of a features folder's manifest, or None where it has none.

    Raises:
        UserError: the record is damaged, or its files are not those that were written.
    """
    file = features / "manifest" / MANIFEST_RECORD
    if not file.exists():
        return None
    try:
        listing = Listing(**json.loads(file.read_text(encoding="utf-8")))
    except StoreError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Expected the record of a manifest. Received: {file} ({error})") from error
    found = _files(file.parent)
    if found != listing.files:
        other = sorted(dict(found.items() ^ listing.files.items()))[0]
        raise UserError(
            f"Expected the files that {file} names. Received: {file.parent / other}, which is "
            "missing, cut or foreign. Extract again with --overwrite."
        )
    digests = _digests(file.parent) if listing.sha256 else {}
    if changed := sorted(dict(digests.items() ^ listing.sha256.items())):
        raise UserError(
            f"Expected the files that {file} names. Received: {file.parent / changed[0]}, which "
            "has changed since it was written. Extract again with --overwrite."
        )
    return listing


def stage_listing(
    spark: SparkSession, experiment: Experiment, images: str, folder: AnyPath
) -> Listing:
    """Write every image found under a root to ``folder``, as Parquet, and return what they are.

    Args:
        spark: the session.
        experiment: names the adapter and the limit.
        images: the image root.
        folder: a new folder.
    """
    dataset, limit = experiment.dataset, experiment.limit
    found = read_listing(spark, images, dataset.adapter, dataset.patient_pattern)
    with described(spark, f"listing the images under {images}"), errors_of_tasks():
        if limit is not None:
            n_found = found.count()
            if limit < n_found:
                found = even_sample(found, limit, n_found)
            else:
                limit = None
        log.info("listing the images under %s", images)
        return _write_listing(found, folder, limit)


def _write_listing(images: DataFrame, folder: AnyPath, limit: int | None) -> Listing:
    from pyspark.sql import Observation
    from pyspark.sql import functions as F  # noqa: N812

    written = Observation("listing")
    (
        images.select(*LISTING_COLUMNS)
        .observe(
            written,
            F.count("*").alias("n_images"),
            F.count("error").alias("n_refused"),
            F.bit_xor(F.xxhash64(*DIGESTED)).alias("digest"),
            F.bit_xor(F.xxhash64("image_id", "path")).alias("places"),
            F.sum(F.greatest("length", F.lit(0))).alias("n_bytes"),
        )
        .write.parquet(location(folder))
    )
    row = written.get
    digest, places = (  # null where there is no image
        f"{(row[name] or 0) & (2**64 - 1):016x}" for name in ("digest", "places")
    )
    listing = Listing(
        row["n_images"], row["n_refused"], digest, limit, places, n_bytes=row["n_bytes"] or 0
    )
    return write_listing_record(folder, listing)


def accept_listing(
    spark: SparkSession, features: AnyPath, staged: AnyPath, listing: Listing, *, refresh: bool
) -> Listing:
    """Make the staged listing the store's manifest, or join what is new in it to the manifest.

    Images that have changed or are gone since an earlier run are told; their rows of the manifest
    stay as they were, so that their features stay, unless they are to be refreshed.

    Args:
        spark: the session.
        features: the features folder.
        staged: where ``stage_listing`` wrote.
        listing: what it returned.
        refresh: whether changed images are to be computed again, and those that are gone dropped.

    Returns:
        The listing that the manifest now is.

    Raises:
        UserError: the store is of other images.
    """
    stored = read_listing_record(features)
    manifest = features / "manifest"
    if stored is None:
        if not is_missing(manifest):
            raise UserError(
                f"Expected --features to be new or a features folder. Received: {features}, whose "
                "manifest/ is not ours. Give another --features."
            )
        move_listing(staged, manifest)
        return listing
    if stored.is_of_same_images(listing):
        return _follow(manifest, staged, stored, listing)
    beside = staged.with_name("joined")
    with described(spark, "comparing the images with those of the run before"):
        _check_is_related(spark, features, staged, stored, listing, refresh=refresh)
        joined = _join(spark, manifest, staged, refresh=refresh)
        now = _write_listing(joined, beside, listing.limit)
    if stored.is_of_same_images(now):
        return _follow(manifest, beside, stored, now)
    _replace(manifest, beside)
    return now


def is_missing(manifest: AnyPath) -> bool:
    """Return whether there is no manifest, or what a stopped run had moved of one file by file."""
    if moves_at_once(manifest) or (manifest / MANIFEST_RECORD).exists():
        return not manifest.exists()
    return (manifest / MOVING).exists() or not any(manifest.iterdir())


def move_listing(folder: AnyPath, target: AnyPath) -> None:
    """Move a manifest to where there is none, or what ``is_missing`` takes for none."""
    if isinstance(folder, Path) or isinstance(target, Path) or moves_at_once(target):
        move(folder, target)
        return
    _empty(target)
    copy_tree(folder, target)
    (target / MOVING).unlink()
    remove_listing(folder)


def remove_listing(folder: AnyPath) -> None:
    """Remove a manifest such that of what may be left it is known whose it is."""
    if isinstance(folder, RemotePath):
        _empty(folder)
    remove_tree(folder)


def _empty(folder: RemotePath) -> None:
    """Leave nothing in a manifest's folder but what says that it is ours; first goes its record."""
    (folder / MOVING).write_bytes(b"")
    (folder / MANIFEST_RECORD).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name != MOVING:
            remove_tree(entry)


def _follow(manifest: AnyPath, beside: AnyPath, stored: Listing, now: Listing) -> Listing:
    """Have the manifest say where its images lie now; the same images may have been moved."""
    stored = dataclasses.replace(stored, n_bytes=now.n_bytes)
    if stored.places == now.places:
        return stored
    moved = write_listing_record(beside, dataclasses.replace(stored, places=now.places))
    _replace(manifest, beside)
    return moved


def _replace(manifest: AnyPath, beside: AnyPath) -> None:
    move_listing(manifest, beside.with_name(REPLACED))
    move_listing(beside, manifest)


def _check_is_related(
    spark: SparkSession,
    features: AnyPath,
    staged: AnyPath,
    stored: Listing,
    listing: Listing,
    *,
    refresh: bool,
) -> None:
    """Tell what has changed; refuse a listing of which too little stood in the store's.

    Raises:
        UserError: another sample was cut, paths are read in another way, more than half of the
            images are gone, or images are to be dropped while a folder cannot be read.
    """
    changes = _compare(spark, features / "manifest", staged)
    is_sample = (stored.limit, listing.limit) != (None, None)
    other_sample = stored.limit != listing.limit or changes["n_new"] or changes["n_gone"]
    gone = changes["n_gone"] > stored.n_images / 2
    if (is_sample and other_sample) or changes["n_read_otherwise"] or gone:
        raise UserError(
            "Expected the features folder of the same images, or of a part of them. "
            f"Received: {features}, made of {stored.n_images} images, where --images (and --limit) "
            f"now give {listing.n_images}; names, sizes, times or what dataset: reads of paths "
            "differ. Give another --features, or --overwrite to start afresh."
        )
    if refresh and changes["n_gone"] and changes["n_folders"]:
        raise UserError(
            f"Expected to read all folders before images are dropped. Received: "
            f"{changes['first_folders']} under --images, which cannot be read"
        )
    log.info("%d images are new since the last extraction", changes["n_new"])
    for what, kept, refreshed in (
        (
            "changed",
            "features that they have are of the files as they were, and those that have none "
            "are errors",
            "they are computed again",
        ),
        ("gone", "their features stay", "their features go"),
    ):
        if n := changes[f"n_{what}"]:
            log.warning(
                "%d images are %s since the last extraction (first: %s): %s",
                n, what, changes[f"first_{what}"],
                refreshed if refresh else f"{kept}; --refresh brings them up to date",
            )  # fmt: skip


def _compare(spark: SparkSession, manifest: AnyPath, staged: AnyPath) -> dict[str, Any]:
    """Return how many images are new, changed, gone or read otherwise, and the first of some."""
    from pyspark.sql import functions as F  # noqa: N812

    both = _side_by_side(spark, manifest, staged)
    old, new = F.col("old.image_id").isNotNull(), F.col("new.image_id").isNotNull()
    same_file = F.lit(True)
    for name in ("length", "modified"):
        same_file &= F.col(f"old.{name}").eqNullSafe(F.col(f"new.{name}"))
    said_otherwise = F.lit(False)
    for name in _SAID_OF_PATHS:
        said_otherwise |= ~F.col(f"old.{name}").eqNullSafe(F.col(f"new.{name}"))
    is_folder = F.coalesce("new.image_id", F.lit("")).endswith("/")
    kinds = {
        "folders": is_folder,
        "new": ~old & new & ~is_folder,
        "gone": old & ~new,
        "changed": old & new & ~same_file,
        "read_otherwise": old & new & said_otherwise,
    }
    image_id = F.coalesce("old.image_id", "new.image_id")
    (row,) = both.agg(
        *(F.count(F.when(holds, 1)).alias(f"n_{kind}") for kind, holds in kinds.items()),
        *(F.min(F.when(holds, image_id)).alias(f"first_{kind}") for kind, holds in kinds.items()),
    ).collect()
    return dict(row.asDict())


def _join(spark: SparkSession, manifest: AnyPath, staged: AnyPath, *, refresh: bool) -> DataFrame:
    """Return the listing that follows from the stored one and a new one.

    Without ``refresh``, an image that stood in the stored one stays as it was, but for its place.
    """
    from pyspark.sql import functions as F  # noqa: N812

    if refresh:
        return read_columns(spark, staged, LISTING_COLUMNS)
    # What could not be read when it was listed has no features that would have to stay.
    was = F.col("old.image_id").isNotNull() & (
        (F.col("old.length") >= 0) | F.col("new.image_id").isNull()
    )
    columns = [
        F.coalesce("new.path", "old.path").alias("path")
        if name == "path"
        else F.when(was, F.col(f"old.{name}")).otherwise(F.col(f"new.{name}")).alias(name)
        for name in LISTING_COLUMNS
    ]
    return (
        _side_by_side(spark, manifest, staged)
        .select(*columns)
        .repartition(1)
        .sortWithinPartitions("image_id")
    )


def _side_by_side(spark: SparkSession, manifest: AnyPath, staged: AnyPath) -> DataFrame:
    from pyspark.sql import functions as F  # noqa: N812

    old, new = (read_columns(spark, place, LISTING_COLUMNS) for place in (manifest, staged))
    # A folder that could not be read stands as a row, true of one listing alone.
    old = old.where(~F.col("image_id").endswith("/"))
    same = F.col("old.image_id") == F.col("new.image_id")
    return old.alias("old").join(new.alias("new"), same, "full_outer")
