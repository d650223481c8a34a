"""An extraction that was stopped, that grows, and that has too many errors."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_spark.errors import RunFailed, UserError
from cxr_spark.extraction import resume
from cxr_spark.extraction.job import clear_store
from cxr_spark.extraction.listing import Listing, read_listing_record, write_listing_record
from cxr_spark.extraction.one_pass import least_images, most_images, plan_shards
from cxr_spark.extraction.store import check_files, list_extractions
from cxr_spark.placement import Placement
from tests.extraction.test_job import read, read_errors, run

CORE = Placement()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four shards of the 90 phantoms."""
    monkeypatch.setattr("cxr_spark.extraction.one_pass.least_images", lambda *_: 10)


@pytest.fixture
def images(phantoms: Path, tmp_path: Path) -> Path:
    root = tmp_path / "images"
    shutil.copytree(phantoms, root)
    return root


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass was asked to compute."""
    asked: list[int] = []
    run_pass = resume.run_pass

    def counted(spark, images, n_images, *rest, **named):
        asked.append(n_images)
        return run_pass(spark, images, n_images, *rest, **named)

    monkeypatch.setattr(resume, "run_pass", counted)
    return asked


def first_images(root: Path, n: int) -> list[Path]:
    return sorted((root / "train" / "PNEUMONIA").iterdir())[:n]


def assert_same_features(one: pd.DataFrame, two: pd.DataFrame) -> None:
    assert one["image_id"].tolist() == two["image_id"].tolist()
    stored, new = np.stack(one["pooled"]), np.stack(two["pooled"])
    distance = np.linalg.norm(stored - new, axis=1) / np.linalg.norm(stored, axis=1)
    assert distance.max() <= 1e-5


@pytest.mark.parametrize(
    ("n_images", "n_slots", "n_most", "expected"),
    [
        (1, 2, 4096, (1, 1)),
        (19, 2, 4096, (1, 2)),
        (20, 2, 4096, (2, 2)),
        (50, 2, 4096, (4, 2)),
        (90, 2, 4096, (4, 4)),
        (5_856, 2, 4096, (4, 4)),
        (400_000, 2, 4096, (49, 2)),
        (400_000, 2, 682, (294, 2)),
        (400_000, 160, 4096, (4, 320)),
        (50, 160, 4096, (4, 12)),
    ],
)
def test_shards_fill_the_cluster_and_stay_small(n_images, n_slots, n_most, expected) -> None:
    assert plan_shards(n_images, n_slots, n_most, 10) == expected


def test_a_task_of_more_backbones_has_fewer_images_and_one_of_a_gpu_more() -> None:
    assert most_images(1, CORE) == 4096
    assert most_images(6, CORE) == 682
    assert most_images(6, Placement(on_gpu=True)) == 2730


@pytest.mark.parametrize(
    ("backbones", "side", "n_slots", "placement", "image_bytes", "n_images"),
    [
        (["MobileNetV3Small"], 224, 2, CORE, 9_000, 3137),
        (["MobileNetV3Small"], 224, 2, CORE, 1_200_000, 648),
        (["ResNet50"], 224, 2, CORE, 0, 276),
        (["ResNet50"], 224, 160, CORE, 9_000, 22069),
        (["ResNet50", "Xception"], 448, 2, CORE, 9_000, 32),
        (["ResNet50"], 224, 1, Placement(16, on_gpu=True), 9_000, 2286),
        (["ResNet50"], 224, 1, Placement(4, on_gpu=True), 1_200_000, 1481),
        (["MobileNetV3Small"], 224, 1, Placement(4, on_gpu=True), 9_000, 16000),
    ],
)
def test_a_shard_takes_seconds_whatever_the_backbones_the_files_and_devices(
    backbones, side, n_slots, placement, image_bytes, n_images
) -> None:
    least = least_images(backbones, (side, side), n_slots, placement, image_bytes)
    assert least == n_images


def test_a_stopped_run_goes_on_with_what_it_lacks(
    spark, experiment, phantoms: Path, tmp_path: Path, monkeypatch, computed
) -> None:
    (whole,) = run(spark, experiment, phantoms, tmp_path / "whole")
    features, commit, committed = tmp_path / "stopped", resume.commit_shard, []

    def stop_at_the_third(*arguments, **named):
        if len(committed) == 2:
            raise KeyboardInterrupt
        committed.append(commit(*arguments, **named))

    monkeypatch.setattr(resume, "commit_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(spark, experiment, phantoms, features)
    assert list_extractions(features) == []
    assert [p.name for p in features.iterdir() if p.name.startswith(("_staging", "_lock"))] == []
    before = {file: file.stat().st_mtime_ns for shard in committed for file in shard.files}
    n_there = sum(pd.read_parquet(file).shape[0] for file in before)

    def look(*arguments, **named):
        assert {file: file.stat().st_mtime_ns for file in before} == before
        return commit(*arguments, **named)

    monkeypatch.setattr(resume, "commit_shard", look)
    (again,) = run(spark, experiment, phantoms, features)
    assert computed == [90, 90, 90 - n_there]
    assert (again.n_images, again.n_rows, again.n_errors) == (90, 90, 0)
    assert_same_features(read(tmp_path / "whole", whole), read(features, again))
    assert not (features / "_parts").exists()
    check_files(features, again)


def test_a_full_disk_keeps_what_was_committed(
    spark, experiment, phantoms: Path, tmp_path: Path, computed
) -> None:
    """A tmpfs whose room ends with the second shard or the third."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root and a kernel that lets it")
    try:
        filler, features = disk / "filler", disk / "features"
        filler.write_bytes(b"\0" * 1_700_000)
        with pytest.raises(RunFailed, match="no room is left on a disk"):
            run(spark, experiment, phantoms, features)
        n_kept = sum(len(pd.read_parquet(file)) for file in features.glob("_parts/*/*/*.parquet"))
        assert 0 < n_kept < 90
        filler.unlink()
        (record,) = run(spark, experiment, phantoms, features)
        assert computed == [90, 90 - n_kept]
        (whole,) = run(spark, experiment, phantoms, tmp_path / "whole")
        assert_same_features(read(tmp_path / "whole", whole), read(features, record))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_new_images_alone_are_computed_and_join_the_rest(
    spark, experiment, images: Path, tmp_path: Path, computed
) -> None:
    features, new = tmp_path / "features", first_images(images, 7)
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in new:
        shutil.move(file, aside / file.name)
    (first,) = run(spark, experiment, images, features)
    kept = {name: (features / first.fingerprint / name).stat().st_mtime_ns for name in first.files}
    for file in new:
        shutil.move(aside / file.name, file)
    (second,) = run(spark, experiment, images, features)
    assert computed == [83, 7]
    assert (first.n_rows, second.n_rows, second.n_images) == (83, 90, 90)
    assert first.listing_digest != second.listing_digest
    for name, modified in kept.items():
        assert (features / first.fingerprint / name).stat().st_mtime_ns == modified
    (whole,) = run(spark, experiment, images, tmp_path / "whole")
    assert_same_features(read(tmp_path / "whole", whole), read(features, second))


def test_changed_and_missing_images_are_told_and_refreshed_on_request_alone(
    spark, experiment, images: Path, tmp_path: Path, computed, caplog
) -> None:
    features = tmp_path / "features"
    (first,) = run(spark, experiment, images, features)
    changed, gone = first_images(images, 2)
    changed.write_bytes(next((images / "train" / "NORMAL").iterdir()).read_bytes())
    os.utime(changed, (1, 1))
    gone.unlink()
    with caplog.at_level("INFO", "cxr_spark"):
        assert run(spark, experiment, images, features) == [first]
    name = {file: str(file.relative_to(images)) for file in (changed, gone)}
    assert f"1 images are changed since the last extraction (first: {name[changed]})" in caplog.text
    assert f"1 images are gone since the last extraction (first: {name[gone]})" in caplog.text
    assert computed == [90]
    fresh = experiment.model_copy(update={"refresh": True})
    (second,) = run(spark, fresh, images, features)
    assert computed == [90, 1]
    assert (second.n_images, second.n_rows) == (89, 89)
    (whole,) = run(spark, experiment, images, tmp_path / "whole")
    assert_same_features(read(tmp_path / "whole", whole), read(features, second))
    check_files(features, second)


def test_images_that_could_not_be_read_are_tried_again_and_undecodable_ones_are_not(
    spark, experiment, images: Path, tmp_path: Path, computed
) -> None:
    features = tmp_path / "features"
    unreadable, broken = first_images(images, 2)
    content = unreadable.read_bytes()
    unreadable.unlink()
    unreadable.symlink_to("nowhere")
    broken.write_text("no image")
    (first,) = run(spark, experiment, images, features)
    assert sorted(read_errors(features, first)["stage"]) == ["decode", "read"]
    assert (first.n_rows, first.n_errors) == (88, 2)
    run(spark, experiment, images, features)
    assert computed == [90, 1]
    assert read_errors(features, first)["error"].str.len().min() > 4
    (images / "train" / "PNEUMONIA" / "nowhere").write_bytes(content)
    (second,) = run(spark, experiment, images, features)
    assert computed == [90, 1, 1]
    assert (second.n_rows, second.n_errors) == (89, 1)
    assert read_errors(features, second)["stage"].tolist() == ["decode"]
    run(spark, experiment.model_copy(update={"refresh": True}), images, features)
    assert computed == [90, 1, 1, 1]


def test_a_picture_that_was_replaced_never_stands_under_the_row_of_the_old_one(
    spark, experiment, images: Path, tmp_path: Path
) -> None:
    features, changed = tmp_path / "features", first_images(images, 1)[0]
    run(spark, experiment, images, features)
    changed.write_bytes(next((images / "train" / "NORMAL").iterdir()).read_bytes())
    other = experiment.model_copy(update={"image_size": (48, 48)})
    (record,) = run(spark, other, images, features)
    errors = read_errors(features, record)
    assert errors["error"].to_dict() == {
        str(changed.relative_to(images)): "the file has changed since it was listed"
    }
    assert errors["stage"].tolist() == ["read"]
    (record,) = run(spark, other.model_copy(update={"refresh": True}), images, features)
    assert (record.n_rows, record.n_errors) == (90, 0)


def test_a_manifest_of_which_a_bit_has_changed_is_named(
    spark, experiment, images: Path, tmp_path: Path
) -> None:
    """One of a finding or a patient would be a wrong label in all features to come."""
    features = tmp_path / "features"
    run(spark, experiment, images, features)
    (file,) = (features / "manifest").glob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(UserError, match=f"{file.name}, which has changed since it was written"):
        run(spark, experiment, images, features)
    file.write_bytes(whole)
    assert len(run(spark, experiment, images, features)) == 1


def test_images_that_were_moved_are_read_where_they_are_now(
    spark, experiment, images: Path, tmp_path: Path, computed
) -> None:
    features = tmp_path / "features"
    (first,) = run(spark, experiment, images, features)
    moved = images.rename(tmp_path / "moved")
    assert run(spark, experiment, moved, features) == [first]
    other = experiment.model_copy(update={"image_size": (48, 48)})
    (record,) = run(spark, other, moved, features)
    assert (record.n_rows, record.n_errors) == (90, 0)
    assert read(features, record)["path"].str.startswith(f"file://{moved}/").all()
    assert computed == [90, 90]


def test_mended_files_are_computed_on_request_even_where_their_size_is_the_same(
    spark, experiment, images: Path, tmp_path: Path, computed
) -> None:
    features, broken = tmp_path / "features", first_images(images, 30)
    whole = [file.read_bytes() for file in broken]
    for file, content in zip(broken, whole, strict=True):
        file.write_bytes(b"\0" * len(content))
    with pytest.raises(RunFailed, match="add --refresh"):
        run(spark, experiment, images, features)
    for file, content in zip(broken, whole, strict=True):
        file.write_bytes(content)
    fresh = experiment.model_copy(update={"refresh": True})
    (record,) = run(spark, fresh, images, features)
    assert (record.n_images, record.n_rows, record.n_errors) == (90, 90, 0)


def test_a_folder_in_which_most_images_are_gone_is_taken_for_a_mistake(
    spark, experiment, images: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    (first,) = run(spark, experiment, images, features)
    shutil.rmtree(images / "train")
    for asked in (experiment, experiment.model_copy(update={"refresh": True})):
        with pytest.raises(UserError, match="made of 90 images"):
            run(spark, asked, images, features)
    assert list_extractions(features) == [first]


def test_a_damaged_data_set_is_named_by_the_next_extraction(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    features = tmp_path / "features"
    (record,) = run(spark, experiment, phantoms, features)
    name = next(iter(record.files))
    (features / record.fingerprint / name).unlink()
    with pytest.raises(UserError, match=f"{name}, which is missing"):
        run(spark, experiment, phantoms, features)
    (again,) = run(spark, experiment, phantoms, features, overwrite=True)
    listed = next((features / "manifest").glob("*.parquet"))
    whole = listed.read_bytes()
    listed.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{listed.name}, which is missing, cut or foreign"):
        run(spark, experiment, phantoms, features)
    listed.write_bytes(whole)
    shutil.rmtree(features / "errors")
    with pytest.raises(UserError, match="Expected the errors table"):
        run(spark, experiment, phantoms, features)
    assert again.n_rows == 90


def test_shards_of_a_stopped_run_are_of_no_use_once_there_are_maps(
    spark, experiment, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, commit = tmp_path / "features", resume.commit_shard

    def stop_at_the_second(*arguments, **named):
        if list(features.glob("_parts/*/*/_shard.json")):
            raise KeyboardInterrupt
        commit(*arguments, **named)

    monkeypatch.setattr(resume, "commit_shard", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(spark, experiment, phantoms, features)
    monkeypatch.setattr(resume, "commit_shard", commit)
    (with_maps,) = run(spark, experiment, phantoms, features, maps=True)
    assert run(spark, experiment, phantoms, features) == [with_maps]
    assert len(read(features, with_maps)) == 90


def test_too_many_errors_end_the_run_early_with_their_reasons(
    spark, experiment, images: Path, tmp_path: Path, caplog
) -> None:
    for file in first_images(images, 60)[:30]:
        file.write_text("no image")
    features = tmp_path / "features"
    with pytest.raises(
        RunFailed, match=r"of 90 images could not be used .* max_error_fraction 0.01"
    ):
        run(spark, experiment, images, features)
    assert len(list(features.glob("_parts/*/*/_shard.json"))) < 4
    assert "x decode: the bytes are neither JPEG nor PNG (first: " in caplog.text
    allowed = experiment.model_copy(update={"max_error_fraction": 0.4})
    (record,) = run(spark, allowed, images, features)
    assert (record.n_rows, record.n_errors) == (60, 30)
    with pytest.raises(RunFailed, match="30 of 90 images could not be used"):
        run(spark, experiment, images, features)  # it has them all, and is not what was allowed


def test_backbones_that_lack_other_images_run_in_passes_of_their_own(
    spark, experiment, images: Path, tmp_path: Path, computed
) -> None:
    features, new = tmp_path / "features", first_images(images, 1)[0]
    content = new.read_bytes()
    new.unlink()
    run(spark, experiment, images, features)
    new.write_bytes(content)
    both = experiment.model_copy(update={"backbones": ["MobileNetV3Small", "DenseNet121"]})
    records = run(spark, both, images, features)
    assert [record.n_rows for record in records] == [90, 90]
    assert computed == [89, 1, 90]


def test_features_that_cannot_be_end_the_run_and_name_the_backbone(
    spark, experiment, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_spark import backbones

    build = backbones.build_backbone

    def spoilt(*arguments, **named):
        model = build(*arguments, **named)
        model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
        return model

    monkeypatch.setattr(backbones, "build_backbone", spoilt)
    monkeypatch.setattr("cxr_spark.engine.forward.build_backbone", spoilt)
    monkeypatch.setattr("cxr_spark.extraction.graphs.cache_folder", lambda: None)
    with pytest.raises(RunFailed, match="MobileNetV3Small gave features that are NaN or infinite"):
        run(spark, experiment, phantoms, tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_manifest_goes_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run would leave half of one, which no later run could tell from a foreign folder."""
    (tmp_path / "manifest").mkdir()
    write_listing_record(tmp_path / "manifest", Listing(3, 0, "0"))

    def killed(folder: Path, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cxr_spark.extraction.job.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clear_store(tmp_path)
    assert not (tmp_path / "manifest").exists()
    assert read_listing_record(tmp_path) is None


def test_a_second_run_on_one_folder_stops_with_one_line(
    spark, experiment, phantoms: Path, tmp_path: Path
) -> None:
    from cxr_spark.extraction.lock import locked

    features = tmp_path / "features"
    features.mkdir()
    with locked(features):
        with pytest.raises(UserError, match=rf"by one run at a time.*process {os.getpid()} on "):
            run(spark, experiment, phantoms, features)
        assert [path.name for path in features.iterdir()] == ["_lock"]
    assert not list(features.iterdir())


def test_a_lock_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    from cxr_spark.extraction.lock import locked

    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / "_lock").symlink_to(mine)
    with pytest.raises(UserError, match="_lock to be a file that can be written"), locked(tmp_path):
        pass
    assert mine.read_text() == "precious"
