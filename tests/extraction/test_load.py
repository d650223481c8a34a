"""Backbones on the driver."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.load import load_backbones


@pytest.mark.parametrize(
    ("backbone", "asked", "taken", "told"),
    [
        ("DenseNet121", "float16", "float16", "DenseNet121: float16 differs from float32 by"),
        ("MobileNetV3Small", "float16", "float32", "is allowed); using float32"),
    ],
)
def test_a_precision_that_changes_features_too_much_is_not_used(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    backbone: str, asked: str, taken: str, told: str,
) -> None:  # fmt: skip
    """Of an untrained MobileNetV3Small float16 leaves zeros."""
    experiment = Experiment(
        backbones=[backbone],
        weights="random",
        image_size=64,
        precision=asked,  # type: ignore[arg-type]
    )
    with caplog.at_level(logging.INFO, logger="cxr_spark"):
        (loaded,) = load_backbones(experiment, phantoms, tmp_path, feature_maps=False)
    assert loaded.identity.precision == taken
    assert told in caplog.text


def test_a_precision_needs_images_to_be_compared_on(experiment: Experiment, tmp_path: Path) -> None:
    lower = experiment.model_copy(update={"precision": "bfloat16"})
    with pytest.raises(UserError, match="Expected --images, on which precision bfloat16"):
        list(load_backbones(lower, None, tmp_path, feature_maps=False))
