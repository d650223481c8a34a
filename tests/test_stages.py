"""What the stages keep in a run folder, and what they take from one for its report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from cxr_spark import stages
from cxr_spark.errors import UserError
from cxr_spark.stages import run_report, run_train
from cxr_spark.training.run_folder import read_experiment
from tests.training.test_job import make_experiment, make_store


def test_a_run_keeps_every_command_that_trained_it(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    first = make_experiment(tmp_path, heads=["gap"], seeds=[0])
    run_train(first, command="train.py --seeds 0", extraction_seconds=1.5)
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[1]), command="train.py --seeds 1")
    kept = read_experiment(run)["commands"]
    assert [entry["command"] for entry in kept] == ["train.py --seeds 0", "train.py --seeds 1"]
    assert [entry["extraction_seconds"] for entry in kept] == [1.5, None]
    assert all(entry["training_seconds"] > 0 for entry in kept)
    run_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "train.py --seeds 1" in page
    assert "extraction 1.5 s" in page

    other = make_experiment(tmp_path, heads=["gap"], seeds=[0], training={"epochs": 3})
    with pytest.raises(UserError, match="differs in training"):
        run_train(other, command="refused")
    assert read_experiment(run)["commands"] == kept


def test_a_command_that_was_stopped_is_kept(tmp_path: Path, monkeypatch) -> None:
    make_store(tmp_path / "features")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cxr_spark.training.work._fit", stop)
    with pytest.raises(KeyboardInterrupt):
        run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0]), command="stopped")
    (entry,) = read_experiment(tmp_path / "run")["commands"]
    assert entry["command"] == "stopped"


def make_content(images: Path, **changes: Any) -> dict[str, Any]:
    return {
        "experiment": {"images": str(images), "dataset": {"adapter": "kermany"}},
        "task": {"name": "pneumonia", "classes": ["NORMAL", "PNEUMONIA"], "positive": 1},
        "demonstration": "",
        **changes,
    }


def test_samples_are_training_images_that_are_still_there(tmp_path: Path) -> None:
    names = {f"train/NORMAL/NORMAL2-IM-{k:04d}-0001.jpeg": ("train", 0) for k in range(9)}
    names |= {f"train/PNEUMONIA/person{k}_virus_1.jpeg": ("train", 1) for k in range(2)}
    names |= {
        "test/PNEUMONIA/person9_virus_1.jpeg": ("test", 1),
        "train/NORMAL/odd.jpeg": ("train", 0),
    }
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    splits, labels = zip(*names.values(), strict=True)
    table = pd.DataFrame({"image_id": list(names), "split": splits, "label": labels})
    found = stages._samples(tmp_path, table, make_content(tmp_path))
    assert [(s["truth"], s["finding"]) for s in found] == [("NORMAL", "NORMAL")] * 6 + [
        ("PNEUMONIA", "VIRUS")
    ] * 2
    assert stages._samples(tmp_path, table[::-1], make_content(tmp_path)) == found
    assert stages._samples(tmp_path, table, make_content(tmp_path / "gone")) == []


@pytest.mark.parametrize(
    ("changes", "n_test", "low", "n_shown"),
    [
        ({}, 624.0, 0.95, 2),
        ({}, 100.0, 0.95, 0),
        ({}, 624.0, float("nan"), 0),
        ({"demonstration": "Demonstration: seeded random weights."}, 624.0, 0.95, 0),
        ({"task": {"name": "findings", "classes": ["a", "b"], "positive": 1}}, 624.0, 0.95, 0),
    ],
    ids=["the paper's", "a sample", "no interval", "random weights", "another task"],
)
def test_published_figures_stand_beside_the_same_images_only(
    changes: dict[str, Any], n_test: float, low: float, n_shown: int, tmp_path: Path
) -> None:
    summary = pd.DataFrame(
        {
            "configuration": ["one", "chosen"],
            "test_auc": [0.99, 0.96],
            "test_auc_low": [0.98, low],
            "test_auc_high": [1.0, 0.97],
            "n_test": n_test,
        }
    )
    found: Any = SimpleNamespace(summary=summary, verdict=SimpleNamespace(selected="chosen"))
    shown = stages._published(found, make_content(tmp_path, **changes))
    assert len(shown) == n_shown
    assert [row["place"] for row in shown] == ["inside", "above"][:n_shown]
