"""What a benchmark is asked for, checked before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_spark.backbones import BACKBONES, PRECISIONS, find_weights
from cxr_spark.dataset.pack import check_pack, is_pack
from cxr_spark.dataset.root import list_images, no_images
from cxr_spark.errors import UserError, one_of
from cxr_spark.files import check_writable
from cxr_spark.filesystems import is_remote

# With --peers they are run whatever the sections, but for those of OF_PROCESSES alone; 'peers'
# alone is nothing but them.
SECTIONS = (
    "engine", "extraction", "training", "reader", "maps", "cores", "pass", "growth", "grid",
    "peers",
)  # fmt: skip
# Those that start our job as a process of its own.
OF_PROCESSES = ("maps", "cores", "pass", "growth")
BY_DEFAULT = ("engine", "extraction", "training", "reader")
# So many generated images: the marginal rate is that of three quarters of them.
N_GENERATED = 1600
IMAGE_SIZE = (224, 224)
# A run of so few comes first: it freezes the backbone for all later processes, and starts what a
# session starts only once.
N_WARM_UP = 64


@dataclass(frozen=True)
class Settings:
    """What is measured, on which images.

    Attributes:
        images: the image root; None to generate images.
        weights: 'imagenet', 'random', or a folder.
        backbones: names in ``BACKBONES``.
        limit: how many images, an even sample over the sorted paths; None for all.
        repeat: how many times each measurement is taken.
        peers: the folder of programs to compare with, or None.
        out: the JSON file to write; the plot goes beside it. None to print only.
        feature_maps: whether extraction stores feature maps.
        sections: of ``SECTIONS``.
        precision: what extraction computes in; the engine section takes all that a device has.
    """

    images: Path | None
    weights: str
    backbones: tuple[str, ...]
    limit: int | None
    repeat: int
    peers: Path | None
    out: Path | None
    feature_maps: bool
    sections: tuple[str, ...]
    precision: str = "float32"

    @property
    def pairs(self) -> bool:
        """Whether the programs of ``peers`` are run in turn with ours."""
        return self.peers is not None and not set(self.sections) <= set(OF_PROCESSES)

    @property
    def submits(self) -> bool:
        """Whether our job is started as a process of its own."""
        return self.pairs or bool(set(OF_PROCESSES) & set(self.sections))

    @property
    def extracts(self) -> bool:
        """Whether a section extracts features in the session of this driver."""
        with_maps = self.feature_maps and "training" in self.sections
        return with_maps or bool({"extraction", "reader"} & set(self.sections))


def read_settings(given: dict[str, Any]) -> Settings:
    """Return the settings that flags make; None where not given.

    Raises:
        UserError: a name is unknown, a number too small, or a folder or file missing.
    """
    if given["images"] is not None and is_remote(given["images"]):
        raise UserError(
            "Expected a folder under --images, which is what peers read. Received: "
            f"{given['images']}"
        )
    images, peers = (None if given[k] is None else Path(given[k]) for k in ("images", "peers"))
    for flag, folder in (("images", images), ("peers", peers)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"Expected a folder under --{flag}. Received: {folder}")
    sections = _check_sections(given)
    if images is not None:
        _check_images(images, sections, with_peers=peers is not None)
    limit, repeat = given["limit"], 3 if given["repeat"] is None else given["repeat"]
    if limit is not None and limit < 8:
        raise UserError(
            f"Expected --limit of at least 8, of which a quarter is 2. Received: {limit}"
        )
    if repeat < 1:
        raise UserError(f"Expected --repeat of at least 1. Received: {repeat}")
    backbones = tuple(given["backbones"] or ("MobileNetV3Small",))
    weights = "random" if given["weights"] is None else given["weights"]
    for backbone in backbones:
        if backbone not in BACKBONES:
            raise one_of("each of --backbones", backbone, BACKBONES)
        if weights not in ("imagenet", "random"):
            find_weights(backbone, weights)
    return Settings(
        images, weights, backbones, limit, repeat, peers, _check_out(given["out"]),
        bool(given["feature_maps"]), sections, _check_precision(given["precision"]),
    )  # fmt: skip


def _check_images(images: Path, sections: tuple[str, ...], *, with_peers: bool) -> None:
    if is_pack(images):
        check_pack(images)
        of_files = [name for name in ("engine", "pass", "grid", "peers") if name in sections]
        if of_files or with_peers:
            raise UserError(
                f"Expected a folder of image files for {', '.join(of_files) or 'peers'}, which "
                f"read files. Received: {images}, a pack. Give --sections extraction,training,"
                "reader without --peers, or the folder that was packed."
            )
    if next(list_images(str(images)), None) is None:
        raise no_images(str(images))


def _check_out(out: str | None) -> Path | None:
    if out is None:
        return None
    file = Path(out)
    if file.suffix != ".json" or file.is_dir():
        raise UserError(f"Expected --out to be a file that ends in .json. Received: {out}")
    check_writable(file.parent, "out")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"Expected --out in a folder that exists. Received: {out}")
    return file


def _check_precision(precision: str | None) -> str:
    if precision is not None and precision not in PRECISIONS:
        raise one_of("--precision", precision, PRECISIONS)
    return precision or "float32"


def _check_sections(given: dict[str, Any]) -> tuple[str, ...]:
    asked = given["sections"]
    for name in asked or ():
        if name not in SECTIONS:
            raise one_of("each of --sections", name, SECTIONS)
    if given["engine_only"]:
        if given["peers"] is not None or (asked and list(asked) != ["engine"]):
            raise UserError(
                "Expected --engine-only without --peers and other --sections: it runs neither "
                "Spark nor a JVM. Received: both"
            )
        if given["precision"] is not None:
            raise UserError(
                "Expected --engine-only without --precision: it measures every precision that the "
                "device has. Received: both"
            )
        return ("engine",)
    for name in ("pass", "grid", "peers"):
        if asked and name in asked and given["peers"] is None:
            raise UserError(f"Expected --peers with the section {name}. Received: none")
    return tuple(asked or BY_DEFAULT)
