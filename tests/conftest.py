"""What the tests share: one local Spark, phantoms, and the optional folder of real X-rays."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
# Of the server that tests start: whatever keys it is given are good.
os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "tests"

from cxr_spark.config import Experiment
from cxr_spark.dataset.phantoms import draw_phantoms

FULL = pytest.mark.skipif("CXR_FULL" not in os.environ, reason="takes minutes: set CXR_FULL=1")

# For JVMs of one test, as conf/spark-local.conf has it: Java's second compiler and the loading of
# Spark's classes cost seconds of each start. An archive that is missing is passed over.
ROOT = Path(__file__).resolve().parent.parent
QUICK_JAVA = (
    f"-XX:TieredStopAtLevel=1 -XX:SharedArchiveFile={ROOT}/.venv/spark.jsa "
    "-Xlog:cds=off -Xlog:cds+dynamic=off"
)

# Graphs that these tests keep are theirs alone, and shared by their processes and jobs.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="cxr_spark-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the faults, which take long: of several processes none should end with them."""
    items.sort(key=lambda item: item.path.name != "test_faults.py")


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """One local session with two cores for all tests, as jobs open it."""
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        "--master local[2] --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=4 "
        "--driver-memory 2g pyspark-shell"
    )
    from cxr_spark.spark import open_session

    with open_session("tests") as session:
        yield session


@dataclass(frozen=True)
class S3:
    """An S3-compatible server of the tests.

    Attributes:
        query: of a URI that is on it.
        endpoint: its address.
    """

    query: str
    endpoint: str = ""

    def upload(self, folder: Path, names: Sequence[str] | None = None) -> str:
        """Copy a folder, or some files of it, into a new bucket; return the root's URI."""
        bucket = f"images-{uuid.uuid4().hex}"
        files, path = self._open(bucket, "&allow_bucket_creation=true")
        files.create_dir(path)
        root = f"s3a://{bucket}/root?{self.query}"
        if names is None:
            names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
        for name in names:
            self.write(root, name, (folder / name).read_bytes())
        return root

    def write(self, root: str, name: str, content: bytes) -> None:
        """Write an object under a root."""
        files, path = self._open(root.removeprefix("s3a://").partition("?")[0])
        with files.open_output_stream(f"{path}/{name}") as file:
            file.write(content)

    def _open(self, place: str, more: str = "") -> Any:
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(f"s3://{place}?{self.query}{more}")


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A server that holds objects in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3(
        f"region=us-east-1&scheme=http&endpoint_override={host}:{port}", f"http://{host}:{port}"
    )
    server.stop()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 90 phantoms of 64 px in Kermany's layout."""
    root = tmp_path_factory.mktemp("images") / "phantoms"
    draw_phantoms(root, n_images=90, image_size=64, seed=0)
    return root


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    """A small experiment on phantoms."""
    return Experiment(
        backbones=["MobileNetV3Small"],
        weights="random",
        image_size=64,  # type: ignore[arg-type]
        heads=["gap"],
        standardise=True,
    )


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


def shared(name: str) -> Path:
    """Return a folder of real X-rays, weights or programs, or skip the test where it is missing."""
    root = os.environ.get("CXR_SHARED")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"CXR_SHARED points to no folder that holds {name}")
    return Path(root) / name
