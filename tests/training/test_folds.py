from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.config import CrossValidationConfig
from cxr_spark.errors import UserError
from cxr_spark.training.folds import make_folds

N = 300
SETTINGS = CrossValidationConfig(folds=4, repeats=3)


@pytest.fixture
def images(rng: np.random.Generator):
    patients = [None if i % 10 == 0 else f"p{i // 3}" for i in range(N)]
    labels = np.array([i // 3 % 3 == 0 for i in range(N)]).astype(np.int64)
    splits = np.array(["train"] * 200 + ["val"] * 40 + ["test"] * 60)
    return labels, patients, splits


def test_every_training_image_is_held_out_once_a_repeat(images) -> None:
    folds = make_folds(*images, SETTINGS, seed=0)
    assert [(f.repeat, f.fold) for f in folds] == [(r, k) for r in range(3) for k in range(4)]
    for repeat in range(3):
        held_out = [f.held_out for f in folds if f.repeat == repeat]
        assert sorted(np.concatenate(held_out)) == list(range(200))
    for fold in folds:
        assert sorted([*fold.train, *fold.held_out]) == list(range(200))


def test_no_patient_is_on_both_sides(images) -> None:
    _, patients, _ = images
    for fold in make_folds(*images, SETTINGS, seed=0):
        sides = [{patients[i] for i in part} - {None} for part in (fold.train, fold.held_out)]
        assert not sides[0] & sides[1]


def test_patients_with_an_identical_image_are_on_one_side(images) -> None:
    labels, patients, splits = images
    digests = np.array([f"{i:040x}" for i in range(N)], object)
    digests[[31, 101, 171]] = "same"  # of three patients
    digests[[32, 61]] = "another"  # which ties a fourth to them
    tied = {patients[i] for i in (31, 101, 171, 61)}
    together = {i for i in range(N) if patients[i] in tied}
    apart = 0
    for known in (None, digests):
        folds = make_folds(labels, patients, splits, SETTINGS, seed=0, pixels_digest=known)
        for fold in folds:
            held_out = together & set(fold.held_out)
            apart += known is None and 0 < len(held_out) < len(together)
            assert known is None or held_out in (set(), together)
    assert apart


def test_classes_are_about_as_frequent_in_each(images) -> None:
    labels, _, _ = images
    for fold in make_folds(*images, SETTINGS, seed=0):
        assert labels[fold.held_out].mean() == pytest.approx(labels[:200].mean(), abs=0.06)


def test_the_same_seed_divides_the_same_way_and_repeats_do_not(images) -> None:
    one, same, other = (make_folds(*images, SETTINGS, seed=seed) for seed in (0, 0, 9))
    assert all(np.array_equal(a.held_out, b.held_out) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.held_out, b.held_out) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0].held_out, one[4].held_out)


def test_too_few_patients_of_a_class_are_told(images) -> None:
    _, patients, splits = images
    rare = np.where(np.arange(N) < 6, 1, 0)
    with pytest.raises(UserError, match="Received: 3 of class 1 and cross_validation.folds 4"):
        make_folds(rare, patients, splits, SETTINGS, seed=0)


def test_a_fold_without_a_class_is_refused() -> None:
    """Twelve patients with images of both classes: some division leaves a class to one side."""
    rng = np.random.default_rng(0)
    settings = CrossValidationConfig(folds=3, repeats=1)
    told = 0
    for _ in range(300):
        labels = np.zeros(24, np.int64)
        labels[rng.choice(24, 4, replace=False)] = 1
        patients = [f"p{i // 2}" for i in range(24)]
        splits = np.array(["train"] * 24)
        try:
            folds = make_folds(labels, patients, splits, settings, seed=0)
        except UserError:
            told += 1
            continue
        for fold in folds:
            assert len(np.unique(labels[fold.held_out])) == len(np.unique(labels[fold.train])) == 2
    assert told < 300
