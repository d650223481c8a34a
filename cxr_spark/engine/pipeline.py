"""Files to fixed batches of grey pixels to features: what every worker does, with no Spark."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cxr_spark.engine.forward import Forward
from cxr_spark.files import Source, read_whole
from cxr_spark.images import UndecodableImage, decode_grey, resize_bilinear

# Images a batch. On processors 16 are faster than 64; GPUs want more.
BATCH_SIZE = {"CPU": 16, "GPU": 128}

Item = TypeVar("Item")
Group = TypeVar("Group")


@dataclass(frozen=True)
class PreparedImage:
    """An image as a backbone takes it, or the reason why it cannot be used.

    Attributes:
        height: of the file's image, in pixels; 0 where it could not be decoded.
        width: likewise.
        pixels: of shape image_size, in [0, 255]: uint8 where the file has that size already, else
            float32; None where it could not be read or decoded.
        pixels_digest: of ``digest_pixels``; None likewise.
        stage: 'read' or 'decode' where it failed, else None.
        error: why it failed, else None.
    """

    height: int
    width: int
    pixels: npt.NDArray[Any] | None
    pixels_digest: str | None = None
    stage: str | None = None
    error: str | None = None


def prepare(
    file: bytes | Source, image_size: tuple[int, int], decode: Decode | None = None
) -> PreparedImage:
    """Read, decode and resize one image.

    Args:
        file: the path of the file, or its source.
        image_size: (height, width) in pixels.
        decode: what decodes and resizes, else ``prepare_encoded``.
    """
    try:
        encoded = read_whole(file) if isinstance(file, bytes) else file.read()
    except OSError as error:
        return PreparedImage(0, 0, None, stage="read", error=error.strerror or str(error))
    return (decode or prepare_encoded)(encoded, image_size)


def prepare_encoded(encoded: bytes, image_size: tuple[int, int]) -> PreparedImage:
    """Decode and resize one image, of the bytes of its file."""
    try:
        grey = decode_grey(encoded)
    except UndecodableImage as error:
        return PreparedImage(0, 0, None, stage="decode", error=str(error))
    height, width = grey.shape
    pixels = grey if grey.shape == image_size else resize_bilinear(grey, image_size)
    return PreparedImage(height, width, pixels, digest_pixels(pixels))


Decode = Callable[[bytes, tuple[int, int]], PreparedImage]


def digest_pixels(pixels: npt.NDArray[Any]) -> str:
    """Return the SHA-1 of grey levels rounded to whole ones: equal where the pixels are.

    Of Python's digests it is the fastest that no accident defeats: 0.026 ms for 224 x 224, where
    BLAKE2b takes 0.054 ms.

    Args:
        pixels: uint8 or float32 of shape (height, width), in [0, 255].
    """
    whole = pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)
    return hashlib.sha1(np.ascontiguousarray(whole).data, usedforsecurity=False).hexdigest()


def prepare_groups(
    groups: Iterable[tuple[Group, Sequence[bytes | Source]]],
    image_size: tuple[int, int],
    *,
    threads: int,
    decode: Decode | None = None,
) -> Generator[tuple[Group, list[PreparedImage]]]:
    """Prepare groups of files in their order.

    Args:
        groups: (what it is known by, its files).
        image_size: (height, width) in pixels.
        threads: how many decode the next group while this one is computed, each every so manieth
            of its files; with none, this thread decodes a group when it is asked for.
        decode: as ``prepare`` takes.
    """
    make = prepare if decode is None else functools.partial(prepare, decode=decode)
    if not threads:
        for group, paths in groups:
            yield group, [make(path, image_size) for path in paths]
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Group, Iterator[list[PreparedImage]]]] = deque()
        for group, paths in groups:
            # To hand images over one by one costs a fifth of what decoding of small ones does.
            shares = [paths[k::threads] for k in range(threads)]
            made = pool.map(lambda share: [make(path, image_size) for path in share], shares)
            waiting.append((group, made))
            if len(waiting) > 1:
                done, shared = waiting.popleft()
                yield done, _in_turn(shared)
        for done, shared in waiting:
            yield done, _in_turn(shared)


def _in_turn(shares: Iterable[list[Item]]) -> list[Item]:
    """Return the items of shares in the order that they had before each took its so manieth."""
    rounds = itertools.zip_longest(*shares, fillvalue=None)
    return [item for items in rounds for item in items if item is not None]


class Batches:
    """The pixels of a group of images as batches, for one backbone after another.

    On a GPU they are made at once and filled up with zeros, so that one shape is compiled; on a
    processor each time anew, which saves their memory.

    Attributes:
        pixels: of each image, of shape image_size; on a GPU where they lie in their batch.
    """

    def __init__(
        self, pixels: Sequence[npt.NDArray[Any]], batch_size: int, *, on_gpu: bool
    ) -> None:
        """Take pixels, each of shape image_size, and how many images a batch has."""
        self._size = batch_size
        self._made = list(make_batches(pixels, batch_size, padded=True)) if on_gpu else None
        self.pixels = pixels if self._made is None else _views(self._made)

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield what ``make_batches`` yields."""
        if self._made is None:
            return make_batches(self.pixels, self._size, padded=False)
        return iter(self._made)


def _views(batches: Sequence[tuple[int, npt.NDArray[Any]]]) -> list[npt.NDArray[Any]]:
    return [batch[i, ..., 0] for n_images, batch in batches for i in range(n_images)]


def batch_groups(
    prepared: Iterable[tuple[Group, list[PreparedImage]]], batch_size: int, *, on_gpu: bool
) -> Generator[tuple[Group, list[PreparedImage], Batches]]:
    """Yield prepared groups with the batches of their images that can be used.

    Images leave their pixels to the batches, or a GPU's would be held twice.

    Args:
        prepared: as ``prepare_groups`` yields.
        batch_size: images a batch.
        on_gpu: whether another thread makes the batches of the next group while one is computed.
    """

    def make() -> Generator[tuple[Group, list[PreparedImage], Batches]]:
        for group, images in prepared:
            usable = [image.pixels for image in images if image.pixels is not None]
            batches = Batches(usable, batch_size, on_gpu=on_gpu)
            yield group, [dataclasses.replace(image, pixels=None) for image in images], batches

    return in_background(make()) if on_gpu else make()


def run_batches(forward: Forward, batches: Batches) -> tuple[npt.NDArray[Any], ...]:
    """Return the features of at least one image, computed in batches.

    Args:
        forward: as ``compile_forward`` or ``load_graph`` return.
        batches: of the images.
    """
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    for n_images, batch in batches:
        parts.append(tuple(output[:n_images] for output in forward(batch)))
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def make_batches(
    pixels: Sequence[npt.NDArray[Any]], batch_size: int, *, padded: bool
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield images as batches, and how many of each batch are images.

    A batch is uint8 where all its images are, a quarter of the bytes on their way to a device.
    """
    for start in range(0, len(pixels), batch_size):
        chunk = pixels[start : start + batch_size]
        exact = all(image.dtype == np.uint8 for image in chunk)
        n_computed = batch_size if padded else len(chunk)
        batch = np.zeros((n_computed, *chunk[0].shape, 1), np.uint8 if exact else np.float32)
        for i, image in enumerate(chunk):
            batch[i, ..., 0] = image
        yield len(chunk), batch


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items, each when the next has been made."""
    made = iter(items)
    for item in made:
        for following in made:
            yield item
            item = following
        yield item


def in_background(items: Iterable[Item]) -> Generator[Item]:
    """Yield the same items, made by another thread: one waits and one is made meanwhile."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    stopped = threading.Event()

    def put(kind: str, item: Any) -> None:
        while not stopped.is_set():
            try:
                made.put((kind, item), timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, item = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
