"""Training of a grid, from a feature store to a run folder."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.shards import finish
from cxr_spark.extraction.store import CONTRACT, ExtractionRecord, Identity
from cxr_spark.stages import run_report, run_train
from cxr_spark.training.choose import choose_extractions
from cxr_spark.training.inputs import open_inputs
from cxr_spark.training.joined import join_backbones, open_joined
from cxr_spark.training.run_folder import PREDICTION_SCHEMA, read_experiment
from tests.training.test_reader import with_checksums

N = 120


def make_store(
    features: Path,
    *,
    backbone: str = "ResNet50",
    weights_digest: str = "d" * 64,
    preprocessing: str = "none",
    maps: bool = True,
    findings: tuple[str, ...] = ("NORMAL", "BACTERIA", "VIRUS"),
    listing_digest: str = "0",
    official: str = "train",
    contract: int = CONTRACT,
    digests: Sequence[str] = (),
) -> ExtractionRecord:
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 3
    pooled = rng.normal(size=(N, 8)).astype(np.float32)
    pooled[:, :3] += 1.5 * np.eye(3)[labels]
    record = ExtractionRecord(
        identity=Identity(backbone, weights_digest, preprocessing, (64, 64), contract=contract),
        weights="random",
        feature_map_shape=(1, 1, 8) if maps else None,
        n_images=N,
        n_rows=N,
        n_errors=0,
        listing_digest=listing_digest,
        limit=None,
        demonstration="Demonstration: made up.",
        spark={"version": "4", "default_parallelism": 2, "conf": {}},
        files={},
    )
    scale = np.abs(pooled).max(axis=1)
    columns = {
        "image_id": [f"i{i:03d}" for i in range(N)],
        "finding": [findings[label % len(findings)] for label in labels],
        "patient_id": [f"p{i // 2}" for i in range(N)],
        "official_split": ["test" if i % 4 == 0 else official for i in range(N)],
        "pixels_digest": list(digests) or [f"{i:040x}" for i in range(N)],
        "pooled": list(pooled),
        "feature_map": [m.tobytes() for m in (pooled / scale[:, None]).astype("<f2")],
        "feature_map_scale": scale,
    }
    if not maps:
        del columns["feature_map"], columns["feature_map_scale"]
    staged = features / "_staging"
    for name in ("rows", "errors"):
        (staged / name).mkdir(parents=True)
    pq.write_table(with_checksums(pa.table(columns)), staged / "rows" / "part-0.parquet")
    fields = [("image_id", "string"), ("path", "string"), ("length", "int64")]
    schema = pa.schema([*fields, ("stage", "string"), ("error", "string")])
    pq.write_table(schema.empty_table(), staged / "errors" / "part-0.parquet")
    return finish(features, staged / "rows", staged / "errors", record)


def make_experiment(tmp_path: Path, **changes: object) -> Experiment:
    fields = {
        "backbones": ["ResNet50"],
        "weights": "random",
        "image_size": 64,
        "heads": ["gap", "fc1024"],
        "seeds": [0, 1],
        "features": str(tmp_path / "features"),
        "run": str(tmp_path / "run"),
        "split": {"validation_fraction": 0.2},
        "training": {"epochs": 2},
        **changes,
    }
    return Experiment.model_validate(fields)


def test_a_grid_leaves_everything_that_the_run_folder_promises(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    run_train(make_experiment(tmp_path))
    run_report(run)
    names = [f"ResNet50-none-{head}-seed{seed}" for head in ("gap", "fc1024") for seed in (0, 1)]
    for name in names:
        assert (run / "heads" / f"{name}.keras").stat().st_size > 0
        assert len(json.loads((run / "heads" / f"{name}.json").read_text())["history"]["loss"]) == 2
        predictions = pq.read_table(run / "predictions" / f"{name}.parquet")
        assert predictions.schema == PREDICTION_SCHEMA
        assert predictions.num_rows == N
        scores = np.stack(predictions["score"].to_pylist())
        assert scores.sum(axis=1) == pytest.approx(np.ones(N), abs=1e-5)
    content = read_experiment(run)
    assert content["demonstration"] == "Demonstration: made up."
    assert content["images"]["patients_in_two_splits"]["train-val"] == 0
    assert content["images"]["patients_in_two_splits"]["development-test"] == 30
    lines = (run / "results.csv").read_text().splitlines()
    assert len(lines) == 5
    assert all("Demonstration: made up." in line for line in lines[1:])
    page = (run / "report.html").read_text()
    assert "Demonstration: made up." in page
    assert "Sources of the heads: gap, fc1024 (G. Paterakis" in page
    measured = json.loads((run / "results.json").read_text())
    assert measured["rules"]["threshold"] == "youden"
    assert [row["configuration"] for row in measured["rows"]] == [
        line.split(",")[0] for line in lines[1:]
    ]
    assert sum(map(sum, measured["rows"][0]["confusion"])) == measured["rows"][0]["n_test"]


def test_a_second_run_on_one_run_folder_stops_with_one_line(tmp_path: Path) -> None:
    from cxr_spark.extraction.lock import locked

    make_store(tmp_path / "features")
    run = tmp_path / "run"
    run.mkdir()
    with locked(run, "run"):
        for second in (
            lambda: run_train(make_experiment(tmp_path, heads=["gap"])),
            lambda: run_train(make_experiment(tmp_path, heads=["gap"], overwrite=True)),
        ):
            with pytest.raises(UserError, match="by one run at a time.*give another --run"):
                second()
        assert [path.name for path in run.iterdir()] == ["_lock"]


def test_another_way_to_measure_trains_nothing_again(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    run_train(make_experiment(tmp_path, heads=["gap"]))
    heads = {file: file.stat().st_mtime_ns for file in (run / "heads").iterdir()}
    other = {"threshold": "sensitivity=1", "calibration": "platt"}
    run_train(make_experiment(tmp_path, heads=["gap"], evaluation=other))
    assert {file: file.stat().st_mtime_ns for file in (run / "heads").iterdir()} == heads
    measured = json.loads((run / "results.json").read_text())
    assert measured["rules"] == {"positive": 1, "n_resamples": 2000, **other}


def test_the_same_run_is_continued_and_another_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    run_train(make_experiment(tmp_path, heads=["gap"]))
    results = pd.read_csv(run / "results.csv")
    kept, lost = (run / "heads" / f"ResNet50-none-gap-seed{seed}.json" for seed in (0, 1))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    run_train(make_experiment(tmp_path, heads=["gap"]))
    assert kept.stat().st_mtime_ns == before
    assert lost.exists()
    pd.testing.assert_frame_equal(
        results.drop(columns="train_seconds"),
        pd.read_csv(run / "results.csv").drop(columns="train_seconds"),
        check_exact=True,
    )
    with pytest.raises(UserError, match=r"differs in training .*'epochs': 2.*'epochs': 3"):
        run_train(make_experiment(tmp_path, heads=["gap"], training={"epochs": 3}))
    run_train(make_experiment(tmp_path, heads=["gap"], training={"epochs": 3}, overwrite=True))
    assert len(json.loads(kept.read_text())["history"]["loss"]) == 3


def test_pooled_heads_are_cross_validated_and_one_is_selected(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    make_store(tmp_path / "features", backbone="DenseNet121", weights_digest="e" * 64)
    run = tmp_path / "run"
    settings = {"folds": 3, "repeats": 2}
    experiment = make_experiment(
        tmp_path, backbones=["ResNet50", "DenseNet121"], cross_validation=settings
    )
    run_train(experiment)
    run_report(run)
    names = [f"{backbone}-none-gap" for backbone in ("ResNet50", "DenseNet121")]
    assert {file.stem for file in (run / "predictions").glob("*-cross.parquet")} == {
        f"{name}-cross" for name in names
    }
    held_out = pq.read_table(run / "predictions" / f"{names[0]}-cross.parquet")
    assert held_out.schema == PREDICTION_SCHEMA
    table = held_out.to_pandas()
    whole = pq.read_table(run / "predictions" / f"{names[0]}-seed0.parquet").to_pandas()
    training = sorted(whole[whole["split"] == "train"]["image_id"])
    for repeat in range(2):
        assert sorted(table[table["repeat"] == repeat]["image_id"]) == training
    results = pd.read_csv(run / "results.csv").set_index("configuration")
    assert results["cv_auc"].notna().groupby(level=0).all().to_dict() == {
        name: name.endswith("gap") for name in sorted(results.index.unique())
    }
    selected = json.loads((run / "results.json").read_text())["selected"]
    assert selected == results["cv_auc"].idxmax()
    assert (
        f"Selected on training images alone: <strong>{selected}"
        in (run / "report.html").read_text()
    )


def test_cross_validation_goes_on_and_is_not_repeated(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    file = run / "predictions" / "ResNet50-none-gap-cross.parquet"
    experiment = make_experiment(tmp_path, heads=["gap"])
    run_train(experiment)
    before, when = file.read_bytes(), file.stat().st_mtime_ns
    heads = {f: f.stat().st_mtime_ns for f in (run / "heads").iterdir()}
    run_train(experiment)
    assert file.stat().st_mtime_ns == when
    file.unlink()
    run_train(experiment)
    assert file.read_bytes() == before
    assert {f: f.stat().st_mtime_ns for f in (run / "heads").iterdir()} == heads


def test_heads_on_maps_are_cross_validated_on_request(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    settings = {"folds": 2, "repeats": 1, "feature_maps": True}
    run_train(make_experiment(tmp_path, seeds=[0], cross_validation=settings))
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    assert results["cv_auc"].notna().all()


def test_classifiers_and_heads_of_ones_own_are_rows_as_any(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    own = {"mine": {"dense": [8], "dropout": 0.1, "epochs": 3, "class_weights": "balanced"}}
    heads = ["gap", "logistic", "mine"]
    settings = {"folds": 3, "repeats": 1}
    experiment = make_experiment(
        tmp_path, heads=heads, custom_heads=own, seeds=[0], cross_validation=settings
    )
    run_train(experiment)
    run_report(run)
    results = pd.read_csv(run / "results.csv")
    assert results["head"].tolist() == heads
    assert results["cv_auc"].notna().all()
    assert results["selected"].sum() == 1
    assert {f.suffix for f in (run / "heads").glob("*logistic*")} == {".json", ".skops"}
    stored = json.loads((run / "heads" / "ResNet50-none-mine-seed0.json").read_text())
    assert len(stored["history"]["loss"]) == 3
    changed = {"mine": {"dense": [9]}}
    with pytest.raises(UserError, match="differs in custom_heads"):
        run_train(
            make_experiment(
                tmp_path,
                heads=heads,
                custom_heads=changed,
                seeds=[0],
                cross_validation=settings,
            )
        )
    more = {**own, "other": {"dense": [4]}}
    run_train(
        make_experiment(
            tmp_path, heads=["other"], custom_heads=more, seeds=[0], cross_validation=settings
        )
    )
    assert pd.read_csv(run / "results.csv")["head"].tolist() == [*heads, "other"]


def test_classifiers_need_features_in_memory_and_say_so_before_anything_is_written(
    tmp_path: Path,
) -> None:
    make_store(tmp_path / "features")
    little = make_experiment(
        tmp_path, heads=["gap", "logistic"], training={"memory_gb": 1e-9, "epochs": 1}
    )
    with pytest.raises(UserError, match="Expected pooled features that fit training.memory_gb"):
        run_train(little)
    assert not (tmp_path / "run").exists()


def test_more_memory_and_other_folds_make_no_other_experiment(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    cross = run / "predictions" / "ResNet50-none-gap-cross.parquet"
    asked = {"heads": ["gap"], "seeds": [0]}
    run_train(make_experiment(tmp_path, **asked, cross_validation={"folds": 2, "repeats": 1}))
    heads = {f: f.stat().st_mtime_ns for f in (run / "heads").iterdir()}
    training = {"epochs": 2, "memory_gb": 3.0}
    run_train(
        make_experiment(
            tmp_path, **asked, training=training, cross_validation={"folds": 3, "repeats": 1}
        )
    )
    assert {f: f.stat().st_mtime_ns for f in (run / "heads").iterdir()} == heads
    assert sorted(pd.read_parquet(cross)["fold"].unique()) == [0, 1, 2]
    run_train(make_experiment(tmp_path, **asked, cross_validation=None))
    assert not cross.exists()
    assert json.loads((run / "results.json").read_text())["selected"] is None


def test_heads_added_without_the_others_select_nothing(tmp_path: Path, caplog) -> None:
    make_store(tmp_path / "features")
    settings = {"folds": 2, "repeats": 1}
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0], cross_validation=None))
    added = make_experiment(tmp_path, heads=["logistic"], seeds=[0], cross_validation=settings)
    with caplog.at_level("WARNING"):
        run_train(added)
    assert "no configuration is selected: ResNet50-none-gap is not cross-valid" in caplog.text
    both = make_experiment(
        tmp_path, heads=["gap", "logistic"], seeds=[0], cross_validation=settings
    )
    run_train(both)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["selected"] is not None
    assert len(results["configurations"]) == 2


def test_too_few_images_are_not_cross_validated_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(tmp_path / "features")
    with caplog.at_level("WARNING"):
        run_train(make_experiment(tmp_path, heads=["gap"], cross_validation={"folds": 40}))
    assert "no cross-validation, so that no configuration is selected: Expected at" in caplog.text
    assert json.loads((tmp_path / "run" / "results.json").read_text())["selected"] is None
    caplog.clear()
    with caplog.at_level("WARNING"):
        run_train(make_experiment(tmp_path, heads=["gap"], cross_validation=None, overwrite=True))
    assert "cross-validation" not in caplog.text


def test_heads_and_seeds_of_the_same_experiment_join_a_run(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0, 1]))
    run_train(make_experiment(tmp_path, heads=["fc1024"], seeds=[0]))
    run_report(run)
    results = pd.read_csv(run / "results.csv")
    assert list(zip(results["head"], results["seed"], strict=True)) == [
        ("gap", 0), ("gap", 1), ("fc1024", 0),
    ]  # fmt: skip


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    (tmp_path / "run" / "heads").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds heads but no experiment.json"):
            run_train(make_experiment(tmp_path, overwrite=overwrite))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["heads"]


def test_a_run_of_before_a_key_was_there_has_its_default(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0]))
    file = tmp_path / "run" / "experiment.json"
    content = json.loads(file.read_text())
    del content["experiment"]["training"]["batch_size"]
    file.write_text(json.dumps(content))
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[1]))
    content["experiment"]["training"]["batch_size"] = 32
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="differs in training"):
        run_train(make_experiment(tmp_path, heads=["gap"], seeds=[2]))


@pytest.mark.parametrize("memory_gb", [1.0, 1e-7], ids=["in memory", "streamed"])
def test_damaged_features_are_told_however_they_are_read(tmp_path: Path, memory_gb: float) -> None:
    record = make_store(tmp_path / "features")
    (file,) = (tmp_path / "features" / record.fingerprint).glob("*.parquet")
    group = pq.ParquetFile(file).metadata.row_group(0)
    (pooled,) = (
        column
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema.startswith("pooled.")
    )
    content = bytearray(file.read_bytes())
    start = pooled.dictionary_page_offset or pooled.data_page_offset
    content[start : start + 30] = b"\xff" * 30
    file.write_bytes(content)
    training = {"epochs": 1, "memory_gb": memory_gb}
    with pytest.raises(UserError, match="Expected Parquet that petastorm can read"):
        run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0], training=training))


def test_inputs_are_freed_before_the_next_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    opened: list[weakref.ref[object]] = []

    def watched(*arguments: object, **options: object) -> object:
        alive.append(sum(array() is not None for array in opened))
        inputs = open_inputs(*arguments, **options)  # type: ignore[arg-type]
        opened.append(weakref.ref(inputs._arrays[0]))  # type: ignore[attr-defined]
        return inputs

    monkeypatch.setattr("cxr_spark.training.joined.open_inputs", watched)
    make_store(tmp_path / "features")
    run_train(make_experiment(tmp_path, seeds=[0]))
    assert alive == [0, 0]


def test_a_damaged_record_of_a_head_is_named(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0]))
    (tmp_path / "run" / "heads" / "ResNet50-none-gap-seed0.json").write_text("{")
    with pytest.raises(UserError, match=r"ResNet50-none-gap-seed0.json.*run train again"):
        run_report(tmp_path / "run")


def test_the_papers_figures_stand_beside_its_own_task_alone(tmp_path: Path) -> None:
    make_store(tmp_path / "features", findings=("cat", "dog"))
    folder = {"adapter": "folder", "patient_pattern": "."}
    run_train(
        make_experiment(
            tmp_path, task="findings", positive="dog", heads=["gap"], seeds=[0], dataset=folder
        )
    )
    run_report(tmp_path / "run")
    assert pd.read_csv(tmp_path / "run" / "results.csv")["paper_test_keras_auc"].isna().all()
    assert "the paper" not in (tmp_path / "run" / "report.html").read_text()


def test_weights_are_not_mixed_over_preprocessings(tmp_path: Path) -> None:
    features = tmp_path / "features"
    make_store(features)
    make_store(features, preprocessing="keras", weights_digest="e" * 64)
    with pytest.raises(UserError, match="the same weights of ResNet50"):
        choose_extractions(features, make_experiment(tmp_path, preprocessing=["none", "keras"]))


def test_a_run_of_other_features_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    make_store(tmp_path / "others", weights_digest="e" * 64)
    make_store(tmp_path / "moved", listing_digest="1")
    run_train(make_experiment(tmp_path, heads=["gap"]))
    for other in ("others", "moved"):
        changed = make_experiment(tmp_path, heads=["gap"], features=str(tmp_path / other))
        with pytest.raises(UserError, match="Expected the features that .* was trained on"):
            run_train(changed)


def test_three_classes_run_to_a_report(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run_train(make_experiment(tmp_path, task="normal-bacteria-virus", heads=["gap"]))
    run_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "macro ROC AUC" in page
    assert "of its variance over 2000 drawings of test patients" in page
    assert "BACTERIA" in page


def test_two_classes_of_folders_name_their_positive(tmp_path: Path) -> None:
    make_store(tmp_path / "features", findings=("sick", "healthy"))
    with pytest.raises(UserError, match="positive: to name one of the two"):
        run_train(make_experiment(tmp_path, task="findings", heads=["gap"]))
    assert not (tmp_path / "run").exists()
    run_train(make_experiment(tmp_path, task="findings", positive="healthy", heads=["gap"]))
    assert read_experiment(tmp_path / "run")["task"]["positive"] == 0


@pytest.mark.parametrize(
    ("store", "changes", "message"),
    [
        ({"contract": 1}, {}, r"ResNet50, .*, contract \d.* holds .*, contract 1,"),
        ({"contract": 1}, {"extraction": ["old"]}, r"There are: none of contract \d"),
        ({"maps": False}, {}, "Run extract with --feature-maps"),
        ({}, {"backbones": ["Xception"], "image_size": 96}, "an extraction of Xception.*holds"),
        ({}, {"image_size": 96}, "an extraction of ResNet50, preprocessing none, 96x96"),
        ({}, {"preprocessing": "keras"}, "preprocessing keras"),
        ({}, {"extraction": ["abc"]}, "--extraction to name extractions.*There are: "),
        ({"findings": ("NORMAL",)}, {}, "no PNEUMONIA in train"),
        ({"findings": ("COVID",)}, {}, "Received: COVID"),
        ({"official": "val"}, {"split": {"validation_fraction": 0.99}}, "no .* in train"),
    ],
)
def test_features_that_do_not_serve_are_refused_before_anything_is_written(
    tmp_path: Path, store: dict, changes: dict, message: str
) -> None:
    make_store(tmp_path / "features", **store)
    with pytest.raises(UserError, match=message):
        run_train(make_experiment(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_two_extractions_of_a_backbone_need_a_choice(tmp_path: Path) -> None:
    features = tmp_path / "features"
    one = make_store(features)
    two = make_store(features, weights_digest="e" * 64)
    with pytest.raises(UserError, match="--extraction FINGERPRINT") as raised:
        choose_extractions(features, make_experiment(tmp_path))
    assert one.fingerprint in str(raised.value)
    assert two.fingerprint in str(raised.value)
    chosen = make_experiment(tmp_path, extraction=[two.fingerprint])
    assert choose_extractions(features, chosen) == {("ResNet50", "none"): two}


def test_both_preprocessings_may_be_compared(tmp_path: Path) -> None:
    features = tmp_path / "features"
    make_store(features)
    make_store(features, preprocessing="keras")
    with pytest.raises(UserError, match="--extraction"):
        choose_extractions(features, make_experiment(tmp_path))
    both = make_experiment(tmp_path, preprocessing=["none", "keras"])
    assert len(choose_extractions(features, both)) == 2


def test_extractions_of_other_images_are_not_mixed(tmp_path: Path) -> None:
    features = tmp_path / "features"
    make_store(features)
    make_store(features, backbone="DenseNet121", listing_digest="1")
    with pytest.raises(UserError, match="the same images"):
        choose_extractions(
            features, make_experiment(tmp_path, backbones=["ResNet50", "DenseNet121"])
        )


def test_backbones_side_by_side_and_averages_are_rows_of_the_table(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    make_store(tmp_path / "features", backbone="DenseNet121")
    run = tmp_path / "run"
    both = {
        "backbones": ["ResNet50", "DenseNet121"],
        "concatenations": ["ResNet50+DenseNet121"],
        "heads": ["gap", "logistic", "fc1024"],
        "averages": {"pooled": ["*-gap", "*-logistic"], "lonely": ["*-knn"]},
        "cross_validation": {"folds": 2, "repeats": 1},
        "standardise": True,
    }
    run_train(make_experiment(tmp_path, **both))
    run_report(run)
    results = pd.read_csv(run / "results.csv")
    configurations = results["configuration"].unique().tolist()
    assert "ResNet50+DenseNet121-none-logistic" in configurations
    assert "ResNet50+DenseNet121-none-fc1024" not in configurations
    assert configurations[-1] == "average-none-pooled"
    assert len(configurations) == 2 * 3 + 2 + 1
    joined = json.loads(
        (run / "heads" / "ResNet50+DenseNet121-none-logistic-seed0.json").read_text()
    )
    assert joined["extraction"].count("+") == 1
    averaged = results[results["configuration"] == "average-none-pooled"]
    assert averaged["cv_auc"].notna().all()
    assert averaged["seed"].tolist() == [0, 1]
    record = json.loads((run / "heads" / "average-none-pooled-seed1.json").read_text())
    assert len(record["members"]) == 6
    assert "average-none-pooled" in (run / "report.html").read_text()
    assert "could be selected from" not in (run / "model_card.md").read_text()
    # again, with fewer members: they are of what is named now
    run_train(make_experiment(tmp_path, **{**both, "averages": {"gaps": ["*-gap"]}}))
    names = {file.name for file in (run / "heads").glob("average-*")}
    assert names == {"average-none-gaps-seed0.json", "average-none-gaps-seed1.json"}


def test_what_stands_side_by_side_is_both_features_of_each_image(tmp_path: Path) -> None:
    records = tuple(
        make_store(tmp_path / "features", backbone=backbone)
        for backbone in ("ResNet50", "DenseNet121")
    )
    image_id = np.array([f"i{i:03d}" for i in range(N)], object)
    one, two = (
        open_joined(tmp_path / "features", (r,), "pooled", image_id, memory_gb=1) for r in records
    )
    both = open_joined(tmp_path / "features", records, "pooled", image_id, memory_gb=1)
    assert np.array_equal(both.values, np.hstack([one.values, two.values]))  # type: ignore[attr-defined]


def test_a_backbone_that_is_not_there_stands_beside_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = make_store(tmp_path / "features")
    sources = join_backbones({("ResNet50", "none"): record}, ["ResNet50+DenseNet121"])
    assert sources == {("ResNet50", "none"): (record,)}
    assert "ResNet50+DenseNet121 is left out: no DenseNet121 in this run" in caplog.text


def test_side_by_side_needs_memory_and_names_of_the_experiment(tmp_path: Path) -> None:
    for backbone in ("ResNet50", "DenseNet121"):
        make_store(tmp_path / "features", backbone=backbone)
    both = {"backbones": ["ResNet50", "DenseNet121"], "heads": ["gap"]}
    for wrong in ("ResNet50", "ResNet50+ResNet50", "ResNet50+Xceptoin", "ResNet50+"):
        with pytest.raises(UserError, match="Expected each of concatenations"):
            make_experiment(tmp_path, **both, concatenations=[wrong])
    joined = make_experiment(
        tmp_path, **both, concatenations=["ResNet50+DenseNet121"], training={"memory_gb": 6e-6}
    )
    with pytest.raises(UserError, match=r"as features side by side must.*ResNet50\+DenseNet121"):
        run_train(joined)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_a_tuned_head_is_found_once_and_told(tmp_path: Path) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    tuned = {
        "heads": ["logistic", "tuned_logistic", "tuned_gap"],
        "tuning": {"trials": 3},
        "cross_validation": {"folds": 3, "repeats": 1},
        "seeds": [0],
    }
    run_train(make_experiment(tmp_path, **tuned))
    run_report(run)
    trials = run / "tuning" / "ResNet50-none-tuned_logistic.json"
    assert len(json.loads(trials.read_text())["trials"]) == 3
    record = json.loads((run / "heads" / "ResNet50-none-tuned_logistic-seed0.json").read_text())
    assert record["search"]["n_trials"] == 3
    page = (run / "report.html").read_text()
    assert "What was found for tuned heads" in page
    assert f"{record['search']['auc']:.3f}" in page
    results = pd.read_csv(run / "results.csv")
    assert results["cv_auc"].notna().all()
    # more seeds of it are trained with what was found
    before = trials.stat().st_mtime_ns
    run_train(make_experiment(tmp_path, **{**tuned, "seeds": [0, 1]}))
    assert trials.stat().st_mtime_ns == before
    for other in ({"tuning": {"trials": 4}}, {"cross_validation": {"folds": 3, "repeats": 2}}):
        with pytest.raises(UserError, match=f"differs in {next(iter(other))}"):
            run_train(make_experiment(tmp_path, **{**tuned, **other}))


def test_a_tuned_head_needs_folds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected cross_validation, by which tuned_gap is tuned"):
        make_experiment(tmp_path, heads=["tuned_gap"], cross_validation=None)
    with pytest.raises(UserError, match="Expected cross_validation.folds of 3 or more"):
        make_experiment(tmp_path, heads=["tuned_gap"], cross_validation={"folds": 2})
    with pytest.raises(UserError, match="feature_maps: true for tuned_fc1024"):
        make_experiment(tmp_path, heads=["tuned_fc1024"])
    make_store(tmp_path / "features")
    many = make_experiment(tmp_path, heads=["tuned_gap"], cross_validation={"folds": 50})
    with pytest.raises(UserError, match="at least as many training patients"):
        run_train(many)


def test_what_was_asked_for_and_is_not_there_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(tmp_path / "features")
    run = tmp_path / "run"
    heads = ["logistic", "linear_svm", "tuned_logistic"]
    few = {"cross_validation": {"folds": 3, "repeats": 1}, "tuning": {"trials": 2}, "seeds": [0]}
    run_train(make_experiment(tmp_path, heads=heads, **few))
    run_report(run)
    page = (run / "report.html").read_text()
    assert "not trained" not in page
    assert "What was found for tuned heads" in page  # though no head has epochs
    (run / "heads" / "ResNet50-none-linear_svm-seed0.json").unlink()
    run_report(run)
    page = (run / "report.html").read_text()
    assert "Asked for and not trained (yet): 1 configuration</strong>" in page
    assert "ResNet50-none-linear_svm" in page
    assert "asked for and not trained: 1 configurations, ResNet50-none-linear_svm" in caplog.text
    stored = json.loads((run / "results.json").read_text())
    assert stored["not_trained"] == ["ResNet50-none-linear_svm"]


def test_images_of_the_same_pixels_within_a_split_are_counted(tmp_path: Path) -> None:
    digests = [f"{i:040x}" for i in range(N)]
    digests[8] = digests[4] = digests[0]  # three test images, as each fourth is one
    make_store(tmp_path / "features", digests=digests)
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0], cross_validation=None))
    run_report(tmp_path / "run")
    within = read_experiment(tmp_path / "run")["images"]["identical_within"]
    assert within["test"] == {"n_groups": 1, "n_images": 3}
    assert within["train"] == within["val"] == {"n_groups": 0, "n_images": 0}
    page = " ".join((tmp_path / "run" / "report.html").read_text().split())
    assert "Of the images in test 3 have the same pixels as another there (1 groups)" in page
