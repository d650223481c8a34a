from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cxr_spark import session_checks
from cxr_spark.spark import REDACTED, _cores_that_fit, describe_session, local_cores


def session(**settings: str) -> SimpleNamespace:
    conf = SimpleNamespace(getAll=lambda: list(settings.items()))
    context = SimpleNamespace(getConf=lambda: conf, defaultParallelism=2)
    return SimpleNamespace(version="4.0.5", sparkContext=context)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spark.sql.catalog.x.password", "planted"),
        ("spark.executor.token", "planted"),
        ("spark.sql.x.Secret", "planted"),
        ("spark.executor.fs.s3a.access.key", "planted"),
        ("spark.sql.x.accessKey", "planted"),
        ("spark.sql.x.credentials", "planted"),
        ("spark.executor.key.passphrase", "planted"),
        ("spark.sql.catalog.x.url", "jdbc:mysql://h/x?user=me&password=planted"),
        ("spark.sql.catalog.y.uri", "https://me:planted@host/x"),
        ("spark.sql.catalog.z.url", "jdbc:x://h/x?user=me&pwd=planted"),
    ],
)
def test_a_secret_is_named_and_not_told(key: str, value: str) -> None:
    told = describe_session(session(**{key: value}))  # type: ignore[arg-type]
    assert told["conf"] == {key: REDACTED}
    assert "planted" not in json.dumps(told)


@pytest.mark.parametrize(
    ("master", "cores"),
    [("local", 1), ("local[3]", 3), ("local[2,4]", 2), ("spark://here:7077", None), ("yarn", None)],
)
def test_a_local_master_says_how_many_cores_it_has(master: str, cores: int | None) -> None:
    assert local_cores(master) == cores


@pytest.mark.parametrize(
    ("given", "cores"),
    [("local[*]", 3), ("local[*,4]", 3), ("local[8]", None), ("yarn", None)],
)
def test_all_cores_are_as_many_as_there_is_memory_for(
    given: str,
    cores: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """8 cores and 8 GB for workers of 2 GB, of which 0.85 are reckoned, beside a heap of 1 GB."""
    monkeypatch.setattr(session_checks, "machine_mb", lambda: 7000)
    with_cores = {"spark.master": given if given == "yarn" else "local[8]"}
    assert _cores_that_fit(given, with_cores, lambda _: 2000) == cores
    assert _cores_that_fit(given, with_cores, lambda _: 800) is None
    told = ["memory: a Python worker takes 2000 MB with these backbones; local[*] is local[3]"]
    assert [record.getMessage() for record in caplog.records] == (told if cores else [])


def test_settings_that_made_the_features_are_told_and_others_are_not() -> None:
    settings = {
        "spark.executor.cores": "2",
        "spark.master": "spark://host:7077",
        "spark.sql.shuffle.partitions": "4",
    }
    others = {
        "spark.executorEnv.HOME": "/planted",
        "spark.executor.extraJavaOptions": "-Dx=planted",
        "spark.hadoop.fs.s3a.secret.key": "planted",
        "spark.ssl.keyPassword": "planted",
    }
    told = describe_session(session(**settings, **others))  # type: ignore[arg-type]
    assert told["conf"] == settings
    assert list(told["conf"]) == sorted(settings)


KILLED_JVM = """
import psutil
from cxr_spark.cli import run_job
from cxr_spark.spark import open_session

def main():
    with open_session("killed") as spark:
        for process in psutil.Process().children(recursive=True):
            process.kill()
        spark.range(3).count()

run_job(main)
"""


def test_a_jvm_that_was_killed_is_told_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_JVM], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "error: Spark's JVM has ended by itself" in line
    assert "Traceback" not in done.stderr
