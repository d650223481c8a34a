"""A lower precision is compared with float32 by a task, on the task's device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxr_spark.config import Experiment
from cxr_spark.engine.device import Device
from cxr_spark.errors import UserError
from cxr_spark.extraction import parity, worker
from cxr_spark.extraction.job import ExtractionRequest, extract
from cxr_spark.extraction.load import load_backbones
from cxr_spark.extraction.parity import settle_precision
from cxr_spark.extraction.worker import make_comparer
from cxr_spark.placement import Placement
from tests.extraction.test_job import read


@pytest.mark.parametrize(
    ("backbone", "asked", "taken", "told"),
    [
        ("DenseNet121", "float16", "float16", "DenseNet121: float16 differs from float32 by"),
        ("MobileNetV3Small", "float16", "float32", "is allowed); using float32"),
        ("MobileNetV3Small", "bfloat16", "float32", "is allowed); using float32"),
    ],
)
def test_a_precision_that_changes_features_too_much_is_not_used(
    spark, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    backbone: str, asked: str, taken: str, told: str,
) -> None:  # fmt: skip
    """Of an untrained MobileNetV3Small float16 leaves zeros, and bfloat16 some digits."""
    experiment = Experiment(
        backbones=[backbone],
        weights="random",
        image_size=64,  # type: ignore[arg-type]
        precision=asked,  # type: ignore[arg-type]
        limit=20,
    )
    found = {}
    for precision in ("float32", asked):
        given = experiment.model_copy(update={"precision": precision})
        loaded = list(load_backbones(given, tmp_path, feature_maps=False))
        features = tmp_path / precision
        request = ExtractionRequest(given, phantoms, features, False)
        with caplog.at_level(logging.INFO, logger="cxr_spark"):
            (record,) = extract(spark, request, lambda loaded=loaded: loaded)
        found[precision] = (record, np.stack(read(features, record)["pooled"].to_list()))
    assert told in caplog.text
    (exact, expected), (record, pooled) = found["float32"], found[asked]
    assert record.identity.precision == taken
    assert (record.fingerprint == exact.fingerprint) == (taken == "float32")
    distance = np.linalg.norm(pooled - expected) / np.linalg.norm(expected)
    assert distance < 1e-2
    assert (distance > 1e-6) == (taken != "float32")


def test_a_precision_needs_an_image_to_be_compared_on(spark, tmp_path: Path) -> None:
    experiment = Experiment(
        backbones=["MobileNetV3Small"],
        weights="random",
        image_size=32,  # type: ignore[arg-type]
        precision="bfloat16",
    )
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.jpeg").write_text("no image")
    loaded = list(load_backbones(experiment, tmp_path, feature_maps=False))
    request = ExtractionRequest(experiment, tmp_path / "images", tmp_path / "features", False)
    with pytest.raises(UserError, match="Expected at least one image that can be used under"):
        extract(spark, request, lambda: loaded)


def test_what_is_compared_is_what_a_task_computes_on_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU whole batches, by the two graphs, of which float32's is not kept."""
    batches: list[tuple[str, tuple[int, ...]]] = []

    def load(extraction, device, placement):
        def forward(batch: np.ndarray) -> tuple[np.ndarray, ...]:
            batches.append((f"{extraction} on {device.name}", batch.shape))
            return (np.full((len(batch), 4), 2.0 if extraction == "exact" else 2.2),)

        return forward

    monkeypatch.setattr(worker, "_load_forward", load)
    monkeypatch.setattr(worker, "_forward", load)
    device = Device("GPU", 1, "1", pretended=True)
    monkeypatch.setattr(worker, "task_device", lambda _: device)
    pixels = [np.zeros((8, 8), np.uint8)] * 16
    comparer = make_comparer("exact", "lower", pixels, Placement())  # type: ignore[arg-type]
    (row,) = comparer([pd.DataFrame({"id": [0]})])
    assert row["loss"].tolist() == pytest.approx([0.1])
    shape = (128, 8, 8, 1)
    assert batches == [("exact on /CPU:1", shape), ("lower on /CPU:1", shape)]


@pytest.mark.parametrize(("on_gpu", "n_compared"), [(False, 16), (True, 90)])
def test_a_whole_batch_is_compared(
    on_gpu: bool, n_compared: int, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's has 128 images, of which there are 90 here."""
    compared: list[int] = []

    def compare(spark: object, exact: object, lower: object, pixels: list[np.ndarray]) -> float:
        compared.append(len(pixels))
        return 0.0

    class Identity:
        image_size, backbone, precision = (64, 64), "ResNet50", "float16"

    class Backbone:
        identity, exact = Identity(), object()

    monkeypatch.setattr(parity, "_compare", compare)
    monkeypatch.setattr(parity, "placement_of", lambda _: Placement(on_gpu=on_gpu))
    lower: Any = Backbone()
    session: Any = None
    assert settle_precision(session, [lower], phantoms) == [lower]
    assert compared == [n_compared]
