"""Backbones on the driver: weights loaded, checked and saved for the executors, once."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from cxr_spark.backbones import BACKBONES, load_backbone, weights_digest
from cxr_spark.config import Experiment
from cxr_spark.extraction.store import Identity

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone whose weights the driver has loaded, checked and saved for the executors.

    Attributes:
        identity: what its features will be known by.
        weights: 'imagenet', 'random', or 'folder' and the name of the weights folder.
        weights_path: the file to send, the digest of the weights in its name.
        feature_map_shape: (height, width, channels) of its maps.
    """

    identity: Identity
    weights: str
    weights_path: Path
    feature_map_shape: tuple[int, int, int]


def load_backbones(experiment: Experiment, folder: Path) -> list[LoadedBackbone]:
    """Load the weights of every backbone once, on the driver, and save what executors are sent.

    Args:
        experiment: names backbones, preprocessing, image size and weights.
        folder: where the weights files are written.

    Raises:
        UserError: weights are missing, cannot be downloaded or belong to another backbone.
    """
    weights = experiment.weights
    label = (
        weights if weights in ("imagenet", "random") else f"folder {Path(weights).resolve().name}"
    )
    loaded = []
    for name in experiment.backbones:
        began = time.monotonic()
        model = load_backbone(name, experiment.image_size, experiment.weights)
        digest = weights_digest(model)
        path = folder / f"{name}-{digest[:16]}.weights.h5"
        model.save_weights(str(path))
        for preprocessing in experiment.preprocessing:
            _warn_of_pixels(name, preprocessing)
            identity = Identity(name, digest, preprocessing, experiment.image_size)
            loaded.append(LoadedBackbone(identity, label, path, tuple(model.output_shape[1:])))
        log.info(
            "%s: weights loaded in %.1f s, digest %s", name, time.monotonic() - began, digest[:16]
        )
    return loaded


def _warn_of_pixels(name: str, preprocessing: str) -> None:
    """Say where weights expect other pixels, or where a preprocessing changes nothing."""
    expects_raw = BACKBONES[name].expects_raw
    if expects_raw and preprocessing == "keras":
        log.warning("%s rescales inside: preprocessing keras gives what none gives", name)
    if not expects_raw and preprocessing == "none":
        log.warning("%s: its ImageNet weights expect preprocessing keras, not raw pixels", name)
