"""How much memory an executor takes beside its heap: one rule, for the check and for conf/.

Measured in a worker of one thread, TensorFlow 2.20, in float32 and with feature maps; resident
memory at its largest. The rule's result is above each measurement; tests/test_memory.py has them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cxr_spark.backbones import BACKBONES
from cxr_spark.errors import UserError

# Python, pandas, pyarrow and TensorFlow, with no graph.
INTERPRETER_MB = 650
# Pixels and features of each image of an Arrow batch, at 224 x 224.
IMAGE_MB = 0.5
IMAGES_AT_ONCE = 256  # spark.sql.execution.arrow.maxRecordsPerBatch
# Of pixels alone four groups more are there on a GPU, decoded and put into batches ahead.
GROUPS_ON_GPU = 3
BATCH_SIZE = 16  # of processors, as in engine/pipeline.py
# Of images that are far away, the bytes of the group that is computed and of the one after it, as
# in dataset/remote.py.
AHEAD_MB = 64
# A further graph takes this share of what it takes alone: it is loaded in memory that the first
# has left.
FURTHER_GRAPH = 0.6
# What a worker addresses beyond what it takes: code, and room that its threads set aside.
ADDRESSED_MB = 3072

# Of cgroups, version 2 and 1.
CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)

_UNITS = {"b": 2**-20, "k": 2**-10, "m": 1, "g": 2**10, "t": 2**20, "p": 2**30}


def worker_mb(
    backbones: Sequence[str],
    image_size: tuple[int, int],
    *,
    batch_size: int = BATCH_SIZE,
    images_at_once: int = IMAGES_AT_ONCE,
    remote: bool = False,
) -> int:
    """Return what a Python worker takes, in MiB.

    Args:
        backbones: that it holds; one that runs with two kinds of preprocessing stands twice.
        image_size: (height, width) in pixels.
        batch_size: images that a backbone computes at once.
        images_at_once: images of an Arrow batch.
        remote: whether their bytes are read ahead, by a URI.
    """
    area = image_size[0] * image_size[1] / 224**2
    graphs = sorted((BACKBONES[name].graph_mb for name in backbones), reverse=True)
    computed = max(BACKBONES[name].image_mb for name in backbones)
    return round(
        INTERPRETER_MB
        + graphs[0]
        + FURTHER_GRAPH * sum(graphs[1:])
        + area * (batch_size * computed + images_at_once * IMAGE_MB)
        + (AHEAD_MB if remote else 0)
    )


def jvm_overhead_mb(heap_mb: int) -> int:
    """Return what an executor's JVM takes beside its heap, as Spark itself reckons."""
    return max(384, heap_mb // 10)


def address_space_mb(worker_mb: int) -> int:
    """Return the address space of a Python worker that takes so much memory."""
    return worker_mb + ADDRESSED_MB


def machine_mb() -> int | None:
    """Return the memory of this machine, or its container's limit, in MiB; None if unknown."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return None
    for limit in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(Path(limit).read_text(encoding="utf-8")))
    return min(sizes) // 2**20


def to_mb(key: str, size: str) -> int:
    """Return a size as Spark writes it, such as '2g', '512m' or '512', in whole MiB.

    Raises:
        UserError: it is none; names the key.
    """
    found = re.fullmatch(r"\s*(\d+)\s*([bkmgtp]?)b?\s*", size.lower())
    if found is None:
        raise UserError(f"Expected {key} to be a size such as 2g or 512m. Received: {size}")
    return int(int(found[1]) * _UNITS[found[2] or "m"])
