"""Pairs with programs that only pretend to work."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cxr_spark.benchmark import peers
from cxr_spark.benchmark.ours import peer_weights
from cxr_spark.benchmark.peers import (
    Peer,
    find_programs,
    measure_peer,
    measure_whole,
    run_peer,
    run_process,
    takes_cores,
)
from cxr_spark.benchmark.rows import MeasurementError
from cxr_spark.benchmark.settings import Settings, read_settings
from cxr_spark.errors import UserError

START, RATE = 5.0, 100.0

WORKING = """
import argparse, json
parser = argparse.ArgumentParser()
for flag in ("images", "backbone", "weights"):
    parser.add_argument("--" + flag, required=True)
parser.add_argument("--limit", type=int, required=True)
args = parser.parse_args()
print("some words")
print(json.dumps({"images_per_s": 1.0}))  # of a first part: the last that states it counts
work_s = 2.0 + args.limit / 50
print(json.dumps({"images": args.limit, "images_per_s": args.limit / work_s}))
print("done")
"""
BROKEN = {
    "fails": ("import sys; print('first', file=sys.stderr); sys.exit('out of luck')", "of luck"),
    "silent": ("", "no JSON with images_per_s"),
    "wordy": ("print('done')", "no JSON with images_per_s"),
    "other": ("print('{\"rate\": 3}')", "no JSON with images_per_s"),
    "zero": ("print('{\"images_per_s\": 0}')", "0.0 images/s"),
    "endless": ('print(\'{"images": Infinity, "images_per_s": 3}\')', "no JSON"),
    "nan": ("print('{\"images_per_s\": NaN}')", "nan images/s"),
}


def peer(folder: Path, name: str, source: str) -> Peer:
    program = folder / f"{name}.py"
    program.write_text(source)
    return Peer(program, "phantoms", folder, "MobileNetV3Small", "random")


def ours(n_images: int) -> float:
    return START + n_images / RATE


def test_pairs_give_the_marginal_rates_of_both_and_their_ratio(tmp_path: Path) -> None:
    marginal, whole, fixed = measure_peer(peer(tmp_path, "keras_loop", WORKING), ours, 400, 3)
    assert marginal.rate == pytest.approx(RATE)
    assert marginal.against == pytest.approx(50.0)
    assert marginal.ratio == pytest.approx(2.0)
    assert (marginal.target, marginal.met, marginal.n_pairs) == (1.4, True, 3)
    assert marginal.quartiles == pytest.approx((2.0, 2.0))
    assert whole.rate == pytest.approx(400 / (START + 4))
    assert whole.against is not None
    assert whole.against > whole.rate  # the process does nothing but start
    assert whole.target is whole.met is None
    assert (fixed.rate, fixed.unit) == (pytest.approx(START), "s")


def test_first_processes_are_compared_where_whole_ones_have_a_target(tmp_path: Path) -> None:
    ran: list[str] = []

    def first(n_images: int) -> float:
        ran.append(f"first {n_images}")
        return ours(n_images) + 4.0

    def noted(n_images: int) -> float:
        ran.append(f"ours {n_images}")
        return ours(n_images)

    recipe, other = (peer(tmp_path, name, WORKING) for name in ("spark_recipe", "keras_loop"))
    _, whole, row, _ = measure_peer(recipe, noted, 400, 2, first=first)
    assert ran == ["ours 64", *["ours 100", "ours 400", "first 400"] * 2]  # in each turn
    assert row.what == "first process, " + whole.what.removeprefix("whole process, ")
    assert row.rate == pytest.approx(400 / (START + 4 + 4))
    assert row.against == whole.against
    assert (row.n_pairs, row.target, row.met) == (2, None, None)
    assert len(measure_peer(other, ours, 400, 1, first=first)) == 3


@pytest.mark.parametrize("n_good", [0, 1])
def test_a_first_process_that_fails_costs_no_other_row(tmp_path: Path, n_good: int) -> None:
    ran: list[int] = []

    def first(n_images: int) -> float:
        ran.append(n_images)
        if len(ran) > n_good:
            raise MeasurementError("out of luck")
        return ours(n_images) + 4.0

    marginal, whole, row, _ = measure_peer(
        peer(tmp_path, "spark_recipe", WORKING), ours, 400, 3, first=first
    )
    assert (marginal.n_pairs, whole.n_pairs, len(ran)) == (3, 3, n_good + 1)
    assert "out of luck" in row.note
    if n_good:
        assert (row.rate, row.n_pairs) == (pytest.approx(400 / (START + 4 + 4)), 1)
    else:
        assert row.rate is None


def test_what_a_process_has_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "LIMIT_SECONDS", 2.0)
    file = tmp_path / "pid"
    started = f"sleep 60 & echo $! > {file}; wait"
    with pytest.raises(MeasurementError, match="took longer than 2 s"):
        run_process(["sh", "-c", started])
    pid = int(file.read_text())
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return status[0] != "Z"


def test_short_runs_are_said_to_be_noise(tmp_path: Path) -> None:
    program = peer(tmp_path, "keras_loop", WORKING)
    marginal, *_ = measure_peer(program, ours, 400, 2)
    assert marginal.note == "of 3.0 s, and rates of less than 10 s are noise: give more images"
    marginal, *_ = measure_peer(program, ours, 1600, 1)
    assert marginal.note == ""


def test_ours_and_the_peer_take_turns_in_going_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    program = peer(tmp_path, "spark_recipe", WORKING + f"open({str(order)!r}, 'a').write('p')\n")

    def noted(n_images: int) -> float:
        with order.open("a") as file:
            file.write("o")
        return ours(n_images)

    measure_peer(program, noted, 400, 2)
    assert order.read_text() == "o" + "popo" + "opop"  # after ours has warmed up


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_failing_peer_is_one_row_without_a_number(name: str, tmp_path: Path) -> None:
    source, reason = BROKEN[name]
    (row,) = measure_peer(peer(tmp_path, name, source), ours, 400, 3)
    assert (row.rate, row.against, row.ratio, row.met) == (None, None, None, None)
    assert reason in row.note
    assert "\n" not in row.note


def test_where_ours_fails_it_is_a_row_without_a_number_too(tmp_path: Path) -> None:
    def failing(n_images: int) -> float:
        return run_process([sys.executable, "-c", "raise SystemExit('no Java')"])[0]

    (row,) = measure_peer(peer(tmp_path, "ceiling", WORKING), failing, 400, 1)
    assert row.rate is row.ratio is None
    assert "no Java" in row.note


def test_the_grid_is_compared_by_whole_processes(tmp_path: Path) -> None:
    (row,) = measure_whole(peer(tmp_path, "paper_grid", WORKING), ours, 400, 2)
    assert row.rate == pytest.approx(400 / (START + 4))
    assert (row.target, row.met) == (2.5, False)


def test_a_program_has_as_many_cores_as_ours(tmp_path: Path) -> None:
    asked = WORKING.replace(
        "args = parser", "parser.add_argument('--cores', type=int)\nargs = parser"
    )
    asked = asked.replace('"images": args.limit', '"images": args.cores')
    with_flag, without = peer(tmp_path, "ceiling", asked), peer(tmp_path, "keras_loop", WORKING)
    assert takes_cores(with_flag.program)
    assert not takes_cores(without.program)
    assert not takes_cores(peer(tmp_path, "broken", "raise SystemExit(1)").program)
    assert run_peer(replace(with_flag, cores=3), 400).n_images == 3
    assert run_peer(without, 400).n_images == 400


def test_what_runs_on_a_cluster_is_not_judged_by_one_machine(tmp_path: Path) -> None:
    program = replace(peer(tmp_path, "keras_loop", WORKING), judges=False)
    marginal, _, _ = measure_peer(program, ours, 400, 1)
    assert (marginal.ratio, marginal.target, marginal.met) == (pytest.approx(2.0), None, None)


def test_pairs_before_a_failure_count_and_one_of_no_rate_is_left_out(tmp_path: Path) -> None:
    program = peer(tmp_path, "keras_loop", WORKING)
    calls: list[int] = []

    def failing(n_images: int) -> float:
        calls.append(n_images)
        if len(calls) == 8:
            raise MeasurementError("the disk is full")
        # the second pair's quarter takes longer than its whole
        return 20.0 if len(calls) == 4 else ours(n_images)

    marginal, whole, fixed = measure_peer(program, failing, 400, 5)
    assert (marginal.n_pairs, whole.n_pairs, fixed.n_pairs) == (2, 3, 2)
    assert marginal.rate == pytest.approx(RATE)
    ended = "ended after 3 of 5 pairs: the disk is full"
    assert whole.note == ended
    assert marginal.note.startswith(f"{ended}; 1 left out: 400 images took")


def test_a_precision_is_known_and_none_is_asked_of_the_engine_alone() -> None:
    assert settings(precision="bfloat16").precision == "bfloat16"
    with pytest.raises(UserError, match="--precision to be one of float32"):
        settings(precision="float61")
    with pytest.raises(UserError, match="--engine-only without --precision"):
        settings(precision="float16", engine_only=True)


def test_what_is_shared_is_no_program(tmp_path: Path) -> None:
    for name in ("common.py", "b.py", "a.py", "README.md"):
        (tmp_path / name).touch()
    assert [program.name for program in find_programs(tmp_path)] == ["a.py", "b.py"]


def test_a_process_of_its_own_does_not_see_this_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    command = [sys.executable, "-c", "import os; print('PYSPARK_GATEWAY_PORT' in os.environ)"]
    assert run_process(command)[1].strip() == "False"


def settings(**given: object) -> Settings:
    names = ("images", "weights", "backbones", "limit", "repeat", "peers", "out", "feature_maps",
             "engine_only", "sections", "precision")  # fmt: skip
    return read_settings({**dict.fromkeys(names), **given})


def test_peers_take_a_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "MobileNetV3Small.weights.h5"
    file.touch()
    assert peer_weights(settings(), "MobileNetV3Small") == "random"
    assert peer_weights(settings(weights=str(tmp_path)), "MobileNetV3Small") == str(file)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(MeasurementError, match="extract once"):
        peer_weights(settings(weights="imagenet"), "MobileNetV3Small")
