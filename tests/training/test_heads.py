from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.training.heads import HEADS, Standardisation, build_head

SHAPES = {"pooled": (6,), "feature_map": (2, 3, 6)}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_head_gives_scores_that_add_to_one(name: str, n_classes: int) -> None:
    shape = SHAPES[HEADS[name].takes]
    model = build_head(name, shape, n_classes)
    scores = model(np.ones((4, *shape), np.float32)).numpy()
    assert scores.shape == (4, n_classes)
    assert scores.sum(axis=1) == pytest.approx(np.ones(4))


def test_the_papers_heads_have_the_papers_parameters() -> None:
    assert build_head("gap", (2048,), 2).count_params() == 2048 * 2 + 2
    dense = 7 * 7 * 576 * 1024 + 1024
    assert build_head("fc1024", (7, 7, 576), 2).count_params() == dense + 1024 * 2 + 2


def test_standardisation_also_serves_tiny_and_constant_channels(rng: np.random.Generator) -> None:
    features = (rng.normal(3, 2, (500, 6)) * 1e-10).astype(np.float32)
    features[:, 2] = 7e-10
    wide = features.astype(np.float64)
    std = wide.std(axis=0)
    std[2] = 0
    model = build_head("gap", (6,), 2, Standardisation(wide.mean(axis=0), std))
    standardised = model.get_layer("standardise")(features).numpy()
    varying = np.delete(standardised, 2, axis=1)
    assert varying.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-4)
    assert varying.std(axis=0) == pytest.approx(np.ones(5), rel=1e-4)
    assert not standardised[:, 2].any()
