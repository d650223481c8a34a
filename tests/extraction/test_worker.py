"""What a Python worker keeps between its tasks."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_spark.backbones import load_backbone
from cxr_spark.engine import pipeline
from cxr_spark.engine.device import Device
from cxr_spark.engine.forward import feature_function
from cxr_spark.engine.frozen import freeze
from cxr_spark.extraction import worker
from cxr_spark.extraction.store import Identity
from cxr_spark.extraction.worker import Extraction
from cxr_spark.placement import Placement

SIZE = (64, 64)


@pytest.fixture
def extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extraction:
    model = load_backbone("MobileNetV3Small", SIZE, "random")
    _, features = feature_function(model, "MobileNetV3Small", "none", feature_maps=False)
    graph = freeze(features, SIZE)
    name = f"MobileNetV3Small-{hashlib.sha256(graph.graph).hexdigest()}.pb"
    (tmp_path / name).write_bytes(graph.graph)
    monkeypatch.setattr("pyspark.SparkFiles.get", lambda file: str(tmp_path / file))
    monkeypatch.setattr(worker, "_forwards", {})
    identity = Identity("MobileNetV3Small", "d" * 64, "none", SIZE)
    return Extraction(identity, name, graph.input_name, graph.output_names)


def test_a_worker_holds_one_model_for_each_backbone_and_address(extraction: Extraction) -> None:
    """A reused worker may be given another address in its next task."""
    first, second = Device("CPU", 0, "0"), Device("CPU", 1, "1")
    loaded = [worker._forward(extraction, device, Placement()) for device in (first, second, first)]
    assert loaded[0] is loaded[2]
    assert loaded[0] is not loaded[1]
    batch = np.full((1, *SIZE, 1), 7, np.uint8)
    assert np.allclose(loaded[0](batch)[0], loaded[1](batch)[0], rtol=1e-5, atol=0)


def test_tasks_of_one_worker_compute_on_the_gpu_that_each_is_given(
    extraction: Extraction, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pretended GPUs of one executor, which Spark hands out anew with each task."""
    given = iter([Device("CPU", 0, "0"), Device("CPU", 1, "1"), Device("CPU", 0, "0")])
    monkeypatch.setattr(worker, "task_device", lambda _: next(given))
    load, loaded, computed = worker._load_forward, list[str](), list[str]()

    def noted(extraction: Extraction, device: Device, placement: Placement):
        forward = load(extraction, device, placement)
        loaded.append(device.name)

        def compute(batch: np.ndarray) -> tuple[np.ndarray, ...]:
            computed.append(device.name)
            return forward(batch)

        return compute

    monkeypatch.setattr(worker, "_load_forward", noted)
    rows = as_manifest(sorted(phantoms.rglob("*.jpeg"))[:8])
    extract = worker.make_extractor([extraction], SIZE, Placement(), feature_maps=False)
    found = [np.stack(pd.concat(extract([rows]))["pooled"]) for _ in range(3)]
    assert loaded == ["/CPU:0", "/CPU:1"]
    assert computed == ["/CPU:0", "/CPU:1", "/CPU:0"]
    for pooled in found[1:]:
        assert np.allclose(pooled, found[0], rtol=1e-5, atol=0)


def test_a_graph_that_is_not_the_drivers_is_refused(extraction: Extraction, tmp_path: Path) -> None:
    file = tmp_path / extraction.graph_file
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(RuntimeError, match="MobileNetV3Small that reached this executor is not"):
        worker._forward(extraction, Device("CPU"), Placement())


def test_a_warm_worker_has_every_graph_before_its_first_image(extraction: Extraction) -> None:
    rows = pd.DataFrame({"id": [1]})
    (passed,) = worker.make_warmer([extraction], Placement())([rows])
    assert passed is rows
    assert list(worker._forwards) == [(extraction.graph_file, Device("CPU"))]


def test_features_that_are_the_same_are_noticed_where_a_group_is_one_image(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few images over many cores are a task each."""
    monkeypatch.setattr(worker, "_load_forward", lambda *_: lambda batch: (np.ones((1, 8), "f4"),))
    monkeypatch.setattr(worker, "_forwards", {})
    monkeypatch.setattr(worker, "_first", {})
    identity = Identity("MobileNetV3Small", "d" * 64, "none", SIZE)
    extraction = Extraction(identity, "graph", "grey", ("pooled",))
    rows = as_manifest(sorted(phantoms.rglob("*.jpeg"))[:2])
    errors = []
    for start in (0, 1, 0):  # the last one is of the first picture again
        extract = worker.make_extractor([extraction], SIZE, Placement(), feature_maps=False)
        (found,) = extract([rows[start : start + 1]])
        errors += found["error"].tolist()
    told = "MobileNetV3Small gave features that are the same for images that differ"
    assert [isinstance(error, str) and error for error in errors] == [False, told, False]


def test_for_a_gpu_threads_decode_ahead_and_another_computes_whole_batches(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is pretended: only the device's kind and the network are not real."""
    computed: list[tuple[tuple[int, ...], str, str]] = []
    decoded: dict[bytes, str] = {}
    prepare = pipeline.prepare

    seconds_begun, two = threading.Event(), threading.Barrier(2, timeout=10)
    seconds = {file.read_bytes() for file in sorted(phantoms.rglob("*.jpeg"))[50:]}

    def noted(source, image_size):
        if threading.current_thread().name.startswith("ThreadPoolExecutor"):
            two.wait()  # as many threads as the task has cores
        if source.read() in seconds:
            seconds_begun.set()
        image = prepare(source, image_size)
        decoded[image.pixels_digest] = threading.current_thread().name
        return image

    def forward(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        if len(batch) == 128:
            assert seconds_begun.wait(10), "the second group is decoded while the first is computed"
        computed.append((batch.shape, batch.dtype.name, threading.current_thread().name))
        pooled = batch.reshape(len(batch), -1).astype(np.float32)
        return (pooled[:, ::512] + np.arange(8, dtype=np.float32),)

    monkeypatch.setattr(pipeline, "prepare", noted)
    monkeypatch.setattr(worker, "_load_forward", lambda *_: forward)
    identity = Identity("MobileNetV3Small", "d" * 64, "none", SIZE)
    extraction = Extraction(identity, "graph", "grey", ("pooled",))
    rows = as_manifest(sorted(phantoms.rglob("*.jpeg")))
    found = {}
    for device in (Device("GPU", 0, "0"), Device("CPU")):
        monkeypatch.setattr(worker, "_forwards", {})
        monkeypatch.setattr(worker, "_first", {})
        monkeypatch.setattr(worker, "task_device", lambda _, device=device: device)
        extract = worker.make_extractor(
            [extraction], SIZE, Placement(task_cpus=2), feature_maps=False
        )
        decoded.clear()
        computed.clear()
        found[device.kind] = pd.concat(extract([rows[:50], rows[50:]]), ignore_index=True)
        here = threading.current_thread().name
        if device.kind == "CPU":
            assert {thread for *_, thread in computed} == {here} == set(decoded.values())
            continue
        assert [(shape, kind) for shape, kind, _ in computed] == [((128, *SIZE, 1), "uint8")] * 2
        (computing,) = {thread for *_, thread in computed}
        assert computing != here
        assert {here, computing}.isdisjoint(decoded.values())
    pd.testing.assert_frame_equal(found["GPU"], found["CPU"])
    assert found["GPU"]["image_id"].tolist() == rows["image_id"].tolist()


def as_manifest(files: list[Path]) -> pd.DataFrame:
    """Return the manifest's rows of some files."""
    status = [file.stat() for file in files]
    return pd.DataFrame(
        {
            "image_id": [file.name for file in files],
            "path": [file.as_uri() for file in files],
            "length": [found.st_size for found in status],
            "modified": pd.to_datetime([found.st_mtime_ns // 1000 for found in status], unit="us"),
            "patient_id": None,
            "finding": "NORMAL",
            "official_split": None,
        }
    )
