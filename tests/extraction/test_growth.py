"""Memory does not grow with the images: of a worker over 20,000, of the driver over a million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_spark.benchmark.growth import WORKER, looking, measure_memory
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
    print(f"peak {row.rate:.0f} MB over 2,000 images, {row.against:.0f} MB over 20,000")
    for part in range(9):
        seconds, resident = row.curve[part * (len(row.curve) - 1) // 8]
        print(f"after {seconds:.0f} s {resident:.0f} MB")
    assert row.met


@FULL
def test_a_million_images_take_a_driver_of_one_gigabyte(tmp_path: Path) -> None:
    fewer, all_of_them = (extract_tiny(tmp_path / f"{n}", n) for n in (10_000, 1_000_000))
    for n_images, peaks in ((10_000, fewer), (1_000_000, all_of_them)):
        told = ", ".join(f"{what} {most:.0f} MB" for what, most in peaks.items())
        print(f"{n_images:,} images: {told}")
    assert all_of_them["worker"] <= fewer["worker"] * 1.1
    # The heap fills before it is collected; beside it a JVM has some hundred megabytes.
    assert all_of_them["JVM"] <= 1.5 * 1024
    assert all_of_them["driver"] <= fewer["driver"] * 1.1


def extract_tiny(folder: Path, n_images: int) -> dict[str, float]:
    """Extract images of 32 px with a driver of one gigabyte; return the peaks of its processes."""
    images = link_images(folder / "images", n_images, 32)
    experiment = {
        "dataset": {"adapter": "folder"}, "task": "findings", "split": {"unit": "image"},
        "backbones": ["MobileNetV3Small"], "image_size": [32, 32],
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(experiment), encoding="utf-8")
    began = time.monotonic()
    with (
        looking(WORKER, forked=True) as workers,
        looking(b"org.apache.spark.deploy.SparkSubmit") as jvms,
        looking(b"/extract.py\0--config") as drivers,
    ):
        done = subprocess.run(
            [
                Path(sys.executable).parent / "spark-submit",
                "--properties-file", ROOT / "conf" / "spark-local.conf", "--driver-memory", "1g",
                "jobs/extract.py", "--config", folder / "experiment.yaml", "--images", images,
                "--features", folder / "features", "--weights", "random",
            ],
            cwd=ROOT, env={**os.environ, "PYSPARK_PYTHON": sys.executable},
            capture_output=True, text=True, check=False, timeout=3600,
        )  # fmt: skip
    print(f"{n_images:,} images took {time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = list_extractions(folder / "features")
    assert record.n_rows == n_images
    not_java = {pid: looks for pid, looks in drivers.items() if pid not in jvms}
    return {
        what: max(look.peak for looks in seen.values() for look in looks)
        for what, seen in (("worker", workers), ("JVM", jvms), ("driver", not_java))
    }
