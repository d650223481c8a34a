"""The feature store on disk: its columns, the identity of an extraction, and the folders of both.

FEATURES/
  manifest/                     Parquet, a row for every image found; _manifest.json beside
  <fingerprint>/                Parquet, a row for every image used; _extraction.json beside
  errors/fingerprint=.../       Parquet, a row for every image that could not be used
  _parts/<fingerprint>/         what an extraction that is not finished has computed: see shards.py
  _lock                         the run that writes there now
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_spark.checksums import sum_words
from cxr_spark.errors import UserError
from cxr_spark.files import write_json
from cxr_spark.paths import AnyPath, StoreError, arrow_folder

if TYPE_CHECKING:
    import pandas as pd

CONTRACT = 3

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
    "keys_checksum": "bigint",
    "pooled": "array<float>",
    "pooled_checksum": "bigint",
}
FEATURE_MAP_COLUMNS = {
    "feature_map": "binary",
    "feature_map_scale": "float",
    "feature_map_checksum": "bigint",
}
# What ``keys_checksum`` is of: all that is read of a row beside its features.
KEY_COLUMNS = ("image_id", "finding", "patient_id", "official_split", "pixels_digest")
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
    pooled, *of_maps = outputs
    columns: dict[str, Any] = {"pooled": list(pooled), "pooled_checksum": sum_words(pooled)}
    if of_maps:
        feature_maps, scales = of_maps
        columns["feature_map"] = _as_binary(feature_maps)
        columns["feature_map_scale"] = scales
        columns["feature_map_checksum"] = sum_words(feature_maps, scales)
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
class StoredFile:
    """One Parquet file of a data set, as it was when the extraction was finished."""

    n_bytes: int
    n_rows: int


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
        files: the data set's Parquet files by name.
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
    files: dict[str, StoredFile]

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
# The folders of data sets by their names; a copy that somebody put beside is none.
_DATA_SETS = "[0-9a-f]" * 16


def record_content(record: ExtractionRecord) -> dict[str, Any]:
    """Return a record as JSON holds it, with the digest by which a change of it is noticed."""
    fields = {"fingerprint": record.fingerprint, **dataclasses.asdict(record)}
    content: dict[str, Any] = json.loads(json.dumps(fields, default=str))
    return {**content, "digest": _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(folder: AnyPath, record: ExtractionRecord) -> None:
    """Write ``_extraction.json`` into a data set's folder."""
    write_json(folder / RECORD_NAME, record_content(record))


def read_record(folder: AnyPath) -> ExtractionRecord:
    """Read ``_extraction.json`` of a data set.

    Raises:
        UserError: the file is missing, is no such record, or has been changed since.
    """
    file = folder / RECORD_NAME
    try:
        record = parse_record(json.loads(file.read_text(encoding="utf-8")))
    except KeyError as error:
        raise UserError(
            f"Expected the record of an extraction. Received: {file}, which says nothing of "
            f"{error}, as one of an earlier version. Give another --features, or --overwrite."
        ) from error
    except StoreError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"Expected the record of an extraction. Received: {file} ({error})"
        ) from error
    if record is None or record.fingerprint != folder.name:
        raise UserError(
            f"Expected {file} to be as the extraction {folder.name} left it. Received: another "
            "text, which says nothing certain of these features. Extract again with --overwrite."
        )
    return record


def parse_record(content: dict[str, Any]) -> ExtractionRecord | None:
    """Return the record of ``record_content``, or None where it has been changed."""
    fields = dict(content)
    if fields.pop("digest") != _digest(fields):
        return None
    del fields["fingerprint"]
    identity = dict(fields.pop("identity"))
    identity["image_size"] = tuple(identity["image_size"])
    shape = fields.pop("feature_map_shape")
    files = {name: StoredFile(**stated) for name, stated in fields.pop("files").items()}
    return ExtractionRecord(
        Identity(**identity), feature_map_shape=shape and tuple(shape), files=files, **fields
    )


def record_files(features: AnyPath) -> list[AnyPath]:
    """Return the records of a folder's data sets, readable or not."""
    return sorted(features.glob(f"{_DATA_SETS}/{RECORD_NAME}"))


def list_extractions(features: AnyPath) -> list[ExtractionRecord]:
    """Return the records of all finished extractions of a folder, by backbone and fingerprint."""
    found = [read_record(file.parent) for file in record_files(features)]
    return sorted(found, key=lambda record: (record.identity.backbone, record.fingerprint))


def parquet_files(folder: AnyPath) -> list[AnyPath]:
    """Return the Parquet files of a folder that readers of a data set take, by name."""
    return sorted(file for file in folder.glob("*.parquet") if file.name[0] not in "_.")


def check_files(features: AnyPath, record: ExtractionRecord) -> None:
    """Refuse a data set whose files are not those that its extraction left.

    Raises:
        UserError: names the first file that is missing, was cut or replaced, or is not of the set.
    """
    folder = features / record.fingerprint
    found = {file.name: file.stat().st_size for file in parquet_files(folder)}
    for name in sorted({*found, *record.files}):
        stated = record.files.get(name)
        if stated is not None and found.get(name) == stated.n_bytes:
            continue
        if stated is None:
            what = "which is not one of them"
        elif name not in found:
            what = f"which is missing, and {stated.n_rows} images with it"
        else:
            what = f"of {found[name]} bytes, where {stated.n_bytes} were written"
        raise UserError(
            f"Expected the files that {folder / RECORD_NAME} names. Received: {folder / name}, "
            f"{what}. Extract again with --overwrite, or run extract again where it was stopped."
        )


def read_errors(features: AnyPath, record: ExtractionRecord) -> list[dict[str, Any]]:
    """Return the rows of an extraction's errors table, in ``ERROR_COLUMNS``, by ``image_id``.

    Raises:
        UserError: it is missing or damaged, or has other rows than the record says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = features / "errors" / f"fingerprint={record.fingerprint}"
    try:
        where, files = arrow_folder(folder)
        table = pq.ParquetDataset(where, filesystem=files).read(columns=list(ERROR_COLUMNS))
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Expected the errors table of an extraction. Received: {folder} ({error}). "
            "Extract again with --overwrite."
        ) from error
    if len(rows) != record.n_errors:
        raise UserError(
            f"Expected {record.n_errors} rows in {folder}, as {RECORD_NAME} says. "
            f"Received: {len(rows)}. Extract again with --overwrite."
        )
    return sorted(rows, key=lambda row: str(row["image_id"]))
