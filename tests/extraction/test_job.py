"""Extraction through Spark, on phantoms and on files that are none."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxr_spark.backbones import load_backbone
from cxr_spark.config import DatasetConfig, Experiment
from cxr_spark.dataset.manifest import even_sample, read_listing
from cxr_spark.engine.forward import compile_forward
from cxr_spark.errors import UserError
from cxr_spark.extraction.job import STAGING, ExtractionRequest, _clear_staging, extract
from cxr_spark.extraction.listing import REPLACED, read_listing_record
from cxr_spark.extraction.load import load_backbones
from cxr_spark.extraction.store import ExtractionRecord, list_extractions
from cxr_spark.images import decode_grey, resize_bilinear
from cxr_spark.spark_jobs import Progress, _stages


def run(
    spark, experiment: Experiment, images: Path, features: Path, *, overwrite=False, maps=False
) -> list[ExtractionRecord]:
    weights = features.parent / f"{features.name}-weights"
    weights.mkdir(exist_ok=True)
    backbones = list(load_backbones(experiment, weights, feature_maps=maps))
    request = ExtractionRequest(experiment, images, features, maps)
    return extract(spark, request, lambda: backbones, overwrite=overwrite)


def read(features: Path, record: ExtractionRecord) -> pd.DataFrame:
    rows = pq.ParquetDataset(features / record.fingerprint).read().to_pandas()
    return rows.sort_values("image_id", ignore_index=True)


def read_errors(features: Path, record: ExtractionRecord) -> pd.DataFrame:
    folder = features / "errors" / f"fingerprint={record.fingerprint}"
    return pq.ParquetDataset(folder).read().to_pandas().set_index("image_id")


@pytest.fixture(scope="module")
def extracted(spark, phantoms: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two backbones over the phantoms, with maps, beside the experiment and the folder."""
    features = tmp_path_factory.mktemp("store") / "features"
    experiment = Experiment(
        backbones=["MobileNetV3Small", "DenseNet121"],
        weights="random",
        image_size=48,  # type: ignore[arg-type]
    )
    return experiment, features, run(spark, experiment, phantoms, features, maps=True)


def test_rows_have_the_declared_columns_and_every_image(extracted, phantoms: Path) -> None:
    _, features, records = extracted
    for record in records:
        rows = read(features, record)
        assert list(rows.columns) == [
            "image_id", "path", "length", "modified", "patient_id", "finding", "official_split",
            "height", "width", "pixels_digest", "keys_checksum", "pooled", "pooled_checksum",
            "feature_map", "feature_map_scale", "feature_map_checksum",
        ]  # fmt: skip
        files = sorted(str(p.relative_to(phantoms)) for p in phantoms.rglob("*.jpeg"))
        assert rows["image_id"].tolist() == files
        assert (record.n_images, record.n_rows, record.n_errors) == (90, 90, 0)
        first = rows.iloc[0]
        status = (phantoms / first["image_id"]).stat()
        assert first["length"] == status.st_size
        assert first["modified"].timestamp() == pytest.approx(status.st_mtime, abs=1e-5)
        assert (first["height"], first["width"]) == (64, 64)
        pixels = resize_bilinear(decode_grey((phantoms / files[0]).read_bytes()), (48, 48))
        whole = np.round(pixels).astype(np.uint8).tobytes()
        assert first["pixels_digest"] == hashlib.sha1(whole).hexdigest()
        assert set(rows["finding"]) == {"NORMAL", "BACTERIA", "VIRUS"}


def test_features_are_those_of_the_backbone_on_decoded_pixels(extracted, phantoms: Path) -> None:
    experiment, features, records = extracted
    for record in records:
        rows = read(features, record)
        name = record.identity.backbone
        pixels = [
            resize_bilinear(decode_grey((phantoms / i).read_bytes()), (48, 48))
            for i in rows["image_id"]
        ]
        model = load_backbone(name, experiment.image_size, "random")
        forward = compile_forward(model, name, "none", feature_maps=True)
        pooled, halves, expected_scales = forward(np.stack(pixels)[..., None])
        maps = halves.astype(np.float32) * expected_scales[:, None, None, None]
        stored = np.stack(rows["pooled"])
        assert np.linalg.norm(stored - pooled) < 1e-5 * np.linalg.norm(pooled)
        shape = record.feature_map_shape
        assert shape == maps.shape[1:]
        scales = rows["feature_map_scale"].to_numpy()
        assert scales == pytest.approx(np.abs(maps).max(axis=(1, 2, 3)), rel=1e-4)
        for i in (0, 89):
            half = np.frombuffer(rows["feature_map"][i], "<f2").reshape(shape)
            error = np.abs(half.astype(np.float32) * scales[i] - maps[i]).max()
            assert error < 1e-3 * scales[i]


def test_the_manifest_knows_how_many_bytes_there_are_to_decode(extracted, phantoms: Path) -> None:
    _, features, _ = extracted
    listing = read_listing_record(features)
    assert listing is not None
    assert listing.n_bytes == sum(file.stat().st_size for file in phantoms.rglob("*.jpeg"))


def test_a_second_run_computes_nothing(extracted, spark, phantoms: Path) -> None:
    experiment, features, records = extracted
    before = {p: p.stat().st_mtime_ns for p in features.rglob("*.parquet")}
    assert run(spark, experiment, phantoms, features) == records
    assert {p: p.stat().st_mtime_ns for p in features.rglob("*.parquet")} == before


def test_features_do_not_depend_on_the_number_of_tasks(
    extracted, spark, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, features, records = extracted
    monkeypatch.setattr("cxr_spark.extraction.one_pass.plan_shards", lambda *_: (3, 1))
    other = tmp_path / "other"
    for record, again in zip(records, run(spark, experiment, phantoms, other), strict=True):
        one, two = read(features, record), read(other, again)
        assert one["image_id"].tolist() == two["image_id"].tolist()
        stored, new = np.stack(one["pooled"]), np.stack(two["pooled"])
        distance = np.linalg.norm(stored - new, axis=1) / np.linalg.norm(stored, axis=1)
        assert distance.max() <= 1e-5


def test_each_planned_task_is_one_of_spark_for_progress_counts_them(
    extracted, spark, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark would read many small files by one task."""
    experiment, _, _ = extracted
    planned = dict[str, int]()

    class Recorded(Progress):
        def __init__(self, spark, what: str, n_images: int, n_tasks: int) -> None:
            super().__init__(spark, what, n_images, n_tasks)
            planned[self.group] = n_tasks

    monkeypatch.setattr("cxr_spark.extraction.one_pass.plan_shards", lambda *_: (2, 6))
    monkeypatch.setattr("cxr_spark.extraction.one_pass.Progress", Recorded)
    key = "spark.sql.files.openCostInBytes"
    before = spark.conf.get(key)
    run(spark, experiment, phantoms, tmp_path / "features")
    ((group, n_tasks),) = planned.items()
    ran = sum(stage.numCompletedTasks for stage in _stages(spark.sparkContext, group))
    assert n_tasks == 12
    assert ran == n_tasks
    assert spark.conf.get(key) == before


@pytest.fixture
def spoiled(phantoms: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The phantoms with broken and strange files between them, and the stage each ends in."""
    root = tmp_path / "images"
    shutil.copytree(phantoms, root)
    whole = next((root / "train" / "NORMAL").iterdir()).read_bytes()
    folder = root / "train" / "PNEUMONIA"
    (folder / "person1_virus_0.jpeg").touch()
    (folder / "person2_virus_0.jpeg").write_text("this is a text")
    (folder / "person3_virus_0.jpeg").write_bytes(whole[: len(whole) // 2])
    (folder / "person4_virus_0.jpeg").symlink_to("nowhere")
    (folder / "person5_virus_0.jpeg").mkdir()
    os.mkfifo(folder / "person6_virus_0.jpeg")
    (folder / "holiday.jpeg").write_bytes(whole)
    (folder / "_person6_virus_0.jpeg").write_bytes(whole)
    (root / "train:2.jpeg").write_bytes(whole)
    Path(os.fsdecode(os.fsencode(folder) + b"/person7_\xff_0.jpeg")).write_bytes(whole)
    stages = {
        "person1_virus_0.jpeg": "decode",
        "person2_virus_0.jpeg": "decode",
        "person3_virus_0.jpeg": "decode",
        "person4_virus_0.jpeg": "read",
        "person5_virus_0.jpeg": "read",
        "person6_virus_0.jpeg": "read",
        "holiday.jpeg": "path",
        "_person6_virus_0.jpeg": "path",
        "person7_\\xff_0.jpeg": "path",
    }
    return root, {
        **{f"train/PNEUMONIA/{name}": stage for name, stage in stages.items()},
        "train:2.jpeg": "path",
    }


def test_every_image_is_a_row_or_an_error_and_neighbours_are_unchanged(
    extracted, spark, spoiled, tmp_path: Path
) -> None:
    experiment, features, records = extracted
    root, stages = spoiled
    store = tmp_path / "spoiled"
    for record, whole in zip(run(spark, experiment, root, store), records, strict=True):
        errors = read_errors(store, record)
        assert errors["stage"].to_dict() == stages
        assert errors["error"].str.len().min() > 4
        assert "truncated" in errors["error"]["train/PNEUMONIA/person3_virus_0.jpeg"]
        assert (record.n_images, record.n_rows, record.n_errors) == (100, 90, 10)
        stored, new = (np.stack(r["pooled"]) for r in (read(features, whole), read(store, record)))
        distance = np.linalg.norm(stored - new, axis=1) / np.linalg.norm(stored, axis=1)
        assert distance.max() <= 1e-5


def test_sparks_pages_say_what_each_job_is_for(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    def descriptions() -> dict[int, str | None]:
        jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
        each = (jobs.apply(i) for i in range(jobs.size()))
        told = ((job.jobId(), job.description()) for job in each)
        return {job: said.get() if said.isDefined() else None for job, said in told}

    before = descriptions()
    few = experiment.model_copy(update={"limit": 20})
    run(spark, few, phantoms, tmp_path / "features")
    assert {what for job, what in descriptions().items() if job not in before} == {
        f"listing the images under {phantoms}",
        "loading backbones in the Python workers",
        "cutting 20 images into 2 tasks",
        "extracting features, shard 1 of 1",
        "accounting for every image of MobileNetV3Small",
    }


def test_a_folder_without_any_usable_image_is_told(spark, experiment, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train" / "NORMAL"
    folder.mkdir(parents=True)
    (folder / "IM-0001-0001.jpeg").write_text("no image")
    with pytest.raises(UserError, match="all with errors .*neither JPEG nor PNG"):
        run(spark, experiment, tmp_path / "images", tmp_path / "features")


def test_a_folder_of_misnamed_files_is_told_and_leaves_nothing(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpeg").touch()
    with pytest.raises(UserError, match="1 images, of which none does"):
        run(spark, experiment, tmp_path / "images", tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_what_paths_say_is_part_of_what_a_store_is_made_of(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    few = experiment.model_copy(update={"limit": 20})
    run(spark, few, phantoms, features)
    moved = tmp_path / "elsewhere"
    moved.symlink_to(phantoms)
    run(spark, few, moved, features)
    folders = DatasetConfig(adapter="folder", patient_pattern=r"/([^/_]+)")
    with pytest.raises(UserError, match="what dataset: reads of paths differ"):
        run(spark, few.model_copy(update={"dataset": folders}), phantoms, features)


def test_an_extraction_that_is_used_again_takes_on_its_warning(
    extracted, spark, phantoms: Path, tmp_path: Path
) -> None:
    experiment, features, _ = extracted
    copy = tmp_path / "features"
    shutil.copytree(features, copy)
    backbones = list(load_backbones(experiment, tmp_path, feature_maps=False))
    request = ExtractionRequest(experiment, phantoms, copy, False, "Demonstration: a warning.")
    again = extract(spark, request, lambda: backbones)
    assert {record.demonstration for record in again} == {"Demonstration: a warning."}
    assert list_extractions(copy) == sorted(again, key=lambda r: r.identity.backbone)


def test_a_store_of_other_images_is_refused_and_overwritten_on_request(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    few = experiment.model_copy(update={"limit": 20})
    (first,) = run(spark, few, phantoms, features)
    before = sorted(features.rglob("*"))
    with pytest.raises(UserError, match="made of 20 images.*now give 90"):
        run(spark, experiment, phantoms, features)
    assert sorted(features.rglob("*")) == before
    (second,) = run(spark, experiment, phantoms, features, overwrite=True)
    assert (first.n_rows, second.n_rows) == (20, 90)
    assert (first.limit, second.limit) == (20, None)


def test_maps_are_added_where_an_extraction_has_none(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    few = experiment.model_copy(update={"limit": 20})
    (without,) = run(spark, few, phantoms, features)
    (with_maps,) = run(spark, few, phantoms, features, maps=True)
    assert without.feature_map_shape is None
    assert with_maps.feature_map_shape == (2, 2, 576)
    assert run(spark, few, phantoms, features) == [with_maps]


@pytest.mark.parametrize("limit", [1, 7, 40, 89, 90])
def test_limit_takes_every_nth_of_the_sorted_paths(spark, phantoms: Path, limit: int) -> None:
    files = sorted(str(p.relative_to(phantoms)) for p in phantoms.rglob("*.jpeg"))
    expected = [files[i * len(files) // limit] for i in range(limit)]
    listing = read_listing(spark, str(phantoms), "kermany", None)
    rows = even_sample(listing, limit, len(files)).select("image_id").collect()
    assert sorted(row["image_id"] for row in rows) == expected


def test_workers_are_warm_when_the_images_are_listed(spark, phantoms: Path) -> None:
    """A worker that a listing used is used again: it costs seconds to start another."""

    def processes(frames):
        for rows in frames:
            yield pd.DataFrame({"id": [os.getpid()] * len(rows)})

    def running() -> set[int]:
        rows = spark.range(0, 2, 1, 2).mapInPandas(processes, "id bigint").collect()
        return {row["id"] for row in rows}

    before = running()
    for _ in range(2):
        assert read_listing(spark, str(phantoms), "kermany", None).count() == 90
    assert running() <= before


@pytest.mark.parametrize("there", [False, True])
def test_a_manifest_that_a_killed_run_had_set_aside_comes_back(tmp_path: Path, there: bool) -> None:
    """Unless the other is in its place already."""
    (tmp_path / f"{STAGING}1" / REPLACED).mkdir(parents=True)
    (tmp_path / f"{STAGING}1" / REPLACED / "old").touch()
    if there:
        (tmp_path / "manifest").mkdir()
        (tmp_path / "manifest" / "new").touch()
    _clear_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest"]
    assert [path.name for path in (tmp_path / "manifest").iterdir()] == ["new" if there else "old"]
