"""What heads are trained on: an extraction's features in memory, or streamed past where too large.

Both kinds hand out batches of chosen images as a ``tf.data.Dataset``; heads, labels and splits are
none of their business.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord
from cxr_spark.paths import AnyPath
from cxr_spark.training.reader import COLUMNS, feature_shape, read_inputs, stream_inputs
from cxr_spark.training.shuffle import rebatch, take_rows

log = logging.getLogger(__name__)

GIGABYTE = 1e9
# Of the memory that features may take, what the shuffle buffer takes while they stream: for
# ResNet50's maps and 2 GB, 622 images, drawn from four row groups at a time.
BUFFER_SHARE = 1 / 16


class Inputs(Protocol):
    """The features of images, which are known by their positions in the order of ``image_id``.

    Attributes:
        shape: of one image's features: (channels,) or (height, width, channels).
        failure: why the last batch could not be read, or None. TensorFlow, which asks for the
            batches, only passes its text on.
    """

    shape: tuple[int, ...]
    failure: Exception | None

    def batches(
        self,
        rows: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int | None = None,
        keep: bool = False,
    ) -> Any:
        """Return a ``tf.data.Dataset`` of (features float32, positions int64), each row once.

        Args:
            rows: positions of the images, ascending.
            batch_size: images a batch; the last has what is left.
            seed: shuffles anew in each epoch, the same way for the same seed; None keeps an order.
            keep: these batches are wanted again, in the same order.
        """

    def close(self) -> None:
        """Let go of memory and files; TensorFlow's graphs hold on to what batches came from."""


def open_inputs(
    features: AnyPath,
    record: ExtractionRecord,
    takes: str,
    image_id: npt.NDArray[Any],
    *,
    memory_gb: float,
) -> Inputs:
    """Read an extraction's features into memory, or prepare to stream them where they do not fit.

    Args:
        features: the features folder.
        record: which extraction; for feature maps, one that stores them.
        takes: 'pooled' or 'feature_map'.
        image_id: of the images, in order: ``ImageKeys.image_id``.
        memory_gb: what features may take, in 10^9 bytes.

    Raises:
        UserError: as for ``reader.read_inputs``.
    """
    shape = feature_shape(features, record, takes)
    bytes_each = image_bytes(shape, takes)
    gigabytes = len(image_id) * bytes_each / GIGABYTE
    streams = gigabytes > memory_gb
    log.info(
        "training: %s of %s take %.2f GB, training.memory_gb is %.2f: %s",
        "feature maps" if takes == "feature_map" else "pooled features",
        record.identity.backbone,
        gigabytes,
        memory_gb,
        "streamed from the store in every epoch" if streams else "read into memory",
    )
    if not streams:
        return InMemory(*read_inputs(features, record, takes, image_id))
    capacity = int(memory_gb * GIGABYTE * BUFFER_SHARE / bytes_each)
    return Streamed(features, record, takes, image_id, shape=shape, capacity=capacity)


def image_bytes(shape: tuple[int, ...], takes: str) -> int:
    """Return what the features of one image take in memory."""
    return int(np.prod(shape)) * (2 if takes == "feature_map" else 4)


@contextmanager
def told(inputs: Inputs) -> Iterator[None]:
    """Raise what kept batches from being read, where TensorFlow raises an error of its own.

    Raises:
        UserError: the store is damaged, or the scratch file of streamed batches has no room.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if inputs.failure is not None:
            raise inputs.failure from None
        if "No space left" in str(error):
            raise UserError(
                "Expected room for the validation batches of streamed features. "
                f"Received: a full {tempfile.gettempdir()}. Set TMPDIR to another folder."
            ) from error
        raise


class InMemory:
    """Features in arrays, of which each batch gathers its rows."""

    failure: Exception | None = None

    def __init__(self, values: npt.NDArray[Any], scale: npt.NDArray[np.float32] | None = None):
        """Hold arrays; they are not copied, however many heads are trained on them.

        Args:
            values: of shape (n_images, ...): pooled features, or maps divided by their scale.
            scale: of shape (n_images,), for feature maps.
        """
        self.shape: tuple[int, ...] = values.shape[1:]
        self._arrays = [part for part in (values, scale) if part is not None]

    @property
    def values(self) -> npt.NDArray[Any]:
        """Pooled features of shape (n_images, channels), or maps divided by their scale."""
        return self._arrays[0]

    def batches(
        self,
        rows: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int | None = None,
        keep: bool = False,
    ) -> Any:
        """Return batches as ``Inputs`` says; without a seed in the order of ``rows``.

        Indices are shuffled and rows gathered by batch: cheaper than to shuffle or unbatch rows.
        """
        import tensorflow as tf

        kinds = [array.dtype for array in self._arrays]

        def gather(some: Any) -> tuple[Any, Any]:
            # NumPy gathers: TensorFlow would copy all of an array that a data set's graph names.
            parts = tf.numpy_function(self._gather, [some], kinds)
            for part, array in zip(parts, self._arrays, strict=True):
                part.set_shape((None, *array.shape[1:]))
            return _unscaled(*parts), some

        positions = tf.data.Dataset.from_tensor_slices(rows)
        if seed is not None:
            positions = positions.shuffle(len(rows), seed=seed, reshuffle_each_iteration=True)
        return positions.batch(batch_size).map(gather)

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays = []

    def _gather(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        return [take_rows(array, rows) for array in self._arrays]


class Streamed:
    """Features that are read from the store whenever they are wanted, by row group."""

    failure: Exception | None = None

    def __init__(
        self,
        features: AnyPath,
        record: ExtractionRecord,
        takes: str,
        image_id: npt.NDArray[Any],
        *,
        shape: tuple[int, ...],
        capacity: int,
    ):
        """Read nothing yet.

        Args:
            features: the features folder.
            record: which extraction.
            takes: 'pooled' or 'feature_map'.
            image_id: of the images, in order.
            shape: of one image's features.
            capacity: images that the shuffle buffer holds.
        """
        self.shape = shape
        self._source = (features, record, takes, image_id)
        self._capacity = capacity
        self._scratch = tempfile.TemporaryDirectory(prefix="cxr_spark-")

    def batches(
        self,
        rows: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int | None = None,
        keep: bool = False,
    ) -> Any:
        """Return batches as ``Inputs`` says; without a seed in the order of the files.

        Row groups are shuffled, and their rows through a buffer. What is to be kept goes to a
        scratch file, so that it costs a pass over all images only once; TMPDIR says where.
        """
        import tensorflow as tf

        takes, n_images = self._source[2], len(self._source[3])
        wanted = np.zeros(n_images, bool)
        wanted[rows] = True
        epochs = itertools.count()

        def epoch() -> Iterator[tuple[npt.NDArray[Any], ...]]:
            number = next(epochs)
            rng = None if seed is None else np.random.default_rng((seed, number))
            order = None if rng is None else int(rng.integers(2**31 - 1))
            groups = stream_inputs(*self._source, seed=order)
            shuffled = rebatch(
                groups, wanted, batch_size=batch_size, capacity=self._capacity, rng=rng
            )
            try:
                for batch in shuffled:
                    yield (*batch.arrays, batch.positions)
            except Exception as error:
                self.failure = error
                raise

        kinds = (tf.float16, tf.float32) if takes == "feature_map" else (tf.float32,)
        shapes = (self.shape, ())[: len(COLUMNS[takes])]
        signature = (
            *(tf.TensorSpec((None, *s), kind) for s, kind in zip(shapes, kinds, strict=True)),
            tf.TensorSpec((None,), tf.int64),
        )
        stored = tf.data.Dataset.from_generator(epoch, output_signature=signature)
        if keep:
            name = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
            stored = _kept(stored, Path(self._scratch.name) / f"{name}-{batch_size}")
        n_batches = -(-len(rows) // batch_size)
        batches = stored.map(lambda *parts: (_unscaled(*parts[:-1]), parts[-1]))
        return batches.apply(tf.data.experimental.assert_cardinality(n_batches))

    def close(self) -> None:
        """Remove the scratch file."""
        self._scratch.cleanup()


def _kept(stored: Any, file: Path) -> Any:
    """Return what a data set yields from a scratch file, written first where it is not there."""
    kept = untuned(stored.cache(str(file)))
    if not file.with_name(f"{file.name}.index").exists():
        for _ in kept:  # to the end, which Keras does not read to
            pass
    return kept


def untuned(dataset: Any) -> Any:
    """Return a data set without autotuning: its end would wait for the tuner, 10 s at times."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _unscaled(values: Any, scale: Any = None) -> Any:
    """Return float32 features of stored ones; where they are maps, multiplied by their scale."""
    import tensorflow as tf

    features = tf.cast(values, tf.float32)
    return features if scale is None else features * scale[:, None, None, None]
