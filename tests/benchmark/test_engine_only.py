"""--engine-only as a user types it, with what it must not import made impossible to import."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.conftest import ROOT
from tests.test_jobs import python

FORBIDDEN = ("pyspark", "petastorm", "py4j")
KEYS = {"what", "unit", "rate", "against", "ratio", "target", "met", "quartiles", "n_pairs", "note"}


def blocked(folder: Path, names: tuple[str, ...]) -> str:
    """A PYTHONPATH on which importing these names fails."""
    for name in names:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} was imported')\n")
    return os.pathsep.join((str(folder), str(ROOT)))


def run_engine(tmp_path: Path, backend: str, images: Path) -> dict[str, Any]:
    names = (
        FORBIDDEN if backend == "tensorflow" else (*FORBIDDEN, "tensorflow", "pandas", "pyarrow")
    )
    out = tmp_path / "bench.json"
    (tmp_path / "blocked").mkdir()
    done = python(
        "benchmark", "--engine-only", "--images", str(images), "--limit", "32", "--repeat", "1",
        "--out", str(out), PYTHONPATH=blocked(tmp_path / "blocked", names), KERAS_BACKEND=backend,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def check(content: dict[str, Any], backend: str) -> None:
    assert content["complete"] is True
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["device"]["backend"] == backend
    rows = {row["what"].split(",")[0]: row for row in content["rows"]}
    assert {"read", "decode", "forward", "core"} <= set(rows)
    for row in rows.values():
        assert set(row) >= KEYS
        assert row["rate"] > 0, row
        assert row["n_pairs"] == 1
    assert rows["core"]["ratio"] == pytest.approx(rows["core"]["rate"] / rows["core"]["against"])
    assert rows["read"]["ratio"] is rows["read"]["met"] is None


def test_it_runs_with_neither_spark_nor_petastorm(tmp_path: Path, phantoms: Path) -> None:
    check(run_engine(tmp_path, "tensorflow", phantoms), "tensorflow")
    plot = cv2.imread(str(tmp_path / "bench.png"))
    assert plot.shape[1] == 800
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "bench.png", "blocked"]


def test_it_runs_without_tensorflow_where_keras_has_another_backend(
    tmp_path: Path, phantoms: Path
) -> None:
    backend = next((name for name in ("jax", "torch") if importlib.util.find_spec(name)), None)
    if backend is None:
        pytest.skip("neither jax nor torch is installed")
    check(run_engine(tmp_path, backend, phantoms), backend)


def test_images_that_cannot_be_used_are_a_line_and_no_number(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(8):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"no image")
    (row,) = run_engine(tmp_path, "tensorflow", tmp_path / "images")["rows"]
    assert row["rate"] is None
    assert "none of 4 images can be used" in row["note"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "ResNet5"], "Did you mean 'ResNet50'"),
        (["--limit", "4"], "at least 8"),
        (["--repeat", "0"], "at least 1"),
        (["--images", "{tmp}/none"], "a folder under --images"),
        (["--images", "{tmp}"], "at least one image"),
        (["--peers", "{tmp}/none"], "a folder under --peers"),
        (["--out", "{tmp}/x.csv"], "ends in .json"),
        (["--out", "{tmp}/none/x.json"], "in a folder that exists"),
        (["--weights", "{tmp}"], "MobileNetV3Small.weights.h5"),
        (["--sections", "engin"], "Did you mean 'engine'"),
        (["--sections", "grid"], "Expected --peers"),
        (["--engine-only", "--peers", "{tmp}"], "without --peers"),
        (["--engine-only", "--sections", "engine,reader"], "other --sections"),
    ],
)
def test_wrong_flags_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = python("benchmark", *(a.format(tmp=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("benchmark.py: error: Expected ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_an_interruption_is_one_line(tmp_path: Path, phantoms: Path) -> None:
    stopping = (
        "import os, signal, sys, time; sys.path.insert(0, 'jobs')\n"
        "import benchmark, cxr_spark.benchmark.job as job\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGINT); time.sleep(10)\n"
        "job.measure_engine = stop\n"
        f"sys.argv = ['benchmark.py', '--engine-only', '--images', {str(phantoms)!r},"
        f" '--out', {str(tmp_path / 'x.json')!r}]\n"
        "from cxr_spark.cli import run_job\n"
        "run_job(benchmark.main, 'nothing')"
    )
    done = subprocess.run(
        [sys.executable, "-c", stopping], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "benchmark.py: stopped; nothing\n"
    left = json.loads((tmp_path / "x.json").read_text())
    assert (left["complete"], left["rows"]) == (False, [])
