"""What an executor does in Spark's Python workers: rows of the manifest in, of features out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.dataset.listing import uri_to_path
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    FEATURE_COLUMNS,
    FEATURE_MAP_COLUMNS,
    MANIFEST_COLUMNS,
    Identity,
)
from cxr_spark.images import UndecodableImage, decode_grey, resize_bilinear

if TYPE_CHECKING:
    from cxr_spark.backbones import Forward

# Batches of 16 are faster than of 64 on processors.
BATCH_SIZE = 16

Extractor = Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]

# One compiled forward function a backbone for the life of a worker, whatever the number of tasks.
_forwards: dict[tuple[str, bool], Forward] = {}


@dataclass(frozen=True)
class Extraction:
    """One backbone to run: its identity and the name under which Spark ships its weights."""

    identity: Identity
    weights_file: str


def result_columns(feature_maps: bool) -> dict[str, str]:
    """Return the columns an extractor yields: features and errors as long rows of one table."""
    columns = {"fingerprint": "string", **FEATURE_COLUMNS}
    if feature_maps:
        columns |= FEATURE_MAP_COLUMNS
    return {**columns, "stage": ERROR_COLUMNS["stage"], "error": ERROR_COLUMNS["error"]}


def make_extractor(extractions: list[Extraction], *, feature_maps: bool) -> Extractor:
    """Return the function for ``mapInPandas``.

    It takes rows of the manifest and yields, for each image, one row a backbone; or one row with
    ``stage`` and ``error`` for an image that cannot be read or decoded. Such an image never reaches
    a backbone. Each image is decoded once, and resized once for each image size.
    """
    columns = list(result_columns(feature_maps))

    def extract(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for rows in batches:
            usable, images, errors = _decode_all(rows)
            if len(errors):
                yield errors.assign(pooled=None, feature_map=None).reindex(columns=columns)
            for image_size in dict.fromkeys(e.identity.image_size for e in extractions):
                pixels = [resize_bilinear(image, image_size) for image in images]
                for extraction in extractions:
                    if extraction.identity.image_size == image_size and pixels:
                        features = _features(extraction, pixels, feature_maps)
                        yield usable.assign(
                            fingerprint=extraction.identity.fingerprint, **features
                        ).reindex(columns=columns)

    return extract


def _decode_all(
    rows: pd.DataFrame,
) -> tuple[pd.DataFrame, list[npt.NDArray[np.uint8]], pd.DataFrame]:
    images: list[npt.NDArray[np.uint8]] = []
    failures: list[tuple[str | None, str | None]] = []
    for path in rows["path"]:
        try:
            encoded = _read(uri_to_path(path))
        except OSError as error:
            failures.append(("read", error.strerror or str(error)))
            continue
        try:
            images.append(decode_grey(encoded))
            failures.append((None, None))
        except UndecodableImage as error:
            failures.append(("decode", str(error)))
    told = rows.assign(
        stage=[stage for stage, _ in failures], error=[error for _, error in failures]
    )
    failed = told["error"].notna()
    usable = rows[~failed.to_numpy()][list(MANIFEST_COLUMNS)].assign(
        height=np.array([image.shape[0] for image in images], np.int32),
        width=np.array([image.shape[1] for image in images], np.int32),
    )
    return usable, images, told[failed.to_numpy()]


def _read(path: bytes) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a named pipe would wait for ever
        raise OSError(errno.EINVAL, "not a regular file")
    with open(path, "rb") as file:
        return file.read()


def _features(
    extraction: Extraction, pixels: list[npt.NDArray[np.float32]], feature_maps: bool
) -> dict[str, Any]:
    forward = _forward(extraction, feature_maps)
    pooled: list[npt.NDArray[np.float32]] = []
    maps: list[bytes] = []
    scales: list[float] = []
    batch = np.zeros((BATCH_SIZE, *extraction.identity.image_size, 1), np.float32)
    for start in range(0, len(pixels), BATCH_SIZE):
        chunk = pixels[start : start + BATCH_SIZE]
        batch[: len(chunk), ..., 0] = chunk
        batch[len(chunk) :] = 0  # the last batch is padded, so that one shape is compiled
        outputs = forward(batch)
        pooled.extend(outputs[0][: len(chunk)])
        if feature_maps:
            for feature_map in outputs[1][: len(chunk)]:
                scale = float(np.abs(feature_map).max())
                scales.append(scale)
                maps.append((feature_map / (scale or 1.0)).astype("<f2").tobytes())
    if not feature_maps:
        return {"pooled": pooled}
    return {
        "pooled": pooled,
        "feature_map": maps,
        "feature_map_scale": np.array(scales, np.float32),
    }


def _forward(extraction: Extraction, feature_maps: bool) -> Forward:
    key = (extraction.identity.fingerprint, feature_maps)
    if key not in _forwards:
        _forwards[key] = _build_forward(extraction, feature_maps)
    return _forwards[key]


def _build_forward(extraction: Extraction, feature_maps: bool) -> Forward:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import cv2
    import tensorflow as tf
    from pyspark import SparkFiles

    from cxr_spark.backbones import compile_forward, load_backbone, weights_digest

    if not _forwards:  # one task a core, one thread a task; only before the first operation
        cv2.setNumThreads(1)
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    identity = extraction.identity
    model = load_backbone(
        identity.backbone, identity.image_size, SparkFiles.get(extraction.weights_file)
    )
    if weights_digest(model) != identity.weights_digest:
        raise RuntimeError(
            f"the weights of {identity.backbone} that reached this executor are not the driver's"
        )
    with _quiet_start():
        forward = compile_forward(
            model,
            identity.backbone,
            identity.preprocessing,
            batch_size=BATCH_SIZE,
            feature_maps=feature_maps,
        )
        forward(np.zeros((BATCH_SIZE, *identity.image_size, 1), np.float32))
    return forward


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Drop what TensorFlow's C++ says while a graph is made, before it obeys any log level."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
