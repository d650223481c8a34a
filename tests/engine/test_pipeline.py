from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_spark.engine.pipeline import (
    PreparedImage,
    batch_groups,
    digest_pixels,
    in_background,
    prepare,
    prepare_groups,
    run_batches,
)
from cxr_spark.images import resize_bilinear


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> list[bytes]:
    """Twelve PNG of 20 x 30 and, the last, 40 x 60; between them a text and a missing file."""
    paths = []
    for i in range(12):
        shape = (40, 60) if i == 11 else (20, 30)
        path = tmp_path / f"{i}.png"
        path.write_bytes(cv2.imencode(".png", rng.integers(0, 256, shape, np.uint8))[1].tobytes())
        paths.append(path)
    paths[3].write_text("a text")
    paths[5].unlink()
    return [str(path).encode() for path in paths]


def test_an_image_of_the_right_size_stays_as_it_is_and_another_is_resized(
    files: list[bytes],
) -> None:
    same, other = prepare(files[0], (20, 30)), prepare(files[11], (20, 30))
    whole = cv2.imread(files[11].decode(), cv2.IMREAD_GRAYSCALE)
    assert same.pixels is not None
    assert other.pixels is not None
    assert np.array_equal(same.pixels, cv2.imread(files[0].decode(), cv2.IMREAD_GRAYSCALE))
    assert np.array_equal(other.pixels, resize_bilinear(whole, (20, 30)))
    assert (same.pixels.dtype, other.pixels.dtype) == (np.uint8, np.float32)
    assert (other.height, other.width) == (40, 60)
    for image in (same, other):
        whole = np.round(image.pixels).astype(np.uint8)
        assert image.pixels_digest == hashlib.sha1(whole.tobytes()).hexdigest()
    assert prepare(files[3], (20, 30)).pixels_digest is None


def test_pixels_have_one_digest_if_they_are_equal_as_whole_grey_levels(
    rng: np.random.Generator,
) -> None:
    pixels = rng.integers(0, 256, (20, 30), np.uint8)
    digest = digest_pixels(pixels)
    assert digest_pixels(pixels + np.float32(0.25)) == digest
    assert digest_pixels(np.asfortranarray(pixels)) == digest
    changed = pixels.copy()
    changed[7, 9] ^= 1
    assert digest_pixels(changed) != digest


def test_a_file_that_grows_while_it_is_read_is_an_error_to_be_tried_again(
    files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.stat(files[0])
    earlier = SimpleNamespace(st_mode=status.st_mode, st_size=status.st_size - 10)
    with monkeypatch.context() as patch:
        patch.setattr("os.fstat", lambda descriptor: earlier)
        image = prepare(files[0], (20, 30))
    assert (image.stage, image.error) == ("read", "the file changed while it was read")


def test_a_file_that_is_written_over_while_it_is_read_is_one_too(
    files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its length may stay, and half of another picture be in it."""
    status, times = os.fstat, iter([0, 1])

    def written_over(descriptor: int) -> Any:
        seen = status(descriptor)
        modified = seen.st_mtime_ns + next(times)
        return SimpleNamespace(st_mode=seen.st_mode, st_size=seen.st_size, st_mtime_ns=modified)

    with monkeypatch.context() as patch:
        patch.setattr("os.fstat", written_over)
        image = prepare(files[0], (20, 30))
    assert (image.stage, image.error) == ("read", "the file changed while it was read")


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_groups_come_in_their_order_with_their_failures(files: list[bytes], threads: int) -> None:
    groups = [("a", files[:4]), ("b", []), ("c", files[4:])]
    prepared = list(prepare_groups(iter(groups), (20, 30), threads=threads))
    assert [name for name, _ in prepared] == ["a", "b", "c"]
    images = [image for _, group in prepared for image in group]
    assert [i for i, image in enumerate(images) if image.pixels is None] == [3, 5]
    assert (images[3].stage, images[5].stage) == ("decode", "read")
    assert images[5].error == "No such file or directory"


@pytest.mark.parametrize(("on_gpu", "last"), [(True, 4), (False, 2)])
def test_batches_have_the_order_of_the_images_and_one_size_on_a_gpu(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, last: int
) -> None:
    shapes, filled_by = [], set()
    make = np.zeros

    def noted(*arguments):
        filled_by.add(threading.current_thread() is threading.main_thread())
        return make(*arguments)

    monkeypatch.setattr(np, "zeros", noted)

    def forward(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        shapes.append((batch.shape, batch.dtype.name))
        return (batch.reshape(len(batch), -1).astype(np.float32),)

    pixels = [rng.integers(0, 256, (4, 5), dtype=np.uint8) for _ in range(10)]
    pixels[9] = pixels[9].astype(np.float32) / 2
    images = [PreparedImage(4, 5, image) for image in pixels]
    ((group, of_group, batches),) = batch_groups([("a", images)], 4, on_gpu=on_gpu)
    assert group == "a"
    assert [(image.height, image.pixels) for image in of_group] == [(4, None)] * 10
    assert all(np.array_equal(*both) for both in zip(batches.pixels, pixels, strict=True))
    (found,) = run_batches(forward, batches)
    (again,) = run_batches(forward, batches)
    assert np.array_equal(found, again)
    assert np.array_equal(found, np.stack([image.ravel() for image in pixels]))
    assert shapes == 2 * ([((4, 4, 5, 1), "uint8")] * 2 + [((last, 4, 5, 1), "float32")])
    assert filled_by == {not on_gpu}


def test_the_background_is_two_items_ahead_and_ends_with_its_reader() -> None:
    made: list[int] = []
    n_threads = threading.active_count()

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    reader = in_background(items())
    assert next(reader) == 0
    time.sleep(0.3)
    assert len(made) == 3
    reader.close()
    assert threading.active_count() == n_threads
    assert len(made) == 3
    assert list(in_background(range(20))) == list(range(20))


def test_an_error_in_the_background_is_raised_in_the_reader() -> None:
    def items():
        yield 1
        raise ValueError("broken")

    reader = in_background(items())
    assert next(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reader)
