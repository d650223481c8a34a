"""Heads that executors train, against those of the driver."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from cxr_spark.config import Experiment
from cxr_spark.dataset.tasks import PNEUMONIA
from cxr_spark.engine.device import Device
from cxr_spark.errors import RunFailed, UserError
from cxr_spark.placement import Placement
from cxr_spark.stages import run_train
from cxr_spark.training import executors, worker
from cxr_spark.training.assign import Assigned
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.executors import longest_first, why_failed
from cxr_spark.training.joined import join_backbones
from cxr_spark.training.reader import ImageKeys
from cxr_spark.training.work import Shared, Work, find_missing
from cxr_spark.training.worker import (
    Listed,
    Outcome,
    Shipped,
    check_node,
    installed_versions,
    keep_warnings,
)
from tests.training.test_job import make_experiment, make_store

GRID = {
    "heads": ["gap", "fc1024", "logistic", "tuned_logistic"],
    "averages": {"two": ["*-gap", "*-logistic"]},
    "cross_validation": {"folds": 3, "repeats": 1},
    "tuning": {"trials": 2},
    "standardise": True,
}
OWN = {"dense": [8], "dropout": 0.1}


def make_grid(tmp_path: Path, run: str, **changes: object) -> Experiment:
    return make_experiment(tmp_path, run=str(tmp_path / run), **{**GRID, **changes})


def content(run: Path) -> dict[str, object]:
    """Return what a run folder holds of its heads, but for what took how long."""
    found: dict[str, object] = {
        file.name: {k: v for k, v in json.loads(file.read_text()).items() if k != "train_seconds"}
        for file in run.glob("heads/*.json")
    }
    found |= {file.name: pd.read_parquet(file) for file in run.glob("predictions/*")}
    found |= {f"tuning {f.name}": json.loads(f.read_text()) for f in run.glob("tuning/*")}
    found["files"] = sorted(str(file.relative_to(run)) for file in run.rglob("*"))
    return found


def test_executors_leave_what_the_driver_leaves_and_go_on_with_it(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(tmp_path / "features")
    run_train(make_grid(tmp_path, "driver"))
    run = tmp_path / "executors"
    shutil.copytree(tmp_path / "driver", run)
    for file in (*run.glob("heads/*"), *run.glob("predictions/*"), *run.glob("tuning/*")):
        if not file.name.startswith("ResNet50-none-logistic"):
            file.unlink()
    before = {file: file.stat().st_mtime_ns for file in run.glob("heads/*")}
    assert len(before) == 4
    caplog.set_level(logging.INFO, "cxr_spark")
    caplog.clear()
    run_train(make_grid(tmp_path, "executors", distribute_heads=True), spark=spark)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    expected, found = content(tmp_path / "driver"), content(tmp_path / "executors")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, found[name], check_exact=True)
        else:
            assert value == found[name], name
    results = [
        pd.read_csv(tmp_path / run / "results.csv").drop(columns="train_seconds")
        for run in ("driver", "executors")
    ]
    pd.testing.assert_frame_equal(*results, check_exact=True)
    told = [line for line in caplog.messages if " s, about " in line]
    assert [line.split(",")[0] for line in told] == [f"training: {i} of 3" for i in (1, 2, 3)]


def test_what_an_executor_refuses_is_the_same_error_here(
    spark: SparkSession, tmp_path: Path
) -> None:
    make_store(tmp_path / "features")
    high = {"mine": {"dense": [8], "learning_rate": 1e30}}
    with pytest.raises(UserError, match="Expected finite scores of the head mine, seed 0"):
        run_train(
            make_experiment(
                tmp_path, heads=["mine"], custom_heads=high, seeds=[0], distribute_heads=True
            ),
            spark=spark,
        )
    assert not list((tmp_path / "run" / "heads").iterdir())


def test_what_an_executor_warns_of_is_kept() -> None:
    lines: list[str] = []
    with keep_warnings(lines):
        logging.getLogger("cxr_spark.training.trainer").warning("  %s learnt nothing", "gap")
    logging.getLogger("cxr_spark.training.trainer").warning("not this")
    assert lines == ["  gap learnt nothing"]


def test_the_driver_waits_for_files_and_says_which_are_not_there(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "features")

    def lose(*_: object) -> list[str]:
        shutil.rmtree(tmp_path / "run" / "predictions")
        return []

    monkeypatch.setattr(executors, "_result", lose)
    monkeypatch.setattr(executors, "SEEN_WITHIN_S", 0.1)
    with pytest.raises(RunFailed, match="lacks 1 of them, ResNet50-none-gap.*the same folder"):
        run_train(
            make_experiment(tmp_path, heads=["gap"], seeds=[0], distribute_heads=True), spark=spark
        )


@pytest.fixture
def works(tmp_path: Path) -> dict[str, Work]:
    """What a new run lacks of two backbones and both side by side, by name."""
    make_store(tmp_path / "features")
    make_store(tmp_path / "features", backbone="DenseNet121", weights_digest="e" * 64)
    experiment = make_grid(
        tmp_path, "run", backbones=["ResNet50", "DenseNet121"],
        concatenations=["ResNet50+DenseNet121"], custom_heads={"mine": OWN},
        heads=["gap", "fc1024", "logistic", "mine", "tuned_logistic"],
    )  # fmt: skip
    chosen = choose_extractions(tmp_path / "features", experiment)
    sources = join_backbones(chosen, experiment.concatenations)
    found = find_missing(tmp_path / "run", sources, experiment, [])
    return {work.configuration.name: work for work in found}


def test_what_takes_long_begins_first(works: dict[str, Work]) -> None:
    ordered = [work.configuration.head for work in longest_first(list(works.values()))]
    assert ordered == [
        *["tuned_logistic"] * 3, *["fc1024"] * 2, *["mine"] * 3, *["logistic"] * 3, *["gap"] * 3,
    ]  # fmt: skip


def test_an_executor_that_lacks_folders_or_has_other_packages_is_named(
    tmp_path: Path, works: dict[str, Work]
) -> None:
    for name in ("heads", "predictions"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "experiment.json").touch()
    work = works["ResNet50+DenseNet121-none-gap"]
    images = np.array([], str)
    keys = ImageKeys(images, images, images, images)
    assigned = Assigned(PNEUMONIA, np.array([], np.int64), images)
    experiment = make_grid(tmp_path, "run")
    shared = Shared(experiment, tmp_path / "features", tmp_path / "run", keys, assigned, [])
    shipped = Shipped("x", shared, [work], installed_versions())
    check_node(shipped, work)
    elsewhere = replace(shared, run=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"--run at the same path.*no .*elsewhere/experiment.json"):
        check_node(replace(shipped, shared=elsewhere), work)
    others = replace(shared, features=tmp_path / "others")
    with pytest.raises(UserError, match=r"--features and .*no .*others/[0-9a-f]+ on"):
        check_node(replace(shipped, shared=others), work)
    old = {**installed_versions(), "scikit-learn": "0.1"}
    with pytest.raises(UserError, match=r"scikit-learn \d.* on .* \(driver: 0.1\)"):
        check_node(replace(shipped, versions=old), work)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "Traceback:\n  File x\ncxr_spark.training.worker.HeadFailed: A-none-gap: MemoryError: y"
            "\n\n\tat org.apache",
            "A-none-gap: MemoryError: y",
        ),
        (
            "Job aborted due to stage failure: Task 1 in stage 3.0 failed 4 times, most recent "
            "failure: Lost task 1.3: org.apache.spark.SparkException: Python worker exited "
            "unexpectedly (crashed)",
            "ResNet50-none-fc1024: its Python worker was killed; was there too little memory",
        ),
        (
            "Task 0 in stage 3.0 failed 4 times: ExecutorLostFailure (executor 1 exited) "
            "Reason: Command exited with code 137\nDriver stacktrace:",
            "ResNet50-none-gap: Command exited with code 137",
        ),
        ("ModuleNotFoundError: No module named 'petastorm'", "no petastorm on an executor"),
        ("\n  Something else\nmore", "Something else"),
    ],
    ids=["python", "killed", "lost", "module", "other"],
)
def test_a_failed_job_is_told_in_a_line(text: str, told: str, works: dict[str, Work]) -> None:
    ordered = [works["ResNet50-none-gap"], works["ResNet50-none-fc1024"]]
    assert why_failed(text, ordered).startswith(told)


@pytest.mark.parametrize(
    ("device", "refused"),
    [
        (Device("CPU"), False),
        (Device("GPU", 1, "1", pretended=True), False),
        (Device("GPU", 1, "1"), True),
    ],
    ids=["the processor", "a pretended GPU", "a GPU that is not seen"],
)
def test_heads_are_placed_on_the_device_of_their_task(
    monkeypatch: pytest.MonkeyPatch, device: Device, refused: bool
) -> None:
    import tensorflow as tf

    monkeypatch.setattr(worker, "task_device", lambda _: device)
    if refused:
        with (
            pytest.raises(UserError, match="the GPU 1, and TensorFlow does not see it"),
            worker._on_gpu(Placement()),
        ):
            pass
        return
    with worker._on_gpu(Placement()):
        assert tf.constant(1.0).device.endswith("CPU:0")


def test_outcomes_come_back_as_they_were_sent() -> None:
    outcome = Outcome(3, 1.5, ["a line"], "UserError", "Expected b. Received: c")
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert isinstance(outcome.error(), UserError)
    assert isinstance(replace(outcome, failed="RunFailed").error(), RunFailed)
    assert Listed().addInPlace(Listed().zero(["x"]), ["a"]) == ["a"]
