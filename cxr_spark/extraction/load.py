"""Backbones on the driver: weights loaded, checked and frozen into what executors are sent."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.backbones import BACKBONES, load_backbone, weights_digest
from cxr_spark.config import Experiment, Precision
from cxr_spark.dataset.pack_reader import PackReader
from cxr_spark.dataset.root import list_images, source_of
from cxr_spark.engine.forward import (
    IMAGES_COMPARED,
    MAX_PRECISION_LOSS,
    compile_forward,
    feature_function,
    precision_loss,
)
from cxr_spark.engine.frozen import freeze
from cxr_spark.engine.pipeline import prepare
from cxr_spark.errors import UserError
from cxr_spark.extraction.graphs import (
    GraphFile,
    GraphKey,
    find_graph,
    weights_source,
    write_graph,
)
from cxr_spark.extraction.store import Identity

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone whose weights the driver has loaded, checked and frozen for the executors.

    Attributes:
        identity: what its features will be known by.
        weights: 'imagenet', 'random', or 'folder' and the name of the weights folder.
        graph: the file to send.
    """

    identity: Identity
    weights: str
    graph: GraphFile


def load_backbones(
    experiment: Experiment, images: Path | None, folder: Path, *, feature_maps: bool
) -> Iterator[LoadedBackbone]:
    """Load the weights of every backbone once, on the driver, and freeze what executors are sent.

    Graphs in float32 are kept between runs (``graphs.cache_folder``), and found again where weights
    and all else that they are made of are the same.

    Args:
        experiment: names backbones, preprocessing, image size, precision and weights.
        images: the image root; a precision below float32 is compared with it on the first images.
        folder: where graphs are written that are not kept.
        feature_maps: whether the graphs return maps as well.

    Yields:
        Each backbone with each preprocessing, as soon as it is there.

    Raises:
        UserError: weights are missing, cannot be downloaded or belong to another backbone.
    """
    for name in experiment.backbones:
        began = time.monotonic()
        source = _source(experiment, name)
        model = None
        for preprocessing in experiment.preprocessing:
            _warn_of_pixels(name, preprocessing)
            key = GraphKey(name, source, preprocessing, experiment.image_size, feature_maps)
            graph = find_graph(key)
            precision = experiment.precision
            if graph is None:
                if model is None:
                    model = load_backbone(name, experiment.image_size, experiment.weights)
                    model_digest = weights_digest(model)
                    loaded = _source(experiment, name)
                    # Unknown where the file was replaced meanwhile; known now where it was fetched.
                    source = loaded if source in (None, loaded) else None
                precision = _precision(experiment, model, name, preprocessing, images)
                _, features = feature_function(
                    model, name, preprocessing, feature_maps=feature_maps, precision=precision
                )
                graph = write_graph(
                    dataclasses.replace(key, source=source),
                    freeze(features, experiment.image_size),
                    model_digest,
                    tuple(model.output_shape[1:]),
                    folder,
                )
            digest = graph.weights_digest
            identity = Identity(
                name, digest, preprocessing, experiment.image_size, precision=precision
            )
            yield LoadedBackbone(identity, _label(experiment.weights), graph)
        log.info(
            "%s: weights %s in %.1f s, digest %s",
            name, "loaded" if model else "found frozen", time.monotonic() - began, digest[:16],
        )  # fmt: skip


def _source(experiment: Experiment, name: str) -> str | None:
    """Return what a graph that can be kept is made of; none is whose precision images decide."""
    if experiment.precision != "float32":
        return None
    return weights_source(name, experiment.weights)


def _label(weights: str) -> str:
    known = weights in ("imagenet", "random")
    return weights if known else f"folder {Path(weights).resolve().name}"


def _precision(
    experiment: Experiment, model: Any, name: str, preprocessing: str, images: Path | None
) -> Precision:
    """Return the precision asked for, or float32 where it would change the features too much."""
    wanted = experiment.precision
    if wanted == "float32":
        return wanted
    if images is None:
        raise UserError(
            f"Expected --images, on which precision {wanted} is compared with float32. "
            "Received: none"
        )
    exact, lower = (
        compile_forward(model, name, preprocessing, feature_maps=False, precision=precision)
        for precision in ("float32", wanted)
    )
    loss = precision_loss(exact, lower, _first_images(images, experiment.image_size))
    if loss < MAX_PRECISION_LOSS:  # not so where it is NaN
        log.info("%s: %s differs from float32 by %.1e (relative L2)", name, wanted, loss)
        return wanted
    log.warning(
        "%s: %s differs from float32 by %.1e (relative L2, at most %.0e is allowed); using float32",
        name, wanted, loss, MAX_PRECISION_LOSS,
    )  # fmt: skip
    return "float32"


def _first_images(images: Path, image_size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return the first images that can be used: float32 (n_images, height, width, 1)."""
    with PackReader() as packs:
        sources = (source_of(found, packs) for found in list_images(str(images)))
        prepared = (prepare(source, image_size) for source in sources)
        usable = (image.pixels for image in prepared if image.pixels is not None)
        pixels = list(itertools.islice(usable, IMAGES_COMPARED))
    if not pixels:
        raise UserError(
            f"Expected at least one image that can be used under --images. Received: {images}"
        )
    grey: npt.NDArray[np.float32] = np.stack(pixels).astype(np.float32)[..., None]
    return grey


def _warn_of_pixels(name: str, preprocessing: str) -> None:
    """Say where weights expect other pixels, or where a preprocessing changes nothing."""
    expects_raw = BACKBONES[name].expects_raw
    if expects_raw and preprocessing == "keras":
        log.warning("%s rescales inside: preprocessing keras gives what none gives", name)
    if not expects_raw and preprocessing == "none":
        log.warning("%s: its ImageNet weights expect preprocessing keras, not raw pixels", name)
