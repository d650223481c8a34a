"""Memory does not grow with the images: of a worker over 20,000, of the driver over a million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_spark.benchmark.growth import measure_memory
from cxr_spark.benchmark.images import KINDS, draw_images
from cxr_spark.benchmark.ours import Submitter, Trial
from cxr_spark.extraction.store import list_extractions
from tests.conftest import FULL, ROOT

# ext4 allows a file 65,000 names.
LINKS_A_FILE = 50_000


def link_images(root: Path, n_images: int, side: int) -> Path:
    """Make a data set of square images, in folders of so many names of one drawn file each."""
    rng = np.random.default_rng(0)
    for start in range(0, n_images, LINKS_A_FILE):
        folder = root / f"{start // LINKS_A_FILE % 2}" / f"{start:07d}"
        folder.mkdir(parents=True)
        first = folder / "000000.jpeg"
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(first, quality=50)
        for k in range(1, min(LINKS_A_FILE, n_images - start)):
            os.link(first, folder / f"{k:06d}.jpeg")
    return root


@FULL
def test_a_workers_memory_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    images = tmp_path / "images"
    draw_images(images, KINDS[0], 20_000)
    submitter = Submitter(
        ROOT / "jobs", ROOT / "conf" / "spark-local.conf", images, "random", tmp_path
    )
    trial = Trial(submitter, ("MobileNetV3Small",), "20,000 images", 20_000, repeat=1)
    (row,) = measure_memory(trial)
    print(f"peak {row.rate:.0f} MB over 2,000 images, {row.against:.0f} MB over 20,000; {row.note}")
    assert row.met


@FULL
def test_a_million_images_take_a_driver_of_one_gigabyte(tmp_path: Path) -> None:
    n_images = 1_000_000
    images = link_images(tmp_path / "images", n_images, 32)
    experiment = {
        "dataset": {"adapter": "folder"}, "task": "findings", "split": {"unit": "image"},
        "backbones": ["MobileNetV3Small"], "image_size": [32, 32],
    }  # fmt: skip
    (tmp_path / "experiment.yaml").write_text(json.dumps(experiment), encoding="utf-8")
    done = subprocess.run(
        [
            Path(sys.executable).parent / "spark-submit",
            "--properties-file", ROOT / "conf" / "spark-local.conf", "--driver-memory", "1g",
            "jobs/extract.py", "--config", tmp_path / "experiment.yaml", "--images", images,
            "--features", tmp_path / "features", "--weights", "random",
        ],
        cwd=ROOT, env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = list_extractions(tmp_path / "features")
    assert record.n_rows == n_images
