"""Images that stand in two splits: of the same pixels, or too much alike to be two X-rays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SPLIT_PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))

# Cosine in the space of ``fit_space`` from which images are near-duplicates. On Kermany's X-rays,
# with MobileNetV3Small, 3.3 million pairs of its test part and the rest stay below 0.56, and within
# the rest the highest of other pixels are three pairs of one patient each (0.67 to 0.72). An X-ray
# and its copy pass it in 95 of 100 cases or more where the copy has JPEG quality 50, is brighter by
# 10 levels, was smaller by a seventh, is moved by a pixel or turned by a degree; in 90 where it is
# mirrored, in 43 where it is moved by 4 pixels.
THRESHOLD = 0.7
# Directions of the space, at most, and at most this share of the images that it is fitted to. With
# fewer than the least, images that are nothing alike pass the threshold by chance (30: up to 0.85).
COMPONENTS = 256
COMPONENTS_SHARE = 1 / 2
MIN_COMPONENTS = 100
# Images that the space is fitted to, and pairs of images that are compared: a minute or two on two
# cores. Where there are more, an even sample of the images is compared.
MAX_FITTED = 10_000
MAX_PAIRS = 10**10
# Pairs that are listed; all are counted.
MAX_LISTED = 10_000
_BLOCK = 2048  # images a side: 16 MB of similarities


@dataclass(frozen=True)
class Leak:
    """Two images of two splits that are one X-ray, or nearly.

    Attributes:
        split_a, image_a, split_b, image_b: the two, in the order of ``SPLIT_PAIRS``.
        by: 'pixels' where all of them are the same, else 'features'.
        similarity: 1 for the same pixels, else the cosine of the features.
    """

    split_a: str
    image_a: str
    split_b: str
    image_b: str
    by: str
    similarity: float


@dataclass(frozen=True)
class LeakCount:
    """How many pairs two splits have by one measure, listed or not.

    Attributes:
        split_a, split_b: a pair of ``SPLIT_PAIRS``.
        by: as in ``Leak``.
        n_pairs: how many pairs.
        n_images: images of ``split_b`` in such pairs.
    """

    split_a: str
    split_b: str
    by: str
    n_pairs: int
    n_images: int


@dataclass(frozen=True)
class Leaks:
    """What was found: pairs, the most alike first, and their counts."""

    pairs: tuple[Leak, ...]
    counts: tuple[LeakCount, ...]


@dataclass(frozen=True)
class Space:
    """Where features are compared: along directions in which images differ, all equally long.

    Attributes:
        mean: float32 of shape (channels,).
        matrix: float32 of shape (channels, n_components).
    """

    mean: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]

    def project(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return unit vectors, float32 of shape (n_images, n_components)."""
        projected = (features - self.mean) @ self.matrix
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = projected / np.where(length > 0, length, 1)
        return unit


def fit_space(features: npt.NDArray[np.float32]) -> Space:
    """Return the space of training images: centred, scaled and whitened.

    Raw features of any two X-rays are alike (cosine 0.84 in the median, up to 0.97, where copies
    have 0.95 to 1), and so are scaled ones at times (0.75, where copies have 0.75 to 1): what tells
    one X-ray from another is in directions of little variance, which whitening makes equal.

    Args:
        features: of the training images, of shape (n_images, channels).
    """
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1)
    standard = (features - mean) / scale
    variances, directions = np.linalg.eigh(standard.T @ standard / len(features))
    n_wanted = min(COMPONENTS, max(1, int(len(features) * COMPONENTS_SHARE)))
    kept = np.flatnonzero(variances > 1e-6 * max(variances[-1], 1e-12))[-n_wanted:]
    matrix = directions[:, kept] / np.sqrt(variances[kept]) / scale[:, None]
    return Space(mean.astype(np.float32), matrix.astype(np.float32))


def choose_compared(
    splits: npt.NDArray[np.str_], *, max_pairs: int = MAX_PAIRS
) -> npt.NDArray[np.int64]:
    """Return positions of the images to compare by features: all, or an even sample of each split.

    Args:
        splits: of each image.
        max_pairs: of two images of two splits.
    """
    rows = {split: np.flatnonzero(splits == split) for split in ("train", "val", "test")}
    n_pairs = sum(len(rows[a]) * len(rows[b]) for a, b in SPLIT_PAIRS)
    share = min(1.0, math.sqrt(max_pairs / max(n_pairs, 1)))
    return np.sort(np.concatenate([evenly(some, int(share * len(some))) for some in rows.values()]))


def evenly(rows: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Return ``n`` of some positions, spread over them; all where there are no more."""
    if n >= len(rows):
        return rows
    chosen: npt.NDArray[np.int64] = rows[np.arange(n) * len(rows) // max(n, 1)]
    return chosen


def find_leaks(
    image_id: npt.NDArray[np.str_],
    splits: npt.NDArray[np.str_],
    digests: npt.NDArray[np.str_],
    compared: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    *,
    threshold: float = THRESHOLD,
    max_listed: int = MAX_LISTED,
) -> Leaks:
    """Return pairs of images of two splits that have the same pixels or nearly the same features.

    A pair with the same pixels is not found by its features once more. Memory stays bounded,
    whatever is found.

    Args:
        image_id: of shape (n_images,).
        splits: of each image.
        digests: of each image's pixels.
        compared: positions of the images that are compared by features.
        vectors: of those, what ``Space.project`` returns.
        threshold: the least cosine of near-duplicates.
        max_listed: pairs to return; the most alike come first, then those of smaller positions.
    """
    pixels = np.unique(digests, return_inverse=True)[1]
    pairs: list[Leak] = []
    counts: list[LeakCount] = []
    for a, b in SPLIT_PAIRS:
        rows_a, rows_b = np.flatnonzero(splits == a), np.flatnonzero(splits == b)
        n_pairs, n_images = _count_same(pixels, rows_a, rows_b)
        counts.append(LeakCount(a, b, "pixels", n_pairs, n_images))
        same = itertools.islice(_same(pixels, rows_a, rows_b), max_listed)
        pairs += [Leak(a, str(image_id[i]), b, str(image_id[j]), "pixels", 1.0) for i, j in same]
    for a, b in SPLIT_PAIRS:
        at_a, at_b = (np.flatnonzero(splits[compared] == split) for split in (a, b))
        found = _alike(vectors, pixels[compared], at_a, at_b, threshold, max_listed)
        counts.append(LeakCount(a, b, "features", found.n_pairs, found.n_images))
        pairs += [
            Leak(
                a, str(image_id[compared[i]]), b, str(image_id[compared[j]]), "features",
                float(similarity),
            )
            for i, j, similarity in zip(found.a, found.b, found.similarity, strict=True)
        ]  # fmt: skip
    pairs.sort(key=lambda pair: (pair.by != "pixels", -pair.similarity))
    return Leaks(tuple(pairs[:max_listed]), tuple(counts))


def _count_same(
    pixels: npt.NDArray[np.int64], rows_a: npt.NDArray[np.int64], rows_b: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Return how many pairs have the same pixels, and how many of ``rows_b`` are in one."""
    n_a, n_b = (np.bincount(pixels[rows], minlength=len(pixels)) for rows in (rows_a, rows_b))
    return int(n_a @ n_b), int(n_b[n_a > 0].sum())


def _same(
    pixels: npt.NDArray[np.int64], rows_a: npt.NDArray[np.int64], rows_b: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions with the same pixels, in the order of the first."""
    members: dict[int, list[int]] = {}
    shared = set(pixels[rows_a].tolist()) & set(pixels[rows_b].tolist())
    for row in rows_b.tolist():
        if pixels[row] in shared:
            members.setdefault(int(pixels[row]), []).append(row)
    for row in rows_a.tolist():
        yield from ((row, other) for other in members.get(int(pixels[row]), ()))


@dataclass(frozen=True)
class _Alike:
    """Near-duplicates of two splits: how many, and the positions and similarities of the first."""

    n_pairs: int
    n_images: int
    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]


def _alike(
    vectors: npt.NDArray[np.float32],
    pixels: npt.NDArray[np.int64],
    at_a: npt.NDArray[np.int64],
    at_b: npt.NDArray[np.int64],
    threshold: float,
    max_listed: int,
) -> _Alike:
    """Compare the images of two splits in blocks, and keep the most alike."""
    n_pairs, in_pair = 0, np.zeros(len(vectors), bool)
    kept_a, kept_b = np.empty(0, np.int64), np.empty(0, np.int64)
    kept = np.empty(0, np.float32)
    for a, b in itertools.product(_blocks(at_a), _blocks(at_b)):
        similarity = vectors[a] @ vectors[b].T
        i, j = np.nonzero(similarity >= threshold)
        differ = pixels[a[i]] != pixels[b[j]]
        i, j = i[differ], j[differ]
        n_pairs += len(i)
        in_pair[b[j]] = True
        if len(kept) == max_listed:  # what is less alike than all of these is only counted
            near = similarity[i, j] >= kept[-1]
            i, j = i[near], j[near]
        kept_a, kept_b = np.append(kept_a, a[i]), np.append(kept_b, b[j])
        kept = np.append(kept, similarity[i, j])
        first = np.lexsort((kept_b, kept_a, -kept))[:max_listed]
        kept_a, kept_b, kept = kept_a[first], kept_b[first], kept[first]
    return _Alike(n_pairs, int(in_pair.sum()), kept_a, kept_b, kept)


def _blocks(positions: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [positions[start : start + _BLOCK] for start in range(0, len(positions), _BLOCK)]
