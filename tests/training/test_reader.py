from __future__ import annotations

import dataclasses
import pickle
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.checksums import sum_text, sum_words
from cxr_spark.errors import UserError
from cxr_spark.extraction.shards import finish
from cxr_spark.extraction.store import (
    KEY_COLUMNS,
    ExtractionRecord,
    Identity,
    StoredFile,
    write_record,
)
from cxr_spark.training.reader import (
    feature_shape,
    read_inputs,
    read_keys,
    stream_inputs,
)

SHAPE = (2, 3, 4)
N = 25
NAMES = np.array([f"test/NORMAL/ä {i:02d}.jpeg" for i in range(N)])


def with_checksums(table: pa.Table) -> pa.Table:
    """Add the checksums that workers compute to a table of drawn features."""
    columns = {"keys_checksum": sum_text([table[name].to_pylist() for name in KEY_COLUMNS])}
    columns["pooled_checksum"] = sum_words(np.stack(table["pooled"].to_numpy()))
    if "feature_map" in table.column_names:
        maps = np.stack([np.frombuffer(m, "<f2") for m in table["feature_map"].to_pylist()])
        scale = table["feature_map_scale"].to_numpy()
        columns["feature_map_checksum"] = sum_words(maps, scale)
    for name, values in columns.items():
        table = table.append_column(name, [values])
    return table


def make_store(features: Path, rng: np.random.Generator, **changes: object) -> ExtractionRecord:
    """Write an extraction of random features as Spark would, in two files of several row groups."""
    record = ExtractionRecord(
        identity=Identity("ResNet50", "d" * 64, "none", (64, 64)),
        **{
            "weights": "random",
            "feature_map_shape": SHAPE,
            "n_images": N + 1,
            "n_rows": N,
            "n_errors": 1,
            "listing_digest": "0",
            "limit": None,
            "demonstration": "",
            "spark": {},
            "files": {},
            **changes,
        },  # type: ignore[arg-type]
    )
    names = NAMES[rng.permutation(N)]
    maps = rng.normal(size=(N, *SHAPE)).astype("<f2")
    table = pa.table(
        {
            "image_id": names,
            "finding": ["NORMAL"] * N,
            "patient_id": pa.array([None if i % 2 else f"p{i}" for i in range(N)], pa.string()),
            "official_split": pa.array([None] * N, pa.string()),
            "pixels_digest": [f"digest of {name}" for name in names],
            "pooled": list(rng.normal(size=(N, 5)).astype(np.float32)),
            "feature_map": [m.tobytes() for m in maps],
            "feature_map_scale": rng.uniform(1, 2, N).astype(np.float32),
        }
    )
    table = with_checksums(table)
    rows, errors = features / "_staging" / "rows", features / "_staging" / "errors"
    for folder in (rows, errors):
        folder.mkdir(parents=True)
    pq.write_table(table[:12], rows / "part-0.parquet", row_group_size=5)
    pq.write_table(table[12:], rows / "part-1.parquet", row_group_size=5)
    error = {
        "image_id": ["x"],
        "path": ["file:///x"],
        "length": [0],
        "stage": ["read"],
        "error": ["no"],
    }
    pq.write_table(pa.table(error), errors / "part-0.parquet")
    return finish(features, rows, errors, record)


@pytest.mark.parametrize("folder", ["features", "with space and ä"])
def test_features_come_back_in_the_order_of_image_id(
    tmp_path: Path, rng: np.random.Generator, folder: str
) -> None:
    features = tmp_path / folder
    record = make_store(features, rng)
    stored = pq.ParquetDataset(features / record.fingerprint).read().to_pandas()
    stored = stored.sort_values("image_id", ignore_index=True)
    keys = read_keys(features, record)
    assert keys.image_id.tolist() == stored["image_id"].tolist()
    assert keys.patient_id.tolist() == stored["patient_id"].tolist()
    assert keys.official_split.tolist() == [None] * N
    assert keys.pixels_digest is not None
    assert keys.pixels_digest.tolist() == stored["pixels_digest"].tolist()
    (pooled,) = read_inputs(features, record, "pooled", keys.image_id)
    assert pooled.dtype == np.float32
    assert np.array_equal(pooled, np.stack(stored["pooled"]))
    maps, scale = read_inputs(features, record, "feature_map", keys.image_id)
    assert maps.shape == (N, *SHAPE)
    assert all(a.tobytes() == b for a, b in zip(maps, stored["feature_map"], strict=True))
    assert scale.tolist() == stored["feature_map_scale"].tolist()


@pytest.mark.parametrize("takes", ["pooled", "feature_map"])
def test_a_stream_has_what_memory_has_and_the_order_of_its_seed(
    tmp_path: Path, rng: np.random.Generator, takes: str
) -> None:
    record = make_store(tmp_path, rng)
    image_id = read_keys(tmp_path, record).image_id
    in_memory = read_inputs(tmp_path, record, takes, image_id)
    assert feature_shape(tmp_path, record, takes) == in_memory[0].shape[1:]

    def order(seed: int | None) -> list[int]:
        groups = list(stream_inputs(tmp_path, record, takes, image_id, seed=seed))
        assert len(groups) == 6
        for group in groups:
            for streamed, held in zip(group.arrays, in_memory, strict=True):
                assert np.array_equal(streamed, held[group.positions])
        positions = np.concatenate([group.positions for group in groups]).tolist()
        assert sorted(positions) == list(range(N))
        return positions

    files = pq.ParquetDataset(tmp_path / record.fingerprint).read()["image_id"].to_pylist()
    assert image_id[order(None)].tolist() == files
    shuffled = [tuple(order(seed)) for seed in (0, 0, 1, 2)]
    assert shuffled[0] == shuffled[1]
    assert len({tuple(order(None)), *shuffled}) == 4


def test_row_groups_come_in_parts_of_some_megabytes_with_every_row_once(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petastorm.arrow_reader_worker import ArrowReaderWorker

    record = make_store(tmp_path, rng)
    image_id = read_keys(tmp_path, record).image_id
    in_memory = read_inputs(tmp_path, record, "feature_map", image_id)

    begin = ArrowReaderWorker.process

    def process(self: object, *rest: object, **named: object) -> None:
        time.sleep(0.1)  # or the first row groups are read before the reader is set up
        begin(self, *rest, **named)

    monkeypatch.setattr(ArrowReaderWorker, "process", process)
    monkeypatch.setattr("cxr_spark.training.reader._BYTES_A_BATCH", 500)
    groups = list(stream_inputs(tmp_path, record, "feature_map", image_id, seed=1))
    assert max(len(group.positions) for group in groups) < 5
    assert sorted(np.concatenate([group.positions for group in groups])) == list(range(N))
    for group in groups:
        for streamed, held in zip(group.arrays, in_memory, strict=True):
            assert np.array_equal(streamed, held[group.positions])


def test_a_file_without_rows_is_passed_over(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path, rng)
    file = tmp_path / record.fingerprint / "part-2.parquet"
    pq.write_table(pq.read_table(file.with_name("part-0.parquet"))[:0], file)
    files = {**record.files, file.name: StoredFile(file.stat().st_size, 0)}
    record = dataclasses.replace(record, files=files)
    write_record(file.parent, record)
    image_id = read_keys(tmp_path, record).image_id
    groups = stream_inputs(tmp_path, record, "pooled", image_id)
    assert sum(len(group.positions) for group in groups) == N


def test_row_groups_keep_their_order_whichever_worker_is_slow(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petastorm.arrow_reader_worker import ArrowReaderWorker

    record = make_store(tmp_path, rng)
    image_id = read_keys(tmp_path, record).image_id

    def order(slow: set[int]) -> list[int]:
        read = ArrowReaderWorker.process

        def process(self: object, piece_index: int, *rest: object, **named: object) -> None:
            if piece_index in slow:
                time.sleep(0.05)
            read(self, piece_index, *rest, **named)

        with monkeypatch.context() as patch:
            patch.setattr(ArrowReaderWorker, "process", process)
            groups = list(stream_inputs(tmp_path, record, "pooled", image_id, seed=3))
        return np.concatenate([group.positions for group in groups]).tolist()

    orders = [order(slow) for slow in (set(), {0, 2, 4}, {1, 3, 5}, {0, 1})]
    assert all(other == orders[0] for other in orders)


def test_row_groups_that_are_given_out_late_are_not_lost(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petastorm.workers_pool.ventilator import ConcurrentVentilator

    record = make_store(tmp_path, rng)
    completed, ventilate = ConcurrentVentilator.completed, ConcurrentVentilator._ventilate

    def ventilate_late(self: ConcurrentVentilator) -> None:
        time.sleep(0.05)
        self._max_ventilation_queue_size = 6  # all of them at once
        ventilate(self)

    def wait_until_completed(self: ConcurrentVentilator) -> bool:
        # What may happen between petastorm's two looks, made to happen.
        if threading.current_thread() is threading.main_thread():
            while not completed(self):
                time.sleep(0.001)
        return completed(self)

    monkeypatch.setattr(ConcurrentVentilator, "_ventilate", ventilate_late)
    monkeypatch.setattr(ConcurrentVentilator, "completed", wait_until_completed)
    assert read_keys(tmp_path, record).image_id.tolist() == NAMES.tolist()


@pytest.mark.parametrize("damage", ["renamed", "twice"])
def test_other_images_are_refused(tmp_path: Path, rng: np.random.Generator, damage: str) -> None:
    record = make_store(tmp_path, rng)
    image_id = read_keys(tmp_path, record).image_id
    file = tmp_path / record.fingerprint / "part-1.parquet"
    table = pq.read_table(file)
    names = table["image_id"].to_pylist()
    names[3] = "else.jpeg" if damage == "renamed" else names[0]
    pq.write_table(table.set_column(0, "image_id", pa.array(names)), file)
    with pytest.raises(UserError, match="Expected the same images"):
        read_inputs(tmp_path, record, "pooled", image_id)


def test_features_of_several_lengths_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path, rng)
    image_id = read_keys(tmp_path, record).image_id
    file = tmp_path / record.fingerprint / "part-1.parquet"
    table = pq.read_table(file)
    maps = table["feature_map"].to_pylist()
    maps[1] = maps[1][:-2]
    column = table.column_names.index("feature_map")
    pq.write_table(table.set_column(column, "feature_map", pa.array(maps)), file)
    with pytest.raises(UserError, match="Expected features of one length"):
        read_inputs(tmp_path, record, "feature_map", image_id)


def test_rows_that_are_missing_are_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path, rng)
    (tmp_path / record.fingerprint / "part-1.parquet").unlink()
    with pytest.raises(UserError, match="Expected 25 rows.*Received: 12"):
        read_inputs(tmp_path, record, "pooled", NAMES)


def test_features_that_are_extracted_anew_while_they_are_read_are_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    record = make_store(tmp_path, rng)
    keys = read_keys(tmp_path, record)
    parts = stream_inputs(tmp_path, record, "pooled", keys.image_id)
    next(parts)
    write_record(tmp_path / record.fingerprint, dataclasses.replace(record, limit=N))
    with pytest.raises(UserError, match="extracted anew meanwhile. Train again"):
        list(parts)


def test_a_file_that_is_cut_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path, rng)
    file = tmp_path / record.fingerprint / "part-1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"can read in .*{record.fingerprint}"):
        read_inputs(tmp_path, record, "pooled", NAMES)


@pytest.mark.parametrize(
    "column",
    ["image_id", "finding", "patient_id", "pixels_digest", "pooled", "feature_map",
     "feature_map_scale"],
)  # fmt: skip
def test_a_single_bit_that_changes_in_a_file_is_noticed(
    tmp_path: Path, rng: np.random.Generator, column: str
) -> None:
    """Of a file without compression, whose size stays as it was."""
    record = make_store(tmp_path, rng)
    image_id = read_keys(tmp_path, record).image_id
    file = tmp_path / record.fingerprint / "part-1.parquet"
    table = pq.read_table(file)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file, **plain)
    whole = file.read_bytes()
    value = next(value for value in table[column].to_pylist() if value is not None)
    kind = {"pooled": "<f4", "feature_map_scale": "<f4"}.get(column)
    sought = np.array(value, kind).tobytes() if kind else value
    sought = sought.encode() if isinstance(sought, str) else sought
    at = whole.index(sought) + len(sought) // 2
    bit = 1 << int(rng.integers(3))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
    stated = {f.name: StoredFile(f.stat().st_size, 0) for f in file.parent.glob("*.parquet")}
    record = dataclasses.replace(record, files=stated)
    takes = "pooled" if column == "pooled" else "feature_map"
    read = partial(read_inputs, takes=takes, image_id=image_id)
    with pytest.raises(UserError, match="1 rows whose bits have changed since, the first of them"):
        (read_keys if column in KEY_COLUMNS else read)(tmp_path, record)


class Harmful:
    """Makes a file where it is unpickled, by a name that petastorm's own list lets through."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"open({str(self.file)!r}, 'w').close()",)


def plant(features: Path, record: ExtractionRecord, name: str, harmed: Path) -> None:
    folder = features / record.fingerprint
    schema = pq.read_schema(folder / "part-0.parquet")
    harmful = {b"dataset-toolkit.unischema.v1": pickle.dumps(Harmful(harmed))}
    (folder / name).parent.mkdir(exist_ok=True)
    pq.write_metadata(schema.with_metadata(harmful), folder / name)


@pytest.mark.parametrize(
    "name", ["_common_metadata", "_metadata", "x_common_metadata", ".x_metadata", "x/_metadata"]
)
@pytest.mark.parametrize(
    "read",
    [
        read_keys,
        lambda features, record: read_inputs(features, record, "pooled", NAMES),
        lambda features, record: list(stream_inputs(features, record, "pooled", NAMES)),
        lambda features, record: feature_shape(features, record, "pooled"),
    ],
    ids=["keys", "inputs", "stream", "shape"],
)
def test_metadata_that_petastorm_would_unpickle_is_refused(
    tmp_path: Path, rng: np.random.Generator, name: str, read
) -> None:
    record = make_store(tmp_path / "features", rng)
    plant(tmp_path / "features", record, name, tmp_path / "harmed")
    with pytest.raises(UserError, match=f"Expected no {name} in "):
        read(tmp_path / "features", record)
    assert not (tmp_path / "harmed").exists()


def test_a_link_to_a_folder_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path / "features", rng)
    plant(tmp_path / "features", record, "x/_common_metadata", tmp_path / "harmed")
    folder = tmp_path / "features" / record.fingerprint
    (folder / "x").rename(tmp_path / "elsewhere")
    (folder / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="Expected no x in "):
        read_keys(tmp_path / "features", record)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["_common_metadata", "x_common_metadata"])
def test_what_is_refused_would_do_harm(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    record = make_store(tmp_path / "features", rng)
    plant(tmp_path / "features", record, name, tmp_path / "harmed")
    monkeypatch.setattr("cxr_spark.training.reader._check_safe", lambda folder: None)
    with pytest.raises(Exception):  # noqa: B017, PT011 - what petastorm says to it is its own matter
        read_keys(tmp_path / "features", record)
    assert (tmp_path / "harmed").exists()
