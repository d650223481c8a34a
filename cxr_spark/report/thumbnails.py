"""Small pictures of X-rays, to stand in the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable

from cxr_spark.images import decode_grey

WIDTH = 200
N_SAMPLES = 6


def choose_samples(image_ids: Iterable[str], n: int = N_SAMPLES) -> list[str]:
    """Return the first ``n`` by the SHA-256 of their names, whatever the order they come in."""
    return sorted(image_ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:n]


def thumbnail(read: Callable[[str], bytes], image_id: str) -> str | None:
    """Return an image as a data URI of a small JPEG; None where it is not there any more.

    Args:
        read: returns the bytes of an image, or raises OSError, RuntimeError or ValueError.
        image_id: of the image.
    """
    from PIL import Image

    try:
        grey = decode_grey(read(image_id))
    except (OSError, RuntimeError, ValueError):
        return None
    picture = Image.fromarray(grey)
    picture.thumbnail((WIDTH, WIDTH))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
