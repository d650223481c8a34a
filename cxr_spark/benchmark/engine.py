"""The engine section: what this machine's cores or GPU do with no Spark, stage by stage."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from cxr_spark.backbones import PRECISIONS
from cxr_spark.benchmark.engine_worker import EngineWorker
from cxr_spark.benchmark.images import ImageSet
from cxr_spark.benchmark.machine import count_cores
from cxr_spark.benchmark.processes import Processes
from cxr_spark.benchmark.rows import MeasurementError, Row, failed_row, rate_row, ratio_row
from cxr_spark.benchmark.settings import IMAGE_SIZE, Settings
from cxr_spark.benchmark.targets import A100_RESNET50, AS_AN_A100, CORE_ON_GPU
from cxr_spark.engine.forward import MAX_PRECISION_LOSS

log = logging.getLogger(__name__)

# A measurement lasts at least so long; a GPU's first group is not overlapped with anything.
SECONDS = {"CPU": 2.0, "GPU": 6.0}


@dataclass
class EngineResult:
    """What the engine section found.

    Attributes:
        device: backend, kind and name of the device.
        rows: of the table.
        core_rates: images/s of the whole core, by name of the images and backbone.
    """

    device: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    core_rates: dict[tuple[str, str], float] = field(default_factory=dict)


def measure_engine(
    settings: Settings, sets: Sequence[ImageSet], *, seconds: float | None = None
) -> EngineResult:
    """Measure each stage alone and the core as a whole, in one process a core or on one GPU.

    Args:
        settings: backbones, weights and how often.
        sets: the images.
        seconds: how long each measurement lasts at least; by default what the device needs.
    """
    cores = count_cores()
    result = EngineResult()
    with Processes(EngineWorker, [(0, cores, IMAGE_SIZE)]) as one:
        (result.device,) = one.ask("probe")
        _tell_device(result.device)
        lasting = SECONDS[result.device["kind"]] if seconds is None else seconds
        if result.device["kind"] == "GPU":
            _Section(settings, one, 1, lasting, result).measure(sets)
            return result
    arguments = [(core, 1, IMAGE_SIZE) for core in range(cores)]
    with Processes(EngineWorker, arguments) as all_cores:
        all_cores.ask("probe")
        _Section(settings, all_cores, cores, lasting, result).measure(sets)
    return result


def _tell_device(device: dict[str, str]) -> None:
    log.info("engine: Keras on %s, %s (%s)", device["backend"], device["name"], device["kind"])
    if device["kind"] == "CPU" and (os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi")):
        log.warning(
            "this machine has an NVIDIA GPU or its driver, and %s sees none: what follows is the "
            "processor's. Install the backend's build for CUDA, and look at nvidia-smi",
            device["backend"],
        )


@dataclass(frozen=True)
class _Section:
    settings: Settings
    processes: Processes
    n_processes: int
    seconds: float
    result: EngineResult

    @property
    def _on_gpu(self) -> bool:
        return self.result.device["kind"] == "GPU"

    def measure(self, sets: Sequence[ImageSet]) -> None:
        """Measure every set of images, and every backbone on it."""
        for images in sets:
            log.info("engine: %s", images.name)
            try:
                self._give(images)
                self._add(rate_row(f"read, {images.name}", self._rates("read")))
                self._add(rate_row(f"decode, {images.name}", self._rates("decode")))
            except MeasurementError as error:
                self._add(failed_row(f"read, decode, {images.name}", error))
                continue
            for backbone in self.settings.backbones:
                precisions = tuple(PRECISIONS) if self._on_gpu else ("float32",)
                for precision in precisions:
                    what = backbone if precision == "float32" else f"{backbone} {precision}"
                    try:
                        self._measure_backbone(images, backbone, precision, what)
                    except MeasurementError as error:
                        self._add(failed_row(f"core, {what}, {images.name}", error))

    def _measure_backbone(self, images: ImageSet, backbone: str, precision: str, what: str) -> None:
        settings = self.settings
        losses = self.processes.ask(
            "load", backbone, settings.weights, precision, settings.feature_maps
        )
        self.processes.ask("core", 0.0)  # the first group compiles
        self.processes.ask("forward", 0.0)
        # A GPU waits for whatever is slower; a core does one after the other.
        prepared = "decode" if self._on_gpu else "read_decode"
        forwards, pairs = [], []
        for _ in range(settings.repeat):
            decode, forward, core = (self._rate(stage) for stage in (prepared, "forward", "core"))
            forwards.append(forward)
            alone = 1 / (1 / decode + 1 / forward)
            pairs.append((core, min(decode, forward) if self._on_gpu else alone))
        used = losses[0] < MAX_PRECISION_LOSS
        note = f"differs from float32 by {losses[0]:.1e}" if precision != "float32" else ""
        note += "" if used else ": too much, so that jobs compute in float32"
        self._add(rate_row(f"forward, {what}, {images.name}", forwards, note=note))
        self._write(what, images)
        self._add(
            ratio_row(
                f"core, {what}, {images.name}",
                "the slower of decoding and forward alone" if self._on_gpu
                else "reading with decoding, and forward, alone, one after the other",
                pairs,
                target=CORE_ON_GPU if self._on_gpu and used else None,
                note=note,
            )
        )  # fmt: skip
        if self._on_gpu and backbone == "ResNet50" and precision != "float32":
            self._compare_with_a100(images, what, [core for core, _ in pairs])
        if precision == "float32":
            rate = statistics.median(core for core, _ in pairs)
            self.result.core_rates[images.name, backbone] = rate

    def _compare_with_a100(self, images: ImageSet, what: str, rates: list[float]) -> None:
        """Compare with what is published; a target where the machine can reach it at all."""
        name, decode = self.result.device["name"], self._rate("decode")
        why_none = ""
        if AS_AN_A100.search(name) is None:
            why_none = f"no target: {name} is not known to be as fast as an A100"
        elif decode < A100_RESNET50:
            why_none = f"no target: this machine's cores decode {decode:,.0f} images/s"
        self._add(
            ratio_row(
                f"core, {what}, {images.name}, against an A100",
                "what NVIDIA states of one",
                [(rate, float(A100_RESNET50)) for rate in rates],
                target=None if why_none else 1.0,
                note=why_none,
            )
        )

    def _give(self, images: ImageSet) -> None:
        # Each process has its share; where there are fewer images than processes, some have one.
        n = self.n_processes
        shares = [images.paths[i::n] or images.paths[:1] for i in range(n)]
        self.processes.ask_each("use_images", shares)

    def _write(self, what: str, images: ImageSet) -> None:
        with tempfile.TemporaryDirectory(prefix="cxr_spark-bench-") as folder:
            answers = [
                self.processes.ask("write", min(self.seconds, 1.0), folder)
                for _ in range(self.settings.repeat)
            ]
        what = f"write, {what}, {images.name}"
        if all(n_images for answer in answers for n_images, _ in answer):
            self._add(rate_row(what, [_sum_rates(answer) for answer in answers]))
        else:
            self._add(failed_row(what, "pandas or pyarrow is not installed"))

    def _rates(self, stage: str) -> list[float]:
        self.processes.ask(stage, 0.0)
        return [self._rate(stage) for _ in range(self.settings.repeat)]

    def _rate(self, stage: str) -> float:
        return _sum_rates(self.processes.ask(stage, self.seconds))

    def _add(self, row: Row) -> None:
        self.result.rows.append(row)


def _sum_rates(answers: Sequence[tuple[int, float]]) -> float:
    return sum(n_images / seconds for n_images, seconds in answers)
