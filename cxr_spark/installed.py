"""Which version of a package is installed."""

from __future__ import annotations

from importlib import metadata

# TensorFlow for processors alone is the same code under another name, and a third smaller.
OTHER_NAMES = {
    "tensorflow": ("tensorflow-cpu",),
    "opencv-python-headless": ("opencv-python",),
}


def installed_version(package: str) -> str | None:
    """Return the version of a package, under whichever of its names; None where there is none."""
    for name in (package, *OTHER_NAMES.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
