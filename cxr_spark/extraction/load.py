"""Backbones on the driver: weights loaded, checked and frozen into what executors are sent."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_spark.backbones import BACKBONES, load_backbone, weights_digest
from cxr_spark.config import Experiment, Precision
from cxr_spark.engine.forward import feature_function
from cxr_spark.engine.frozen import freeze
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
        exact: the same in float32, for a lower precision that is still to be compared with it.
    """

    identity: Identity
    weights: str
    graph: GraphFile
    exact: LoadedBackbone | None = None


def load_backbones(
    experiment: Experiment, folder: Path, *, feature_maps: bool
) -> Iterator[LoadedBackbone]:
    """Load the weights of every backbone once, on the driver, and freeze what executors are sent.

    Graphs are kept between runs (``graphs.cache_folder``), and found again where weights and all
    else that they are made of are the same.

    Args:
        experiment: names backbones, preprocessing, image size, precision and weights.
        folder: where graphs are written that are not kept.
        feature_maps: whether the graphs return maps as well.

    Yields:
        Each backbone with each preprocessing, as soon as it is there.

    Raises:
        UserError: weights are missing, cannot be downloaded or belong to another backbone.
    """
    for name in experiment.backbones:
        began = time.monotonic()
        source = _Source(experiment, name, folder, feature_maps)
        for preprocessing in experiment.preprocessing:
            _warn_of_pixels(name, preprocessing)
            loaded = source.backbone(preprocessing, "float32")
            if experiment.precision != "float32":
                lower = source.backbone(preprocessing, experiment.precision)
                loaded = dataclasses.replace(lower, exact=loaded)
            yield loaded
        log.info(
            "%s: weights %s in %.1f s, digest %s",
            name, "loaded" if source.model else "found frozen", time.monotonic() - began,
            loaded.identity.weights_digest[:16],
        )  # fmt: skip


class _Source:
    """What the graphs of one backbone are frozen from; weights are loaded where one is not kept."""

    def __init__(self, experiment: Experiment, name: str, folder: Path, feature_maps: bool) -> None:
        self._experiment, self._name, self._folder = experiment, name, folder
        self._feature_maps = feature_maps
        self._source = weights_source(name, experiment.weights)
        self._digest = ""
        self.model: Any = None

    def backbone(self, preprocessing: str, precision: Precision) -> LoadedBackbone:
        image_size = self._experiment.image_size
        key = GraphKey(
            self._name, self._source, preprocessing, image_size, self._feature_maps, precision
        )
        graph = find_graph(key) or self._freeze(key)
        identity = Identity(
            self._name, graph.weights_digest, preprocessing, image_size, precision=precision
        )
        return LoadedBackbone(identity, _label(self._experiment.weights), graph)

    def _freeze(self, key: GraphKey) -> GraphFile:
        if self.model is None:
            self._load()
        _, features = feature_function(
            self.model, key.name, key.preprocessing, feature_maps=key.feature_maps,
            precision=key.precision,
        )  # fmt: skip
        return write_graph(
            dataclasses.replace(key, source=self._source),
            freeze(features, key.image_size),
            self._digest,
            tuple(self.model.output_shape[1:]),
            self._folder,
        )

    def _load(self) -> None:
        weights = self._experiment.weights
        self.model = load_backbone(self._name, self._experiment.image_size, weights)
        self._digest = weights_digest(self.model)
        loaded = weights_source(self._name, weights)
        # Unknown where the file was replaced meanwhile; known now where it was fetched.
        self._source = loaded if self._source in (None, loaded) else None


def _label(weights: str) -> str:
    known = weights in ("imagenet", "random")
    return weights if known else f"folder {Path(weights).resolve().name}"


def _warn_of_pixels(name: str, preprocessing: str) -> None:
    """Say where weights expect other pixels, or where a preprocessing changes nothing."""
    expects_raw = BACKBONES[name].expects_raw
    if expects_raw and preprocessing == "keras":
        log.warning("%s rescales inside: preprocessing keras gives what none gives", name)
    if not expects_raw and preprocessing == "none":
        log.warning("%s: its ImageNet weights expect preprocessing keras, not raw pixels", name)
