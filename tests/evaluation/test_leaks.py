from __future__ import annotations

import itertools

import numpy as np
import pytest

from cxr_spark.evaluation import leaks as module
from cxr_spark.evaluation.leaks import (
    COMPONENTS,
    SPLIT_PAIRS,
    Leak,
    LeakCount,
    choose_compared,
    evenly,
    find_leaks,
    fit_space,
)

N = 60


def slow_leaks(image_id, splits, digests, vectors, threshold: float) -> list[Leak]:
    """Every pair of two images, looked at one by one."""
    found = []
    for i, j in itertools.permutations(range(len(image_id)), 2):
        if (splits[i], splits[j]) not in SPLIT_PAIRS:
            continue
        names = splits[i], image_id[i], splits[j], image_id[j]
        similarity = sum(float(a) * float(b) for a, b in zip(vectors[i], vectors[j], strict=True))
        if digests[i] == digests[j]:
            found.append(Leak(*names, "pixels", 1.0))
        elif similarity >= threshold:
            found.append(Leak(*names, "features", similarity))
    return found


@pytest.fixture
def images(rng: np.random.Generator):
    """Images in no order of their splits, some of the same pixels and some nearly alike."""
    image_id = np.array([f"i{i:02d}" for i in range(N)])
    splits = rng.choice(["train", "val", "test"], N, p=[0.5, 0.2, 0.3])
    digests = np.array([f"d{i}" for i in rng.integers(0, 50, N)])
    vectors = rng.normal(size=(N, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return image_id, splits, digests, vectors


def rounded(pairs) -> set[tuple]:
    return {
        (p.split_a, p.image_a, p.split_b, p.image_b, p.by, round(p.similarity, 4)) for p in pairs
    }


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_pairs_and_counts_are_those_of_a_look_at_every_pair(
    images, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    image_id, splits, digests, vectors = images
    expected = slow_leaks(*images, threshold=0.8)
    assert {(p.split_a, p.split_b, p.by) for p in expected} == {
        (*pair, by) for pair in SPLIT_PAIRS for by in ("pixels", "features")
    }
    found = find_leaks(image_id, splits, digests, np.arange(N), vectors, threshold=0.8)
    assert rounded(found.pairs) == rounded(expected)
    assert len(found.pairs) == len(expected)
    assert all(p.split_a != p.split_b for p in found.pairs)
    order = [(p.by != "pixels", -p.similarity) for p in found.pairs]
    assert order == sorted(order)
    for count in found.counts:
        pairs = [
            p for p in expected
            if (p.split_a, p.split_b, p.by) == (count.split_a, count.split_b, count.by)
        ]  # fmt: skip
        assert count.n_pairs == len(pairs)
        assert count.n_images == len({p.image_b for p in pairs})


@pytest.mark.parametrize("max_listed", [1, 5, 12])
def test_all_are_counted_where_few_are_listed(
    images, monkeypatch: pytest.MonkeyPatch, max_listed: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)
    image_id, splits, digests, vectors = images
    everything = find_leaks(image_id, splits, digests, np.arange(N), vectors, threshold=0.5)
    some = find_leaks(
        image_id, splits, digests, np.arange(N), vectors, threshold=0.5, max_listed=max_listed
    )
    assert some.pairs == everything.pairs[:max_listed]
    assert some.counts == everything.counts


def test_features_are_compared_of_the_chosen_images_alone(images) -> None:
    image_id, splits, digests, vectors = images
    compared = np.arange(0, N, 2)
    found = find_leaks(image_id, splits, digests, compared, vectors[compared], threshold=0.8)
    expected = [
        p
        for p in slow_leaks(*images, threshold=0.8)
        if p.by == "pixels" or {p.image_a, p.image_b} <= set(image_id[compared])
    ]
    assert rounded(found.pairs) == rounded(expected)
    nothing = find_leaks(image_id, splits, digests, compared[:0], vectors[:0])
    assert {p.by for p in nothing.pairs} == {"pixels"}
    assert LeakCount("train", "test", "features", 0, 0) in nothing.counts


def test_a_few_images_of_each_split_are_compared_where_pairs_are_too_many() -> None:
    splits = np.repeat(["test", "train", "val"], [100, 1000, 200])
    n_pairs = 1000 * 200 + 1000 * 100 + 200 * 100
    assert choose_compared(splits, max_pairs=n_pairs).tolist() == list(range(1300))
    compared = choose_compared(splits, max_pairs=n_pairs // 4)
    counts = {split: np.count_nonzero(splits[compared] == split) for split in np.unique(splits)}
    assert counts == pytest.approx({"test": 50, "train": 500, "val": 100}, abs=1)
    assert np.diff(compared).tolist() == pytest.approx([2] * (len(compared) - 1), abs=2)


def test_an_even_choice_takes_each_position_once_and_from_all_over() -> None:
    assert evenly(np.arange(10, 20), 4).tolist() == [10, 12, 15, 17]
    assert evenly(np.arange(3), 5).tolist() == [0, 1, 2]
    assert evenly(np.arange(3), 0).tolist() == []


def correlated(rng: np.random.Generator, n: int, channels: int) -> np.ndarray:
    """Features that share a large mean and lie mostly along few directions, as a backbone's do."""
    strength = np.geomspace(30, 0.1, channels)
    mixing = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    return (50 + rng.normal(size=(n, channels)) * strength @ mixing).astype(np.float32)


def test_the_space_tells_a_noisy_copy_from_images_that_are_as_alike_as_raw_features_are(
    rng: np.random.Generator,
) -> None:
    features = correlated(rng, 1000, 64)
    train, test = features[:800], features[800:]
    copies = (train[:200] + rng.normal(scale=0.05, size=(200, 64))).astype(np.float32)
    space = fit_space(train)
    vectors = space.project(train)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(800), abs=1e-5)
    of_copies = (space.project(copies) * vectors[:200]).sum(axis=1)
    of_others = space.project(test) @ vectors.T
    raw = test / np.linalg.norm(test, axis=1, keepdims=True)
    raw_train = train / np.linalg.norm(train, axis=1, keepdims=True)
    assert np.median(raw @ raw_train.T) > 0.8
    assert of_others.max() < module.THRESHOLD < of_copies.min()


def test_whitened_training_images_vary_alike_in_every_direction(rng: np.random.Generator) -> None:
    features = correlated(rng, 400, 32)
    space = fit_space(features)
    projected = (features - space.mean) @ space.matrix
    assert np.cov(projected.T) == pytest.approx(np.eye(32), abs=0.02)


def test_the_space_has_no_direction_in_which_nothing_varies(rng: np.random.Generator) -> None:
    features = np.zeros((400, 8), np.float32)
    features[:, 1:4] = rng.normal(size=(400, 3))
    features[:, 4] = features[:, 1] + features[:, 2]
    space = fit_space(features)
    assert space.matrix.shape == (8, 3)
    assert np.isfinite(space.project(features)).all()
    constant = fit_space(np.ones((400, 8), np.float32))
    assert constant.matrix.shape == (8, 0)
    assert fit_space(correlated(rng, 100, 64)).matrix.shape == (64, 50)
    assert fit_space(correlated(rng, 2000, 300)).matrix.shape == (300, COMPONENTS)
