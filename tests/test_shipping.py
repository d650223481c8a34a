"""Executors with nothing but Spark, Python and Java: packages and code are sent to them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import FULL, ROOT
from tests.faults import assert_same
from tests.test_cluster import extract, started
from tests.test_jobs import SMALL


def run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def pack_environment(folder: Path) -> Path:
    """Return an archive of an environment with this package, made as conf/README.md says."""
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("cxr_spark", "jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", environment)
    pip = (environment / "bin" / "python", "-m", "pip", "install", "--quiet")
    with_constraints = ("-c", source / "constraints.txt")
    run(*pip, *with_constraints, "setuptools<70", "wheel", "venv-pack")
    run(*pip, *with_constraints, "--no-build-isolation", source)
    archive = folder / "environment.tar.gz"
    run(
        environment / "bin" / "venv-pack", "--prefix", environment, "--output", archive,
        "--compress-level", "1",
    )  # fmt: skip
    for gone in (source, environment):  # so that nothing is found where it was made
        shutil.rmtree(gone)
    return archive


@FULL
def test_an_environment_sent_as_an_archive_gives_the_same_features(
    phantoms: Path, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)
    reference, _, _ = extract("local[1]", phantoms, config, tmp_path / "reference")
    archive = pack_environment(tmp_path)
    print(f"environment.tar.gz: {archive.stat().st_size / 1e6:.0f} MB")
    with started(tmp_path / "cluster", ["--cores", "1"], ["--cores", "1"]) as master:
        rows, _, spark = extract(
            master, phantoms, config, tmp_path / "features",
            f"spark.archives={archive}#environment",
            "spark.pyspark.python=./environment/bin/python",
            f"spark.pyspark.driver.python={sys.executable}", conf="spark-standalone.conf",
        )  # fmt: skip
    assert spark["default_parallelism"] == 2
    assert_same(rows, reference)
