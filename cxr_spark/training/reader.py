"""Stored features through petastorm into arrays and tf.data; only this module imports petastorm."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ERROR_COLUMNS, ExtractionRecord
from cxr_spark.files import location


@dataclass(frozen=True)
class ImageKeys:
    """What an extraction says of its images beside their features, in the order of ``image_id``.

    Attributes:
        image_id, finding: str of shape (n_images,).
        patient_id, official_split: str or None, of shape (n_images,).
    """

    image_id: npt.NDArray[Any]
    finding: npt.NDArray[Any]
    patient_id: npt.NDArray[Any]
    official_split: npt.NDArray[Any]


@dataclass(frozen=True)
class HeadInputs:
    """What heads take of an extraction, in the order of ``image_id``.

    Attributes:
        image_id: str of shape (n_images,).
        arrays: (pooled,), float32 of shape (n_images, channels); or (feature_map, scale): float16
            of shape (n_images, height, width, channels), each map divided by its scale, and float32
            of shape (n_images,).
    """

    image_id: npt.NDArray[Any]
    arrays: tuple[npt.NDArray[Any], ...]


def read_keys(features: Path, record: ExtractionRecord) -> ImageKeys:
    """Read the keys of an extraction's images.

    Args:
        features: the features folder.
        record: which extraction; what its ``_extraction.json`` says.

    Raises:
        UserError: the data set is damaged, holds other rows than its record says, or holds files
            that petastorm would unpickle.
    """
    optional = ("patient_id", "official_split")
    columns = _read_columns(features, record, ("image_id", "finding", *optional), optional)
    for name in optional:
        columns[name] = np.array([value or None for value in columns[name].tolist()], object)
    return ImageKeys(**columns)


def read_inputs(features: Path, record: ExtractionRecord, takes: str) -> HeadInputs:
    """Read an extraction's pooled features or feature maps into memory.

    Args:
        features: the features folder.
        record: which extraction; for feature maps, one that stores them.
        takes: 'pooled' or 'feature_map'.

    Raises:
        UserError: as for ``read_keys``.
    """
    if takes == "pooled":
        columns = _read_columns(features, record, ("image_id", "pooled"))
        return HeadInputs(columns["image_id"], (columns["pooled"].astype(np.float32, copy=False),))
    names = ("image_id", "feature_map", "feature_map_scale")
    columns = _read_columns(features, record, names)
    return HeadInputs(columns["image_id"], (columns["feature_map"], columns["feature_map_scale"]))


def _read_columns(
    features: Path, record: ExtractionRecord, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Read columns through petastorm, by row group, and sort them by ``image_id``."""
    folder = features / record.fingerprint
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for group in _row_groups(folder, names, optional):
        for name in names:
            values = getattr(group, name)
            if name == "feature_map":
                shape = (len(values), *(record.feature_map_shape or ()))
                values = np.frombuffer(b"".join(values), "<f2").reshape(shape)
            parts[name].append(values)
    n_rows = sum(map(len, parts["image_id"]))
    if n_rows != record.n_rows:
        raise UserError(
            f"Expected {record.n_rows} rows in {folder}, as its _extraction.json says. "
            f"Received: {n_rows}. Extract again with --overwrite."
        )
    order = np.argsort(np.concatenate(parts["image_id"]).astype(str), kind="stable")
    return {name: np.concatenate(parts.pop(name))[order] for name in names}


def read_errors(features: Path, record: ExtractionRecord) -> pd.DataFrame:
    """Return the errors table of an extraction: a row for every image that could not be used."""
    folder = features / "errors" / f"fingerprint={record.fingerprint}"
    try:
        errors = pq.ParquetDataset(folder).read(columns=list(ERROR_COLUMNS)).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Expected the errors table of an extraction. Received: {folder} ({error})"
        ) from error
    return errors.sort_values("image_id", ignore_index=True)


def _row_groups(
    folder: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Any]:
    """Yield each row group of a data set as a named tuple of columns.

    Nulls of the ``optional`` ones become empty strings: petastorm itself makes them 'None'.
    """
    for name in ("_common_metadata", "_metadata"):
        if (folder / name).exists():
            raise UserError(
                f"Expected no {name} in {folder}: Spark writes none here, "
                "and petastorm would unpickle it. "
                "Remove it, and find out where it came from."
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # petastorm 0.13 uses names that pyarrow has deprecated
        from petastorm import TransformSpec, make_batch_reader

        blanks = dict.fromkeys(optional, "")
        transform = TransformSpec(lambda rows: rows.fillna(blanks)) if optional else None
        try:
            reader = make_batch_reader(
                location(folder),
                schema_fields=[f"^{name}$" for name in columns],
                reader_pool_type="thread",
                workers_count=2,
                shuffle_row_groups=False,
                num_epochs=1,
                transform_spec=transform,
            )
        except Exception as error:
            raise _unreadable(folder, error) from error
        try:
            yield from reader
        except Exception as error:
            raise _unreadable(folder, error) from error
        finally:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a line about its cache
                reader.stop()
                reader.join()


def _unreadable(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"Expected Parquet that petastorm can read in {folder}. "
        f"Received: {type(error).__name__}: {error}. Extract again with --overwrite."
    )


def batches(
    inputs: Sequence[npt.NDArray[Any]],
    one_hot: npt.NDArray[np.float32],
    *,
    batch_size: int,
    seed: int | None = None,
) -> Any:
    """Return a ``tf.data.Dataset`` of (features float32, one-hot labels), a batch at a time.

    Indices are shuffled and rows gathered by batch: cheaper than to shuffle or unbatch rows.

    Args:
        inputs: (pooled,) or (feature_map, scale), each of shape (n_images, ...).
        one_hot: float32 of shape (n_images, n_classes).
        batch_size: rows a batch; the last has what is left.
        seed: shuffles anew in each epoch, the same way for the same seed; None keeps the order.
    """
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(values) for values in inputs]
    labels = tf.convert_to_tensor(one_hot)

    def gather(rows: Any) -> tuple[Any, Any]:
        features = tf.cast(tf.gather(tensors[0], rows), tf.float32)
        if len(tensors) == 2:
            features *= tf.gather(tensors[1], rows)[:, None, None, None]
        return features, tf.gather(labels, rows)

    rows = tf.data.Dataset.range(len(one_hot))
    if seed is not None:
        rows = rows.shuffle(len(one_hot), seed=seed, reshuffle_each_iteration=True)
    return rows.batch(batch_size).map(gather, num_parallel_calls=2).prefetch(2)
