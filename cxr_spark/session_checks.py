"""What would fail minutes into a run on a cluster, found when the session opens, in one line."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from cxr_spark.errors import UserError
from cxr_spark.installed import installed_version
from cxr_spark.memory import (
    GROUPS_ON_GPU,
    IMAGES_AT_ONCE,
    address_space_mb,
    jvm_overhead_mb,
    machine_mb,
    to_mb,
)

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import SparkSession

Settings = Mapping[str, str]

# As Spark reads it, with the number of threads.
LOCAL = re.compile(r"local(?:\[(\d+|\*)(?:\s*,\s*\d+)?\])?")

# A worker holds the decoded images and the features of one Arrow batch: 1 GB for 2,048 of 224 px.
MOST_IN_A_BATCH = 2048

MASTER = "spark.master"
BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
LEGACY_ARROW = "ARROW_PRE_0_15_IPC_FORMAT"
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
TASK_GPUS = "spark.task.resource.gpu.amount"
DISCOVERY = "spark.executor.resource.gpu.discoveryScript"
EXECUTOR_CORES, TASK_CPUS = "spark.executor.cores", "spark.task.cpus"
HEAP, OVERHEAD = "spark.executor.memory", "spark.executor.memoryOverhead"
DRIVER_HEAP = "spark.driver.memory"
LEAST_OVERHEAD = "spark.executor.minMemoryOverhead"
PYSPARK_MEMORY = "spark.executor.pyspark.memory"

# The rule for a worker is above what was measured, by 15 % at most.
RULE_IS_HIGH_BY = 0.85

# What executors compute with.
PACKAGES = {
    **{name: name for name in ("numpy", "pandas", "pyarrow", "keras", "tensorflow")},
    "opencv": "opencv-python-headless",
    "pillow": "pillow",
}

ENVIRONMENT = (
    "Install the same constraints.txt on every node and name its Python in PYSPARK_PYTHON "
    "(spark.pyspark.python), or ship the environment by spark.archives"
)


def check_settings(settings: Settings, worker_mb: Callable[[int], int] | None = None) -> None:
    """Refuse settings with which a run would hang, be killed or crawl, before Spark starts.

    Args:
        settings: Spark's, as given and by default of this package.
        worker_mb: returns what a Python worker takes that is given so many images at once, by
            ``memory.worker_mb``; None where none will load a backbone.

    Raises:
        UserError: one line, with the key to set.
    """
    _check_workers_last(settings)
    _check_arrow(settings)
    _check_gpus(settings)
    _check_task_cpus(settings)
    if worker_mb is not None:
        needed = worker_mb(images_in_worker(settings))
        _check_address_space(settings, needed)
        _check_container(settings, needed)
        _check_machine(settings, needed)


def is_local(master: str) -> bool:
    """Whether a master is this process: 'local', 'local[2]', 'local[*,4]'."""
    return LOCAL.fullmatch(master) is not None


def _check_workers_last(settings: Settings) -> None:
    # Without its daemon Spark starts a worker for each task, whatever is said of reuse.
    for key in ("spark.python.worker.reuse", "spark.python.use.daemon"):
        if settings.get(key, "true").strip().lower() != "true":
            raise UserError(
                f"Expected {key}=true, or each task would load every backbone anew. "
                f"Received: {key}={settings[key]}"
            )


def _check_arrow(settings: Settings) -> None:
    # No key takes Arrow away from mapInPandas (spark.sql.execution.arrow.pyspark.enabled is of
    # toPandas and createDataFrame); this variable does.
    if os.environ.get(LEGACY_ARROW, "0") == "1":
        raise UserError(
            f"Expected {LEGACY_ARROW} not to be set (spark-env.sh, the environment), since PySpark "
            f"refuses Arrow with it. Received: {LEGACY_ARROW}=1"
        )
    if not 1 <= _number(settings, BATCH, 1) <= MOST_IN_A_BATCH:
        raise UserError(
            f"Expected {BATCH} from 1 to {MOST_IN_A_BATCH}, of which 256 is the default here: a "
            f"worker holds the images of a whole batch. Received: {BATCH}={settings[BATCH]}"
        )


def _check_gpus(settings: Settings) -> None:
    asked = {
        key: settings[key] for key in (EXECUTOR_GPUS, TASK_GPUS) if _number(settings, key, 0) > 0
    }
    if not asked:
        return
    told = ", ".join(f"{key}={value}" for key, value in asked.items())
    master = _master(settings)
    if is_local(master):
        raise UserError(
            f"Expected no {' or '.join(asked)} with spark.master={master}, which hands out no GPUs "
            "and would wait for ever: start a standalone cluster on this machine "
            f"(conf/README.md). Received: {told}"
        )
    if len(asked) < 2:
        (missing,) = {EXECUTOR_GPUS, TASK_GPUS} - asked.keys()
        raise UserError(
            f"Expected {missing}=1 as well, or no task is given a GPU. Received: {told}"
        )
    if _number(settings, TASK_GPUS, 0) != 1:
        raise UserError(
            f"Expected {TASK_GPUS}=1: one process and one model have a GPU. Received: {told}"
        )
    if _enforced_by(master) and not settings.get(DISCOVERY):
        raise UserError(
            f"Expected {DISCOVERY}, such as conf/gpu-discovery.sh where executors find it, "
            f"without which none of them starts on {_enforced_by(master)}. Received: {told}"
        )


def _check_task_cpus(settings: Settings) -> None:
    cpus, cores = int(_number(settings, TASK_CPUS, 1)), executor_cores(settings)
    if cores is not None and cpus > cores:
        raise UserError(
            f"Expected {TASK_CPUS} of at most {cores}, the cores of an executor "
            f"({EXECUTOR_CORES}, or of the local master), or no task ever starts. "
            f"Received: {TASK_CPUS}={cpus}"
        )


def executor_cores(settings: Settings) -> int | None:
    """Return the cores of one executor; None where a standalone worker gives all that it has."""
    master = _master(settings)
    if found := LOCAL.fullmatch(master):
        threads = found[1] or "1"
        return (os.cpu_count() or 1) if threads == "*" else int(threads)
    if EXECUTOR_CORES in settings:
        return int(_number(settings, EXECUTOR_CORES, 1))
    return 1 if _enforced_by(master) else None


def _check_address_space(settings: Settings, worker_mb: int) -> None:
    """Compare what Spark lets one worker address, on every master, with what it takes.

    Spark divides by the executor's cores, not by its tasks, and limits addresses (RLIMIT_AS).
    """
    if PYSPARK_MEMORY not in settings:
        return
    n_shares = max(1, int(_number(settings, EXECUTOR_CORES, 1)))
    share = to_mb(PYSPARK_MEMORY, settings[PYSPARK_MEMORY]) // n_shares
    needed = address_space_mb(worker_mb)
    if share < needed:
        raise UserError(
            f"Expected {PYSPARK_MEMORY} of at least {needed * n_shares}m, or none: it limits the "
            f"address space of a Python worker, which takes {needed} MB with these backbones; "
            f"{OVERHEAD} does not. Received: {PYSPARK_MEMORY}={settings[PYSPARK_MEMORY]} for "
            f"{n_shares} cores"
        )


def _check_container(settings: Settings, worker_mb: int) -> None:
    """Compare an executor's container, which its manager kills for taking more, with its need."""
    manager = _enforced_by(_master(settings))
    if manager is None:
        return
    heap = to_mb(HEAP, settings.get(HEAP, "1g"))
    python = to_mb(PYSPARK_MEMORY, settings.get(PYSPARK_MEMORY, "0"))
    overhead = _overhead_mb(settings, heap)
    n_workers = _workers(settings)
    needed = jvm_overhead_mb(heap) + n_workers * worker_mb - python
    if overhead < needed:
        given = f"{OVERHEAD}={settings[OVERHEAD]}" if OVERHEAD in settings else f"{overhead}m"
        raise UserError(
            f"Expected {OVERHEAD}={needed}m or more for {n_workers} Python "
            f"worker{'s' if n_workers > 1 else ''} an executor of {worker_mb} MB with these "
            f"backbones, beside the JVM's own; {manager} kills what takes more. Received: {given}"
            f"{'' if OVERHEAD in settings else ', the default'}"
        )


def fitting_workers(settings: Settings, worker_mb: int) -> int | None:
    """Return how many Python workers fit this machine, where a local master starts more of them.

    Args:
        settings: Spark's.
        worker_mb: what one takes.

    Returns:
        None where all of them fit, the master is not local, or the memory is not known.
    """
    there = machine_mb()
    if not is_local(_master(settings)) or there is None:
        return None
    heap = to_mb(DRIVER_HEAP, settings.get(DRIVER_HEAP, "1g"))
    fitting = int((there / RULE_IS_HIGH_BY - heap) // worker_mb)
    return None if _workers(settings) <= fitting else max(0, fitting)


def _check_machine(settings: Settings, worker_mb: int) -> None:
    """Refuse a local master with more workers than this machine has memory for."""
    if (fitting := fitting_workers(settings, worker_mb)) is None:
        return
    n_workers, cpus = _workers(settings), int(_number(settings, TASK_CPUS, 1))
    advice = f"spark.master=local[{fitting * cpus}]" if fitting else "a machine with more memory"
    raise UserError(
        f"Expected {advice}: {n_workers} Python worker{'s' if n_workers > 1 else ''} of "
        f"{worker_mb} MB with these backbones do not fit the {machine_mb()} MB of this machine. "
        f"Received: spark.master={_master(settings)}"
    )


def images_in_worker(settings: Settings) -> int:
    """Return how many images a Python worker is given at once."""
    groups = GROUPS_ON_GPU if _number(settings, TASK_GPUS, 0) else 1
    return groups * int(_number(settings, BATCH, IMAGES_AT_ONCE))


def _workers(settings: Settings) -> int:
    """Return how many tasks, and so Python workers, an executor runs at once."""
    cpus = max(1, int(_number(settings, TASK_CPUS, 1)))
    n_workers = (executor_cores(settings) or 1) // cpus
    if (gpus := _number(settings, TASK_GPUS, 0)) > 0:
        n_workers = min(n_workers, int(_number(settings, EXECUTOR_GPUS, 1) / gpus))
    return max(1, n_workers)


def _overhead_mb(settings: Settings, heap_mb: int) -> int:
    """Return an executor's memory overhead, as Spark derives it where it is not given."""
    if OVERHEAD in settings:
        return to_mb(OVERHEAD, settings[OVERHEAD])
    kubernetes = settings.get("spark.kubernetes.memoryOverheadFactor", "0.1")
    factor = float(settings.get("spark.executor.memoryOverheadFactor", kubernetes))
    least = to_mb(LEAST_OVERHEAD, settings.get(LEAST_OVERHEAD, "384m"))
    return max(int(factor * heap_mb), least)


def _master(settings: Settings) -> str:
    return settings.get(MASTER, "local[*]")


def _enforced_by(master: str) -> str | None:
    """Return the name of the manager that kills executors which take more than their container."""
    if master == "yarn":
        return "YARN"
    return "Kubernetes" if master.startswith("k8s:") else None


def _number(settings: Settings, key: str, default: float) -> float:
    try:
        return float(settings.get(key, default))
    except ValueError:
        raise UserError(f"Expected {key} to be a number. Received: {settings[key]}") from None


def installed_versions() -> dict[str, str]:
    """Return the versions of Python (to its minor one) and of ``PACKAGES``, importing none."""
    found = {name: installed_version(package) or "none" for name, package in PACKAGES.items()}
    return {"Python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


def check_versions(spark: SparkSession) -> None:
    """Compare the packages of all executors with the driver's, by a task on each of their cores.

    A local master has no other packages than the driver's. Tasks are sent again where more
    executors have come meanwhile; one that comes later still is not asked.

    Raises:
        UserError: some differ, or their Python cannot run a task at all.
    """
    if is_local(spark.sparkContext.master or ""):
        return
    told: set[tuple[str, str]] = set()
    asked = 0
    while (n_tasks := _tasks_at_once(spark)) > asked:
        told |= _ask_executors(spark, n_tasks)
        asked = n_tasks
    if differences := _differences(installed_versions(), told):
        raise UserError(
            "Expected the driver's packages on every executor. "
            f"Received: {'; '.join(differences)}. {ENVIRONMENT}"
        )


def _tasks_at_once(spark: SparkSession) -> int:
    cpus = int(spark.sparkContext.getConf().get(TASK_CPUS, "1") or 1)
    return max(1, spark.sparkContext.defaultParallelism // cpus)


def _ask_executors(spark: SparkSession, n_tasks: int) -> set[tuple[str, str]]:
    """Return (host, its versions as JSON) of what tasks told."""
    rows = spark.range(0, n_tasks, 1, n_tasks).mapInPandas(_tell, "host string, versions string")
    try:
        return {(row["host"], row["versions"]) for row in rows.collect()}
    except Exception as error:  # as many kinds as there are ways for a Python not to start
        if reason := why_python_failed(str(error)):
            raise UserError(
                f"Expected the driver's Python and packages on every executor. Received: {reason}. "
                f"{ENVIRONMENT}"
            ) from error
        raise


def _tell(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Say of each task what the Python that runs it has; for ``mapInPandas``."""
    versions = json.dumps(installed_versions())
    for frame in frames:
        yield frame.assign(host=socket.gethostname(), versions=versions)[["host", "versions"]]


def why_python_failed(text: str) -> str | None:
    """Return what Spark's account of a failed job says of an executor's Python; None if nothing."""
    mismatch = r"Python in worker has different version: (\S+) than that in driver: ([\d.]+)"
    if found := re.search(mismatch, text):
        return f"Python {found[1]} on an executor (driver: {found[2]})"
    if found := re.search(r"No module named '([^']+)'", text):
        return f"no {found[1]} on an executor"
    if found := re.search(r'Cannot run program "([^"]+)"', text):
        return f"an executor without {found[1]}"
    return None


def _differences(driver: Mapping[str, str], told: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each package and version that executors have and the driver has not."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for host, versions in sorted(told):
        for name, version in json.loads(versions).items():
            if version != driver[name]:
                hosts.setdefault((name, version), []).append(host)
    return [
        f"{name} {version} on {', '.join(found[:3])}"
        f"{f' and {len(found) - 3} more' if len(found) > 3 else ''} (driver: {driver[name]})"
        for (name, version), found in sorted(hosts.items())
    ]
