"""Frozen graphs as files, kept between runs: a driver then needs neither Keras nor the weights.

A graph is known by all that it is made of: the bytes of its weights file, the backbone and what is
asked of it, and the code and packages that freeze it. Its own digest is checked when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cxr_spark.backbones import RANDOM_SEED, weights_file
from cxr_spark.engine.frozen import FrozenGraph
from cxr_spark.files import write_bytes, write_json

KEPT_DAYS = 30  # since it was last used

_PACKAGE = Path(__file__).parents[1]
# What decides, beside Keras and TensorFlow, how weights become a graph.
_SOURCES = ("backbones.py", "engine/forward.py", "engine/frozen.py")


@dataclass(frozen=True)
class GraphFile:
    """A frozen graph on disk.

    Attributes:
        path: the serialised ``GraphDef``; its SHA-256 is in its name.
        input_name: of the graph's tensors, as in ``FrozenGraph``.
        output_names: likewise.
        weights_digest: ``backbones.weights_digest`` of what was frozen.
        feature_map_shape: (height, width, channels) of its maps.
    """

    path: Path
    input_name: str
    output_names: tuple[str, ...]
    weights_digest: str
    feature_map_shape: tuple[int, int, int]


def cache_folder() -> Path | None:
    """Return where graphs are kept between runs, or None where nothing can be written there.

    It is ``$XDG_CACHE_HOME/cxr_spark/graphs``, by default under ``~/.cache``.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "cxr_spark" / "graphs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def graph_key(
    name: str, weights: str, preprocessing: str, image_size: tuple[int, int], *, feature_maps: bool
) -> str | None:
    """Return what a float32 graph is known by, or None where its weights are still to be had."""
    source = f"seed {RANDOM_SEED}"
    if weights != "random":
        file = weights_file(name, weights)
        if file is None:
            return None
        source = _digest(file)
    made_by = [importlib.metadata.version(package) for package in ("keras", "tensorflow")]
    made_by += [_digest(_PACKAGE / module) for module in _SOURCES]
    made_of = [name, source, preprocessing, image_size, feature_maps, made_by]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def find_graph(folder: Path, key: str) -> GraphFile | None:
    """Return the graph that a folder keeps under a key; None where there is none or a damaged one.

    Args:
        folder: where ``write_graph`` wrote it.
        key: of ``graph_key``.
    """
    note = folder / f"{key}.json"
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        path = folder / str(told["file"])
        if _digest(path) not in path.name:
            return None
        for used in (path, note):
            used.touch()
        height, width, channels = told["feature_map_shape"]
        return GraphFile(
            path,
            told["input_name"],
            tuple(told["output_names"]),
            told["weights_digest"],
            (height, width, channels),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_graph(
    folder: Path,
    key: str | None,
    name: str,
    graph: FrozenGraph,
    weights_digest: str,
    feature_map_shape: tuple[int, int, int],
) -> GraphFile:
    """Write a graph into a folder, to be found again under its key where it has one.

    Args:
        folder: any; what was not used in it for ``KEPT_DAYS`` is removed.
        key: of ``graph_key``.
        name: the backbone, with which the file's name begins.
        graph: what ``freeze`` returned.
        weights_digest: of what was frozen.
        feature_map_shape: of its maps.
    """
    _forget(folder)
    path = folder / f"{name}-{hashlib.sha256(graph.graph).hexdigest()}.pb"
    write_bytes(path, graph.graph)
    if key is not None:
        told = {
            "file": path.name,
            "input_name": graph.input_name,
            "output_names": graph.output_names,
            "weights_digest": weights_digest,
            "feature_map_shape": feature_map_shape,
        }
        write_json(folder / f"{key}.json", told)
    return GraphFile(path, graph.input_name, graph.output_names, weights_digest, feature_map_shape)


def _forget(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another run may forget it as well
            if file.stat().st_mtime < oldest:
                file.unlink()


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
