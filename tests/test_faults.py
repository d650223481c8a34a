"""What is killed, filled or interrupted costs time, and nothing else.

On a standalone cluster of processes of their own. By default a worker, a node with its executor,
the driver and training are killed once and one run is interrupted; with CXR_FAULTS=full (make
test-faults) kills are tried ten times, spread over the undisturbed run, and all else is tried as
well: two runs on one folder and a full disk, which tests/extraction/test_resume.py tries by default
in one process, and an executor that is killed alone.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from cxr_spark.dataset.phantoms import draw_phantoms
from cxr_spark.extraction.store import list_extractions
from tests.faults import (
    CONFIG,
    Run,
    assert_same,
    busy,
    find_processes,
    is_alive,
    n_committed,
    python_workers,
    read_features,
)
from tests.faulty_decoder import ENDS, plant_fault
from tests.test_cluster import started

FULL = os.environ.get("CXR_FAULTS") == "full"
in_full = pytest.mark.skipif(not FULL, reason="takes minutes: set CXR_FAULTS=full")
N_IMAGES = 1600 if FULL else 800
EXECUTOR = "CoarseGrainedExecutorBackend"
# The share of the undisturbed run at which a kill comes, one drawn from each eleventh; the next run
# may be a little faster, so none comes in the last.
_DRAWN = random.Random(os.environ.get("CXR_FAULTS_SEED", "0"))
MOMENTS = [(k + _DRAWN.random()) / 11 for k in range(10)] if FULL else [0.5]
# How many shards were committed at each kill, by what was killed.
COMMITTED: dict[str, list[int]] = {"worker": [], "driver": []}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cluster")
    with started(folder, ["--cores", "1"], ["--cores", "1"]) as master:
        yield master


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "phantoms"
    draw_phantoms(root, n_images=N_IMAGES, image_size=128, seed=0)
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "faults.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def undisturbed(
    cluster: str, images: Path, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, float]:
    """The features of a run that nothing befell, and its seconds, graphs being kept already."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for features in [folder / "first", folder / "second"] if FULL else [folder / "only"]:
        run = extract(folder, cluster, images, config, features)
        assert run.wait() == 0, run.said[-3000:]
    return read_features(features), time.monotonic() - run.began


def extract(folder: Path, master: str, images: Path, config: Path, features: Path) -> Run:
    return Run(
        folder, master, "extract", "--config", str(config), "--images", str(images),
        "--features", str(features),
    )  # fmt: skip


def executors(master: str) -> list[psutil.Process]:
    """Return those of the nodes of one master, whose address stands in their command lines."""
    nodes = find_processes(master)
    return [p for node in nodes for p in find_processes(EXECUTOR, under=node) if p.name() == "java"]


def wait(run: Run, features: Path, seconds: float) -> None:
    """Wait for a moment of the run; in the short form, for its first shard."""
    if FULL:
        run.sleep_until(seconds)
    else:
        run.wait_until(lambda: n_committed(features))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_python_worker(
    cluster, images, config, undisturbed, tmp_path: Path, moment: float
) -> None:
    expected, seconds = undisturbed
    run = extract(tmp_path, cluster, images, config, tmp_path / "features")
    features, victims = tmp_path / "features", list[psutil.Process]()
    wait(run, features, moment * seconds)
    run.wait_until(lambda: victims.extend(busy(python_workers(executors(cluster)))) or victims)
    logs = [Path(executor.cwd()) / "stderr" for executor in executors(cluster)]
    assert is_alive(victims[0])
    victims[0].kill()
    COMMITTED["worker"].append(n_committed(features))
    assert run.wait() == 0, run.said[-3000:]
    n_lost = sum("Python worker exited unexpectedly" in log.read_text() for log in logs)
    print(f"worker killed at {moment:.2f}, {COMMITTED['worker'][-1]} shards committed, "
          f"{n_lost} executors lost a task")  # fmt: skip
    assert n_lost == 1, "it was not killed in a task"
    assert_same(read_features(tmp_path / "features"), expected)


@in_full
def test_a_killed_executor(cluster, images, config, undisturbed, tmp_path: Path) -> None:
    run = extract(tmp_path, cluster, images, config, tmp_path / "features")
    run.wait_until(lambda: n_committed(tmp_path / "features"))
    executors(cluster)[0].kill()
    assert run.wait() == 0, run.said[-3000:]
    assert_same(read_features(tmp_path / "features"), undisturbed[0])


def test_a_killed_node_and_a_new_one(images, config, undisturbed, tmp_path: Path) -> None:
    with started(tmp_path, ["--cores", "1"], ["--cores", "1"]) as master:
        run = extract(tmp_path, master, images, config, tmp_path / "features")
        run.wait_until(lambda: n_committed(tmp_path / "features"))
        node = find_processes(f"{tmp_path}/work-0")[0]
        for process in [*node.children(recursive=True), node]:
            process.kill()
        with started(tmp_path / "new", ["--cores", "1"], master=master):
            assert run.wait() == 0, run.said[-3000:]
        assert_same(read_features(tmp_path / "features"), undisturbed[0])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_driver_and_the_same_command_again(
    cluster, images, config, undisturbed, tmp_path: Path, moment: float
) -> None:
    expected, seconds = undisturbed
    features = tmp_path / "features"
    run = extract(tmp_path, cluster, images, config, features)
    wait(run, features, moment * seconds)
    alive = run.process.poll() is None
    n_kept = n_committed(features)
    COMMITTED["driver"].append(n_kept)
    kept = {f: f.stat().st_mtime_ns for f in features.glob("_parts/*/*/*.parquet")}
    n_there = sum(pd.read_parquet(file, columns=["image_id"]).shape[0] for file in kept)
    run.kill()
    assert alive
    again = extract(tmp_path, cluster, images, config, features)
    assert again.wait() == 0, again.said[-3000:]
    for file, modified in kept.items():
        parts, shard = file.parents[1], file.parent
        moved = features / parts.name / f"{shard.name}-{file.name}"
        assert moved.stat().st_mtime_ns == modified, f"{file} has been computed again"
    print(f"driver killed at {moment:.2f}, {n_kept} shards of {n_there} images committed")
    counted = re.search(r"([\d,]+) images to be computed(?:, ([\d,]+) already)?", again.said)
    if counted is None:  # it was killed after its last shard
        assert "finishing the extraction" in again.said or "already in the store" in again.said
    else:
        assert int(counted[1].replace(",", "")) == N_IMAGES - n_there
        assert int((counted[2] or "0").replace(",", "")) == n_there
    assert_same(read_features(features), expected)


def test_images_that_end_the_process_that_decodes_them(images, config, tmp_path: Path) -> None:
    """Each ends a worker; its task, tried again, decodes in a process of its own."""
    some = tmp_path / "images"
    for file in sorted(images.rglob("*.jpeg"))[::20]:
        copied = some / file.relative_to(images)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copied)
    chosen = sorted(some.rglob("*.jpeg"))[5::20]
    for file in chosen:
        file.write_bytes(file.read_bytes() + ENDS)
    quick = tmp_path / "quick.yaml"
    quick.write_text(config.read_text().replace("ResNet50", "MobileNetV3Small"))
    whole, features = tmp_path / "whole", tmp_path / "features"
    run = extract(tmp_path, "local[2,4]", some, quick, whole)
    assert run.wait() == 0, run.said[-3000:]
    run = Run(
        tmp_path, "local[2,4]", "extract", "--config", str(quick), "--images", str(some),
        "--features", str(features), PYTHONPATH=plant_fault(tmp_path / "fault"),
    )  # fmt: skip
    assert run.wait() == 0, run.said[-3000:]
    expected, found = read_features(whole), read_features(features)
    names = [str(file.relative_to(some)) for file in chosen]
    assert len(names) == 2
    assert_same(found, expected[~expected["image_id"].isin(names)].reset_index(drop=True))
    errors = pq.ParquetDataset(features / "errors").read().to_pandas().sort_values("image_id")
    assert errors["image_id"].tolist() == names
    assert set(errors["stage"]) == {"decode"}
    assert set(errors["error"]) == {"decoding it ends the process that does it (SIGSEGV)"}


@in_full
@pytest.mark.parametrize("what", COMMITTED)
def test_some_kills_came_when_shards_were_committed(what: str) -> None:
    assert len(COMMITTED[what]) == len(MOMENTS)
    assert sum(n > 0 for n in COMMITTED[what]) >= 3, COMMITTED[what]


@in_full
def test_two_runs_on_one_folder(cluster, images, config, undisturbed, tmp_path: Path) -> None:
    features = tmp_path / "features"
    first = extract(tmp_path, cluster, images, config, features)
    first.wait_until(lambda: (features / "_lock").exists())
    second = extract(tmp_path, "local[1]", images, config, features)
    assert second.wait() == 2
    (line,) = [line for line in second.said.splitlines() if "error" in line]
    assert "to be written to by one run at a time" in line
    assert "Traceback" not in second.said
    assert first.wait() == 0, first.said[-3000:]
    assert_same(read_features(features), undisturbed[0])


@in_full
def test_a_full_disk(images, config, undisturbed, tmp_path: Path) -> None:
    """A tmpfs that a file fills but for the room of a shard or two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    n_bytes = 12_800 * N_IMAGES  # features of ResNet50 take 8 kB an image
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(disk)]
    mounted = not os.geteuid() and subprocess.run(mount, capture_output=True, check=False)
    assert mounted, "mounting a tmpfs needs root"
    assert mounted.returncode == 0, f"and a kernel that lets it: {mounted.stderr!r}"
    try:
        filler, features = disk / "filler", disk / "features"
        filler.write_bytes(b"\0" * (n_bytes // 2))
        run = extract(tmp_path, "local[2]", images, config, features)
        assert run.wait() == 1, run.said[-3000:]
        (line,) = [line for line in run.said.splitlines() if "error:" in line]
        assert "no room is left on a disk" in line
        assert not re.search(r"Traceback| ERROR |\tat ", run.said), run.said[-3000:]
        n_kept = sum(len(pd.read_parquet(file)) for file in features.glob("_parts/*/*/*.parquet"))
        assert 0 < n_kept < N_IMAGES
        filler.unlink()
        again = extract(tmp_path, "local[2]", images, config, features)
        assert again.wait() == 0, again.said[-3000:]
        assert f"{n_kept} already in the store" in again.said
        assert_same(read_features(features), undisturbed[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_and_the_command_that_it_prints(images, config, undisturbed, tmp_path: Path) -> None:
    features = tmp_path / "features"
    run = extract(tmp_path, "local[2]", images, config, features)
    run.wait_until(lambda: n_committed(features))
    children = psutil.Process(run.process.pid).children(recursive=True)
    run.interrupt()
    assert run.wait(60) == 130, run.said[-3000:]
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()]
    (line,) = [line for line in run.said.splitlines() if "stopped" in line]
    assert "Traceback" not in run.said
    command = line.split("to go on where it was: ")[1]
    assert command.startswith("spark-submit ")
    assert f"jobs/extract.py --config {config} --images {images}" in command
    again = extract(tmp_path, "local[2]", images, config, features)
    assert again.wait() == 0, again.said[-3000:]
    assert re.search(r"\d+ images to be computed, \d+ already in the store", again.said)
    assert_same(read_features(features), undisturbed[0])


def test_training_killed_between_configurations(tmp_path: Path) -> None:
    """Of heads on maps: the seeds of a head on pooled features are trained together."""
    images, features, run_folder = (tmp_path / name for name in ("images", "features", "run"))
    draw_phantoms(images, n_images=200, image_size=128, seed=0)
    config = tmp_path / "maps.yaml"
    of_maps = CONFIG.replace("[gap]", "[fc1024, fc512]").replace("ResNet50", "MobileNetV3Small")
    of_maps = of_maps.replace("[0, 1, 2]", "[0, 1]")
    own = "custom_heads: {fc512: {takes: feature_map, dense: [512]}}\n"
    config.write_text(f"{of_maps}{own}feature_maps: true\n")
    assert extract(tmp_path, "local[2]", images, config, features).wait() == 0
    assert list_extractions(features)

    def train() -> Run:
        return Run(
            tmp_path, "local[2]", "train", "--config", str(config), "--features", str(features),
            "--run", str(run_folder),
        )  # fmt: skip

    run = train()
    run.wait_until(lambda: len(list(run_folder.glob("heads/*fc1024*.json"))) == 2)
    run.kill()
    before = {file: file.stat().st_mtime_ns for file in run_folder.glob("heads/[!_]*.json")}
    assert 2 <= len(before) < 4
    again = train()
    assert again.wait() == 0, again.said[-3000:]
    after = {file: file.stat().st_mtime_ns for file in run_folder.glob("heads/[!_]*.json")}
    assert len(after) == 4
    assert {file: after[file] for file in before} == before
    assert len(pd.read_csv(run_folder / "results.csv")) == 4
