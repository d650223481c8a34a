"""Images to measure on where none are given: phantoms of the sizes that X-rays come in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxr_spark.benchmark.settings import N_GENERATED, Settings
from cxr_spark.dataset.listing import uri_to_path
from cxr_spark.dataset.pack import is_pack
from cxr_spark.dataset.phantoms import draw_phantom, name_phantoms
from cxr_spark.dataset.root import list_images, no_images

# Distinct pictures of a kind; the other names are links to them, so that generating takes seconds.
N_DISTINCT = 24
_FINDINGS = {"NORMAL": "NORMAL", "bacteria": "BACTERIA", "virus": "VIRUS"}


@dataclass(frozen=True)
class ImageKind:
    """How one kind of file is made of a phantom of 224 px.

    Attributes:
        name: its name in the table.
        height: in pixels.
        width: likewise.
        suffix: '.jpeg' or '.png'.
        noise: standard deviation in grey levels; it makes files as long as those of X-rays.
    """

    name: str
    height: int
    width: int
    suffix: str
    noise: float


KINDS = (
    ImageKind("JPEG 1,328 x 971", 971, 1328, ".jpeg", 4.5),  # 180 to 220 kB, as Kermany's
    ImageKind("PNG 1,024 x 1,024", 1024, 1024, ".png", 3.0),  # some 480 kB, as NIH's
    ImageKind("JPEG 224 x 224", 224, 224, ".jpeg", 0.0),
)


@dataclass(frozen=True)
class ImageSet:
    """One folder of images to measure on.

    Attributes:
        name: its name in the table.
        root: the image root.
        paths: of the images that are used, an even sample over the sorted paths; of a pack, whose
            images no section reads by their path, their URIs.
    """

    name: str
    root: Path
    paths: tuple[bytes, ...]


def image_sets(settings: Settings, folder: Path) -> list[ImageSet]:
    """Return the images given, or generated ones of every kind in ``folder``."""
    if settings.images is not None:
        return [find_images(settings.images, settings.limit, settings.images.resolve().name)]
    n_images = settings.limit or N_GENERATED
    sets = []
    for kind in KINDS:
        root = folder / kind.name.replace(",", "").replace(" ", "_")
        draw_images(root, kind, n_images)
        sets.append(find_images(root, n_images, kind.name))
    return sets


def find_images(root: Path, limit: int | None, name: str) -> ImageSet:
    """Return the images under ``root``, or an even sample of ``limit`` of them.

    Raises:
        UserError: there is none whose name can be used.
    """
    packed = is_pack(root)
    found = [
        image.path.encode() if packed else uri_to_path(image.path)
        for image in list_images(str(root))
        if not image.problem
    ]
    if not found:
        raise no_images(str(root))
    n_wanted = min(limit or len(found), len(found))
    sample = [found[i * len(found) // n_wanted] for i in range(n_wanted)]
    return ImageSet(name, root, tuple(sample))


def draw_images(root: Path, kind: ImageKind, n_images: int) -> None:
    """Write images of one kind in Kermany's layout and naming, most of them links."""
    drawn: dict[str, list[Path]] = {finding: [] for finding in _FINDINGS.values()}
    for i, name in enumerate(name_phantoms(n_images, seed=0)):
        file = (root / name).with_suffix(kind.suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        finding = next(finding for part, finding in _FINDINGS.items() if part in name)
        same = drawn[finding]
        if len(same) < N_DISTINCT // len(drawn):
            file.write_bytes(_encode(draw_phantom(finding, 224, 0, i, name), kind, seed=i))
            same.append(file)
        else:
            os.link(same[i % len(same)], file)


def _encode(phantom: npt.NDArray[np.uint8], kind: ImageKind, seed: int) -> bytes:
    pixels = phantom
    if kind.noise:
        large = cv2.resize(phantom, (kind.width, kind.height), interpolation=cv2.INTER_CUBIC)
        smooth = cv2.GaussianBlur(large, (0, 0), 2)
        noise = np.empty(smooth.shape, np.int16)
        cv2.setRNGSeed(seed)
        cv2.randn(noise, 0, kind.noise)
        pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, 85] if kind.suffix == ".jpeg" else []
    encoded: bytes = cv2.imencode(kind.suffix, pixels, options)[1].tobytes()
    return encoded
