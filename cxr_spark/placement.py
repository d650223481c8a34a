"""What the tasks of a session compute on: cores, and the GPU that Spark gives each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxr_spark.engine.device import Device, choose_device

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Placement:
    """How the tasks of a session compute.

    Attributes:
        task_cpus: cores a task (``spark.task.cpus``): so many threads decode for a GPU, or compute.
        one_gpu_an_executor: see ``choose_device``.
        on_gpu: whether Spark gives each task a GPU.
    """

    task_cpus: int = 1
    one_gpu_an_executor: bool = False
    on_gpu: bool = False


def placement_of(spark: SparkSession) -> Placement:
    """Return what a task of this session computes on, from Spark's own settings."""
    conf = spark.sparkContext.getConf()
    return Placement(
        task_cpus=int(conf.get("spark.task.cpus", "1") or 1),
        one_gpu_an_executor=conf.get("spark.executor.resource.gpu.amount") == "1",
        on_gpu=float(conf.get("spark.task.resource.gpu.amount", "0") or 0) > 0,
    )


def gpu_addresses() -> list[str]:
    """Return the GPUs that Spark gave this task; none outside a task, or where none was asked."""
    from pyspark import TaskContext

    context = TaskContext.get()
    resources = context.resources() if context else {}
    return list(resources["gpu"].addresses) if "gpu" in resources else []


def is_tried_again() -> bool:
    """Return whether this task was tried before: Spark lost it, or its worker ended."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return context is not None and context.attemptNumber() > 0


def task_device(placement: Placement) -> Device:
    """Return the device that this task computes on.

    Raises:
        DeviceError: as for ``choose_device``.
    """
    return choose_device(gpu_addresses(), one_an_executor=placement.one_gpu_an_executor)
