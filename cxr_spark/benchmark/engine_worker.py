"""One process of the engine section: each stage of the compute core, alone and all together."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cxr_spark.backbones import load_backbone
from cxr_spark.benchmark.machine import choose_backend
from cxr_spark.benchmark.rows import MeasurementError
from cxr_spark.engine.device import CPU, PRETEND, Device
from cxr_spark.engine.forward import Forward, compile_forward, precision_loss
from cxr_spark.engine.pipeline import (
    BATCH_SIZE,
    Batches,
    batch_groups,
    make_batches,
    prepare_groups,
    run_batches,
)
from cxr_spark.extraction.store import stored_features
from cxr_spark.files import Source, read_whole

# Images a group: what a processor's thread decodes before it computes, and what a GPU's threads
# decode ahead.
GROUP_SIZE = {"CPU": 32, "GPU": 256}


@dataclass(frozen=True)
class _InMemory:
    """The bytes of a file that was read already, as a ``Source``."""

    encoded: bytes

    def read(self) -> bytes:
        """Return them."""
        return self.encoded


class EngineWorker:
    """Measures the stages on its share of the images, over and over for a given time.

    Every measurement takes the wall time that it lasts at least, in seconds, and returns (images,
    seconds); at least one group is done.
    """

    def __init__(self, core: int, n_threads: int, image_size: tuple[int, int]) -> None:
        """Take one core, or all for a GPU, before a backend is imported."""
        import cv2

        cv2.setNumThreads(1)
        self._backend = choose_backend()
        self._image_size = image_size
        self._paths: Sequence[bytes] = ()
        self._encoded: list[Source] = []
        self._pixels: list[npt.NDArray[Any]] = []
        self._forward: Forward | None = None
        if n_threads == 1:
            _keep_to_one_thread(self._backend, core)
        self._threads = n_threads
        self._kind = "CPU"

    @property
    def _on_gpu(self) -> bool:
        return self._kind == "GPU"

    def probe(self) -> dict[str, str]:
        """Return the backend, the kind of device that it computes on, and the device's name."""
        self._kind, name = _find_device(self._backend)
        return {"backend": self._backend, "kind": self._kind, "name": name}

    def use_images(self, paths: Sequence[bytes]) -> int:
        """Take a share of the images; return how many of a group's even sample can be used."""
        self._paths = paths
        size = GROUP_SIZE[self._kind]
        n_kept = min(size, len(paths))
        kept = [paths[i * len(paths) // n_kept] for i in range(n_kept)]
        ((_, prepared),) = prepare_groups([(None, kept)], self._image_size, threads=0)
        usable = [image.pixels for image in prepared if image.pixels is not None]
        if not usable:
            reasons = sorted({image.error or "" for image in prepared})
            raise MeasurementError(f"none of {n_kept} images can be used ({reasons[0]})")
        self._pixels = list(itertools.islice(itertools.cycle(usable), size))
        readable = [
            _InMemory(read_whole(path))
            for path, image in zip(kept, prepared, strict=True)
            if image.stage != "read"
        ]
        self._encoded = list(itertools.islice(itertools.cycle(readable), size))
        return len(usable)

    def load(self, backbone: str, weights: str, precision: str, maps: bool) -> float:
        """Load a backbone; return the loss of a lower precision against float32, else 0."""
        if self._backend != "tensorflow":
            _keep_tensorflow_out()
        model = load_backbone(backbone, self._image_size, weights)

        def compiled(precision: str) -> Forward:
            return self._compile(model, backbone, precision, maps)

        self._forward = compiled(precision)
        if precision == "float32":
            return 0.0
        batches = self._batches(self._pixels[: BATCH_SIZE[self._kind]])
        exact, lower = (
            run_batches(forward, batches) for forward in (compiled("float32"), self._forward)
        )
        return precision_loss(exact, lower)

    def _compile(self, model: Any, backbone: str, precision: str, maps: bool) -> Forward:
        pretended = bool(os.environ.get(PRETEND))
        device = Device("GPU", pretended=pretended) if self._on_gpu else CPU
        threads = self._threads if device is CPU else 0
        return compile_forward(
            model, backbone, "none", feature_maps=maps, precision=precision, device=device,
            threads=threads,
        )  # fmt: skip

    def read(self, seconds: float) -> tuple[int, float]:
        """Read files, on a GPU machine by as many threads as decode."""
        if not self._on_gpu:
            return self._timed(seconds, lambda paths: [read_whole(path) for path in paths])
        with ThreadPoolExecutor(self._threads) as pool:
            return self._timed(seconds, lambda paths: list(pool.map(read_whole, paths)))

    def decode(self, seconds: float) -> tuple[int, float]:
        """Decode and resize what is in memory already."""
        return self._prepared(self._encoded for _ in self._groups(seconds))

    def read_decode(self, seconds: float) -> tuple[int, float]:
        """Read, decode and resize files."""
        return self._prepared(self._groups(seconds))

    def forward(self, seconds: float) -> tuple[int, float]:
        """Run the backbone over batches that are ready."""
        assert self._forward is not None, "load comes first"
        batch_size, forward = BATCH_SIZE[self._kind], self._forward
        ready = [batch for _, batch in make_batches(self._pixels, batch_size, padded=False)]
        return self._timed(seconds, lambda paths: [forward(batch) for batch in ready])

    def core(self, seconds: float) -> tuple[int, float]:
        """Run all of it, from files to features."""
        return self._prepared(self._groups(seconds), computed=True)

    def write(self, seconds: float, folder: str) -> tuple[int, float]:
        """Write features as Parquet; (0, 0) where there is no pyarrow."""
        try:
            import pandas  # noqa: F401
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            return 0, 0.0
        outputs = self._compute(self._batches(self._pixels))
        file = Path(folder) / f"{os.getpid()}.parquet"
        return self._timed(seconds, lambda paths: _write(outputs, file))

    def _batches(self, pixels: Sequence[npt.NDArray[Any]]) -> Batches:
        return Batches(pixels, BATCH_SIZE[self._kind], on_gpu=self._on_gpu)

    def _compute(self, batches: Batches) -> tuple[npt.NDArray[Any], ...]:
        assert self._forward is not None, "load comes first"
        return run_batches(self._forward, batches)

    def _groups(self, seconds: float) -> Iterator[Sequence[bytes]]:
        """Yield groups of paths, round and round, until the time is over."""
        size, deadline = GROUP_SIZE[self._kind], time.perf_counter() + seconds
        paths = itertools.cycle(self._paths)
        yield list(itertools.islice(paths, size))
        while time.perf_counter() < deadline:
            yield list(itertools.islice(paths, size))

    def _timed(self, seconds: float, work: Callable[[Sequence[bytes]], Any]) -> tuple[int, float]:
        began, n_images = time.perf_counter(), 0
        for paths in self._groups(seconds):
            work(paths)
            n_images += len(paths)
        return n_images, time.perf_counter() - began

    def _prepared(
        self, groups: Iterable[Sequence[bytes | Source]], *, computed: bool = False
    ) -> tuple[int, float]:
        """Prepare groups of files, and compute them where that is asked for."""
        began, n_images = time.perf_counter(), 0
        threads, batch_size = self._threads if self._on_gpu else 0, BATCH_SIZE[self._kind]
        named = ((None, group) for group in groups)
        prepared = prepare_groups(named, self._image_size, threads=threads)
        if not computed:
            n_images = sum(len(images) for _, images in prepared)
            return n_images, time.perf_counter() - began
        for _, images, batches in batch_groups(prepared, batch_size, on_gpu=self._on_gpu):
            if batches.pixels:
                self._compute(batches)
            n_images += len(images)
        return n_images, time.perf_counter() - began


def _keep_to_one_thread(backend: str, core: int) -> None:
    """Have a backend compute in one thread, which its settings say, or the one core that it has."""
    if backend == "tensorflow":
        import tensorflow as tf

        # Before Keras builds a backbone: the threads of a process are those of its first use.
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _keep_tensorflow_out() -> None:
    """Have Keras take TensorFlow for missing, where another backend is to compute.

    It imports what there is of it to set its seed as well, and TensorFlow takes a GPU's memory.
    """
    import keras

    if "tensorflow" in sys.modules:
        return
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        keras.utils.set_random_seed(0)  # which looks for it once in a process
    finally:
        del sys.modules["tensorflow"]  # Keras looks here whether a tensor may be one of it


def _find_device(backend: str) -> tuple[str, str]:
    if backend == "tensorflow" and os.environ.get(PRETEND):
        return "GPU", f"the processor, pretended to be a GPU ({PRETEND})"
    if backend == "tensorflow":
        import tensorflow as tf

        if gpus := tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpus[0])
            return "GPU", str(details.get("device_name", "GPU"))
    elif backend == "jax":
        import jax

        if jax.default_backend() in ("gpu", "cuda", "rocm"):
            return "GPU", str(jax.devices()[0].device_kind)
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            return "GPU", torch.cuda.get_device_name(0)
    return "CPU", "processor"


def _write(outputs: tuple[npt.NDArray[Any], ...], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(stored_features(outputs))  # as extraction.one_pass has Spark write
    pq.write_table(table, file, compression="zstd", compression_level=1, use_dictionary=False)
