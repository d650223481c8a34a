"""Extraction through Spark of every hostile file at once, among good images."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_spark.backbones import load_backbone
from cxr_spark.config import DatasetConfig, Experiment, SplitConfig
from cxr_spark.dataset.listing import uri_to_path, walk_images
from cxr_spark.engine.forward import compile_forward
from cxr_spark.engine.pipeline import prepare
from tests.extraction.test_job import read, read_errors, run
from tests.hostile import HOSTILE, Decodes, Fails, Hostile, plant

# Root may read what nobody may.
PLANTED = tuple(row for row in HOSTILE if row.kind != "no permission to read" or os.geteuid())
IMAGE_SIZE = (48, 48)


def patient_experiment() -> Experiment:
    """An experiment that accepts any share of errors and any name."""
    settings: dict[str, Any] = {"max_error_fraction": 1.0}
    return Experiment(
        backbones=["MobileNetV3Small"],
        weights="random",
        image_size=IMAGE_SIZE,
        dataset=DatasetConfig(adapter="folder"),
        split=SplitConfig(unit="image"),
        **{name: value for name, value in settings.items() if name in Experiment.model_fields},
    )


def distances(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the L2 distance of each row, relative to the expected row's length."""
    lengths = np.linalg.norm(expected, axis=1)
    assert lengths.min() > 0
    return np.linalg.norm(found - expected, axis=1) / lengths


@pytest.fixture(scope="module")
def good(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantoms, a folder a class."""
    root = tmp_path_factory.mktemp("good") / "images"
    for file in sorted(phantoms.rglob("*.jpeg"))[::4][:20]:
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.parent.name)
    return root


@pytest.fixture(scope="module")
def mixed(good: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Hostile]]:
    """The same phantoms with hostile files beside each of them, and these by image_id."""
    root = tmp_path_factory.mktemp("mixed") / "images"
    shutil.copytree(good, root)
    plant(os.fsencode(root / "NORMAL"), PLANTED)
    by_name = {row.name: row for row in PLANTED}
    found = {image.image_id: uri_to_path(image.path) for image in walk_images(str(root))}
    rows = {image_id: by_name.get(os.path.basename(path)) for image_id, path in found.items()}
    return root, {image_id: row for image_id, row in rows.items() if row is not None}


@pytest.fixture(scope="module")
def extracted(spark, good: Path, mixed, tmp_path_factory: pytest.TempPathFactory):
    """Rows of features of good images alone; then record, rows and errors of the mixed folder."""
    from cxr_spark.extraction import job

    root, rows = mixed
    stores = tmp_path_factory.mktemp("stores")
    experiment = patient_experiment()
    (alone,) = run(spark, experiment, good, stores / "good")

    def list_then_spoil(*arguments: Any) -> Any:
        listing = stage_listing(*arguments)
        for row in rows.values():
            row.spoil(os.path.join(os.fsencode(root / "NORMAL"), row.name))
        return listing

    stage_listing: Callable[..., Any] = job.stage_listing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "stage_listing", list_then_spoil)
        (record,) = run(spark, experiment, root, stores / "mixed")
    mixed_store = stores / "mixed"
    features = read(stores / "good", alone)
    return features, record, read(mixed_store, record), read_errors(mixed_store, record)


def test_every_file_is_a_row_or_an_error(extracted, mixed) -> None:
    _, record, features, errors = extracted
    _, rows = mixed
    assert len(rows) == len(PLANTED)
    assert record.n_images == len(PLANTED) + 20 == record.n_rows + record.n_errors
    assert (len(features), len(errors)) == (record.n_rows, record.n_errors)
    refused = {name for name, row in rows.items() if isinstance(row.outcome, Fails)}
    assert set(errors.index) == refused
    assert set(features["image_id"]) & set(rows) == set(rows) - refused


def test_errors_have_their_stage_and_reason(extracted, mixed) -> None:
    _, _, _, errors = extracted
    for image_id, row in mixed[1].items():
        if isinstance(row.outcome, Fails):
            assert errors["stage"][image_id] == row.outcome.stage, image_id
            assert re.search(row.outcome.reason, errors["error"][image_id]), image_id


def test_neighbours_have_the_features_that_they_have_alone(extracted) -> None:
    alone, _, features, _ = extracted
    beside = features.set_index("image_id").loc[alone["image_id"]]
    assert len(alone) == 20
    assert distances(np.stack(beside["pooled"]), np.stack(alone["pooled"])).max() <= 1e-5


def test_hostile_images_have_the_features_of_their_pixels(extracted, mixed) -> None:
    """That the pixels are the right ones is shown without Spark."""
    _, _, features, _ = extracted
    stored = features.set_index("image_id")
    decoding = [name for name, row in mixed[1].items() if isinstance(row.outcome, Decodes)]
    images = [prepare(uri_to_path(stored["path"][name]), IMAGE_SIZE) for name in decoding]
    pixels = np.stack([image.pixels for image in images]).astype(np.float32)
    assert stored.loc[decoding, "height"].tolist() == [image.height for image in images]
    model = load_backbone("MobileNetV3Small", IMAGE_SIZE, "random")
    pooled, *_ = compile_forward(model, "MobileNetV3Small", "none", feature_maps=False)(
        pixels[..., None]
    )
    assert distances(np.stack(stored.loc[decoding, "pooled"]), pooled).max() <= 1e-5


def test_the_same_image_twice_is_two_rows_of_the_same_features(extracted) -> None:
    _, _, features, _ = extracted
    twins = features[features["image_id"].str.startswith("NORMAL/twin-")]
    assert len(twins) == 2
    first, second = np.stack(twins["pooled"])
    assert np.linalg.norm(first - second) <= 1e-5 * np.linalg.norm(first)
