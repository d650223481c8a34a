"""Packs made through Spark, and extraction from them against extraction from the folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxr_spark.config import DatasetConfig, Experiment, SplitConfig
from cxr_spark.dataset.listing import walk_images
from cxr_spark.dataset.manifest import read_listing
from cxr_spark.dataset.pack import INDEX, list_packed, read_pack_record
from cxr_spark.dataset.phantoms import holds_phantoms
from cxr_spark.dataset.root import open_root
from cxr_spark.errors import UserError
from cxr_spark.extraction.listing import read_listing_record
from cxr_spark.extraction.one_pass import _cut_images
from cxr_spark.packing import check_out, make_packer, pack, plan_parts
from cxr_spark.report.thumbnails import thumbnail
from cxr_spark.stages import _check_grid_images
from tests.conftest import ROOT
from tests.extraction.test_job import read, read_errors, run

ODD = {
    "images/NORMAL/with space#1%20.jpeg": "",
    "images/NORMAL/_hidden.JPEG": "",
    "images/NORMAL/empty.jpeg": "decode",
    "images/NORMAL/text.jpeg": "decode",
    "images/NORMAL/dangling.jpeg": "read",
    "images/NORMAL/folder.jpeg": "read",
    "images/NORMAL/pipe.jpeg": "read",
    "images/NORMAL/umlaut-\u00e4-\\xff.jpeg": "",
    "flat.jpeg": "path",
}


@pytest.fixture(scope="module")
def images(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantoms, a folder a class, among names and files of every odd kind."""
    root = tmp_path_factory.mktemp("odd")
    for file in sorted(phantoms.rglob("*.jpeg"))[::4][:20]:
        (root / "images" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "images" / file.parent.name)
    whole = next((root / "images" / "NORMAL").iterdir()).read_bytes()
    folder = root / "images" / "NORMAL"
    (folder / "empty.jpeg").touch()
    (folder / "text.jpeg").write_text("this is a text")
    (folder / "dangling.jpeg").symlink_to("nowhere")
    (folder / "folder.jpeg").mkdir()
    os.mkfifo(folder / "pipe.jpeg")
    for name in (b"with space#1%20.jpeg", b"_hidden.JPEG", b"umlaut-\xc3\xa4-\xff.jpeg"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(whole)
    (root / "flat.jpeg").write_bytes(whole)
    os.utime(folder / "_hidden.JPEG", (1e10, 1e10))  # what pandas cannot hold
    return root


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        backbones=["MobileNetV3Small"],
        weights="random",
        image_size=48,  # type: ignore[arg-type]
        dataset=DatasetConfig(adapter="folder"),
        split=SplitConfig(unit="image"),
        max_error_fraction=1.0,
    )


@pytest.fixture(scope="module")
def packed(spark, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "packed"
    pack(spark, images, out, limit=None, overwrite=False)
    return out


def test_the_listing_of_a_pack_is_that_of_the_folder(spark, images: Path, packed: Path) -> None:
    one, two = (
        read_listing(spark, str(root), "folder", None).toPandas() for root in (images, packed)
    )
    pd.testing.assert_frame_equal(one.drop(columns="path"), two.drop(columns="path"))
    assert set(ODD) <= set(two["image_id"])
    assert two["path"].str.startswith("pack://").all()
    record = read_pack_record(packed)
    assert (record.n_images, record.n_errors, record.limit) == (29, 3, None)
    assert [f.name for f in packed.parent.iterdir()] == ["packed"]


def test_features_and_errors_of_a_pack_are_those_of_the_folder_to_the_bit(
    spark, experiment: Experiment, images: Path, packed: Path, tmp_path: Path
) -> None:
    (one,) = run(spark, experiment, images, tmp_path / "folder")
    (two,) = run(spark, experiment, packed, tmp_path / "pack")
    assert (one.n_images, one.n_rows, one.n_errors) == (two.n_images, two.n_rows, two.n_errors)
    assert (two.n_images, two.n_errors) == (29, 6)
    stages = {name: stage for name, stage in ODD.items() if stage}
    for record, store in ((one, tmp_path / "folder"), (two, tmp_path / "pack")):
        assert read_errors(store, record)["stage"].to_dict() == stages
    rows = [read(tmp_path / "folder", one), read(tmp_path / "pack", two)]
    pooled = [np.stack(table.pop("pooled")) for table in rows]
    assert np.array_equal(*pooled)
    pd.testing.assert_frame_equal(*(table.drop(columns="path") for table in rows))
    errors = [read_errors(tmp_path / "folder", one), read_errors(tmp_path / "pack", two)]
    pd.testing.assert_frame_equal(*(table.drop(columns="path").sort_index() for table in errors))
    listings = [read_listing_record(tmp_path / store) for store in ("folder", "pack")]
    assert listings[0].is_of_same_images(listings[1])
    assert listings[0].places != listings[1].places


def test_what_was_extracted_from_the_folder_is_there_for_its_pack_and_changes_are_told(
    spark, experiment: Experiment, phantoms: Path, tmp_path: Path
) -> None:
    images, out, features = tmp_path / "images", tmp_path / "packed", tmp_path / "features"
    shutil.copytree(phantoms / "train" / "NORMAL", images / "NORMAL")
    (first,) = run(spark, experiment, images, features)
    pack(spark, images, out, limit=None, overwrite=False)
    stored = features / first.fingerprint
    before = {p: p.stat().st_mtime_ns for p in stored.iterdir()}
    assert run(spark, experiment, out, features) == [first]
    assert {p: p.stat().st_mtime_ns for p in stored.iterdir()} == before

    changed, other, *_ = sorted((images / "NORMAL").iterdir())
    changed.write_bytes(other.read_bytes())
    os.utime(changed, (1, 1))
    assert run(spark, experiment, out, features) == [first]
    pack(spark, images, out, limit=None, overwrite=True)
    refreshing = experiment.model_copy(update={"refresh": True})
    (second,) = run(spark, refreshing, out, features)
    rows = read(features, second).set_index("image_id")
    new = rows.loc[f"NORMAL/{changed.name}"]
    assert new["length"] == other.stat().st_size
    assert new["pixels_digest"] == rows.loc[f"NORMAL/{other.name}", "pixels_digest"]
    assert rows["path"].str.startswith("pack://").sum() == 1


def test_a_damaged_part_is_named_as_the_reason_of_its_images(
    spark, experiment: Experiment, images: Path, packed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "packed"
    shutil.copytree(packed, copy)
    (part,) = copy.glob("part-*")
    one = next((images / "images" / "PNEUMONIA").iterdir()).read_bytes()
    part.write_bytes(part.read_bytes().replace(one, one[:-9] + bytes(9)))
    (record,) = run(spark, experiment, copy, tmp_path / "features")
    reasons = read_errors(tmp_path / "features", record).query("stage == 'read'")["error"]
    damaged = f"{part.name} of the pack is damaged: a checksum is wrong"
    assert (reasons == damaged).sum() == 1
    assert record.n_errors == 7


@pytest.mark.parametrize("limit", [1, 7, 28, 29, 40])
def test_a_sample_is_that_of_the_folder(spark, images: Path, tmp_path: Path, limit: int) -> None:
    found = [image.image_id for image in walk_images(str(images))]
    expected = [found[i * 29 // limit] for i in range(limit)] if limit < 29 else found
    record = pack(spark, images, tmp_path / "few", limit=limit, overwrite=False)
    assert [image.image_id for image in list_packed(tmp_path / "few")] == expected
    assert record.limit == (limit if limit < 29 else None)


def test_a_pack_of_a_pack_is_the_same_pack(spark, packed: Path, tmp_path: Path) -> None:
    pack(spark, packed, tmp_path / "again", limit=None, overwrite=False)
    columns = ["position", "image_id", "length", "modified_us", "problem", "error"]
    one, two = (
        pq.read_table(root / INDEX, columns=columns) for root in (packed, tmp_path / "again")
    )
    assert one.equals(two)
    (old,), (new,) = (root.glob("part-*") for root in (packed, tmp_path / "again"))
    assert pq.read_table(old).equals(pq.read_table(new))


def test_parts_are_in_the_order_in_which_extraction_cuts_images_into_tasks(
    spark, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxr_spark.packing.plan_parts", lambda *_: 3)
    record = pack(spark, images, tmp_path / "packed", limit=None, overwrite=False)
    assert len(record.parts) == 3
    packed = [
        row["image_id"]
        for name in sorted(record.parts)
        for row in pq.read_table(tmp_path / "packed" / name, columns=["image_id"]).to_pylist()
    ]
    listing = read_listing(spark, str(images), "folder", None)
    _cut_images(listing.select("image_id"), 29, 2, 4, tmp_path / "pieces")
    pieces = sorted((tmp_path / "pieces").glob("shard=*/piece=*/*.parquet"))
    assert len(pieces) == 8
    cut = [row["image_id"] for file in pieces for row in pq.ParquetFile(file).read().to_pylist()]
    assert packed == cut


def test_parts_of_attempts_that_failed_are_removed(
    spark, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack_twice(folder: str):
        copy = make_packer(folder)

        def attempt(frames):
            frames = list(frames)
            list(copy(frames))  # as a task that ended and whose answer was lost
            yield from copy(frames)

        return attempt

    monkeypatch.setattr("cxr_spark.packing.make_packer", pack_twice)
    record = pack(spark, images, tmp_path / "packed", limit=None, overwrite=False)
    assert record.n_images == 29
    assert {f.name for f in (tmp_path / "packed").glob("part-*")} == set(record.parts)


@pytest.mark.parametrize(
    ("n_images", "n_bytes", "n_slots", "n_parts"),
    [(1, 0, 8, 1), (257, 0, 8, 2), (8192, 0, 8, 8), (8193, 0, 1, 2), (500_000, 10**9, 2, 62),
     (5_000, 10**10, 2, 19)],
)  # fmt: skip
def test_parts_are_of_a_size_and_keep_the_cluster_busy(n_images, n_bytes, n_slots, n_parts) -> None:
    assert plan_parts(n_images, n_bytes, n_slots) == n_parts


def test_a_grid_checks_and_a_report_shows_the_images_of_a_pack(
    spark, phantoms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    pack(spark, phantoms, out, limit=None, overwrite=False)
    assert holds_phantoms(out)  # or features of the pack would pass for those of X-rays
    experiment = Experiment(backbones=["MobileNetV3Small"], images=str(out))
    _check_grid_images(experiment)
    with pytest.raises(UserError, match="images of every class in every split"):
        _check_grid_images(experiment.model_copy(update={"limit": 3}))
    first = next(list_packed(out)).image_id
    assert thumbnail(open_root(out), first) == thumbnail(open_root(phantoms), first) is not None
    next(out.glob("part-*")).unlink()
    assert thumbnail(open_root(out), first) is None
    (out / INDEX).unlink()
    assert thumbnail(open_root(out), first) is None


def test_a_pack_is_replaced_on_request_alone_and_nothing_else_ever_is(
    images: Path, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="a pack of 29 images. Give another --out, or --overwrite"):
        check_out(images, packed, overwrite=False)
    check_out(images, packed, overwrite=True)
    check_out(images, tmp_path / "new", overwrite=False)
    other = tmp_path / "other"
    other.mkdir()
    check_out(images, other, overwrite=False)
    (other / "mine.txt").touch()
    with pytest.raises(UserError, match="which holds what is no pack"):
        check_out(images, other, overwrite=True)
    for out in (packed, packed.parent):
        with pytest.raises(UserError, match="no folder that holds --images"):
            check_out(packed, out, overwrite=True)


def test_a_failure_leaves_the_pack_that_was_there_and_a_second_run_is_refused(
    spark, images: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"
    shutil.copytree(packed, out)
    before = sorted(out.iterdir())

    def fail(*_: object) -> None:
        with pytest.raises(UserError, match="by one run at a time.*give another --out"):
            pack(spark, images, out, limit=None, overwrite=True)
        raise ValueError("stopped")

    monkeypatch.setattr("cxr_spark.packing._write_index", fail)
    with pytest.raises(ValueError, match="stopped"):
        pack(spark, images, out, limit=None, overwrite=True)
    assert sorted(out.iterdir()) == before
    # A kill between the two moves leaves the old pack aside.
    (tmp_path / "_packing-packed").mkdir()
    out.rename(tmp_path / "_packing-packed" / "replaced")
    with pytest.raises(ValueError, match="stopped"):
        pack(spark, images, out, limit=None, overwrite=True)
    assert sorted(out.iterdir()) == before
    assert [f.name for f in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images", "x"], "required: --out"),
        ([], "required: --images, --out"),
        (["--image", "x"], "unrecognized arguments: --image x. Did you mean '--images'"),
        (["--images", "{tmp}/none", "--out", "{tmp}/out"], "nothing is there"),
        (["--images", "{tmp}/empty", "--out", "{tmp}/out"], "at least one image"),
        (["--images", "{images}", "--out", "{packed}"], "a pack of 29 images"),
        (["--images", "{images}", "--out", "{tmp}/out", "--limit", "0"], "--limit of at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, told, images: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = [a.format(tmp=tmp_path, images=images, packed=packed) for a in arguments]
    done = subprocess.run(
        [sys.executable, "jobs/pack.py", *given], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("pack.py: error: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["empty"]
