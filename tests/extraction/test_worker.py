"""What a Python worker keeps between its tasks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_spark.backbones import load_backbone
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
