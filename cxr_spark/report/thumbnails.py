"""Small pictures of X-rays, to stand in the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

from cxr_spark.files import read_whole
from cxr_spark.images import decode_grey

WIDTH = 200
N_SAMPLES = 6


def choose_samples(image_ids: Iterable[str], n: int = N_SAMPLES) -> list[str]:
    """Return the first ``n`` by the SHA-256 of their names, whatever the order they come in."""
    return sorted(image_ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:n]


def thumbnail(root: Path, image_id: str) -> str | None:
    """Return an image as a data URI of a small JPEG; None where it is not there any more.

    Args:
        root: the image root; no file outside it is read.
        image_id: the path under it.
    """
    from PIL import Image

    file = root / image_id
    try:
        if not file.resolve().is_relative_to(root.resolve()):
            return None
        grey = decode_grey(read_whole(file))
    except (OSError, RuntimeError, ValueError):
        return None
    picture = Image.fromarray(grey)
    picture.thumbnail((WIDTH, WIDTH))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
