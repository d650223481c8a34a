"""The same features from local[1], local[2] and a standalone cluster of two executors."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxr_spark.extraction.store import list_extractions
from tests.conftest import QUICK_JAVA, ROOT
from tests.faults import QUICK_EXECUTORS, assert_same
from tests.test_jobs import SMALL, submit

# A standalone master waits for the share of spark.cores.max.
CORES_ARE_THERE = (
    "--conf", "spark.scheduler.minRegisteredResourcesRatio=1.0", "--conf", "spark.cores.max=2",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cluster(cluster_folder: Path) -> Iterator[str]:
    """A master and two workers of one core."""
    with started(cluster_folder, ["--cores", "1"], ["--cores", "1"]) as master:
        yield master


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    file.write_text(SMALL)
    return file


Extracted = tuple[pd.DataFrame, pd.DataFrame, dict[str, object]]


@pytest.fixture(scope="module")
def reference(phantoms: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """What one core of one process makes of the phantoms."""
    return extract("local[1]", phantoms, config, tmp_path_factory.mktemp("reference") / "features")


@contextmanager
def started(
    folder: Path,
    *workers: list[str],
    master: str | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Yield the URL of a master that has workers with these arguments, all processes of their own.

    What executors say goes to FOLDER/work-<i>. Where there is a master already, workers join it.
    """
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_NO_DAEMONIZE": "1",
        "SPARK_DAEMON_JAVA_OPTS": QUICK_JAVA,
        **environment,
    }
    path = environment.get("PATH", "")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    processes = []

    def start(name: str, *arguments: str) -> None:
        command = [Path(sys.executable).parent / "spark-class", f"org.apache.spark.deploy.{name}"]
        with (folder / f"{name}-{len(processes)}.log").open("w") as log:
            processes.append(
                subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)
            )

    try:
        if master is None:
            port = free_port()
            master = f"spark://127.0.0.1:{port}"
            start("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
            wait_for(port)
        for i, arguments in enumerate(workers):
            start(
                "worker.Worker", *arguments, "--memory", "1g", "--webui-port", "0",
                "--work-dir", str(folder / f"work-{i}"), master,
            )  # fmt: skip
        yield master
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


def extract(
    master: str,
    phantoms: Path,
    config: Path,
    features: Path,
    *settings: str,
    conf: str = "spark-local.conf",
) -> Extracted:
    """Return features, manifest and the record's Spark section of an extraction on a master."""
    done = submit(
        "--properties-file", str(ROOT / "conf" / conf),  # the last one counts, alone
        *CORES_ARE_THERE, *QUICK_EXECUTORS,
        "--conf", "spark.executor.memory=700m", "--conf", "spark.driver.host=127.0.0.1",
        *(part for setting in settings for part in ("--conf", setting)),
        "jobs/extract.py", "--config", str(config), "--images", str(phantoms),
        "--features", str(features), "--feature-maps",
        master=master,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    (record,) = list_extractions(features)
    rows = pq.ParquetDataset(features / record.fingerprint).read().to_pandas()
    manifest = pq.ParquetDataset(features / "manifest").read().to_pandas()
    return (
        rows.sort_values("image_id", ignore_index=True),
        manifest.sort_values("image_id", ignore_index=True),
        record.spark,
    )


def executors_said(folder: Path) -> list[str]:
    """What the executors of each worker have said."""
    return [
        "".join(file.read_text() for file in work.rglob("stderr"))
        for work in sorted(folder.glob("work-*"))
    ]


def test_every_master_gives_the_same_features_and_manifest(
    cluster: str,
    cluster_folder: Path,
    phantoms: Path,
    config: Path,
    reference: Extracted,
    tmp_path: Path,
) -> None:
    """Each with the file of conf/ that is for it; the cluster's with an event log."""
    rows, manifest, spark = reference
    assert spark["default_parallelism"] == 1
    of_masters = {"local[2]": "spark-local.conf", cluster: "spark-standalone.conf"}
    for i, (master, conf) in enumerate(of_masters.items()):
        (tmp_path / f"events-{i}").mkdir()
        other_rows, other_manifest, spark = extract(
            master, phantoms, config, tmp_path / f"features-{i}", "spark.eventLog.enabled=true",
            f"spark.eventLog.dir=file://{tmp_path}/events-{i}", conf=conf,
        )  # fmt: skip
        assert spark["default_parallelism"] == 2
        pd.testing.assert_frame_equal(manifest, other_manifest)
        keys = ["image_id", "path", "length", "modified", "patient_id", "finding"]
        pd.testing.assert_frame_equal(rows[keys], other_rows[keys])
        assert_same(other_rows, rows)
    for said in executors_said(cluster_folder):
        assert re.search(r"MobileNetV3Small.* on /CPU:0, float32, .*process \d+,", said)
    with history_server(tmp_path / "history", tmp_path / "events-1") as ask:
        (application,) = ask("")
        assert application["attempts"][0]["completed"]
        stages = ask(f"/{application['id']}/stages")
    told = {stage.get("description", "") for stage in stages}
    for what in ("listing the images under", "extracting features, shard 1 of 1", "accounting for"):
        assert any(description.startswith(what) for description in told), (what, told)


@contextmanager
def history_server(folder: Path, events: Path) -> Iterator[Callable[[str], Any]]:
    """Yield what asks a history server about the applications of an event log."""
    port = free_port()
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_HISTORY_OPTS": f"-Dspark.history.fs.logDirectory=file://{events} "
        f"-Dspark.history.ui.port={port} -Dspark.history.fs.update.interval=1s",
        "SPARK_DAEMON_JAVA_OPTS": QUICK_JAVA,
    }

    def ask(path: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/applications{path}"
        until = time.monotonic() + 60
        while True:
            with urllib.request.urlopen(url, timeout=60) as answer:
                if (found := json.load(answer)) or time.monotonic() > until:
                    return found
            time.sleep(0.2)

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                Path(sys.executable).parent / "spark-class",
                "org.apache.spark.deploy.history.HistoryServer",
            ],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for(port)
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_tasks_of_more_cores_than_any_executor_are_refused_in_one_line(
    cluster: str, phantoms: Path, config: Path, tmp_path: Path
) -> None:
    """The file leaves an executor's cores to the worker, so they are known once it is there."""
    done = submit(
        "--properties-file", str(ROOT / "conf" / "spark-standalone.conf"),
        *CORES_ARE_THERE, *QUICK_EXECUTORS, "--conf", "spark.task.cpus=2",
        "--conf", "spark.executor.memory=700m", "--conf", "spark.driver.host=127.0.0.1",
        "jobs/extract.py", "--config", str(config), "--images", str(phantoms),
        "--features", str(tmp_path / "features"),
        master=cluster,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout[-3000:]
    assert "extract.py: error: Expected spark.task.cpus of at most 1, the cores of" in done.stdout
    assert not (tmp_path / "features").exists()


def test_a_grid_on_a_cluster_finds_what_one_machine_finds(
    cluster: str, phantoms: Path, config: Path, tmp_path: Path
) -> None:
    """Heads are trained by executors there and by the driver here; sums may round otherwise."""
    results = []
    for i, (master, flags) in enumerate((("local[2]", []), (cluster, ["--distribute-heads"]))):
        done = submit(
            "--properties-file", str(ROOT / "conf" / "spark-local.conf"),
            *CORES_ARE_THERE, *QUICK_EXECUTORS,
            "--conf", "spark.executor.memory=700m", "--conf", "spark.driver.host=127.0.0.1",
            "jobs/grid.py", "--config", str(config), "--images", str(phantoms),
            "--run", str(tmp_path / f"run-{i}"), *flags,
            master=master,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        results.append(pd.read_csv(tmp_path / f"run-{i}" / "results.csv"))
    here, there = results
    told = ["configuration", "seed", "n_train", "n_val", "n_test", "selected"]
    pd.testing.assert_frame_equal(here[told], there[told])
    for measure in ("test_auc", "val_auc"):
        assert (here[measure] - there[measure]).abs().max() <= 0.01


def test_executors_with_other_packages_are_refused_in_one_line(
    cluster: str, phantoms: Path, config: Path, tmp_path: Path
) -> None:
    """The tiny job finds what executors have, or that their Python has not what it takes."""
    other = tmp_path / "other" / "tensorflow-2.19.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorflow\nVersion: 2.19.0\n")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "pyarrow.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pyarrow'\")\n"
    )
    host = re.escape(socket.gethostname())
    for setting, told in (
        (
            f"spark.executorEnv.PYTHONPATH={other.parent}",
            rf"tensorflow 2\.19\.0 on {host} \(driver: ",
        ),
        (f"spark.executorEnv.PYTHONPATH={lacking}", "Received: no pyarrow on an executor"),
        ("spark.pyspark.python=/nowhere/python", "an executor without /nowhere/python"),
    ):
        done = submit(
            *CORES_ARE_THERE, *QUICK_EXECUTORS,
            "--conf", setting, "--conf", "spark.executor.memory=700m",
            "--conf", f"spark.pyspark.driver.python={sys.executable}",
            "--conf", "spark.driver.host=127.0.0.1",
            "jobs/extract.py", "--config", str(config), "--images", str(phantoms),
            "--features", str(tmp_path / "features"),
            master=cluster,
        )  # fmt: skip
        assert done.returncode == 2, done.stdout[-3000:]
        assert re.search(f"extract.py: error: Expected .*{told}.*PYSPARK_PYTHON", done.stdout)
        assert not (tmp_path / "features").exists()


def test_the_file_for_a_standalone_cluster_of_gpus_is_run(
    phantoms: Path, config: Path, reference: Extracted, tmp_path: Path
) -> None:
    """With the GPUs that a fake nvidia-smi lists."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    options = {
        "SPARK_WORKER_OPTS": "-Dspark.worker.resource.gpu.amount=2 "
        f"-Dspark.worker.resource.gpu.discoveryScript={ROOT}/conf/gpu-discovery.sh",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    lower = tmp_path / "lower.yaml"
    lower.write_text(f"{config.read_text()}precision: bfloat16\n")
    with started(tmp_path / "gpus", ["--cores", "4"], environment=options) as master:
        (rows, _, spark), (lower_rows, _, _) = (
            extract(
                master, phantoms, file, tmp_path / f"on-gpus-{file.stem}",
                "spark.executor.cores=2", "spark.task.cpus=2", "spark.executor.memory=480m",
                "spark.cores.max=4",
                "spark.executorEnv.CXR_SPARK_PRETEND_GPUS=1", conf="spark-standalone-gpu.conf",
            )
            for file in (config, lower)
        )  # fmt: skip
    assert spark["conf"]["spark.task.resource.gpu.amount"] == "1"
    assert_same(rows, reference[0])
    assert_same(lower_rows, reference[0], 2e-2)  # of each row; of all together 1e-2 is allowed
    said = [file.read_text() for file in (tmp_path / "gpus" / "work-0").rglob("stderr")]
    computed_on = [set(re.findall(r"GPU (\d) of Spark", text)) for text in said]
    of_run = [precision for text in said for precision in re.findall(r"of Spark\), (\w+),", text)]
    # An executor each, of each run.
    assert sorted(computed_on, key=sorted) == [{"0"}, {"0"}, {"1"}, {"1"}]
    assert {"float32", "bfloat16"} == {*of_run}


def test_each_task_computes_on_the_gpu_that_spark_gave_it(
    phantoms: Path, config: Path, reference: Extracted, tmp_path: Path
) -> None:
    """Two pretended GPUs of each executor are its logical devices, and features are the same."""
    discovery = tmp_path / "discover.sh"
    discovery.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0", "1"]}\'\n')
    discovery.chmod(0o755)
    resources = tmp_path / "worker.conf"
    resources.write_text(
        "spark.worker.resource.gpu.amount 2\n"
        f"spark.worker.resource.gpu.discoveryScript {discovery}\n"
    )
    worker = ["--cores", "2", "--properties-file", str(resources)]
    with started(tmp_path, worker, worker) as master:
        rows, _, _ = extract(
            master, phantoms, config, tmp_path / "on-gpus",
            "spark.cores.max=4", "spark.executor.cores=2", "spark.executor.resource.gpu.amount=2",
            "spark.task.resource.gpu.amount=1", "spark.executorEnv.CXR_SPARK_PRETEND_GPUS=1",
        )  # fmt: skip
    assert_same(rows, reference[0])
    of_executors = executors_said(tmp_path)
    assert len(of_executors) == 2
    for said in of_executors:
        for address in ("0", "1"):
            assert f"on /CPU:{address} (GPU {address} of Spark), float32, batches of 128" in said
    said = "".join(of_executors)
    by_worker = re.findall(r"on /CPU:(\d) .*process (\d+),", said)
    assert len(by_worker) == len(set(by_worker)), "a model was loaded twice for one address"
