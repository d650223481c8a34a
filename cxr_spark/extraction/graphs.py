"""Frozen graphs as files, kept between runs: a driver then needs neither Keras nor the weights.

A graph is known by all that it is made of: the bytes of its weights file, the backbone and what is
asked of it, and the code and packages that freeze it. Its own digest is checked when it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cxr_spark.backbones import RANDOM_SEED, weights_file
from cxr_spark.engine.frozen import FrozenGraph
from cxr_spark.files import write_bytes, write_json
from cxr_spark.installed import installed_version

log = logging.getLogger(__name__)

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
    if not folder.is_absolute():  # no home
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def weights_source(name: str, weights: str) -> str | None:
    """Return the SHA-256 of the weights file, or the seed; None where it is still to be had."""
    if weights == "random":
        return f"seed {RANDOM_SEED}"
    file = weights_file(name, weights)
    return None if file is None else _digest(file)


@dataclass(frozen=True)
class GraphKey:
    """What a graph is made of.

    Attributes:
        name: the backbone.
        source: of ``weights_source``; None where a graph is not to be kept.
        preprocessing: 'none' or 'keras'.
        image_size: (height, width) in pixels.
        feature_maps: whether it returns maps as well.
        precision: what layers are computed in.
    """

    name: str
    source: str | None
    preprocessing: str
    image_size: tuple[int, int]
    feature_maps: bool
    precision: str = "float32"

    @property
    def digest(self) -> str:
        """The first 32 hexadecimal digits of the SHA-256 of all that decides the graph."""
        made_by = [installed_version(package) for package in ("keras", "tensorflow")]
        made_by += [_digest(_PACKAGE / module) for module in _SOURCES]
        made_of = json.dumps([dataclasses.asdict(self), made_by], sort_keys=True)
        return hashlib.sha256(made_of.encode()).hexdigest()[:32]


def find_graph(key: GraphKey) -> GraphFile | None:
    """Return the graph that is kept under a key; None where there is none or a damaged one."""
    folder = cache_folder()
    if folder is None or key.source is None:
        return None
    note = folder / f"{key.digest}.json"
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        path = folder / str(told["file"])
        for used in (path, note):  # before they are read: another run may be about to forget them
            os.utime(used)
        if _digest(path) not in path.name:
            return None
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
    key: GraphKey,
    graph: FrozenGraph,
    weights_digest: str,
    feature_map_shape: tuple[int, int, int],
    folder: Path,
) -> GraphFile:
    """Write a graph where it is found again, or where that cannot be, into a folder of this run.

    Args:
        key: what it is made of.
        graph: what ``freeze`` returned.
        weights_digest: of what was frozen.
        feature_map_shape: of its maps.
        folder: for a key without a source, or where nothing can be kept.
    """
    file = GraphFile(
        folder / f"{key.name}-{hashlib.sha256(graph.graph).hexdigest()}.pb",
        graph.input_name, graph.output_names, weights_digest, feature_map_shape,
    )  # fmt: skip
    cache = cache_folder()
    if cache is not None and key.source is not None:
        kept = dataclasses.replace(file, path=cache / file.path.name)
        try:
            _forget(cache)
            write_bytes(kept.path, graph.graph)
            told = {**dataclasses.asdict(kept), "path": None, "file": kept.path.name}
            write_json(cache / f"{key.digest}.json", told)
            return kept
        except OSError as error:  # no room, or not ours
            log.warning("%s is not kept for the next run: %s", kept.path.name, error)
    write_bytes(file.path, graph.graph)
    return file


def _forget(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another run may forget it as well
            if file.stat().st_mtime < oldest:
                file.unlink()


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
