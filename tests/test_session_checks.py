"""Settings that would fail a run later give their one line, and others pass."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cxr_spark import memory, session_checks
from cxr_spark.errors import UserError
from cxr_spark.memory import address_space_mb, jvm_overhead_mb, machine_mb
from cxr_spark.session_checks import (
    BATCH,
    check_settings,
    check_versions,
    installed_versions,
    is_local,
    why_python_failed,
)
from tests.test_jobs import submit

STANDALONE, YARN, KUBERNETES = "spark://host:7077", "yarn", "k8s://https://host:6443"
GPU = {"spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1"}
DISCOVERY = {"spark.executor.resource.gpu.discoveryScript": "./gpu-discovery.sh"}


def settings(master: str, **more: str) -> dict[str, str]:
    """Return settings; in the names of ``more`` '_' stands for '.'."""
    return {"spark.master": master, **{k.replace("_", "."): v for k, v in more.items()}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            settings("local[2]", spark_python_worker_reuse="False"),
            "Expected spark.python.worker.reuse=true.*Received: spark.python.worker.reuse=False",
        ),
        (
            settings(YARN, spark_python_use_daemon="false"),
            "Expected spark.python.use.daemon=true",
        ),
        (
            settings("local[2]", spark_sql_execution_arrow_maxRecordsPerBatch="10000"),
            "maxRecordsPerBatch from 1 to 2048.*=10000",
        ),
        (
            settings("local[2]", spark_sql_execution_arrow_maxRecordsPerBatch="-1"),
            "maxRecordsPerBatch from 1 to 2048.*=-1",
        ),
        ({"spark.master": "local[2]", **GPU}, "no spark.executor.*gpu.amount or spark.task"),
        ({"spark.master": "local", **GPU}, "with spark.master=local,.*conf/README.md"),
        ({**GPU}, r"with spark.master=local\[\*\]"),
        (
            settings("local[*,4]", spark_task_resource_gpu_amount="0.5"),
            "no spark.task.resource.gpu.amount with",
        ),
        (
            settings(STANDALONE, spark_executor_resource_gpu_amount="1"),
            "Expected spark.task.resource.gpu.amount=1 as well",
        ),
        (
            settings(STANDALONE, spark_task_resource_gpu_amount="1"),
            "Expected spark.executor.resource.gpu.amount=1 as well",
        ),
        (
            {**settings(STANDALONE), **GPU, "spark.task.resource.gpu.amount": "0.5"},
            "Expected spark.task.resource.gpu.amount=1: one process",
        ),
        (
            {**settings(STANDALONE), **GPU, "spark.task.resource.gpu.amount": "2"},
            "Expected spark.task.resource.gpu.amount=1: one process",
        ),
        ({"spark.master": KUBERNETES, **GPU}, "gpu.discoveryScript.*starts on Kubernetes"),
        ({"spark.master": YARN, **GPU}, "gpu.discoveryScript.*starts on YARN"),
        (settings("local[2]", spark_task_cpus="3"), "task.cpus of at most 2,.*task.cpus=3"),
        (settings("local", spark_task_cpus="2"), "task.cpus of at most 1,"),
        (settings("local-cluster[2,1,9]", spark_executor_cores="1", spark_task_cpus="2"), "most 1"),
        (settings(YARN, spark_task_cpus="2"), "task.cpus of at most 1,"),
        (settings(STANDALONE, spark_executor_cores="4", spark_task_cpus="8"), "at most 4"),
        (settings(STANDALONE, spark_task_cpus="many"), "spark.task.cpus to be a number.*many"),
    ],
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_key(given: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_settings(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        settings("local[*]", spark_task_cpus="1"),
        settings("local[4,2]", spark_task_cpus="4", spark_python_worker_reuse="TRUE"),
        settings("local[2]", spark_executor_resource_gpu_amount="0"),
        settings("local[2]", spark_sql_execution_arrow_maxRecordsPerBatch="256"),
        settings("local[2]", spark_sql_execution_arrow_pyspark_enabled="false"),
        settings(STANDALONE, spark_task_cpus="8"),  # a worker's cores are not known before
        {"spark.master": STANDALONE, **GPU},
        {"spark.master": "local-cluster[1,1,512]", **GPU},
        {"spark.master": YARN, **GPU, **DISCOVERY},
        settings(STANDALONE, spark_executor_memory="1g"),  # nothing kills what takes more there
    ],
)
def test_settings_that_work_pass(given: dict[str, str]) -> None:
    check_settings(given, None if "yarn" in given.values() else lambda _: 2000)


def test_arrow_that_the_environment_takes_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_PRE_0_15_IPC_FORMAT", "1")
    with pytest.raises(UserError, match="Expected ARROW_PRE_0_15_IPC_FORMAT not to be set"):
        check_settings({})


@pytest.mark.parametrize("master", [YARN, KUBERNETES])
@pytest.mark.parametrize(
    ("given", "n_workers", "heap_mb"),
    [
        ({}, 1, 1024),
        ({"spark.executor.cores": "4"}, 4, 1024),
        ({"spark.executor.cores": "4", "spark.executor.memory": "8g"}, 4, 8192),
        ({"spark.executor.cores": "8", "spark.task.cpus": "4"}, 2, 1024),
        ({"spark.executor.cores": "8", "spark.task.cpus": "2", **GPU, **DISCOVERY}, 1, 1024),
    ],
    ids=["one core", "four cores", "a large heap", "cores shared", "a GPU"],
)
def test_the_container_must_hold_its_workers(
    master: str, given: dict[str, str], n_workers: int, heap_mb: int
) -> None:
    needed = jvm_overhead_mb(heap_mb) + n_workers * 1500
    given = {**given, "spark.master": master}
    with pytest.raises(UserError, match=f"spark.executor.memoryOverhead={needed}m.*the default"):
        check_settings(given, lambda _: 1500)
    less = {**given, "spark.executor.memoryOverhead": f"{needed - 1}m"}
    with pytest.raises(UserError, match=f"Overhead={needed}m.*Overhead={needed - 1}m"):
        check_settings(less, lambda _: 1500)
    check_settings({**given, "spark.executor.memoryOverhead": str(needed)}, lambda _: 1500)
    python = address_space_mb(1500) * int(given.get("spark.executor.cores", "1"))
    check_settings({**given, "spark.executor.pyspark.memory": f"{python}m"}, lambda _: 1500)
    check_settings(given, None)


@pytest.mark.parametrize(
    ("there", "fits"), [(3000, "local[1]"), (1000, "a machine with more memory"), (None, None)]
)
def test_workers_of_a_local_master_must_fit_the_machine(
    there: int | None, fits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_checks, "machine_mb", lambda: there)
    given = settings("local[2]", spark_driver_memory="512m")
    if fits is None:
        check_settings(given, lambda _: 2000)
    else:
        told = (
            f"Expected spark.master={fits}: 2 Python" if fits.startswith("local") else f"{fits}: 2"
        )
        with pytest.raises(UserError, match=re.escape(told)):
            check_settings(given, lambda _: 2000)
    check_settings(given, None)
    check_settings({**given, "spark.master": "local[1]"}, lambda _: 500)
    check_settings({**given, "spark.master": STANDALONE}, lambda _: 2000)


def test_the_memory_of_a_container_is_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (str(limit),))
    machine = machine_mb()
    assert machine is not None
    for text, found in (("max", machine), (str(300 * 2**20), 300), (str(2**62), machine)):
        limit.write_text(f"{text}\n")
        assert machine_mb() == found


@pytest.mark.parametrize(("given", "images"), [({}, 256), ({BATCH: "2048"}, 2048)])
def test_a_worker_takes_what_the_images_of_a_batch_take(given: dict[str, str], images: int) -> None:
    asked: list[int] = []

    def worker_mb(images_at_once: int) -> int:
        asked.append(images_at_once)
        return 0

    check_settings({**given, "spark.master": YARN}, worker_mb)
    assert asked == [images]


def test_the_default_overhead_is_sparks_own() -> None:
    given = settings(KUBERNETES, spark_executor_memory="10g")
    for key, factor in (
        ("spark.kubernetes.memoryOverheadFactor", "0.4"),
        ("spark.executor.memoryOverheadFactor", "0.3"),
        ("spark.executor.minMemoryOverhead", "3g"),
    ):
        with pytest.raises(UserError, match="Received: 1024m, the default"):
            check_settings(given, lambda _: 1500)
        check_settings({**given, key: factor}, lambda _: 1500)


@pytest.mark.parametrize("master", ["local[4]", STANDALONE, YARN])
def test_a_limit_of_address_space_must_hold_a_worker_on_every_master(master: str) -> None:
    needed = address_space_mb(1000)
    enough = {"spark.executor.memoryOverhead": "9g", "spark.executor.cores": "4"}
    given = {
        "spark.master": master,
        "spark.executor.pyspark.memory": f"{needed * 4 - 1}m",
        **enough,
    }
    with pytest.raises(UserError, match=f"pyspark.memory of at least {needed * 4}m"):
        check_settings(given, lambda _: 1000)
    check_settings({**given, "spark.executor.pyspark.memory": f"{needed * 4}m"}, lambda _: 1000)


@pytest.mark.parametrize(
    ("master", "local"),
    [
        ("local", True),
        ("local[2]", True),
        ("local[*]", True),
        ("local[*,4]", True),
        ("local-cluster[2,1,512]", False),
        (STANDALONE, False),
        (YARN, False),
        (KUBERNETES, False),
    ],
)
def test_a_master_of_one_process_is_known(master: str, local: bool) -> None:
    assert is_local(master) == local


def test_versions_are_those_that_are_imported() -> None:
    import cv2
    import pandas as pd
    import pyarrow as pa

    found = installed_versions()
    assert found["Python"] == "3.11"
    assert (found["pandas"], found["pyarrow"]) == (pd.__version__, pa.__version__)
    assert found["opencv"].startswith(cv2.__version__)
    assert "none" not in found.values()


def test_a_local_session_is_not_asked(spark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_checks, "_ask_executors", None)
    check_versions(spark)


def answers(*hosts: tuple[str, dict[str, str]]) -> set[tuple[str, str]]:
    return {(host, json.dumps({**installed_versions(), **other})) for host, other in hosts}


def test_differences_are_told_by_package_and_host(spark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_checks, "is_local", lambda master: False)
    told = answers(("a", {}), ("b", {}))
    monkeypatch.setattr(session_checks, "_ask_executors", lambda spark, n_tasks: told)
    check_versions(spark)
    old = {"tensorflow": "2.19.0"}
    told |= answers(*[(host, old) for host in "cdefg"], ("a", {"pandas": "none"}))
    with pytest.raises(
        UserError,
        match=r"Received: pandas none on a \(driver: 2.*\); tensorflow 2.19.0 on c, d, e and 2 more"
        r" \(driver: 2.20.0\)\. Install.*PYSPARK_PYTHON.*spark.archives",
    ):
        check_versions(spark)


def test_executors_that_join_meanwhile_are_asked_too(
    spark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_checks, "is_local", lambda master: False)
    n_slots, asked = iter([2, 4, 4]), []
    monkeypatch.setattr(session_checks, "_tasks_at_once", lambda spark: next(n_slots))

    def ask(spark, n_tasks: int) -> set[tuple[str, str]]:
        asked.append(n_tasks)
        return answers(("a", {}))

    monkeypatch.setattr(session_checks, "_ask_executors", ask)
    check_versions(spark)
    assert asked == [2, 4]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: "
            "3.10 than that in driver: 3.11, PySpark cannot run with different minor versions.",
            "Python 3.10 on an executor (driver: 3.11)",
        ),
        ("ModuleNotFoundError: No module named 'pyarrow'", "no pyarrow on an executor"),
        (
            'java.io.IOException: Cannot run program "/opt/x/bin/python": error=2, No such file',
            "an executor without /opt/x/bin/python",
        ),
        ("Job aborted: executor lost", None),
    ],
)
def test_why_a_python_failed_is_read_from_what_spark_says(text: str, reason: str | None) -> None:
    assert why_python_failed(text) == reason


@pytest.mark.parametrize(
    ("master", "given", "told"),
    [
        (
            "local[2]",
            ["spark.python.worker.reuse=false"],
            "Expected spark.python.worker.reuse=true",
        ),
        ("local[2]", ["spark.task.resource.gpu.amount=1"], "hands out no GPUs"),
        ("local[2]", ["spark.task.cpus=4"], "Expected spark.task.cpus of at most 2"),
        ("local[2]", ["spark.executor.pyspark.memory=500m"], "spark.executor.pyspark.memory of at"),
        (KUBERNETES, ["spark.executor.cores=2"], r"memoryOverhead=\d+m.*2 Python workers"),
        (YARN, ["spark.executor.memoryOverhead=600m"], "Received: spark.executor.memoryOverhead="),
    ],
)
def test_under_spark_submit_it_is_one_line_and_status_2(
    master: str, given: list[str], told: str, phantoms: Path, tmp_path: Path
) -> None:
    done = submit(
        *(part for setting in given for part in ("--conf", setting)),
        "jobs/extract.py", "--config", "conf/demo.yaml", "--images", str(phantoms),
        "--features", str(tmp_path / "features"),
        master=master, HADOOP_CONF_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "error" in line]
    assert line.startswith("extract.py: error: Expected ")
    assert re.search(told, line)
    assert "Traceback" not in done.stdout
    assert not any(tmp_path.iterdir())
