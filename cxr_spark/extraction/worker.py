"""What an executor does in Spark's Python workers: rows of the manifest in, of features out."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxr_spark.checksums import sum_text
from cxr_spark.dataset.pack_reader import PackReader
from cxr_spark.dataset.remote import read_ahead
from cxr_spark.dataset.root import as_listed
from cxr_spark.engine.apart import DecoderApart
from cxr_spark.engine.device import Device
from cxr_spark.engine.features import find_degenerate
from cxr_spark.engine.forward import Forward, precision_loss
from cxr_spark.engine.pipeline import (
    BATCH_SIZE,
    Batches,
    PreparedImage,
    batch_groups,
    in_background,
    one_ahead,
    prepare_groups,
    run_batches,
)
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    FEATURE_COLUMNS,
    FEATURE_MAP_COLUMNS,
    KEY_COLUMNS,
    MANIFEST_COLUMNS,
    Identity,
    stored_features,
)
from cxr_spark.files import Source
from cxr_spark.placement import Placement, is_tried_again, task_device

log = logging.getLogger(__name__)

Extractor = Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]

# One loaded graph a backbone and device for the life of a worker, whatever the number of tasks.
_forwards: dict[tuple[str, Device], Forward] = {}


@dataclass(frozen=True)
class Extraction:
    """One backbone to run: its identity, and the graph that Spark ships.

    Attributes:
        identity: of its features.
        graph_file: name of the file, which ends in its SHA-256.
        input_name: of the graph's tensors, as in ``FrozenGraph``.
        output_names: likewise.
    """

    identity: Identity
    graph_file: str
    input_name: str
    output_names: tuple[str, ...]


def result_columns(feature_maps: bool) -> dict[str, str]:
    """Return the columns an extractor yields: features and errors as long rows of one table."""
    columns = {"fingerprint": "string", **FEATURE_COLUMNS}
    if feature_maps:
        columns |= FEATURE_MAP_COLUMNS
    return {**columns, "stage": ERROR_COLUMNS["stage"], "error": ERROR_COLUMNS["error"]}


def make_extractor(
    extractions: list[Extraction],
    image_size: tuple[int, int],
    placement: Placement,
    *,
    feature_maps: bool,
) -> Extractor:
    """Return the function for ``mapInPandas``.

    It takes rows of the manifest and yields, for each image, one row a backbone; or one row with
    ``stage`` and ``error`` for an image that cannot be read or decoded. Such an image never reaches
    a backbone. Each image is decoded and resized once. Where a backbone gives what are no features,
    one row of stage 'features' stands for a group of images.

    On a processor one thread does it all in turn, since every core has such a task. For a GPU
    ``task_cpus`` threads decode the next rows, another computes, and this one makes rows of what
    was computed, so that the GPU does not wait for them.

    What ended a task may have been one of its images. So a task that is tried again decodes in a
    process of its own: an image that ends that one is a row of stage 'decode'.
    """
    columns = list(result_columns(feature_maps))

    def extract(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        device = task_device(placement)
        return _extract(frames, extractions, image_size, placement, device, columns)

    return extract


def make_warmer(extractions: list[Extraction], placement: Placement) -> Extractor:
    """Return a function for ``mapInPandas`` that loads the graphs and passes its rows on."""

    def warm(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        device = task_device(placement)
        for extraction in extractions:
            forward = _forward(extraction, device, placement)
            batch = (BATCH_SIZE[device.kind], *extraction.identity.image_size, 1)
            # What is made of the first batch alone: for a GPU, XLA compiles each kind of pixels.
            for dtype in (np.uint8, np.float32) if device.kind == "GPU" else (np.uint8,):
                forward(np.zeros(batch, dtype))
        yield from frames

    return warm


def make_comparer(
    exact: Extraction, lower: Extraction, pixels: list[npt.NDArray[Any]], placement: Placement
) -> Extractor:
    """Return a function for ``mapInPandas`` that yields the loss of a lower precision: one row.

    Args:
        exact: in float32; it is not kept, since it may never be used again.
        lower: the same backbone in the other precision.
        pixels: of the images that both compute.
        placement: of the session.
    """

    def compare(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        device = task_device(placement)
        batches = Batches(pixels, BATCH_SIZE[device.kind], on_gpu=device.kind == "GPU")
        outputs = [
            run_batches(forward, batches)
            for forward in (
                _load_forward(exact, device, placement),
                _forward(lower, device, placement),
            )
        ]
        for _ in frames:
            yield pd.DataFrame({"loss": [precision_loss(*outputs)]})

    return compare


def _extract(
    frames: Iterable[pd.DataFrame],
    extractions: list[Extraction],
    image_size: tuple[int, int],
    placement: Placement,
    device: Device,
    columns: list[str],
) -> Iterator[pd.DataFrame]:
    on_gpu, batch_size = device.kind == "GPU", BATCH_SIZE[device.kind]
    threads = placement.task_cpus if on_gpu else 0
    forwards = [_forward(extraction, device, placement) for extraction in extractions]
    with PackReader() as packs, ExitStack() as stack:
        # Of images that are far away the next group is read while one is computed.
        groups = one_ahead((rows, _sources(rows, packs)) for rows in frames)
        decode = stack.enter_context(DecoderApart()).prepare_encoded if is_tried_again() else None
        prepared = prepare_groups(groups, image_size, threads=threads, decode=decode)
        stack.enter_context(closing(prepared))
        batched = batch_groups(prepared, batch_size, on_gpu=on_gpu)
        stack.enter_context(closing(batched))  # before what it takes its groups of
        computed = _compute(batched, extractions, forwards)
        if on_gpu:
            computed = in_background(computed)
        stack.enter_context(closing(computed))
        usable, keys = pd.DataFrame(), np.empty(0, np.int64)
        for step in computed:
            if isinstance(step, _Group):
                usable, errors = _divide(step.rows, step.images)
                if len(usable):
                    keys = sum_text([usable[name] for name in KEY_COLUMNS])
                if len(errors):
                    yield _without_features(errors, columns)
            elif step.problem:
                told = f"{step.extraction.identity.backbone} gave features that are {step.problem}"
                failed = usable.head(1).assign(stage="features", error=told)
                yield _without_features(failed, columns)
            else:
                yield usable.assign(
                    fingerprint=step.extraction.identity.fingerprint,
                    keys_checksum=keys,
                    **stored_features(step.outputs),
                ).reindex(columns=columns)


class _Group(NamedTuple):
    """Images that were prepared, before what is computed of them."""

    rows: pd.DataFrame
    images: list[PreparedImage]


class _Computed(NamedTuple):
    """What a backbone makes of the usable images of the group before, or why it is of no use."""

    extraction: Extraction
    outputs: tuple[npt.NDArray[Any], ...]
    problem: str | None


def _compute(
    batched: Iterable[tuple[pd.DataFrame, list[PreparedImage], Batches]],
    extractions: Sequence[Extraction],
    forwards: Sequence[Forward],
) -> Generator[_Group | _Computed]:
    """Yield each group, and then what each backbone makes of it."""
    for rows, images, batches in batched:
        yield _Group(rows, images)
        if not batches.pixels:
            continue
        for extraction, forward in zip(extractions, forwards, strict=True):
            outputs = run_batches(forward, batches)
            fingerprint = extraction.identity.fingerprint
            problem = _find_degenerate(fingerprint, outputs[0], batches.pixels)
            yield _Computed(extraction, outputs, problem)


# The first image of each extraction that this process computed: its pixels and pooled features.
_first: dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.float32]]] = {}


def _find_degenerate(
    fingerprint: str, pooled: npt.NDArray[np.float32], pixels: Sequence[npt.NDArray[Any]]
) -> str | None:
    """Look at a group beside the first image of this process: a group may be of one image."""
    seen, features = _first.setdefault(fingerprint, (pixels[0].copy(), pooled[0].copy()))
    return find_degenerate(np.vstack([features[None], pooled]), [seen, *pixels])


def _sources(rows: pd.DataFrame, packs: PackReader) -> Sequence[Source]:
    """Return what gives the bytes of rows of the manifest."""
    modified = rows["modified"].to_numpy("datetime64[us]").astype(np.int64)
    columns = (rows["image_id"], rows["path"], rows["length"], modified)
    return read_ahead(
        [
            as_listed(image_id, path, int(length), int(at), packs)
            for image_id, path, length, at in zip(*columns, strict=True)
        ]
    )


def _without_features(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    missing = [name for name in columns if name not in rows]
    return rows.assign(**dict.fromkeys(missing)).reindex(columns=columns)


def _divide(rows: pd.DataFrame, images: list[PreparedImage]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of what can be used, and rows with reasons of the rest."""
    told = rows[list(MANIFEST_COLUMNS)].assign(
        height=np.array([image.height for image in images], np.int32),
        width=np.array([image.width for image in images], np.int32),
        pixels_digest=[image.pixels_digest for image in images],
        stage=[image.stage for image in images],
        error=[image.error for image in images],
    )
    failed = told["error"].notna().to_numpy()
    return told[~failed].drop(columns=["stage", "error"]), told[failed]


def _forward(extraction: Extraction, device: Device, placement: Placement) -> Forward:
    key = (extraction.graph_file, device)
    if key not in _forwards:
        began = time.monotonic()
        _forwards[key] = _load_forward(extraction, device, placement)
        # Spark collects garbage after every task, a quarter of a second over TensorFlow's objects.
        gc.freeze()
        log.warning(  # the level that Spark's workers show in an executor's log
            "%s on %s%s, %s, batches of %d, %d cores a task, process %d, loaded in %.1f s",
            extraction.identity.backbone, device.name,
            f" (GPU {device.address} of Spark)" if device.address else "",
            extraction.identity.precision, BATCH_SIZE[device.kind], placement.task_cpus,
            os.getpid(), time.monotonic() - began,
        )  # fmt: skip
    return _forwards[key]


def _load_forward(extraction: Extraction, device: Device, placement: Placement) -> Forward:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import cv2
    from pyspark import SparkFiles

    from cxr_spark.engine.frozen import FrozenGraph, load_graph

    cv2.setNumThreads(1)
    _import_tensorflow()
    graph = Path(SparkFiles.get(extraction.graph_file)).read_bytes()
    if hashlib.sha256(graph).hexdigest() not in extraction.graph_file:
        raise RuntimeError(
            f"the graph of {extraction.identity.backbone} that reached this executor is not the "
            "driver's"
        )
    frozen = FrozenGraph(graph, extraction.input_name, extraction.output_names)
    return load_graph(frozen, device, threads=placement.task_cpus)


def _import_tensorflow() -> None:
    """Import TensorFlow without Keras, which its graphs do not need: half the time, 180 MB less.

    TensorFlow imports Keras last, and goes on where it is not there. ``import keras`` works in this
    process as ever; ``from tensorflow.keras import`` does not.
    """
    if "tensorflow" in sys.modules or "keras" in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()  # there is no garbage yet, and to look for it takes a fifth of the time
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        import tensorflow  # noqa: F401
    finally:
        del sys.modules["keras"]
        if collects:
            gc.enable()
