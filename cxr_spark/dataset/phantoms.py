"""Chest phantoms: drawn images in Kermany's layout and naming, for demonstrations and tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxr_spark.dataset.remote import has_file
from cxr_spark.errors import UserError
from cxr_spark.filesystems import is_remote

MARKER = "_phantoms.json"
NOTICE = "generated chest phantoms, no X-rays"

# Shares of images by split, and of findings within each; test is more balanced than train, as
# Kermany's is.
_SPLIT_SHARES = {"train": 0.72, "val": 0.03, "test": 0.25}
_FINDING_SHARES = {
    "train": {"NORMAL": 0.34, "BACTERIA": 0.42, "VIRUS": 0.24},
    "val": {"NORMAL": 0.5, "BACTERIA": 0.25, "VIRUS": 0.25},
    "test": {"NORMAL": 0.4, "BACTERIA": 0.36, "VIRUS": 0.24},
}


@dataclass(frozen=True)
class _Plan:
    image_id: str
    finding: str
    patient: int


def draw_phantoms(root: Path, *, n_images: int, image_size: int, seed: int) -> None:
    """Draw ``{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`` under ``root`` unless they stand already.

    A phantom has a thorax, lungs, ribs, spine and heart that vary by patient, and noise. Pneumonia
    adds opacities to the lungs, one or two dense ones (bacteria) or several faint ones (virus),
    some of them too faint to see. The same arguments make the same images.

    Args:
        root: the image root; new, or made by this function.
        n_images: how many, at least 60.
        image_size: height and width in pixels.
        seed: of everything that varies.

    Raises:
        UserError: the folder exists and is not one of phantoms.
    """
    wanted = {"n_images": n_images, "image_size": image_size, "seed": seed}
    marker = root / MARKER
    stored = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else None
    if stored == {**wanted, "complete": True}:
        return
    if stored is None and root.exists():
        raise UserError(f"Expected no folder where phantoms are to be drawn. Received: {root}")
    # Beside, and moved when they are all there; what a killed run left of it goes.
    drawn = root.with_name(f"_drawing-{root.name}")
    if drawn.exists():
        shutil.rmtree(drawn)
    drawn.mkdir(parents=True)
    for plan in _plan(n_images, seed):
        file = drawn / plan.image_id
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw_phantom(plan.finding, image_size, seed, plan.patient, plan.image_id)
        encoded = cv2.imencode(".jpeg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        file.write_bytes(encoded)
    told = json.dumps({**wanted, "complete": True})
    (drawn / MARKER).write_text(f"{told}\n", encoding="utf-8")
    if stored is not None:  # phantoms of other arguments
        before = drawn / "before"
        root.rename(before)
        shutil.rmtree(before)
    drawn.rename(root)


def name_phantoms(n_images: int, seed: int) -> list[str]:
    """Return the image_id of each phantom that ``draw_phantoms`` would draw."""
    return [plan.image_id for plan in _plan(n_images, seed)]


def holds_phantoms(root: str | Path) -> bool:
    """Return whether an image root was made by ``draw_phantoms``."""
    if is_remote(root):
        return has_file(str(root), MARKER)
    return os.path.exists(os.path.join(root, MARKER))


def _plan(n_images: int, seed: int) -> Iterator[_Plan]:
    """Yield each phantom's name, finding, patient; a patient has 1 to 3 images of one finding."""
    rng = np.random.default_rng([seed, n_images])
    patient, drawn, share_drawn = 0, 0, 0.0
    for split, share in _SPLIT_SHARES.items():
        for finding, part in _FINDING_SHARES[split].items():
            share_drawn += share * part
            left = round(n_images * share_drawn) - drawn
            drawn += left
            while left > 0:
                patient += 1
                own = min(left, int(rng.integers(1, 4)))
                left -= own
                for k in range(1, own + 1):
                    yield _Plan(f"{split}/{_file_name(finding, patient, k)}", finding, patient)


def _file_name(finding: str, patient: int, k: int) -> str:
    if finding == "NORMAL":
        prefix = "NORMAL2-IM" if patient % 2 else "IM"
        return f"NORMAL/{prefix}-{patient:04d}-{k:04d}.jpeg"
    return f"PNEUMONIA/person{patient}_{finding.lower()}_{k}.jpeg"


def draw_phantom(
    finding: str, image_size: int, seed: int, patient: int, image_id: str
) -> npt.NDArray[np.uint8]:
    """Return one phantom, uint8 of shape (image_size, image_size).

    Args:
        finding: NORMAL, BACTERIA or VIRUS.
        image_size: height and width in pixels.
        seed: with ``patient`` decides the anatomy, with ``image_id`` the rest.
        patient: number of the patient.
        image_id: name of the image.
    """
    anatomy = np.random.default_rng([seed, patient])
    rng = np.random.default_rng([seed, *image_id.encode()])
    y, x = np.mgrid[-1 : 1 : image_size * 1j, -1 : 1 : image_size * 1j]
    x, y = x + rng.normal(0, 0.02), y + rng.normal(0, 0.03)
    width, height = anatomy.uniform(0.27, 0.33), anatomy.uniform(0.6, 0.7)
    lungs = _ellipse(x + 0.42, y, width, height) + _ellipse(x - 0.42, y, width, height)
    body = _ellipse(x, y, anatomy.uniform(0.9, 1.0), 1.15)
    image = 25 + 130 * body - anatomy.uniform(75, 95) * lungs
    image += (
        anatomy.uniform(15, 25) * lungs * np.maximum(0, np.sin(15 * (y + 0.35 * np.abs(x)))) ** 2
    )
    image += 45 * np.exp(-((x / 0.09) ** 2)) * body
    image += 45 * _ellipse(
        x - 0.14, y - 0.28, anatomy.uniform(0.25, 0.34), anatomy.uniform(0.26, 0.34)
    )
    image += _opacities(finding, x, y, lungs, rng)
    image = image * rng.uniform(0.85, 1.15) + rng.normal(0, 8)
    image += cv2.GaussianBlur(rng.normal(0, 60, image.shape), (0, 0), image_size / 40)
    image += rng.normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _ellipse(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], a: float, b: float
) -> npt.NDArray[np.float64]:
    """Return 1 inside an ellipse about the origin and 0 outside, with a soft edge."""
    result: npt.NDArray[np.float64] = 1 / (1 + np.exp(12 * ((x / a) ** 2 + (y / b) ** 2 - 1)))
    return result


def _opacities(
    finding: str,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    lungs: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    count, strength, radius = {
        "NORMAL": (0, 0.0, 0.1),
        "BACTERIA": (int(rng.integers(1, 3)), 60.0, 0.2),
        "VIRUS": (int(rng.integers(3, 6)), 30.0, 0.13),
    }[finding]
    added = np.zeros_like(x)
    for _ in range(count):
        centre_x = rng.choice([-0.42, 0.42]) + rng.normal(0, 0.1)
        centre_y = rng.normal(0.15, 0.25)
        size = radius * rng.uniform(0.7, 1.3)
        blob = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * size**2))
        added += strength * rng.uniform(0.15, 1.3) * blob * lungs
    return added
