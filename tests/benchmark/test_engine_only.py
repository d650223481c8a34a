"""--engine-only as a user types it, with what it must not import made impossible to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

from cxr_spark.benchmark import engine
from cxr_spark.benchmark.engine import EngineResult
from cxr_spark.benchmark.images import find_images
from cxr_spark.engine.device import PRETEND
from tests.benchmark.test_peers import settings
from tests.conftest import ROOT
from tests.test_jobs import python

FORBIDDEN = ("pyspark", "petastorm", "py4j")
KEYS = {"what", "unit", "rate", "against", "ratio", "target", "met", "quartiles", "n_pairs", "note"}


def blocked(folder: Path, names: tuple[str, ...]) -> str:
    """A PYTHONPATH on which importing these names fails, and leaves a file."""
    for name in names:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / name)!r} + '.tried', 'w').close()\n"
            f"raise ImportError('{name} was imported')\n"
        )
    return os.pathsep.join((str(folder), str(ROOT)))


def run_engine(
    tmp_path: Path, backend: str, images: Path, interpreter: str = sys.executable
) -> dict[str, Any]:
    names = (
        FORBIDDEN if backend == "tensorflow" else (*FORBIDDEN, "tensorflow", "pandas", "pyarrow")
    )
    out = tmp_path / "bench.json"
    (tmp_path / "blocked").mkdir()
    done = subprocess.run(
        [
            interpreter, "jobs/benchmark.py", "--engine-only", "--images", str(images),
            "--limit", "32", "--repeat", "1", "--out", str(out),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={
            **os.environ, "PYTHONPATH": blocked(tmp_path / "blocked", names),
            "KERAS_BACKEND": backend,
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    tried = {file.stem for file in (tmp_path / "blocked").glob("*.tried")}
    # Nor tried by code that goes on without them, as that of images does without pyarrow.
    assert not tried & {*names} - {"pandas", "pyarrow"}
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def check(content: dict[str, Any], backend: str) -> None:
    assert content["complete"] is True
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["device"]["backend"] == backend
    rows = {row["what"].split(",")[0]: row for row in content["rows"]}
    assert {"read", "decode", "forward", "core"} <= set(rows)
    if backend != "tensorflow":  # where neither can be imported
        written = rows.pop("write")
        assert (written["rate"], written["note"]) == (None, "pandas or pyarrow is not installed")
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


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_it_runs_without_tensorflow_where_keras_has_another_backend(
    tmp_path: Path, phantoms: Path, backend: str
) -> None:
    interpreter = os.environ.get(f"CXR_{backend.upper()}_PYTHON")
    if interpreter is None:
        pytest.skip(f"make test-{backend} installs {backend} and names its Python by a variable")
    check(run_engine(tmp_path, backend, phantoms, interpreter), backend)


def test_what_it_needs_can_be_imported_without_tensorflow(tmp_path: Path) -> None:
    """With no backend at all: images are drawn, read, decoded and resized."""
    code = """
import sys
from pathlib import Path
import cxr_spark.benchmark.job
from cxr_spark.benchmark.engine_worker import EngineWorker
from cxr_spark.benchmark.images import KINDS, draw_images
draw_images(Path(sys.argv[1]), KINDS[2], 8)
worker = EngineWorker(0, 1, (224, 224))
assert worker.use_images([bytes(path) for path in Path(sys.argv[1]).rglob("*.jpeg")]) == 8
assert worker.read_decode(0.0)[0] == 32
"""
    names = (*FORBIDDEN, "tensorflow", "jax", "torch", "keras", "pandas", "pyarrow")
    (tmp_path / "blocked").mkdir()
    path = blocked(tmp_path / "blocked", names)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "images")], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "jax"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


class OnGpu:
    """Processes as the engine section asks them, of a GPU whose rates are known."""

    def __init__(self, decode: float) -> None:
        self.rates = {"read": 9000.0, "decode": decode, "forward": 5000.0, "core": 4500.0}
        self.asked: list[str] = []

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        self.asked.append(method)
        if method == "load":
            return [{"float32": 0.0, "float16": 1e-3, "bfloat16": 2e-2}[arguments[2]]]
        return [(100, 100 / self.rates.get(method, 1000.0))]

    def ask_each(self, method: str, arguments: Any) -> list[Any]:
        assert len(arguments) == 1
        return [1]


@pytest.mark.parametrize(
    ("name", "decode", "target", "why_none"),
    [
        ("NVIDIA H100 80GB HBM3", 6000.0, 1.0, ""),
        ("NVIDIA H100 80GB HBM3", 3000.0, None, "cores decode 3,000 images/s"),
        ("Tesla T4", 6000.0, None, "Tesla T4 is not known to be as fast as an A100"),
    ],
)
def test_a_gpu_is_compared_with_decoding_alone_forward_alone_and_an_a100(
    phantoms: Path, name: str, decode: float, target: float | None, why_none: str
) -> None:
    result = EngineResult({"backend": "tensorflow", "kind": "GPU", "name": name})
    asked = settings(backbones=("ResNet50",), repeat=2)
    section = engine._Section(asked, OnGpu(decode), 1, 0.0, result)  # type: ignore[arg-type]
    section.measure([find_images(phantoms, 8, "phantoms")])
    rows = {row.what: row for row in result.rows}
    core = {p: rows[f"core, ResNet50{p}, phantoms"] for p in ("", " float16", " bfloat16")}
    for row in core.values():
        assert (row.rate, row.against) == pytest.approx((4500, min(decode, 5000)))
        assert row.n_pairs == 2
    assert [row.target for row in core.values()] == [0.85, 0.85, None]
    assert "so that jobs compute in float32" in core[" bfloat16"].note
    assert "core, ResNet50, phantoms, against an A100" not in rows
    row = rows["core, ResNet50 float16, phantoms, against an A100"]
    assert (row.rate, row.against, row.target) == pytest.approx((4500, 3900, target))
    assert row.met is (None if target is None else True)
    assert why_none in row.note


def test_what_a_gpu_runs_is_run_on_a_pretended_one(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the device is real: threads that read and decode, whole batches, XLA, the loss."""
    monkeypatch.setenv(PRETEND, "1")
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_cpu_global_jit")
    monkeypatch.setattr(engine, "count_cores", lambda: 2)
    monkeypatch.setattr(engine, "IMAGE_SIZE", (64, 64))  # a processor takes a minute for larger
    asked = settings(backbones=("MobileNetV3Small",), repeat=1)
    result = engine.measure_engine(asked, [find_images(phantoms, 40, "phantoms")], seconds=0.0)
    assert (result.device["kind"], result.device["backend"]) == ("GPU", "tensorflow")
    rows = {row.what: row for row in result.rows}
    for precision in ("", " float16", " bfloat16"):
        row = rows[f"core, MobileNetV3Small{precision}, phantoms"]
        assert row.against_what == "the slower of decoding and forward alone"
        assert row.rate is not None
        assert row.rate > 0
    assert rows["core, MobileNetV3Small, phantoms"].target == 0.85
    told = "differs from float32 by "
    losses = [rows[f"core, MobileNetV3Small {p}, phantoms"].note for p in ("float16", "bfloat16")]
    assert all(note.startswith(told) for note in losses), losses


def test_a_gpu_that_the_backend_does_not_see_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    for kind, warned in (("CPU", True), ("GPU", False)):
        caplog.clear()
        with caplog.at_level("INFO", logger="cxr_spark"):
            engine._tell_device({"backend": "jax", "kind": kind, "name": "processor"})
        assert f"engine: Keras on jax, processor ({kind})" in caplog.text
        assert ("jax sees none" in caplog.text) == warned


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
        (["--sections", "pass"], "Expected --peers"),
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
