"""What an executor does to train heads: a task a configuration, written into the run folder.

A Python worker of Spark computes with as many threads as its task has cores, and keeps the features
that it has read for the configurations that come after.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from pyspark.accumulators import AccumulatorParam

from cxr_spark.cli import share_heap
from cxr_spark.engine.device import DeviceError
from cxr_spark.errors import RunFailed, UserError
from cxr_spark.installed import installed_version
from cxr_spark.placement import Placement, gpu_addresses, task_device
from cxr_spark.training.fit import Training
from cxr_spark.training.inputs import told
from cxr_spark.training.joined import open_joined, size_gb
from cxr_spark.training.work import Shared, Work, train_work

if TYPE_CHECKING:
    from pyspark import Accumulator, Broadcast

log = logging.getLogger(__name__)

Trainer = Callable[[Iterable[pd.DataFrame]], Iterator[pd.DataFrame]]

# What heads are trained by beside the packages that every session compares (session_checks.py).
PACKAGES = ("scikit-learn", "scipy", "skops", "petastorm")


@dataclass(frozen=True)
class Shipped:
    """What executors are sent once.

    Attributes:
        token: of this run alone: what a worker keeps is of no other.
        shared: what all configurations have in common; its folders are absolute.
        works: the configurations, in the order in which tasks take them.
        versions: of ``PACKAGES``, where this is made.
    """

    token: str
    shared: Shared
    works: Sequence[Work]
    versions: Mapping[str, str | None]


@dataclass(frozen=True)
class Outcome:
    """How the training of one configuration ended.

    Attributes:
        index: which of ``Shipped.works``.
        seconds: that it took, reading included.
        warnings: lines to be told on the driver.
        failed: 'UserError' or 'RunFailed' where it is one; empty where all is stored.
        line: of that error.
    """

    index: int
    seconds: float
    warnings: list[str]
    failed: str = ""
    line: str = ""

    def to_json(self) -> str:
        """Return it as text, to be sent."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Return what was sent."""
        return cls(**json.loads(text))

    def error(self) -> UserError | RunFailed:
        """Return the error that it failed with."""
        return (RunFailed if self.failed == RunFailed.__name__ else UserError)(self.line)


class Listed(AccumulatorParam[list[str]]):
    """Lines that grow by what tasks add."""

    def zero(self, value: list[str]) -> list[str]:
        """Return none."""
        return []

    def addInPlace(self, value1: list[str], value2: list[str]) -> list[str]:  # noqa: N802
        """Return both."""
        return [*value1, *value2]


class HeadFailed(RuntimeError):
    """An error that nobody foresaw, with the configuration; Spark tries the task again."""


def installed_versions() -> dict[str, str | None]:
    """Return the versions of ``PACKAGES``."""
    return {package: installed_version(package) for package in PACKAGES}


def make_trainer(
    shipped: Broadcast[Shipped], outcomes: Accumulator[list[str]], placement: Placement
) -> Trainer:
    """Return the function for ``mapInPandas``.

    It takes rows of ``id``, each the index of a work, and yields each one's outcome as JSON, which
    it adds to ``outcomes`` as well: these reach the driver as soon as the task has ended.
    """

    def train(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            for index in frame["id"].tolist():
                outcome = attempt(shipped.value, index, placement).to_json()
                outcomes.add([outcome])
                yield pd.DataFrame({"outcome": [outcome]})

    return train


def attempt(shipped: Shipped, index: int, placement: Placement) -> Outcome:
    """Train one configuration and say how it ended.

    Raises:
        HeadFailed: by an error that is no user's and may be gone elsewhere.
    """
    began, work = time.monotonic(), shipped.works[index]
    warnings: list[str] = []
    failed, line = "", ""
    try:
        check_node(shipped, work)
        with _prepare(placement)(), keep_warnings(warnings):
            training = _training(shipped, work)
            with told(training.inputs):
                train_work(shipped.shared, work, training)
    except (UserError, RunFailed, DeviceError) as error:
        _forget()
        kind = RunFailed if isinstance(error, RunFailed) else UserError
        failed, line = kind.__name__, str(error)
    except Exception as error:
        _forget()
        raise HeadFailed(f"{work.configuration.name}: {type(error).__name__}: {error}") from error
    return Outcome(index, time.monotonic() - began, warnings, failed, line)


@contextmanager
def keep_warnings(lines: list[str]) -> Iterator[None]:
    """Add what this package warns of meanwhile to lines."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("cxr_spark")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def check_node(shipped: Shipped, work: Work) -> None:
    """Refuse an executor that does not see the folders of the driver, or has other packages.

    Raises:
        UserError: names the place and the host, or the package.
    """
    shared, host = shipped.shared, socket.gethostname()
    needed = [shared.features / record.fingerprint for record in work.records]
    for place in (shared.run / "experiment.json", *needed):
        if not place.exists():
            raise UserError(
                "Expected --features and --run at the same path on driver and executors, for "
                f"--distribute-heads. Received: no {place} on {host}"
            )
    for name in ("heads", "predictions"):
        if not os.access(shared.run / name, os.W_OK | os.X_OK):
            raise UserError(
                "Expected --run to be written by executors, for --distribute-heads. "
                f"Received: {shared.run / name}, with no permission on {host}"
            )
    for package, version in installed_versions().items():
        if version != shipped.versions[package]:
            raise UserError(
                f"Expected the driver's packages on every executor. Received: {package} {version} "
                f"on {host} (driver: {shipped.versions[package]}). Install the same "
                "constraints.txt on every node"
            )


@functools.cache
def _prepare(placement: Placement) -> Callable[[], AbstractContextManager[Any]]:
    """Load Keras and limit the threads of this process, once in its life.

    Returns:
        What places a task's computations: a context manager to be made for each.
    """
    began = time.monotonic()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # tasks may share the GPU
    logging.getLogger("petastorm").setLevel(logging.CRITICAL)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of a new graph for each head
    share_heap()
    gpus = gpu_addresses()
    if not gpus:  # what Spark has not given to a task, it does not take
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    task_device(placement)  # which hides other GPUs, before TensorFlow looks for them
    _limit_threads(placement.task_cpus)
    gc.collect()
    gc.freeze()  # Spark collects garbage after every task, and there are many objects now
    log.warning(  # the level that Spark's workers show in an executor's log
        "heads on %s, %d threads a task, process %d, Keras loaded in %.1f s",
        f"GPU {gpus[0]} of Spark" if gpus else "the processor", placement.task_cpus, os.getpid(),
        time.monotonic() - began,
    )  # fmt: skip
    return functools.partial(_on_gpu, placement) if gpus else nullcontext


def _limit_threads(n: int) -> None:
    """Let TensorFlow, BLAS, OpenMP and joblib have so many threads in this process."""
    import keras  # noqa: F401
    import sklearn.ensemble  # noqa: F401 - its libraries must be there to be limited
    import tensorflow as tf
    import threadpoolctl

    tf.config.threading.set_intra_op_parallelism_threads(n)
    tf.config.threading.set_inter_op_parallelism_threads(n)
    threadpoolctl.threadpool_limits(limits=n)
    os.environ["LOKY_MAX_CPU_COUNT"] = str(n)  # of estimators with n_jobs=-1


@contextmanager
def _on_gpu(placement: Placement) -> Iterator[None]:
    """Compute on the GPU that Spark gave this task.

    Raises:
        UserError: TensorFlow does not see it.
    """
    import tensorflow as tf

    device = task_device(placement)
    on_gpu = device.kind == "GPU" and not device.pretended
    if on_gpu and device.index >= len(tf.config.list_logical_devices("GPU")):
        raise UserError(
            f"Spark gave this task the GPU {device.address}, and TensorFlow does not see it. "
            "Install tensorflow[and-cuda] and the driver on executors."
        )
    with tf.device(device.name if on_gpu else "/CPU:0"):
        yield


# What was read last, by run, extractions and kind of features; gigabytes stand beside.
_kept: dict[tuple[str, tuple[str, ...], str], tuple[Training, float]] = {}


def _training(shipped: Shipped, work: Work) -> Training:
    """Return what a configuration is trained on, read anew where this worker has not kept it.

    Features are kept as long as they take no more than ``training.memory_gb`` together.
    """
    shared, (records, takes) = shipped.shared, work.inputs
    key = (shipped.token, tuple(record.fingerprint for record in records), takes)
    if key in _kept:
        _kept[key] = _kept.pop(key)  # the last to go
        return _kept[key][0]
    memory_gb = shared.experiment.training.memory_gb
    needed = size_gb(shared.features, records, takes, len(shared.images.image_id))
    for other in [kept for kept in _kept if kept[0] != shipped.token]:
        _drop(other)
    while _kept and needed + sum(gigabytes for _, gigabytes in _kept.values()) > memory_gb:
        _drop(next(iter(_kept)))
    inputs = open_joined(
        shared.features, records, takes, shared.images.image_id, memory_gb=memory_gb
    )
    _kept[key] = Training(shared.experiment, inputs, shared.assigned), needed
    return _kept[key][0]


def _drop(key: tuple[str, tuple[str, ...], str]) -> None:
    training, _ = _kept.pop(key)
    with contextlib.suppress(OSError):  # of a scratch file
        training.inputs.close()


def _forget() -> None:
    for key in list(_kept):
        _drop(key)
