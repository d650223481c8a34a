"""Frozen graphs that are kept between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from cxr_spark.backbones import load_backbone, weights_digest
from cxr_spark.config import Experiment
from cxr_spark.extraction import graphs
from cxr_spark.extraction.load import LoadedBackbone, load_backbones


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cxr_spark" / "graphs"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backbones that were built, one entry each time."""
    built: list[str] = []

    def counted(name: str, *args: object) -> object:
        built.append(name)
        return load_backbone(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("cxr_spark.extraction.load.load_backbone", counted)
    return built


@pytest.fixture(scope="module")
def kept(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the graph of the experiment."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        load(experiment, folder)
    return folder


@pytest.fixture
def filled(kept: Path, cache: Path) -> Path:
    """A copy of it, which is the cache."""
    shutil.copytree(kept / "cxr_spark" / "graphs", cache)
    return cache


def load(experiment: Experiment, tmp_path: Path, *, maps: bool = False) -> LoadedBackbone:
    (loaded,) = load_backbones(experiment, tmp_path, feature_maps=maps)
    return loaded


def test_a_graph_is_found_again_and_its_backbone_is_not_built(
    experiment: Experiment, cache: Path, loads: list[str], tmp_path: Path
) -> None:
    first, second = load(experiment, tmp_path), load(experiment, tmp_path)
    assert first == second
    assert loads == ["MobileNetV3Small"]
    assert first.graph.path.parent == cache
    with_maps = load(experiment, tmp_path, maps=True)
    assert with_maps.identity == first.identity
    assert with_maps.graph.output_names != first.graph.output_names
    assert len(loads) == 2


def test_other_weights_of_the_same_name_are_another_graph(
    experiment: Experiment, cache: Path, loads: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    changed = experiment.model_copy(update={"weights": str(folder)})
    identities = []
    for seed in (1, 2, 2):
        model = load_backbone("MobileNetV3Small", experiment.image_size, "random")
        model.weights[0].assign(model.weights[0] * seed)
        model.save_weights(folder / "MobileNetV3Small.weights.h5")
        loaded = load(changed, tmp_path)
        identities.append(loaded.identity)
        assert loaded.identity.weights_digest == weights_digest(model)
    assert identities[0] != identities[1]
    assert identities[1] == identities[2]


@pytest.mark.parametrize("damage", ["graph", "note", "gone"])
def test_a_damaged_graph_is_made_anew(
    experiment: Experiment, filled: Path, loads: list[str], tmp_path: Path, damage: str
) -> None:
    first = load(experiment, tmp_path)
    (note,) = filled.glob("*.json")
    whole = first.graph.path.read_bytes()
    if damage == "graph":
        first.graph.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "note":
        note.write_text("{}")
    else:
        first.graph.path.unlink()
    again = load(experiment, tmp_path)
    assert again.identity == first.identity
    assert hashlib.sha256(again.graph.path.read_bytes()).hexdigest() in again.graph.path.name
    assert load(experiment, tmp_path) == again
    assert len(loads) == 1


def test_what_was_not_used_for_long_is_removed(
    experiment: Experiment, filled: Path, tmp_path: Path
) -> None:
    first = load(experiment, tmp_path)
    old = time.time() - (graphs.KEPT_DAYS + 1) * 86_400
    for file in filled.iterdir():
        os.utime(file, (old, old))
    load(experiment, tmp_path)  # is used again
    stale = filled / "old.pb"
    stale.touch()
    os.utime(stale, (old, old))
    load(experiment, tmp_path, maps=True)
    assert first.graph.path.exists()
    assert not stale.exists()


def test_where_nothing_can_be_kept_the_graph_goes_to_the_folder_given(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(experiment, tmp_path).graph.path.parent == tmp_path
