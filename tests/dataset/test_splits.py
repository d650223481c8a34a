from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cxr_spark.dataset.splits import assign_splits, patients_in_two_splits


@pytest.fixture
def images(rng: np.random.Generator) -> tuple[list[str], list[str], list[str], list[str | None]]:
    n = 1000
    patients = [f"p{i}" for i in rng.integers(0, 300, n)]
    findings = rng.choice(["NORMAL", "BACTERIA", "VIRUS"], n, p=[0.25, 0.5, 0.25]).tolist()
    official: list[str | None] = rng.choice(
        ["train", "val", "test"], n, p=[0.8, 0.05, 0.15]
    ).tolist()
    return [f"i{i}" for i in range(n)], patients, findings, official


def assign(groups, findings, official, *, validation_fraction=0.1, test_fraction=None, seed=0):
    return assign_splits(
        groups,
        findings,
        official,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )


def test_official_test_is_kept_and_train_and_val_are_merged(images) -> None:
    ids, _, findings, official = images
    splits = assign(ids, findings, official)
    assert [s == "test" for s in splits] == [o == "test" for o in official]
    assert any(s == "train" and o == "val" for s, o in zip(splits, official, strict=True))


def test_by_image_each_finding_has_its_exact_share(images) -> None:
    ids, _, findings, official = images
    splits = assign(ids, findings, official)
    rest = Counter(f for f, o in zip(findings, official, strict=True) if o != "test")
    val = Counter(f for f, s in zip(findings, splits, strict=True) if s == "val")
    assert val == {finding: round(0.1 * n) for finding, n in rest.items()}


def test_by_patient_none_stands_on_two_sides(images) -> None:
    _, patients, findings, _ = images
    splits = assign(patients, findings, [None] * len(patients), test_fraction=0.2)
    assert set(splits) == {"train", "val", "test"}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not patients_in_two_splits(patients, splits.tolist(), one, other)
    assert np.mean(splits == "test") == pytest.approx(0.2, abs=0.02)
    assert np.sum(splits == "val") == pytest.approx(0.1 * np.sum(splits != "test"), abs=12)


def test_split_depends_on_the_set_of_images_and_the_seed_alone(images, rng) -> None:
    _, patients, findings, official = images
    splits = assign(patients, findings, official)
    order = rng.permutation(len(patients))
    shuffled = assign(*([values[i] for i in order] for values in (patients, findings, official)))
    assert shuffled.tolist() == splits[order].tolist()
    assert assign(patients, findings, official, seed=1).tolist() != splits.tolist()


def test_groups_are_taken_in_the_order_of_their_sha256() -> None:
    import hashlib

    groups = [f"g{i}" for i in range(20)]
    official = ["train"] * 20 + ["test"]
    splits = assign([*groups, "t"], ["A"] * 21, official, validation_fraction=0.25, seed=7)
    first = sorted(groups, key=lambda g: hashlib.sha256(f"7:{g}".encode()).hexdigest())[:5]
    assert {g for g, s in zip(groups, splits[:20], strict=True) if s == "val"} == set(first)


def test_a_groups_stratum_is_its_most_frequent_finding_ties_alphabetical() -> None:
    groups = ["a", "a", "a", "b", "b"]
    findings = ["X", "Y", "Y", "Y", "X"]  # a is Y, b is X by the alphabet: one group a stratum
    splits = assign(groups, findings, [None] * 5, validation_fraction=0.4, test_fraction=0.01)
    assert set(splits) == {"val"}


def test_without_official_test_a_fraction_is_needed() -> None:
    with pytest.raises(ValueError, match="test_fraction"):
        assign(["a", "b"], ["X", "Y"], [None, None])


def test_overlap_counts_patients_and_leaves_out_unknown_ones() -> None:
    patients = ["a", "a", "b", None, None]
    splits = ["train", "test", "train", "train", "test"]
    assert patients_in_two_splits(patients, splits, "train", "test") == {"a"}
