"""What the measurements were taken on: the machine and the versions, with nothing imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy", "keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "opencv-python-headless",
    "pillow", "pyarrow", "pandas", "petastorm", "pyspark",
)  # fmt: skip


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> dict[str, Any]:
    """Return cores, memory in bytes, processor, operating system and versions."""
    return {
        "cores": count_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "processor": _processor(),
        "device": None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def choose_backend() -> str:
    """Return Keras' backend: the one asked for, else the first that is installed.

    KERAS_BACKEND is set to it, or Keras would import tensorflow where it is missing, and follow a
    ``keras.json`` that names another.
    """
    asked = os.environ.get("KERAS_BACKEND")
    if not asked:
        names = ("tensorflow", "jax", "torch")
        asked = next((name for name in names if importlib.util.find_spec(name)), names[0])
        os.environ["KERAS_BACKEND"] = asked
    return asked


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
