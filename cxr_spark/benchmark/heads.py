"""The reader and training sections: stored features into memory, and epochs of fc1024.

All calls of the training room stand in this module.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.benchmark.pairs import run_in_turn
from cxr_spark.benchmark.processes import Processes
from cxr_spark.benchmark.rows import MeasurementError, Row, ratio_row
from cxr_spark.benchmark.settings import Settings
from cxr_spark.benchmark.targets import READER, TRAINING
from cxr_spark.config import TrainingConfig
from cxr_spark.extraction.store import ExtractionRecord, list_extractions

log = logging.getLogger(__name__)

HEAD = "fc1024"
# Generated maps: of MobileNetV3Small at 224 px.
N_MAPS, MAP_SHAPE = 512, (7, 7, 576)
EPOCHS = 10
# Rows of drawn features, and of a reader's target: as many images as NIH ChestX-ray14 has, about.
N_ROWS = 100_000
# How long features are read over and over for one rate; and where the rate has a target, for a
# virtual machine that stands still for a tenth of a second makes 0.6 of a rate over one second.
MIN_SECONDS = 0.5
LONG_SECONDS = 5.0


def measure_reader(settings: Settings, features: Path) -> list[Row]:
    """Measure how fast stored features are read, against pyarrow and NumPy on the same files.

    Args:
        settings: what is asked for.
        features: a features folder with one extraction.
    """
    record = _only_record(features)
    image_id = _image_ids(features, record)
    name, rows = record.identity.backbone, list[Row]()
    # Of few rows what a reader costs at its start, and not by rows, decides.
    target = READER if record.n_rows >= N_ROWS else None
    seconds = MIN_SECONDS if target is None else LONG_SECONDS
    for takes in ("pooled", "feature_map") if record.feature_map_shape else ("pooled",):
        ours = partial(_into_tensors, features, record, takes, image_id)
        plain = partial(_read_plain, features, record, takes)
        ours()
        plain()
        turns = run_in_turn(
            f"reader, {takes} of {name}",
            partial(_rows_per_s, ours, seconds),
            partial(_rows_per_s, plain, seconds),
            (record.n_rows,),
            settings.repeat,
        )
        rows.append(
            ratio_row(
                f"reader, {takes}, {name}",
                "pyarrow's read_table and NumPy",
                [pair for (pair,) in turns.runs],
                target=target if takes == "pooled" else None,
                unit="rows/s",
                note=f"{record.n_rows:,} rows, in memory of the system; ours into tensors, and "
                "without the names of the images, read before",
            )
        )
    return rows


def _only_record(features: Path) -> ExtractionRecord:
    records = list_extractions(features) if features.exists() else []
    if len(records) != 1:
        raise MeasurementError("no features were extracted to read")
    return records[0]


def read_ours(
    features: Path, record: ExtractionRecord, takes: str, image_id: npt.NDArray[Any]
) -> tuple[Any, ...]:
    """Read an extraction's features as training does, each row to its place."""
    from cxr_spark.training.reader import read_inputs

    return read_inputs(features, record, takes, image_id)


def _into_tensors(
    features: Path, record: ExtractionRecord, takes: str, image_id: npt.NDArray[Any]
) -> None:
    import tensorflow as tf

    for array in read_ours(features, record, takes, image_id):
        # convert_to_tensor would copy; the reader's arrays are aligned, so that none is needed.
        tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _image_ids(features: Path, record: ExtractionRecord) -> npt.NDArray[Any]:
    from cxr_spark.training.reader import read_keys

    return read_keys(features, record).image_id


def _read_plain(features: Path, record: ExtractionRecord, takes: str) -> tuple[Any, ...]:
    import pyarrow.parquet as pq

    names = ["pooled"] if takes == "pooled" else ["feature_map", "feature_map_scale"]
    table = pq.read_table(features / record.fingerprint, columns=["image_id", *names])
    if takes == "pooled":
        flat = table["pooled"].combine_chunks().flatten().to_numpy()
        return (flat.reshape(len(table), -1),)
    maps = np.frombuffer(b"".join(table["feature_map"].to_pylist()), "<f2")
    shape = (len(table), *(record.feature_map_shape or ()))
    return maps.reshape(shape), table["feature_map_scale"].to_numpy()


def _rows_per_s(read: Callable[[], object], seconds: float, n_rows: int) -> float:
    began, n_read = time.perf_counter(), 0
    while n_read == 0 or time.perf_counter() - began < seconds:
        read()
        n_read += n_rows
    return n_read / (time.perf_counter() - began)


def measure_training(settings: Settings, folder: Path, features: Path | None) -> list[Row]:
    """Measure ten epochs of the largest head against Keras' fit on the same maps in memory.

    Ours begins with the feature store. Each measurement is a process of its own: training makes
    TensorFlow deterministic for good, which would slow the other down.

    Args:
        settings: what is asked for.
        folder: where the maps are kept meanwhile.
        features: a features folder with stored maps, or None to generate maps, in memory for both.
    """
    file = folder / "maps.npz"
    if features is None:
        maps, scale = _generated_maps()
    else:
        record = _only_record(features)
        image_id = _image_ids(features, record)
        maps, scale = read_ours(features, record, "feature_map", image_id)
    np.savez(file, maps=maps, scale=scale)

    def rate(method: str, _: int) -> float:
        with Processes(HeadTrainer, [(file, features)]) as process:
            images_per_s: float
            (images_per_s,) = process.ask(method)
            return images_per_s

    turns = run_in_turn(
        f"training, {HEAD}",
        partial(rate, "ours"),
        partial(rate, "plain"),
        (len(maps),),
        settings.repeat,
    )
    shape = "x".join(str(side) for side in maps.shape)
    note = f"{EPOCHS} epochs of {'generated' if features is None else 'stored'} maps {shape}"
    return [
        ratio_row(
            f"training, {HEAD}",
            "Keras' fit",
            [pair for (pair,) in turns.runs],
            # The target is about features in a store; drawn maps are in memory for both.
            target=None if features is None else TRAINING,
            note="; ".join(filter(None, [note, turns.note])),
        )
    ]


def _generated_maps() -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return rng.random((N_MAPS, *MAP_SHAPE), np.float32).astype(np.float16), np.ones(
        N_MAPS, np.float32
    )


class HeadTrainer:
    """Trains the head on maps, by our trainer or by plain Keras; returns images a second.

    The time is that of all epochs, from maps in the store or in memory to a trained head. Keras is
    imported before; what ours alone imports counts.
    """

    def __init__(self, file: Path, features: Path | None) -> None:
        """Read the maps; a tenth of the images are for validation, labels alternate."""
        self._file, self._features = file, features
        with np.load(file) as arrays:
            rows = np.arange(len(arrays["scale"]))
        self._labels = (rows % 2).astype(np.int64)
        self._splits = np.where(rows % 10 == 0, "val", "train")

    def ours(self) -> float:
        """Train by ``train_head``, from the store where there is one."""
        import keras  # noqa: F401

        from cxr_spark.training.heads import HEADS
        from cxr_spark.training.inputs import InMemory, Inputs, open_inputs
        from cxr_spark.training.trainer import train_head

        training, features = TrainingConfig(epochs=EPOCHS), self._features

        def stored(features: Path) -> Inputs:
            record = _only_record(features)
            image_id, memory_gb = _image_ids(features, record), training.memory_gb
            return open_inputs(features, record, "feature_map", image_id, memory_gb=memory_gb)

        drawn = [InMemory(*self._maps())] if features is None else []
        began = time.perf_counter()
        inputs = drawn[0] if features is None else stored(features)
        train_head(
            HEADS[HEAD], inputs, self._labels, self._splits, n_classes=2, training=training, seed=0
        )
        return self._rate(began)

    def plain(self) -> float:
        """Train by ``keras.Model.fit`` on float32 maps in memory."""
        import keras

        from cxr_spark.training.heads import HEADS, build_head

        half, scale = self._maps()
        maps = half.astype(np.float32) * scale[:, None, None, None]
        one_hot = np.eye(2, dtype=np.float32)[self._labels]
        train, val = (self._splits == split for split in ("train", "val"))
        x, y, held_out = maps[train], one_hot[train], (maps[val], one_hot[val])
        keras.utils.set_random_seed(0)
        began = time.perf_counter()
        model = build_head(HEADS[HEAD], maps.shape[1:], 2)
        model.compile("adam", "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
        model.fit(
            x, y, validation_data=held_out, epochs=EPOCHS, batch_size=TrainingConfig().batch_size,
            verbose=0,
        )  # fmt: skip
        return self._rate(began)

    def _maps(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        with np.load(self._file) as arrays:
            return arrays["maps"], arrays["scale"]

    def _rate(self, began: float) -> float:
        n_train = int((self._splits == "train").sum())
        return EPOCHS * n_train / (time.perf_counter() - began)
