"""The files in conf/ that say where a job runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from cxr_spark import session_checks
from cxr_spark.backbones import BACKBONES
from cxr_spark.config import load_experiment
from cxr_spark.memory import jvm_overhead_mb, to_mb, worker_mb
from cxr_spark.session_checks import check_settings, images_in_worker
from cxr_spark.spark import DEFAULTS
from tests.conftest import ROOT

CONF = ROOT / "conf"
FILES = sorted(CONF.glob("spark-*.conf"))
CLUSTERS = ("standalone", "yarn", "kubernetes")

# Keys that Spark knows by their form alone (its pages on configuration, YARN and Kubernetes).
FORMS = (
    r"spark\.task\.resource\.gpu\.amount",
    r"spark\.executor\.resource\.gpu\.(amount|vendor|discoveryScript)",
    r"spark\.kubernetes\.(driver|executor)\.volumes\.persistentVolumeClaim\.shared\."
    r"(options\.claimName|mount\.path)",
)
DECLARED_IN = (
    "org.apache.spark.internal.config.package$",
    "org.apache.spark.internal.config.Python$",
    "org.apache.spark.internal.config.UI$",
    "org.apache.spark.deploy.k8s.Config$",
    "org.apache.spark.deploy.yarn.config.package$",
)


def lines(name: str) -> list[str]:
    return (CONF / name).read_text(encoding="utf-8").splitlines()


def read(name: str) -> dict[str, str]:
    pairs = [line.split(None, 1) for line in lines(name) if line and not line.startswith("#")]
    assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
    return {key: value.strip() for key, value in pairs}


def test_every_cluster_has_a_file_for_processors_and_one_for_gpus() -> None:
    expected = {f"spark-{c}{gpu}.conf" for c in CLUSTERS for gpu in ("", "-gpu")}
    assert {file.name for file in FILES} == expected | {"spark-local.conf", "spark-compose.conf"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_setting_has_its_reason_above_and_its_key_is_sparks(file: Path, spark) -> None:
    jvm = spark.sparkContext._jvm
    for name in DECLARED_IN:
        jvm.java.lang.Class.forName(name)
    entries = jvm.org.apache.spark.internal.config.ConfigEntry
    content = lines(file.name)
    assert read(file.name)
    for before, line in zip(["", *content], content, strict=False):
        assert len(line) <= 120 or "extraJavaOptions" in line
        if line and not line.startswith("#"):
            key = line.split()[0]
            assert before.startswith("# "), key
            known = entries.findEntry(key) is not None or key == "spark.master"
            assert known or any(re.fullmatch(form, key) for form in FORMS), key


def test_a_key_that_spark_does_not_know_is_seen(spark) -> None:
    entries = spark.sparkContext._jvm.org.apache.spark.internal.config.ConfigEntry
    assert entries.findEntry("spark.executor.memoryOverheads") is None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_session_takes_every_file_for_the_papers_six_backbones(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_checks, "machine_mb", lambda: None)  # is another machine's
    six = load_experiment(str(CONF / "paper.yaml"), {})
    assert set(six.backbones) == set(BACKBONES)

    def worker(images_at_once: int) -> int:
        return worker_mb(six.backbones, six.image_size, images_at_once=images_at_once)

    masters = {"standalone": "spark://host:7077", "kubernetes": "k8s://https://host:6443"}
    kind = file.stem.split("-")[1]
    given = {"spark.master": masters.get(kind, ""), **read(file.name)}
    check_settings({**DEFAULTS, **given}, worker)
    if kind in ("yarn", "kubernetes"):
        heap = to_mb("", given["spark.executor.memory"])
        less = jvm_overhead_mb(heap) + worker(images_in_worker({**DEFAULTS, **given}))
        assert to_mb("", given["spark.executor.memoryOverhead"]) >= less
        assert given["spark.submit.deployMode"] == "cluster"
        assert "NOT RUN YET" in lines(file.name)[0]


@pytest.mark.parametrize("cluster", ["yarn", "kubernetes"])
def test_the_overhead_for_processors_is_the_rules(cluster: str) -> None:
    given = read(f"spark-{cluster}.conf")
    worker = worker_mb(list(BACKBONES), (224, 224))
    heap = to_mb("", given["spark.executor.memory"])
    expected = jvm_overhead_mb(heap) + int(given["spark.executor.cores"]) * worker
    assert given["spark.executor.memoryOverhead"] == f"{expected}m"
    assert f"{worker} MB each" in (CONF / f"spark-{cluster}.conf").read_text(encoding="utf-8")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_file_for_gpus_differs_in_what_gpus_need_alone(cluster: str) -> None:
    processors, gpus = read(f"spark-{cluster}.conf"), read(f"spark-{cluster}-gpu.conf")
    differing = {k for k in processors.keys() | gpus.keys() if processors.get(k) != gpus.get(k)}
    sizes = {"spark.executor.cores", "spark.task.cpus", "spark.executor.memoryOverhead"}
    assert all("resource.gpu" in k or k in sizes or k == "spark.yarn.dist.files" for k in differing)
    assert gpus["spark.executor.cores"] == gpus["spark.task.cpus"]
    assert gpus["spark.executor.resource.gpu.amount"] == "1"


def test_the_readme_names_every_file() -> None:
    content = (CONF / "README.md").read_text(encoding="utf-8")
    assert all(file.name in content for file in [*FILES, CONF / "gpu-discovery.sh"])


def discover(folder: Path, nvidia_smi: str | None) -> subprocess.CompletedProcess[str]:
    """Run the script where ``nvidia_smi``, lines of a shell, is all that the machine has of it."""
    tools = folder / "bin"
    tools.mkdir(parents=True)
    for tool in ("uname", "head", "sed", "paste"):
        found = next(p for d in os.environ["PATH"].split(":") if (p := Path(d) / tool).exists())
        (tools / tool).symlink_to(found)
    if nvidia_smi is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        (tools / "nvidia-smi").chmod(0o755)
    return subprocess.run(
        [CONF / "gpu-discovery.sh"], env={"PATH": str(tools)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "addresses"),
    [("0", ["0"]), ("0\\n1\\n2", ["0", "1", "2"]), ("3\\n10", ["3", "10"])],
)
def test_discovery_tells_spark_the_gpus(said: str, addresses: list[str], tmp_path: Path) -> None:
    done = discover(
        tmp_path,
        f'[ "$*" = "--query-gpu=index --format=csv,noheader" ] || exit 2\nprintf \'{said}\\n\'',
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": addresses}
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("nvidia_smi", "told"),
    [
        (None, "expected nvidia-smi on the PATH"),
        ("echo 'No devices were found'", "at least one GPU.*No devices were found"),
        ("echo 'No devices were found'; exit 6", "to list GPUs.*No devices were found"),
        ("echo 'NVIDIA-SMI has failed: no driver' >&2; exit 9", "to list GPUs.*has failed: no dri"),
        ("true", "at least one GPU"),
    ],
    ids=["missing", "none", "none and a status", "no driver", "silent"],
)
def test_discovery_fails_in_one_line_where_there_is_none(
    nvidia_smi: str | None, told: str, tmp_path: Path
) -> None:
    done = discover(tmp_path, nvidia_smi)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert re.search(f"gpu-discovery.sh: expected.*{told}|{told}", done.stderr)
