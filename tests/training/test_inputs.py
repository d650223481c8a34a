from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxr_spark.config import TrainingConfig
from cxr_spark.training.heads import HEADS
from cxr_spark.training.inputs import InMemory, Inputs, Streamed, open_inputs
from cxr_spark.training.reader import stream_inputs
from cxr_spark.training.standardise import standardise
from cxr_spark.training.trainer import train_head
from tests.training.test_reader import NAMES, SHAPE, N, make_store

ALL = np.arange(N)


@pytest.fixture(params=["pooled", "feature_map"])
def both(request: pytest.FixtureRequest, tmp_path: Path, rng: np.random.Generator):
    """The same features in memory and streamed, through a buffer of few images."""
    record = make_store(tmp_path, rng)
    in_memory = open_inputs(tmp_path, record, request.param, NAMES, memory_gb=1)
    streamed = open_inputs(tmp_path, record, request.param, NAMES, memory_gb=1e-7)
    assert isinstance(in_memory, InMemory)
    assert isinstance(streamed, Streamed)
    return in_memory, streamed


def epoch(dataset) -> tuple[np.ndarray, np.ndarray]:
    parts = [(features.numpy(), positions.numpy()) for features, positions in dataset]
    features, positions = zip(*parts, strict=True)
    assert all(len(at) == 4 for at in positions[:-1])
    return np.concatenate(features), np.concatenate(positions)


@pytest.mark.parametrize("which", [0, 1])
def test_batches_hold_every_chosen_row_once_and_shuffle_by_seed(both, which: int) -> None:
    inputs: Inputs = both[which]
    rows = ALL[ALL % 5 > 0]
    reference, _ = epoch(both[0].batches(ALL, batch_size=4))

    def epochs(seed: int | None) -> list[np.ndarray]:
        dataset = inputs.batches(rows, batch_size=4, seed=seed)
        found = [epoch(dataset) for _ in range(2)]
        for features, positions in found:
            assert sorted(positions) == rows.tolist()
            assert np.array_equal(features, reference[positions])
        return [positions for _, positions in found]

    in_order, again = epochs(None)
    assert np.array_equal(in_order, again)
    first, second, other = epochs(0), epochs(0), epochs(1)
    assert not np.array_equal(first[0], first[1])
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_what_is_kept_is_read_from_the_store_once(both, monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = both
    rows = ALL[ALL % 4 == 0]
    expected = epoch(streamed.batches(rows, batch_size=4))
    kept = streamed.batches(rows, batch_size=4, keep=True)
    assert all(np.array_equal(a, b) for a, b in zip(epoch(kept), expected, strict=True))
    monkeypatch.setattr("cxr_spark.training.inputs.stream_inputs", None)
    for dataset in (kept, streamed.batches(rows, batch_size=4, keep=True)):
        assert all(np.array_equal(a, b) for a, b in zip(epoch(dataset), expected, strict=True))


def test_batches_undo_the_scaling_of_maps(rng: np.random.Generator) -> None:
    maps = rng.normal(size=(N, *SHAPE)).astype(np.float16)
    scale = rng.uniform(1e-12, 1e3, N).astype(np.float32)
    found, _ = epoch(InMemory(maps, scale).batches(ALL, batch_size=4))
    assert found == pytest.approx(maps.astype(np.float32) * scale[:, None, None, None], rel=1e-6)


def test_arrays_are_not_copied(rng: np.random.Generator) -> None:
    array = rng.normal(size=(N, 3)).astype(np.float32)
    dataset = InMemory(array).batches(ALL, batch_size=4)
    epoch(dataset)
    array += 1
    assert np.array_equal(epoch(dataset)[0], array)


def test_streamed_standardisation_is_that_of_memory(both) -> None:
    splits = np.where(ALL % 3 == 0, "val", "train")
    held, streamed = (standardise(inputs, splits) for inputs in both)
    assert streamed.mean == pytest.approx(held.mean, rel=1e-12, abs=1e-15)
    assert streamed.std == pytest.approx(held.std, rel=1e-12)


def train(inputs: Inputs, *, batch_size: int, epochs: int, seed: int = 0):
    labels = (ALL % 2).astype(np.int64)
    splits = np.where(ALL < 20, "train", np.where(ALL < 23, "val", "test"))
    head = "gap" if len(inputs.shape) == 1 else "fc1024"
    training = TrainingConfig(epochs=epochs, batch_size=batch_size, learning_rate=0.001)
    return train_head(
        HEADS[head], inputs, labels, splits, n_classes=2, training=training, seed=seed
    )


def test_streamed_training_is_that_of_memory_but_for_the_order(both) -> None:
    # One batch holds all training images, so that their order is only one of summation.
    held, streamed = (train(inputs, batch_size=32, epochs=3) for inputs in both)
    assert streamed.scores == pytest.approx(held.scores, abs=1e-5)
    for name, values in held.history.items():
        assert streamed.history[name] == pytest.approx(values, rel=1e-4)


def test_validation_images_are_read_once_however_many_epochs(
    both, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def counted(*source: object, **options: object):
        passes.append(options)
        return stream_inputs(*source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("cxr_spark.training.inputs.stream_inputs", counted)
    train(both[1], batch_size=32, epochs=4)
    assert len(passes) == 4 + 1 + 1  # epochs, validation, scores


def test_streamed_training_goes_by_its_seed(both) -> None:
    first, same, other = (train(both[1], batch_size=4, epochs=1, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.scores, same.scores)
    assert first.history == same.history
    assert not np.array_equal(first.scores, other.scores)


def test_it_is_said_whether_features_stream(tmp_path: Path, rng, caplog) -> None:
    record = make_store(tmp_path, rng)
    with caplog.at_level("INFO", logger="cxr_spark"):
        for memory_gb in (1.0, 1e-7):
            open_inputs(tmp_path, record, "pooled", NAMES, memory_gb=memory_gb)
    told = [entry.message for entry in caplog.records if entry.name.startswith("cxr_spark")]
    assert "pooled features of ResNet50" in told[0]
    assert "read into memory" in told[0]
    assert "streamed from the store" in told[1]
