from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.training.inputs import InMemory
from cxr_spark.training.standardise import standardise
from tests.training.test_trainer import N, as_maps


def test_standardisation_is_that_of_the_training_images(rng: np.random.Generator) -> None:
    pooled = rng.normal(size=(N, 12)).astype(np.float32)
    splits = np.array(["train"] * 160 + ["val"] * 40 + ["test"] * 40)
    for tiny in (1.0, 1e-12):
        found = standardise(InMemory(pooled * np.float32(tiny)), splits)
        train_rows = pooled[splits == "train"].astype(np.float64) * tiny
        assert found.mean == pytest.approx(train_rows.mean(axis=0), rel=1e-5, abs=1e-9 * tiny)
        assert found.std == pytest.approx(train_rows.std(axis=0), rel=1e-5)
    maps = standardise(InMemory(*as_maps(pooled)), splits)
    assert maps.std == pytest.approx(pooled[splits == "train"].std(axis=0), rel=1e-2)
    constant = standardise(InMemory(np.full((N, 2), 1e-9, np.float32)), splits)
    assert constant.std.tolist() == [0, 0]
