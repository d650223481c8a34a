from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_spark.training.classifiers import CLASSIFIERS
from cxr_spark.training.fit_classifier import fit_classifier

N = 240


@pytest.fixture
def problem(rng: np.random.Generator):
    labels = np.arange(N) % 3
    # as of an untrained backbone: tiny features, and a channel that is constant
    features = rng.normal(size=(N, 12)) + 2.5 * np.eye(12)[labels]
    features[:, 5] = 1
    return (features * 1e-10).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_learns_and_its_scores_add_to_one(
    problem, name: str, n_classes: int
) -> None:
    features, labels = problem
    labels = labels % n_classes
    train = np.arange(160)
    trained = fit_classifier(CLASSIFIERS[name], features, labels, train, seed=0)
    assert trained.scores.shape == (N, n_classes)
    assert trained.scores.sum(axis=1) == pytest.approx(np.ones(N), abs=1e-5)
    held_out = trained.scores[160:]
    if n_classes == 2:
        assert roc_auc_score(labels[160:], held_out[:, 1]) > 0.75
    else:
        assert np.mean(held_out.argmax(axis=1) == labels[160:]) > 0.75


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_held_out_images_do_not_touch_it_and_a_seed_repeats_it(problem, name: str) -> None:
    features, labels = problem
    changed = features.copy()
    changed[160:] = 99
    other = np.where(np.arange(N) < 160, labels, 0)
    one = fit_classifier(CLASSIFIERS[name], features, labels, np.arange(160), seed=3)
    two = fit_classifier(CLASSIFIERS[name], changed, other, np.arange(160), seed=3)
    assert np.array_equal(one.scores[:160], two.scores[:160])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_saved_classifier_gives_the_same_scores_without_pickle(problem, name, tmp_path) -> None:
    import skops.io

    from cxr_spark.training.fit_classifier import score_classifier

    features, labels = problem
    trained = fit_classifier(CLASSIFIERS[name], features, labels, np.arange(160), seed=0)
    file = tmp_path / f"head{trained.suffix}"
    assert file.suffix == ".skops"
    trained.save(file)
    untrusted = skops.io.get_untrusted_types(file=file)
    assert all(kind.startswith(("sklearn.", "numpy.", "scipy.")) for kind in untrusted)
    loaded = skops.io.load(file, trusted=untrusted)
    assert score_classifier(loaded, features) == pytest.approx(trained.scores, abs=1e-6)
