"""The jobs as a user types them: python jobs/X.py and spark-submit jobs/X.py."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cxr_spark.backbones import load_backbone
from cxr_spark.training.run_folder import read_experiment
from tests.conftest import ROOT

ONLY_RESNET = ("--backbones", "ResNet50")
JOBS = ("extract", "train", "report", "grid", "benchmark", "pack")


def python(job: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def submit(
    *arguments: str, master: str = "local[2]", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            Path(sys.executable).parent / "spark-submit",
            "--properties-file", ROOT / "conf" / "spark-local.conf",
            "--master", master, "--driver-memory", "2g",
            *arguments,
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )  # fmt: skip


@pytest.fixture
def nothing_heavy(tmp_path: Path) -> str:
    """A PYTHONPATH on which importing what is slow to import fails."""
    for name in ("tensorflow", "keras", "pyspark", "petastorm", "pandas", "sklearn", "cv2"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} was imported')\n")
    return os.pathsep.join((str(tmp_path), str(ROOT)))


@pytest.mark.parametrize("job", JOBS)
def test_help_needs_neither_a_jvm_nor_tensorflow(job: str, nothing_heavy: str) -> None:
    done = python(job, "--help", PYTHONPATH=nothing_heavy)
    assert done.returncode == 0, done.stderr
    assert "--run" in done.stdout or "--images" in done.stdout


@pytest.mark.parametrize("job", JOBS)
def test_a_wrong_flag_is_one_line(job: str, nothing_heavy: str) -> None:
    others = {"report": ["--run", "x"], "benchmark": [], "pack": []}
    required = others.get(job, ["--config", "conf/demo.yaml"])
    done = python(job, *required, "--confg", "x", PYTHONPATH=nothing_heavy)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{job}.py: error: unrecognized arguments: --confg x.")
    assert done.stderr.count("\n") == 1
    if "--config" in required:
        assert "Did you mean '--config'?" in done.stderr


def test_a_wrong_flag_is_named_where_a_required_one_is_missing_too() -> None:
    done = python("extract", "--wegihts", "x")
    assert done.returncode == 2
    assert "unrecognized arguments: --wegihts x. Did you mean '--weights'?" in done.stderr


def test_under_spark_submit_it_is_the_same_line_and_status() -> None:
    done = submit("jobs/extract.py", "--confg", "x")
    assert done.returncode == 2
    # spark-submit joins what Python says on both streams on its own standard output
    assert done.stdout.strip() == python("extract", "--confg", "x").stderr.strip()


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose file for ResNet50 is of another backbone."""
    folder = tmp_path_factory.mktemp("weights")
    model = load_backbone("MobileNetV3Small", (96, 96), "random")
    for name in ("MobileNetV3Small", "ResNet50"):
        model.save_weights(folder / f"{name}.weights.h5")
    return folder


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("grid", ["--images", "{tmp}/none"], "a folder under --images.*nothing is there"),
        ("grid", ["--images", "{tmp}/empty"], "at least one image.*0 files end in"),
        ("grid", ["--images", "{tmp}/flat"], "train,val,test.*none of 1 images fits"),
        ("grid", ["--images", "{tmp}/flat/a.jpeg"], r"a folder under --images.*\(a file\)"),
        ("grid", ["--images", "{images}", "--backbones", "Resnet51"], "Did you mean 'ResNet50'"),
        ("grid", ["--images", "{images}", "--heads", "gab"], "Did you mean 'gap'"),
        ("grid", ["--images", "{images}", "--limit", "many"], "invalid int value: 'many'"),
        ("grid", ["--images", "{images}", "--seeds", "a,b"], "whole numbers separated by commas"),
        ("grid", ["--images", "{images}", "--limit", "3"], "images of every class in every split"),
        ("grid", ["--images", "{images}", "--weights", "{tmp}/empty"], "MobileNetV3Small.weights"),
        ("grid", ["--images", "{images}", "--features", "{tmp}/flat/a.jpeg"], "is a file"),
        ("grid", ["--images", "{images}", "--features", "{tmp}/a[1]"], "has . ."),
        ("grid", ["--images", "{images}", "--features", ""], "valid --features.*1 character"),
        ("grid", ["--images", "unheard://bucket/x"], "a folder under --images.*not known"),
        ("grid", ["--images", "s3://ME:HUSH@b/x"], r"without a user.*Received: s3://\.\.\.@b/x$"),
        ("grid", ["--images", "{images}", "--features", "s3a://b/x?k=v"], "be a URI of s3a: with"),
        ("extract", ["--images", "{images}", "--features", "hdfs:/x"], "that begins with hdfs://"),
        ("grid", ["--images", "{images}", "--run", "s3a://b/x"], "--run to be a folder"),
        ("grid", ["--images", "{images}", "--run", "hdfs:/x"], "only --images and --features may"),
        ("grid", ["--limit", "3"], "images of every class in every split"),
        ("extract", ["--features", "{tmp}/features"], "Expected --images"),
        ("extract", ["--images", "{images}"], "Expected --features"),
        ("train", ["--features", "{tmp}/none", "--run", "{tmp}/run"], "a features folder"),
        ("train", ["--features", "{tmp}/empty", "--run", "{tmp}/flat/a.jpeg"], "is a file"),
        ("train", ["--features", "{tmp}/empty", "--run", "{tmp}/run"], "which holds none"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    job: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    phantoms: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpeg").touch()
    before = sorted(tmp_path.rglob("*"))
    run = ["--run", str(tmp_path / "run")] if job == "grid" else []
    given = [a.format(tmp=tmp_path, images=phantoms) for a in arguments]
    done = python(job, "--config", "conf/demo.yaml", *run, *given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{job}.py: error: ")
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr)
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_do_not_fit_are_told_while_spark_starts_and_nothing_is_written(
    tmp_path: Path, phantoms: Path, other_weights: Path
) -> None:
    done = python(
        "grid", "--config", "conf/demo.yaml", "--run", str(tmp_path / "run"),
        "--images", str(phantoms), "--weights", str(other_weights), *ONLY_RESNET,
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]  # after the JVM's own
    assert last.startswith("grid.py: error: ")
    assert "does not fit: it lacks layers" in last
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_report_of_no_run_is_refused(tmp_path: Path) -> None:
    done = python("report", "--run", str(tmp_path))
    assert done.returncode == 2
    assert "report.py: error: Expected --run to hold" in done.stderr


SMALL = """
name: small
phantoms: {n_images: 80, image_size: 48, seed: 1}
split: {validation_fraction: 0.2}
backbones: [MobileNetV3Small]
weights: random
image_size: 48
standardise: true
seeds: [0, 1]
training: {epochs: 2}
"""


def without_times(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "results.csv").drop(columns="train_seconds")


def test_the_grid_gives_the_same_results_in_two_folders_and_goes_on_in_one(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)
    runs = tmp_path / "one", tmp_path / "two"
    secrets = {"AWS_SECRET_ACCESS_KEY": "planted-secret", "UNRELATED": "planted-value"}
    setting = ("--conf", "spark.hadoop.fs.s3a.secret.key=planted-secret")
    for run in runs:
        words = ("jobs/grid.py", "--config", str(config), "--run", str(run))
        done = submit(*setting, *words, **secrets)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "Demonstration: generated chest phantoms" in done.stdout
        assert "80 images in = 80 rows + 0 errors" in done.stdout
        assert "MLIR" not in done.stdout  # what TensorFlow says of itself is no news to a user
    for kept in (f for f in runs[0].rglob("*") if f.suffix in (".json", ".csv", ".html", ".svg")):
        content = kept.read_text(encoding="utf-8")
        assert not [s for pair in secrets.items() for s in pair if s in content], kept
    results = without_times(runs[0])
    assert len(results) == 4
    pd.testing.assert_frame_equal(results, without_times(runs[1]), check_exact=True)

    before = {p: p.stat().st_mtime_ns for p in runs[0].glob("heads/*")}
    again = submit("jobs/grid.py", "--config", str(config), "--run", str(runs[0]))
    assert again.returncode == 0, again.stdout[-3000:]
    assert {p: p.stat().st_mtime_ns for p in runs[0].glob("heads/*")} == before
    commands = [entry["command"] for entry in read_experiment(runs[0])["commands"]]
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("spark-submit --")
        assert command.endswith(f"jobs/grid.py --config {config} --run {runs[0]}")
        assert command in html.unescape((runs[0] / "report.html").read_text(encoding="utf-8"))
    pd.testing.assert_frame_equal(results, without_times(runs[0]), check_exact=True)

    config.write_text(SMALL.replace("epochs: 2", "epochs: 3"))
    other = python("grid", "--config", str(config), "--run", str(runs[0]))
    assert other.returncode == 2
    assert "differs in training" in other.stderr

    (runs[0] / "report.html").unlink()
    report = python("report", "--run", str(runs[0]))
    assert report.returncode == 0, report.stderr
    assert (runs[0] / "report.html").exists()
