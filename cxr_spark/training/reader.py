"""Stored features through petastorm into NumPy arrays; only this module imports petastorm."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.checksums import sum_text, sum_words
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import KEY_COLUMNS, ExtractionRecord, check_files, read_record
from cxr_spark.paths import (
    AnyPath,
    arrow_folder,
    arrow_source,
    below,
    location,
    map_files,
)

# What a head takes, as ``Head.takes`` names it, and the columns that hold it.
COLUMNS = {"pooled": ("pooled",), "feature_map": ("feature_map", "feature_map_scale")}
_CHECKSUMS = {"pooled": "pooled_checksum", "feature_map": "feature_map_checksum"}
_ALIGNMENT = 64  # bytes, what TensorFlow asks of a tensor
_BYTES_A_BATCH = 2**23  # of a row group that is decoded at once


@dataclass(frozen=True)
class ImageKeys:
    """What an extraction says of its images beside their features, in the order of ``image_id``.

    Attributes:
        image_id, finding: str of shape (n_images,).
        patient_id, official_split: str or None, of shape (n_images,).
        pixels_digest: str of shape (n_images,): equal where an image's pixels are; None where none
            has been decoded yet.
    """

    image_id: npt.NDArray[Any]
    finding: npt.NDArray[Any]
    patient_id: npt.NDArray[Any]
    official_split: npt.NDArray[Any]
    pixels_digest: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Rows:
    """The features of some images, in the order in which they lie in a file or were drawn.

    Attributes:
        positions: int64 of shape (n,): where each image stands in the order of ``image_id``.
        arrays: (pooled,), float32 of shape (n, channels); or (feature_map, scale): float16 of shape
            (n, height, width, channels), each map divided by its scale, and float32 of shape (n,).
    """

    positions: npt.NDArray[np.int64]
    arrays: tuple[npt.NDArray[Any], ...]


def read_keys(features: AnyPath, record: ExtractionRecord) -> ImageKeys:
    """Read the keys of an extraction's images.

    Args:
        features: the features folder.
        record: which extraction; what its ``_extraction.json`` says.

    Raises:
        UserError: the data set is damaged, holds other rows than its record says, or holds files
            that petastorm would unpickle.
    """
    check_files(features, record)
    folder = features / record.fingerprint
    columns: dict[str, list[Any]] = {name: [] for name in (*KEY_COLUMNS, "keys_checksum")}
    for table in _tables(folder, list(columns), workers_count=2):
        for name, values in columns.items():
            values += table[name].to_pylist()
    _check_count(folder, record, len(columns["image_id"]))
    stated = np.array(columns.pop("keys_checksum"), np.int64)
    _check_sums(folder, sum_text(list(columns.values())), stated, columns["image_id"])
    image_id = np.array(columns["image_id"], str)
    order = np.argsort(image_id, kind="stable")
    patient_id, official_split = (
        np.array([value or None for value in columns[name]], object)[order]
        for name in ("patient_id", "official_split")
    )
    finding, pixels_digest = (
        np.array(columns[name], str)[order] for name in ("finding", "pixels_digest")
    )
    return ImageKeys(image_id[order], finding, patient_id, official_split, pixels_digest)


def read_inputs(
    features: AnyPath, record: ExtractionRecord, takes: str, image_id: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], ...]:
    """Read an extraction's pooled features or feature maps into memory, each row to its place.

    Args:
        features: the features folder.
        record: which extraction; for feature maps, one that stores them.
        takes: 'pooled' or 'feature_map'.
        image_id: of the images, in order: ``ImageKeys.image_id``.

    Returns:
        The arrays of a ``Rows``, for all images in the order of ``image_id``.

    Raises:
        UserError: as for ``read_keys``, or the extraction is of other images.
    """
    folder = features / record.fingerprint
    # Rows go where they belong, so that any order of row groups will do.
    tables = _tables(folder, _columns(takes), workers_count=3)
    arrays: tuple[npt.NDArray[Any], ...] = ()
    for group in _groups(tables, folder, record, takes, image_id):
        if not arrays:
            arrays = tuple(
                aligned_empty((len(image_id), *values.shape[1:]), values.dtype)
                for values in group.arrays
            )
        for array, values in zip(arrays, group.arrays, strict=True):
            array[group.positions] = values
    return arrays


def stream_inputs(
    features: AnyPath,
    record: ExtractionRecord,
    takes: str,
    image_id: npt.NDArray[Any],
    *,
    seed: int | None = None,
) -> Iterator[Rows]:
    """Yield an extraction's features, a part of a row group at a time, every image once.

    Arrays are read-only, and what is read is kept in memory as long as one of them.

    Args:
        features: the features folder.
        record: which extraction; for feature maps, one that stores them.
        takes: 'pooled' or 'feature_map'.
        image_id: of the images, in order: ``ImageKeys.image_id``.
        seed: shuffles the row groups, the same way for the same seed; None keeps their order.

    Raises:
        UserError: as for ``read_inputs``.
    """
    folder = features / record.fingerprint
    tables = _tables_in_order(folder, _columns(takes), seed)
    yield from _groups(tables, folder, record, takes, image_id)


def feature_shape(features: AnyPath, record: ExtractionRecord, takes: str) -> tuple[int, ...]:
    """Return the shape of one image's features: of its map, or (channels,) of its pooled vector.

    Raises:
        UserError: as for ``read_keys``.
    """
    if takes == "feature_map":
        assert record.feature_map_shape is not None, "choose_extractions sees to it"
        return record.feature_map_shape
    folder = features / record.fingerprint
    with contextlib.closing(_tables(folder, ("pooled",), workers_count=1)) as tables:
        pooled = _to_numpy(next(tables)["pooled"].chunk(0), record)
    return tuple(map(int, pooled.shape[1:]))


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an empty array that TensorFlow can take as a tensor without copying it."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    array: npt.NDArray[Any] = room[start : start + n_bytes].view(dtype).reshape(shape)
    return array


def _groups(
    tables: Iterator[pa.Table],
    folder: AnyPath,
    record: ExtractionRecord,
    takes: str,
    image_id: npt.NDArray[Any],
) -> Iterator[Rows]:
    """Find the place of each row, and see to it that every image has come exactly once."""
    index = pd.Index(image_id.astype(object))
    times = np.zeros(len(image_id), np.int64)
    n_rows = 0
    for batch in itertools.chain.from_iterable(table.to_batches() for table in tables):
        positions = index.get_indexer(batch["image_id"].to_pylist())
        n_rows += len(positions)
        np.add.at(times, positions[positions >= 0], 1)
        if positions.min() < 0:
            break
        arrays = tuple(_to_numpy(batch[name], record) for name in COLUMNS[takes])
        stated = batch[_CHECKSUMS[takes]].to_numpy(zero_copy_only=False)
        _check_sums(folder, sum_words(*arrays), stated, batch["image_id"])
        yield Rows(positions, arrays)
    else:
        _check_count(folder, record, n_rows)
        if (times == 1).all():
            _check_unchanged(folder, record)
            return
    raise UserError(
        "Expected the same images in every extraction. "
        f"Received: {record.describe()}, whose images differ. Extract again with --overwrite."
    )


def _check_unchanged(folder: AnyPath, record: ExtractionRecord) -> None:
    """Refuse what was extracted anew while it was read: rows may be of both.

    Raises:
        UserError: the data set is another than the record says.
    """
    if read_record(folder) != record:
        raise UserError(
            "Expected features that stay as they are while heads are trained on them. Received: "
            f"{folder}, which has been extracted anew meanwhile. Train again."
        )
    check_files(folder.parent, record)


def _columns(takes: str) -> tuple[str, ...]:
    return ("image_id", *COLUMNS[takes], _CHECKSUMS[takes])


def _check_sums(
    folder: AnyPath, found: npt.NDArray[Any], stated: npt.NDArray[Any], image_id: Sequence[Any]
) -> None:
    changed = np.flatnonzero(found != stated)
    if len(changed):
        raise UserError(
            f"Expected in {folder} what extraction wrote there. Received: "
            f"{len(changed)} rows whose bits have changed since, the first of them of the image "
            f"{image_id[int(changed[0])]}. Look at the disk, and extract again with --overwrite."
        )


def _check_count(folder: AnyPath, record: ExtractionRecord, n_rows: int) -> None:
    if n_rows != record.n_rows:
        raise UserError(
            f"Expected {record.n_rows} rows in {folder}, as its _extraction.json says. "
            f"Received: {n_rows}. Extract again with --overwrite."
        )


def _to_numpy(chunk: pa.Array, record: ExtractionRecord) -> npt.NDArray[Any]:
    """Return features as an array, without copying them."""
    if pa.types.is_binary(chunk.type):
        _, offsets, values = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int32, len(chunk) + 1, 4 * chunk.offset)
        shape = (len(chunk), *(record.feature_map_shape or ()))
        n_values = int(np.prod(shape))
        _check_lengths(bounds, 2 * n_values // len(chunk), record)
        return np.frombuffer(values, "<f2", n_values, bounds[0]).reshape(shape)
    if pa.types.is_list(chunk.type):
        bounds = chunk.offsets.to_numpy()
        _check_lengths(bounds, bounds[1] - bounds[0], record)
        flat = chunk.flatten().to_numpy(zero_copy_only=False)
        pooled: npt.NDArray[Any] = flat.reshape(len(chunk), -1).astype(np.float32, copy=False)
        return pooled
    scale: npt.NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
    return scale


def _check_lengths(bounds: npt.NDArray[Any], length: int, record: ExtractionRecord) -> None:
    if (np.diff(bounds) != length).any():
        raise UserError(
            "Expected features of one length. "
            f"Received: several in {record.describe()}. Extract again with --overwrite."
        )


def _tables_in_order(
    folder: AnyPath, columns: Sequence[str], seed: int | None = None
) -> Iterator[pa.Table]:
    """Yield each row group, in the order of the files or in that of a seed.

    petastorm's pool of several workers hands row groups over in an order that depends on timing.
    Two readers of one worker each, asked in turn, are as fast and keep their order.
    """
    _check_safe(folder)
    n_shards = max(1, min(2, _count_row_groups(folder)))
    # A seed of 0 is none to petastorm.
    order = {"shuffle_row_groups": seed is not None, "seed": None if seed is None else seed + 1}
    with contextlib.ExitStack() as stack:
        shards = []
        for shard in range(n_shards):
            tables = _tables(
                folder, columns, workers_count=1, cur_shard=shard, shard_count=n_shards, **order
            )
            shards.append(stack.enter_context(contextlib.closing(tables)))
        for in_turn in itertools.zip_longest(*shards):
            yield from (table for table in in_turn if table is not None)


def _count_row_groups(folder: AnyPath) -> int:
    try:
        counts = map_files(_row_groups, folder.glob("[!_.]*"))
        return sum(counts)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(folder, error) from error


def _row_groups(file: AnyPath) -> int:
    n_groups: int = pq.ParquetFile(arrow_source(file)).num_row_groups
    return n_groups


def _tables(
    folder: AnyPath, columns: Sequence[str], **options: Any
) -> Generator[pa.Table, None, None]:
    """Yield each row group of a data set as petastorm's workers read it."""
    _check_safe(folder)
    # petastorm 0.13 uses names that pyarrow and NumPy have deprecated, in threads of its own.
    warnings.filterwarnings("ignore", module="petastorm")
    from petastorm import make_batch_reader

    where, files = _for_petastorm(folder)
    try:
        reader = make_batch_reader(
            where,
            schema_fields=[f"^{name}$" for name in columns],
            reader_pool_type="thread",
            num_epochs=1,
            filesystem=files,
            **{"shuffle_row_groups": False, **options},
        )
    except (OSError, ValueError, LookupError, RuntimeError, pa.ArrowException) as error:
        raise _unreadable(folder, error) from error
    try:
        for thread in reader._workers_pool._workers:
            # It has begun; a row group that petastorm's own has read is the same, only dearer.
            thread._worker_impl._read_with_shuffle_row_drop = _read_row_group
        reader._results_queue_reader = _ArrowTables()
        # It lets four row groups a worker wait; each is some 32 MB.
        reader.ventilator._max_ventilation_queue_size = 2 * options["workers_count"]
        yield from reader
    except (OSError, ValueError, LookupError, RuntimeError, pa.ArrowException) as error:
        raise _unreadable(folder, error) from error
    finally:
        reader.stop()
        reader.join()


def _for_petastorm(folder: AnyPath) -> tuple[str, Any]:
    """Return a folder's URI and its file system, of which the folder is the root; None if local.

    petastorm would look for a package of its own for each scheme, and pyarrow 14 then refuses it.
    """
    from cxr_spark.training.legacy_files import LegacyFiles

    where, files = arrow_folder(folder)
    return (location(folder), None) if files is None else ("file:///", LegacyFiles(where, files))


def _read_row_group(
    piece: Any, file: pq.ParquetFile, columns: Iterable[str], _: Any = None
) -> pa.Table | list[Any]:
    """Read a row group for a petastorm worker, in batches of some megabytes.

    petastorm's own reads it whole, for which pyarrow's buffers grow by doubling, and then takes all
    of its rows once more, in the order they have. A map of 7x7x2,048 costs 0.35 ms of a core here,
    and 0.6 ms there.
    """
    rows = file.metadata.row_group(piece.row_group)
    n_batches = -(-rows.total_byte_size // _BYTES_A_BATCH)
    batches = file.iter_batches(
        batch_size=-(-rows.num_rows // max(1, n_batches)) or 1,
        row_groups=[piece.row_group],
        columns=list(columns),
        use_threads=False,
    )
    # No batch comes of a row group without rows, and petastorm passes over what is empty.
    return pa.Table.from_batches(batches) if rows.num_rows else []


class _ArrowTables:
    """Takes from a petastorm reader's workers what they read: a table a row group.

    petastorm's own makes an object of every row, which costs a quarter of the time of feature maps.
    And it ends early at times: its pool looks first whether the workers are done, then whether all
    work has been given out, and the last row groups may be given out between the two.
    """

    batched_output = True

    def read_next(self, workers_pool: Any, schema: Any, ngram: Any) -> pa.Table:
        from petastorm.workers_pool import EmptyResultError

        while True:
            try:
                return workers_pool.get_results()
            except EmptyResultError:
                if workers_pool.all_workers_done():
                    raise StopIteration from None


def _check_safe(folder: AnyPath) -> None:
    # pyarrow takes any name with this ending for the metadata of all, in folders below and behind
    # links as well.
    places: list[AnyPath] = sorted(folder.rglob("*"), key=str)
    for place in places:
        if place.name.endswith("_metadata") or (place.is_symlink() and place.is_dir()):
            raise UserError(
                f"Expected no {below(place, folder)} in {folder}: Spark writes none here, "
                "and petastorm would unpickle what it finds there. "
                "Remove it, and find out where it came from."
            )


def _unreadable(folder: AnyPath, error: Exception) -> UserError:
    return UserError(
        f"Expected Parquet that petastorm can read in {folder}. "
        f"Received: {type(error).__name__}: {error}. Extract again with --overwrite."
    )
