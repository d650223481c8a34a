"""The feature store on disk: its columns, the identity of an extraction, and the folders of both.

FEATURES/
  manifest/                     Parquet, a row for every image found; _manifest.json beside
  <fingerprint>/                Parquet, a row for every image used; _extraction.json beside
  errors/fingerprint=.../       Parquet, a row for every image that could not be used
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_spark.errors import UserError
from cxr_spark.files import write_json

if TYPE_CHECKING:
    import pandas as pd

CONTRACT = 2

MANIFEST_COLUMNS = {
    "image_id": "string",
    "path": "string",
    "length": "bigint",
    "modified": "timestamp",
    "patient_id": "string",
    "finding": "string",
    "official_split": "string",
}
LISTING_COLUMNS = {**MANIFEST_COLUMNS, "error": "string"}
FEATURE_COLUMNS = {
    **MANIFEST_COLUMNS,
    "height": "int",
    "width": "int",
    "pixels_digest": "string",
    "pooled": "array<float>",
}
FEATURE_MAP_COLUMNS = {"feature_map": "binary", "feature_map_scale": "float"}
ERROR_COLUMNS = {
    "image_id": "string",
    "path": "string",
    "length": "bigint",
    "stage": "string",
    "error": "string",
}


def schema(columns: dict[str, str]) -> str:
    """Return a table of columns as the DDL string that Spark takes."""
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())


def stored_features(outputs: tuple[npt.NDArray[Any], ...]) -> dict[str, Any]:
    """Return the feature columns of a table, made of what a backbone's forward function returns."""
    columns: dict[str, Any] = {"pooled": list(outputs[0])}
    if len(outputs) > 1:
        _, feature_maps, scales = outputs
        columns["feature_map"] = _as_binary(feature_maps)
        columns["feature_map_scale"] = scales
    return columns


def _as_binary(arrays: npt.NDArray[Any]) -> pd.Series[Any]:
    """Return a column of the bytes of each array, for which nothing is copied.

    Arrow takes it as it is; ``bytes`` objects would cost 0.1 ms for a map of 7x7x576.

    Args:
        arrays: of shape (n, ...).
    """
    import pandas as pd
    import pyarrow as pa

    arrays = np.ascontiguousarray(arrays)
    offsets = np.arange(len(arrays) + 1) * arrays[0].nbytes
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"expected at most 2 GB of maps at once, received {offsets[-1]} bytes")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(arrays)]
    binary = pa.Array.from_buffers(pa.binary(), len(arrays), buffers)
    return pd.Series(pd.arrays.ArrowExtensionArray(binary))


@dataclass(frozen=True)
class Identity:
    """What makes two features comparable; features of different identities are never mixed.

    Attributes:
        weights_digest: SHA-256 of the weights as loaded (``backbones.weights_digest``).
        image_size: (height, width) in pixels.
        contract: version of these tables and of how pixels are made.
    """

    backbone: str
    weights_digest: str
    preprocessing: str
    image_size: tuple[int, int]
    resize: str = "bilinear"
    precision: str = "float32"
    contract: int = CONTRACT

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all fields."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ExtractionRecord:
    """What ``_extraction.json`` holds: the identity, and how the features came to be.

    Attributes:
        weights: 'imagenet', 'random', or 'folder' and the name of the weights folder.
        feature_map_shape: (height, width, channels) of the stored maps; None where none are stored.
        n_images: images found = ``n_rows`` + ``n_errors``.
        listing_digest: of the set of images found, to tell whether a folder has changed.
        limit: how many images a sample was cut to; None for all of a folder.
        demonstration: why the features say nothing of real X-rays, or an empty string.
        spark: versions and the Spark configuration that made them.
    """

    identity: Identity
    weights: str
    feature_map_shape: tuple[int, int, int] | None
    n_images: int
    n_rows: int
    n_errors: int
    listing_digest: str
    limit: int | None
    demonstration: str
    spark: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the identity, which is the name of the data set's folder."""
        return self.identity.fingerprint

    def describe(self) -> str:
        """Return one line for a list of extractions."""
        identity = self.identity
        size = "x".join(str(side) for side in identity.image_size)
        maps = "with" if self.feature_map_shape else "without"
        return (
            f"{self.fingerprint} ({identity.backbone}, weights {self.weights} "
            f"{identity.weights_digest[:8]}, preprocessing {identity.preprocessing}, {size}, "
            f"{identity.precision}, contract {identity.contract}, "
            f"{self.n_rows} images, {maps} feature maps)"
        )


RECORD_NAME = "_extraction.json"


def write_record(folder: Path, record: ExtractionRecord) -> None:
    """Write ``_extraction.json`` into a data set's folder."""
    write_json(
        folder / RECORD_NAME, {"fingerprint": record.fingerprint, **dataclasses.asdict(record)}
    )


def read_record(folder: Path) -> ExtractionRecord:
    """Read ``_extraction.json`` of a data set.

    Raises:
        UserError: the file is missing, is no such record, or its identity has been changed.
    """
    file = folder / RECORD_NAME
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        stated = fields.pop("fingerprint")
        identity = dict(fields.pop("identity"))
        identity["image_size"] = tuple(identity["image_size"])
        shape = fields.pop("feature_map_shape")
        record = ExtractionRecord(
            Identity(**identity), feature_map_shape=shape and tuple(shape), **fields
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected the record of an extraction. Received: {file} ({error})"
        ) from error
    if not stated == record.fingerprint == folder.name:
        raise UserError(
            f"Expected {file} to describe the extraction {folder.name}. "
            "Received: one whose identity has the "
            f"fingerprint {record.fingerprint}. Extract again with --overwrite."
        )
    return record


def list_extractions(features: Path) -> list[ExtractionRecord]:
    """Return the records of all finished extractions of a folder, by backbone and fingerprint."""
    found = [read_record(file.parent) for file in sorted(features.glob(f"*/{RECORD_NAME}"))]
    return sorted(found, key=lambda record: (record.identity.backbone, record.fingerprint))


def commit(features: Path, staged: Path, staged_errors: Path, record: ExtractionRecord) -> None:
    """Move one backbone's features and errors from the staging area into their place.

    Raises:
        RuntimeError: rows and errors do not add up to the images found.
    """
    if record.n_rows + record.n_errors != record.n_images:
        raise RuntimeError(
            f"{record.describe()}: {record.n_images} images in, "
            f"but {record.n_rows} rows and {record.n_errors} errors"
        )
    write_record(staged, record)
    places = (
        features / "errors" / f"fingerprint={record.fingerprint}",
        features / record.fingerprint,
    )
    for source, place in zip((staged_errors, staged), places, strict=True):
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        source.rename(place)


@dataclass(frozen=True)
class Listing:
    """The images that a features folder is made of.

    Attributes:
        n_images: how many were found.
        n_refused: how many of them have a path that the adapter does not recognise.
        digest: of the set of their names, sizes, times, and what the paths say.
        limit: how many images a sample was cut to; None for all of a folder.
    """

    n_images: int
    n_refused: int
    digest: str
    limit: int | None = None

    def is_of_same_images(self, other: Listing) -> bool:
        """Return whether two listings are of the same images, however they were chosen."""
        return (self.n_images, self.digest) == (other.n_images, other.digest)


def write_listing_record(manifest: Path, listing: Listing) -> None:
    """Write the record into a manifest's folder; without it the folder is not ours."""
    write_json(manifest / "_manifest.json", dataclasses.asdict(listing))


def read_listing_record(features: Path) -> Listing | None:
    """Return the record of a features folder's manifest, or None where it has none.

    Raises:
        UserError: the record is damaged.
    """
    file = features / "manifest" / "_manifest.json"
    if not file.exists():
        return None
    try:
        return Listing(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Expected the record of a manifest. Received: {file} ({error})") from error


def clear_store(features: Path, listing: Listing, fingerprints: Sequence[str]) -> None:
    """Remove extractions of a features folder, so that they are computed afresh.

    Where the folder is of the same images, the named extractions go and others stay; where it is of
    other images, all go. What is not the store's is never touched.
    """
    stored = read_listing_record(features)
    if stored is None:
        return
    if stored.is_of_same_images(listing):
        for fingerprint in fingerprints:
            shutil.rmtree(features / fingerprint, ignore_errors=True)
            shutil.rmtree(features / "errors" / f"fingerprint={fingerprint}", ignore_errors=True)
        return
    for record in features.glob(f"*/{RECORD_NAME}"):
        shutil.rmtree(record.parent)
    for name in ("manifest", "errors"):
        shutil.rmtree(features / name, ignore_errors=True)
