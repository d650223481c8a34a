"""Backbones on the driver."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from cxr_spark.backbones import BACKBONES
from cxr_spark.config import Experiment
from cxr_spark.extraction.graphs import GraphFile
from cxr_spark.extraction.load import load_backbones


@pytest.mark.parametrize("preprocessing", ["none", "keras"])
@pytest.mark.parametrize("name", BACKBONES)
def test_pixels_that_the_weights_do_not_expect_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    name: str, preprocessing: str,
) -> None:  # fmt: skip
    """What they expect is what Keras' own preprocess_input makes."""
    import keras

    kept = GraphFile(tmp_path / "x.pb", "grey", ("pooled",), "d" * 64, (1, 1, 8))
    monkeypatch.setattr("cxr_spark.extraction.load.find_graph", lambda _: kept)
    experiment = Experiment(
        backbones=[name],
        weights="random",
        image_size=80,  # type: ignore[arg-type]
        preprocessing=preprocessing,  # type: ignore[arg-type]
    )
    with caplog.at_level(logging.WARNING, logger="cxr_spark"):
        list(load_backbones(experiment, tmp_path, feature_maps=False))
    raw = np.linspace(0, 255, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    prepared = getattr(keras.applications, BACKBONES[name].module).preprocess_input(raw.copy())
    expects_raw = np.array_equal(prepared, raw)
    assert expects_raw == BACKBONES[name].expects_raw
    told = {
        (False, "none"): f"{name}: its ImageNet weights expect preprocessing keras, not raw pixels",
        (True, "keras"): f"{name} rescales inside: preprocessing keras gives what none gives",
    }.get((expects_raw, preprocessing))
    assert [r.getMessage() for r in caplog.records] == ([told] if told else [])
