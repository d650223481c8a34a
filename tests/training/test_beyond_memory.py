"""Feature maps larger than memory: what jobs/train.py takes to train on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.extraction.shards import finish
from cxr_spark.extraction.store import ExtractionRecord, Identity
from tests.conftest import FULL, ROOT
from tests.training.test_reader import with_checksums

EPOCHS = 2
CHANNELS, SHAPE = 2048, (7, 7, 2048)
# ResNet50's maps of 160 images: what extraction writes as one row group.
ROWS_A_GROUP, GROUPS_A_FILE = 160, 32


def draw_store(features: Path, n_images: int) -> None:
    """Write an extraction of drawn maps, 0.2 MB an image, as Spark would."""
    rng, staged = np.random.default_rng(0), features / "_staging"
    for name in ("rows", "errors"):
        (staged / name).mkdir(parents=True)
    writer = None
    for group, start in enumerate(range(0, n_images, ROWS_A_GROUP)):
        table = _draw_rows(rng, np.arange(start, min(start + ROWS_A_GROUP, n_images)))
        if group % GROUPS_A_FILE == 0:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(
                staged / "rows" / f"part-{group:05d}.parquet", table.schema,
                compression="zstd", compression_level=1, use_dictionary=False,
            )  # fmt: skip
        assert writer is not None
        writer.write_table(table)
    assert writer is not None
    writer.close()
    fields = [(name, "string") for name in ("image_id", "path", "stage", "error")]
    schema = pa.schema([*fields, ("length", "int64")])
    pq.write_table(schema.empty_table(), staged / "errors" / "part-0.parquet")
    record = ExtractionRecord(
        Identity("ResNet50", "d" * 64, "none", (224, 224)), "random", SHAPE, n_images, n_images, 0,
        "0", None, "Demonstration: drawn.", {"version": "4", "default_parallelism": 1, "conf": {}},
        {},
    )  # fmt: skip
    finish(features, staged / "rows", staged / "errors", record)


def _draw_rows(rng: np.random.Generator, at: np.ndarray) -> pa.Table:
    label = at % 2
    pooled = rng.random((len(at), CHANNELS), np.float32)
    maps = rng.integers(0, 15_360, (len(at), *SHAPE)).astype("<u2").view("<f2")  # in [0, 1)
    pooled[:, :8] += 0.5 * label[:, None]
    maps[..., :8] += (0.3 * label[:, None, None, None]).astype("<f2")
    table = pa.table(
        {
            "image_id": [f"i{i:06d}" for i in at],
            "finding": ["PNEUMONIA" if positive else "NORMAL" for positive in label],
            "patient_id": [f"p{i}" for i in at],
            "official_split": ["test" if i % 16 < 2 else "train" for i in at],
            "pixels_digest": [f"{i:040x}" for i in at],
            "pooled": list(pooled),
            "feature_map": [feature_map.tobytes() for feature_map in maps],
            "feature_map_scale": np.ones(len(at), np.float32),
        }
    )
    return with_checksums(table)


def train(
    features: Path, head: str, folder: Path, *, memory_gb: float = 1.0
) -> tuple[float, float, float]:
    """Train one head; return the process' peak in GB, its test AUC and the seconds of training."""
    folder.mkdir()
    experiment = {
        "split": {"unit": "image"}, "backbones": ["ResNet50"], "weights": "random",
        "image_size": [224, 224], "heads": [head], "seeds": [0], "feature_maps": True,
        "training": {"epochs": EPOCHS, "memory_gb": memory_gb},
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(experiment))
    with open(folder / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [
                sys.executable, "jobs/train.py", "--config", str(folder / "experiment.yaml"),
                "--features", str(features), "--run", str(folder / "run"),
            ],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        assert process.returncode == 0, log.read()[-3000:]
    (row,) = json.loads((folder / "run" / "results.json").read_text())["rows"]
    return usage.ru_maxrss * 1024 / 1e9, row["test_auc"], row["train_seconds"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = tmp_path_factory.mktemp("many") / "features"
    draw_store(features, 20_000)
    return features


@FULL
@pytest.mark.parametrize("memory_gb", [1.0, 0.1])
def test_pooled_features_are_held_or_streamed_beside_maps_of_four_gigabytes(
    many: Path, tmp_path: Path, memory_gb: float
) -> None:
    """They are 0.16 GB."""
    peak, auc, seconds = train(many, "gap", tmp_path / "gap", memory_gb=memory_gb)
    print(f"\ngap with memory_gb {memory_gb}: {peak:.2f} GB, {seconds:.0f} s")
    assert peak < 2.0
    assert auc > 0.9


@FULL
def test_maps_of_four_gigabytes_are_streamed(many: Path, tmp_path: Path) -> None:
    """What ``fc1024`` takes of its own, Adam on 100 million weights, it takes on few maps too."""
    draw_store(tmp_path / "few", 640)
    few, *_ = train(tmp_path / "few", "fc1024", tmp_path / "fc1024-few")
    most, auc, streamed = train(many, "fc1024", tmp_path / "fc1024-many")
    assert most < few + 0.7
    assert auc > 0.9
    print(f"\nfc1024 {most:.2f} GB, on 640 maps {few:.2f} GB")
    *_, held = train(many, "fc1024", tmp_path / "held", memory_gb=8.0)
    print(f"fc1024 in {streamed:.0f} s streamed, {held:.0f} s held in memory")
    assert held / streamed >= 0.7
