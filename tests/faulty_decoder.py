"""A decoder with a fault in it, for processes that find it when they start."""

from __future__ import annotations

import os
from pathlib import Path

# What an image holds, after its end, that the decoder is to fail at.
ENDS = b"(a fault in C code)"
ENDS_ONCE = b"(a fault in C code, once)"
HANGS = b"(no end of it)"

_FAULT = f"""
import os, pathlib, signal, time
import cxr_spark.images as images

decode = images.decode_grey

def faulty(encoded):
    once = pathlib.Path(__file__).with_name("once")
    if {ENDS!r} in encoded or {ENDS_ONCE!r} in encoded and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if {HANGS!r} in encoded:
        time.sleep(600)
    return decode(encoded)

images.decode_grey = faulty
"""


def plant_fault(folder: Path) -> str:
    """Write what every Python process with the returned PYTHONPATH runs as it starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_FAULT)
    given = os.environ.get("PYTHONPATH")
    return f"{folder}{os.pathsep}{given}" if given else str(folder)
