from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord, Identity, commit
from cxr_spark.training.reader import batches, read_errors, read_inputs, read_keys

SHAPE = (2, 3, 4)
N = 25


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
            **changes,
        },  # type: ignore[arg-type]
    )
    names = [f"test/NORMAL/ä {i:02d}.jpeg" for i in rng.permutation(N)]
    maps = rng.normal(size=(N, *SHAPE)).astype("<f2")
    table = pa.table(
        {
            "image_id": names,
            "finding": ["NORMAL"] * N,
            "patient_id": pa.array([None if i % 2 else f"p{i}" for i in range(N)], pa.string()),
            "official_split": pa.array([None] * N, pa.string()),
            "pooled": list(rng.normal(size=(N, 5)).astype(np.float32)),
            "feature_map": [m.tobytes() for m in maps],
            "feature_map_scale": rng.uniform(1, 2, N).astype(np.float32),
        }
    )
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
    commit(features, rows, errors, record)
    return record


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
    pooled = read_inputs(features, record, "pooled")
    assert pooled.image_id.tolist() == stored["image_id"].tolist()
    assert np.array_equal(pooled.arrays[0], np.stack(stored["pooled"]))
    maps = read_inputs(features, record, "feature_map")
    assert maps.image_id.tolist() == stored["image_id"].tolist()
    assert maps.arrays[0].shape == (N, *SHAPE)
    assert maps.arrays[0][7].tobytes() == stored["feature_map"][7]
    assert maps.arrays[1].tolist() == stored["feature_map_scale"].tolist()


def test_errors_table_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    errors = read_errors(tmp_path, make_store(tmp_path, rng))
    assert errors.to_dict("records") == [
        {"image_id": "x", "path": "file:///x", "length": 0, "stage": "read", "error": "no"}
    ]


def test_rows_that_are_missing_are_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path, rng)
    (tmp_path / record.fingerprint / "part-1.parquet").unlink()
    with pytest.raises(UserError, match="Expected 25 rows.*Received: 12"):
        read_inputs(tmp_path, record, "pooled")


def test_a_file_that_is_cut_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    record = make_store(tmp_path, rng)
    file = tmp_path / record.fingerprint / "part-1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"can read in .*{record.fingerprint}"):
        read_inputs(tmp_path, record, "pooled")


class Harmful:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("name", ["_common_metadata", "_metadata"])
def test_metadata_that_petastorm_would_unpickle_is_refused(
    tmp_path: Path, rng: np.random.Generator, name: str
) -> None:
    record = make_store(tmp_path / "features", rng)
    folder = tmp_path / "features" / record.fingerprint
    schema = pq.read_schema(folder / "part-0.parquet")
    harmful = pickle.dumps(Harmful(tmp_path / "harmed"))
    schema = schema.with_metadata({b"dataset-toolkit.unischema.v1": harmful})
    pq.write_metadata(schema, folder / name)
    with pytest.raises(UserError, match=f"Expected no {name}"):
        read_inputs(tmp_path / "features", record, "pooled")
    assert not (tmp_path / "harmed").exists()


def test_batches_hold_every_row_once_and_shuffle_by_seed(rng: np.random.Generator) -> None:
    pooled = rng.normal(size=(N, 3)).astype(np.float32)
    one_hot = np.eye(2, dtype=np.float32)[np.arange(N) % 2]

    def epochs(seed: int | None) -> list[np.ndarray]:
        dataset = batches([pooled], one_hot, batch_size=10, seed=seed)
        return [np.concatenate([x.numpy() for x, _ in dataset]) for _ in range(2)]

    in_order, first, second = epochs(None), epochs(1), epochs(1)
    assert np.array_equal(in_order[0], pooled)
    for epoch in first:
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, pooled))
    assert not np.array_equal(first[0], first[1])
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_batches_undo_the_scaling_of_maps(rng: np.random.Generator) -> None:
    maps = rng.normal(size=(N, *SHAPE)).astype(np.float16)
    scale = rng.uniform(1e-12, 1e3, N).astype(np.float32)
    dataset = batches([maps, scale], np.zeros((N, 2), np.float32), batch_size=4)
    found = np.concatenate([x.numpy() for x, _ in dataset])
    assert found == pytest.approx(maps.astype(np.float32) * scale[:, None, None, None], rel=1e-6)
