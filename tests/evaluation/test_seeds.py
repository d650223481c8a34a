from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.evaluation.intervals import auc_interval
from cxr_spark.evaluation.seeds import over_seeds, share_of_seeds


def test_one_seed_tells_nothing_of_seeds(rng: np.random.Generator) -> None:
    y_true = np.arange(60) % 2 == 0
    score = rng.normal(size=60) + y_true
    found = over_seeds(y_true, [score])
    assert found.interval == auc_interval(y_true, [score])
    assert np.isnan([found.spread, found.share]).all()


def test_equal_seeds_change_nothing(rng: np.random.Generator) -> None:
    y_true = np.arange(60) % 2 == 0
    score = rng.normal(size=60) + y_true
    found = over_seeds(y_true, [score, score, score])
    assert (found.spread, found.share) == pytest.approx((0, 0))


def test_share_is_that_of_a_known_mixture() -> None:
    """Scores of one signal on all seeds: AUCs over seeds and over studies have known variances."""
    rng = np.random.default_rng(0)
    y_true = np.arange(400) % 2 == 0
    strengths = 1.0 + 0.1 * rng.normal(size=200)  # of each seed
    noise = rng.normal(size=400)
    found = over_seeds(y_true, [noise + strength * y_true for strength in strengths])
    aucs = [auc_interval(y_true, [noise + s * y_true]).auc for s in strengths]
    assert found.spread == pytest.approx(np.std(aucs, ddof=1))
    over_studies = np.var(
        [auc_interval(y_true, [rng.normal(size=400) + y_true]).auc for _ in range(400)]
    )
    expected = np.var(aucs, ddof=1) / (np.var(aucs, ddof=1) + over_studies)
    assert found.share == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "scores",
    [np.arange(8), np.ones(8), np.array([1, 2, 3, 4, 8, 7, 6, 5])],
    ids=["perfect", "constant", "perfect otherwise"],
)
def test_where_nothing_varies_seeds_have_no_share(scores: np.ndarray) -> None:
    y_true = np.arange(8) >= 4
    found = over_seeds(y_true, [scores, scores, np.arange(8) if scores.std() else scores])
    assert found.spread == 0
    assert np.isnan(found.share)
    assert found.interval.low != found.interval.high


def test_shares_of_what_is_not_known_are_not_known() -> None:
    assert share_of_seeds(3e-4, 1e-4) == pytest.approx(0.75)
    assert share_of_seeds(1e-4, 0.0) == 1
    for unknown in ((0.0, 0.0), (1e-33, 0.0), (np.nan, 1e-4), (1e-4, np.nan)):
        assert np.isnan(share_of_seeds(*unknown))
