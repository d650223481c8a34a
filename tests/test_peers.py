"""Features against those of a plain Keras loop, on real X-rays. Needs CXR_SHARED."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cxr_spark.backbones import BACKBONES
from cxr_spark.extraction.store import list_extractions
from tests.conftest import shared
from tests.test_jobs import submit

N = 300


def extract(tmp_path: Path, weights: Path, backbones: str) -> Path:
    features = tmp_path / "features"
    done = submit(
        "jobs/extract.py", "--config", "conf/paper.yaml", "--limit", str(N),
        "--images", str(shared("data/chest_xray_224")), "--features", str(features),
        "--weights", str(weights), "--backbones", backbones,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return features


def loop(tmp_path: Path, backbone: str, weights: Path) -> tuple[list[str], np.ndarray]:
    """Return paths and pooled features as the peer program saves them."""
    saved = tmp_path / f"{backbone}.npz"
    subprocess.run(
        [
            sys.executable, shared("peers/keras_loop.py"), "--limit", str(N), "--save", saved,
            "--images", shared("data/chest_xray_224"), "--backbone", backbone,
            "--weights", weights / f"{backbone}.weights.h5",
        ],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
        capture_output=True,
        timeout=600,
    )  # fmt: skip
    with np.load(saved) as arrays:
        return arrays["paths"].tolist(), arrays["pooled"]


def distance(features: Path, backbone: str, paths: list[str], pooled: np.ndarray) -> float:
    """Relative L2 distance over all rows of our features from the peer's."""
    (record,) = (r for r in list_extractions(features) if r.identity.backbone == backbone)
    rows = pq.ParquetDataset(features / record.fingerprint).read().to_pandas()
    ours = rows.set_index("image_id")["pooled"]
    root = shared("data/chest_xray_224")
    assert len(ours) == len(paths) == N
    stored = np.stack([ours[str(Path(path).relative_to(root))] for path in paths])
    return float(np.linalg.norm(stored - pooled) / np.linalg.norm(pooled))


def test_real_weights_give_the_features_of_a_keras_loop(tmp_path: Path) -> None:
    weights = shared("weights/MobileNetV3Small.weights.h5").parent
    features = extract(tmp_path, weights, "MobileNetV3Small")
    found = distance(features, "MobileNetV3Small", *loop(tmp_path, "MobileNetV3Small", weights))
    print(f"MobileNetV3Small, real weights: relative L2 {found:.2e}")
    assert found < 1e-4


@pytest.mark.skipif("CXR_FULL" not in os.environ, reason="takes minutes: set CXR_FULL=1")
def test_random_weights_of_every_backbone_give_the_features_of_a_keras_loop(tmp_path: Path) -> None:
    sys.path.insert(0, str(shared("peers/common.py").parent))
    from common import load_backbone  # type: ignore[import-not-found]

    weights = tmp_path / "weights"
    weights.mkdir()
    for backbone in BACKBONES:
        load_backbone(backbone, "random", 224).save_weights(weights / f"{backbone}.weights.h5")
    features = extract(tmp_path, weights, ",".join(BACKBONES))
    for backbone in BACKBONES:
        found = distance(features, backbone, *loop(tmp_path, backbone, weights))
        print(f"{backbone}, random weights: relative L2 {found:.2e}")
        assert found < 1e-4
