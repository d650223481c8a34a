"""Our job in other ways, and how it grows: with a job and programs that only pretend to work."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cxr_spark.benchmark import growth, variants
from cxr_spark.benchmark.growth import measure_growth, measure_memory
from cxr_spark.benchmark.ours import Trial
from cxr_spark.benchmark.peers import Peer
from cxr_spark.benchmark.rows import MeasurementError
from cxr_spark.benchmark.variants import measure_cores, measure_maps, measure_pass
from tests.benchmark.test_peers import peer

BARE = """
import argparse, json, os
parser = argparse.ArgumentParser()
for flag in ("images", "backbone", "weights"):
    parser.add_argument("--" + flag, required=True)
parser.add_argument("--limit", type=int, required=True)
parser.add_argument("--cores", type=int, default=2)
args = parser.parse_args()
if args.cores == 1:
    assert len(os.sched_getaffinity(0)) == 1
decoding = args.limit / 1000
work = decoding + args.limit / {"MobileNetV3Small": 100, "ResNet50": 10}[args.backbone]
work *= 2 / args.cores
print(json.dumps({"images": args.limit, "images_per_s": args.limit / work,
                  "decode_share": decoding * 2 / args.cores / work}))
"""


class Job:
    """Seconds of a start, and of each image, by what is asked for."""

    def __init__(self, precision: str = "float32") -> None:
        self.asked: list[dict[str, Any]] = []
        self.precision = precision

    def extract(self, backbones: Sequence[str], n_images: int, **given: Any) -> float:
        self.asked.append({"backbones": tuple(backbones), "n_images": n_images, **given})
        rate = 100.0
        rate *= 0.8 if given.get("feature_maps") else 1
        rate /= 2 if given.get("core") is not None else 1
        rate /= 12 if len(backbones) > 1 else 1
        return 7.0 + n_images / rate


def trial(job: Any, *backbones: str, n_images: int = 400, repeat: int = 1) -> Trial:
    return Trial(job, backbones or ("ResNet50",), "phantoms", n_images, repeat)


def test_maps_are_compared_with_none() -> None:
    job: Any = Job()
    (row,) = measure_maps(trial(job, repeat=2))
    assert (row.rate, row.against, row.ratio) == pytest.approx((80, 100, 0.8))
    assert (row.target, row.met, row.n_pairs) == (0.85, False, 2)
    ends = [(asked["n_images"], asked["feature_maps"]) for asked in job.asked]
    assert ends[:2] == [(64, True), (64, False)]
    first = [(100, False), (100, True), (400, False), (400, True)]
    assert ends[2:] == [*first, (100, True), (100, False), (400, True), (400, False)]
    lower: Any = Job(precision="bfloat16")
    (row,) = measure_maps(trial(lower))
    assert (row.ratio, row.target, row.met) == (pytest.approx(0.8), None, None)


def test_all_cores_are_compared_with_one_as_bare_processes_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "count_cores", lambda: 2)
    job: Any = Job()
    bare = peer(tmp_path, "ceiling", BARE)
    (row,) = measure_cores(trial(job, "MobileNetV3Small"), bare)
    assert (row.rate, row.against, row.ratio) == pytest.approx((2.0, 2.0, 1.0))
    assert (row.target, row.met, row.unit) == (0.95, True, "times")
    assert row.note.startswith("of 3.0 s, and rates of less than 10 s are noise")
    masters = {(asked["master"], asked.get("core")) for asked in job.asked[1:]}
    assert {master for master, _ in masters} == {"local[1]", "local[2]"}
    assert all((core is None) == (master == "local[2]") for master, core in masters)
    (row,) = measure_cores(trial(job, "MobileNetV3Small"), dataclasses.replace(bare, judges=False))
    assert (row.ratio, row.target, row.met) == (pytest.approx(1.0), None, None)
    (row,) = measure_cores(trial(job), None)
    assert (row.against, row.target) == (2.0, None)
    monkeypatch.setattr(variants, "count_cores", lambda: 1)
    with pytest.raises(MeasurementError, match="one core only"):
        measure_cores(trial(job), None)


def test_one_pass_is_compared_with_the_forward_passes_and_one_decoding(tmp_path: Path) -> None:
    job: Any = Job()
    ceiling = peer(tmp_path, "ceiling", BARE)
    names = ("MobileNetV3Small", "ResNet50")
    bare = [Peer(ceiling.program, "phantoms", tmp_path, name, "random") for name in names]
    (row,) = measure_pass(trial(job, *names), bare)
    assert row.rate == pytest.approx(100 / 12)
    assert row.against == pytest.approx(1 / (1 / 1000 + 1 / 100 + 1 / 10))
    assert row.target == 0.95
    silent = peer(tmp_path, "silent", BARE.replace('"decode_share"', '"share"'))
    with pytest.raises(MeasurementError, match="silent.py printed no decode_share"):
        measure_pass(trial(job, *names), [silent, silent])


def test_time_is_a_line_through_the_number_of_images() -> None:
    job: Any = Job()
    row, *whole = measure_growth(trial(job, n_images=800, repeat=2))
    assert row.rate == pytest.approx(7.0)
    assert row.note.startswith("10.00 ms an image; no run is farther than 0.00 s")
    assert row.note.endswith("R2 1.0000")
    assert [asked["n_images"] for asked in job.asked[1:]] == [100, 200, 400, 800] * 2
    assert [of.rate for of in whole] == pytest.approx([8.0, 9.0, 11.0, 15.0])
    assert [of.n_pairs for of in whole] == [2] * 4


def test_memory_is_that_of_a_worker_of_sparks_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process forks another of the same command line, which takes 60 MB, or 120 MB for all."""
    monkeypatch.setattr(growth, "SECONDS_BETWEEN_LOOKS", 0.02)
    worker = """
import os, sys, time
if os.fork() == 0:
    taken = b"x" * (int(sys.argv[2]) << 20)
    time.sleep(1)
    os._exit(0)
os.wait()
"""

    class Spark:
        def extract(self, backbones: Sequence[str], n_images: int, **given: Any) -> float:
            assert given == {"master": "local[1]"}
            size = "60" if n_images == 40 else "120"
            subprocess.run([sys.executable, "-c", worker, "pyspark.daemon", size], check=True)
            return 1.0

    spark: Any = Spark()
    (row,) = measure_memory(trial(spark))
    assert row.rate is not None
    assert row.against is not None
    assert row.against - row.rate == pytest.approx(60, abs=5)
    assert (row.unit, row.met) == ("MB", False)
    seconds, resident = zip(*row.curve, strict=True)
    assert seconds[0] == 0
    assert 0.5 < seconds[-1] < 2
    assert max(resident) <= row.against

    # Its own command line has no such word.
    command = f"[sys.executable, '-c', {worker!r}, 'pyspark.' + 'daemon', '60']"
    two = f"""
import subprocess, sys
running = [subprocess.Popen({command}) for _ in range(2)]
assert not any(process.wait() for process in running)
"""

    class Two:
        def extract(self, *_: Any, **__: Any) -> float:
            subprocess.run([sys.executable, "-c", two], check=True)
            return 1.0

    shared: Any = Two()
    with pytest.raises(MeasurementError, match="2 Python workers shared what one was to do"):
        measure_memory(trial(shared))

    class Nothing:
        def extract(self, *_: Any, **__: Any) -> float:
            return 1.0

    nothing: Any = Nothing()
    with pytest.raises(MeasurementError, match="no Python worker"):
        measure_memory(trial(nothing))
