"""Features that no backbone made, stored as extractions are: for what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.checksums import sum_text
from cxr_spark.extraction.shards import finish
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    KEY_COLUMNS,
    ExtractionRecord,
    Identity,
    stored_features,
)

# As an extraction by ResNet50 has them: tasks of 4,096 images.
CHANNELS, ROWS_A_FILE = 2048, 4096


def draw_features(features: Path, n_rows: int) -> None:
    """Store an extraction of drawn pooled features in a new folder.

    Args:
        features: the features folder.
        n_rows: how many, of 2,048 float32 each.
    """
    rng, staged = np.random.default_rng(0), features / "_staging"
    for name in ("rows", "errors"):
        (staged / name).mkdir(parents=True)
    for start in range(0, n_rows, ROWS_A_FILE):
        at = range(start, min(start + ROWS_A_FILE, n_rows))
        rows = _draw_rows(rng, at)
        pq.write_table(
            rows, staged / "rows" / f"part-{start:08d}.parquet", compression="zstd",
            compression_level=1, use_dictionary=False,
        )  # fmt: skip
    none = pa.table({name: pa.array([], _ARROW[kind]) for name, kind in ERROR_COLUMNS.items()})
    pq.write_table(none, staged / "errors" / "part-0.parquet")
    record = ExtractionRecord(
        Identity("drawn", "0" * 64, "none", (224, 224)), "random", None, n_rows, n_rows, 0, "0",
        None, "Drawn features.", {}, {},
    )  # fmt: skip
    finish(features, staged / "rows", staged / "errors", record)


_ARROW = {"string": pa.string(), "bigint": pa.int64()}


def _draw_rows(rng: np.random.Generator, at: range) -> pa.Table:
    keys = {
        "image_id": [f"train/{k:08d}.jpeg" for k in at],
        "finding": ["NORMAL" if k % 2 else "PNEUMONIA" for k in at],
        "patient_id": [f"p{k}" for k in at],
        "official_split": ["train"] * len(at),
        "pixels_digest": [f"{k:040x}" for k in at],
    }
    assert tuple(keys) == KEY_COLUMNS
    pooled = rng.random((len(at), CHANNELS), np.float32)
    columns = {
        **keys,
        "keys_checksum": sum_text(list(keys.values())),
        **stored_features((pooled,)),
    }
    return pa.table(columns)
