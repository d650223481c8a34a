from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.errors import UserError
from cxr_spark.extraction.job import clear_extractions
from cxr_spark.extraction.listing import Listing, write_listing_record
from cxr_spark.extraction.shards import (
    commit_shard,
    finish,
    parts_of,
    read_shards,
    recover,
)
from cxr_spark.extraction.store import (
    RECORD_NAME,
    ExtractionRecord,
    Identity,
    check_files,
    list_extractions,
    read_errors,
    read_record,
)

IDENTITY = Identity("ResNet50", "d" * 64, "none", (224, 224))


def make_record(**changes: object) -> ExtractionRecord:
    fields = {
        "identity": IDENTITY,
        "weights": "imagenet",
        "feature_map_shape": (7, 7, 2048),
        "n_images": 3,
        "n_rows": 2,
        "n_errors": 1,
        "listing_digest": "0",
        "limit": None,
        "demonstration": "",
        "spark": {},
        "files": {},
    }
    return ExtractionRecord(**{**fields, **changes})  # type: ignore[arg-type]


def write_rows(folder: Path, *image_ids: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_id": list(image_ids)}), folder / "part-0.parquet")
    return folder


def make_store(features: Path, record: ExtractionRecord) -> ExtractionRecord:
    """Two shards of a row each, and the end of the extraction."""
    parts = parts_of(features, record.fingerprint, feature_maps=True)
    for name in ("a", "b"):
        commit_shard(parts, name, write_rows(features / "_staging" / name, name), [])
    return finish(features, parts, make_errors(features), record)


def make_errors(features: Path) -> Path:
    folder = features / "_staging" / "errors"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "Xception"},
        {"weights_digest": "e" * 64},
        {"preprocessing": "keras"},
        {"image_size": (224, 225)},
        {"resize": "area"},
        {"precision": "float16"},
        {"contract": 1},
    ],
)
def test_every_part_of_the_identity_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert dataclasses.replace(IDENTITY, **change).fingerprint != IDENTITY.fingerprint


def test_the_fingerprint_never_changes() -> None:
    assert IDENTITY.fingerprint == "593886739effcd38"


def test_errors_come_by_image_from_all_files(tmp_path: Path) -> None:
    record = make_record(n_errors=2)
    folder = tmp_path / "errors" / f"fingerprint={record.fingerprint}"
    folder.mkdir(parents=True)
    rows = [
        {"image_id": name, "path": f"/{name}", "length": 0, "stage": "read", "error": "no"}
        for name in ("b", "a")
    ]
    for k, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([{**row, "other": 1}]), folder / f"part-{k}.parquet")
    assert read_errors(tmp_path, record) == rows[::-1]
    with pytest.raises(UserError, match=f"Expected 3 rows in {folder}, as .* Received: 2"):
        read_errors(tmp_path, make_record(n_errors=3))
    (folder / "part-1.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=f"Expected the errors table.*{folder}.*--overwrite"):
        read_errors(tmp_path, record)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = make_store(tmp_path, make_record())
    assert list_extractions(tmp_path) == [record]
    assert {name: file.n_rows for name, file in record.files.items()} == {
        "a-part-0.parquet": 1,
        "b-part-0.parquet": 1,
    }
    assert (tmp_path / "errors" / f"fingerprint={record.fingerprint}").is_dir()
    assert not (tmp_path / "_parts").exists()
    check_files(tmp_path, record)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_errors": 0}, "2 rows .2 in its files. and 0 errors"),
        ({"n_rows": 1, "n_errors": 2}, "1 rows .2 in"),
    ],
)
def test_images_that_do_not_add_up_are_refused(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    with pytest.raises(RuntimeError, match=f"3 images in, but {told}"):
        make_store(tmp_path, make_record(**change))
    assert list_extractions(tmp_path) == []


@pytest.mark.parametrize("n_moved", [0, 1, 2])
def test_an_end_that_was_killed_is_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_moved: int
) -> None:
    record, moved = make_record(), []
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.suffix == ".parquet" and self.parent.parent.parent.name == "_parts":
            if len(moved) == n_moved:
                raise KeyboardInterrupt
            moved.append(target)
        elif n_moved == 2 and self.name == "_errors":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path, record)
    monkeypatch.undo()
    assert len(moved) == n_moved
    assert list_extractions(tmp_path) == []
    recover(tmp_path)
    (found,) = list_extractions(tmp_path)
    check_files(tmp_path, found)
    assert dataclasses.replace(found, files={}) == record
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "_staging") == [
        record.fingerprint,
        "errors",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"a/part-0.parquet": "../../outside.parquet"},
        {"../../outside.parquet": "..-..-outside.parquet"},
        {"a/secret": "a-secret"},
        {"link/outside.parquet": "link-outside.parquet"},
    ],
)
def test_an_end_that_would_move_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    features, record = tmp_path / "features", make_record()
    features.mkdir()
    (tmp_path / "outside.parquet").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("cxr_spark.extraction.shards._roll_forward", lambda *_: None)
        make_store(features, record)
    (file,) = features.glob("_parts/*/_finish.json")
    (file.parent / "link").symlink_to(tmp_path)
    (file.parent / "a" / "secret").touch()
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "moves": change}))
    with pytest.raises(UserError, match=r"_finish\.json, which is damaged"):
        recover(features)
    assert (tmp_path / "outside.parquet").read_text() == "mine"
    assert not (features / record.fingerprint).exists()


def test_more_shards_join_a_data_set_and_replace_files_of_it(tmp_path: Path) -> None:
    first = make_store(tmp_path, make_record())
    parts = parts_of(tmp_path, first.fingerprint, feature_maps=True)
    staged = write_rows(tmp_path / "_staging" / "c", "b", "c")
    commit_shard(parts, "c", staged, [], ["b-part-0.parquet"])
    assert [shard.replaces for shard in read_shards(parts)] == [("b-part-0.parquet",)]
    second = finish(
        tmp_path, parts, make_errors_again(tmp_path), make_record(n_images=4, n_rows=3),
        kept=["a-part-0.parquet"],
    )  # fmt: skip
    assert list(second.files) == ["a-part-0.parquet", "c-part-0.parquet"]
    check_files(tmp_path, second)
    assert list_extractions(tmp_path) == [second]


class Killed:
    """Ends the process, so to say, before the step ``at`` of those that change the file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.n, self._at = 0, at
        for name in ("rename", "replace", "unlink", "rmdir"):
            monkeypatch.setattr(Path, name, self._before(getattr(Path, name)))
        monkeypatch.setattr(shutil, "rmtree", self._before(shutil.rmtree, amid=True))

    def _before(self, step: Callable[..., Any], *, amid: bool = False) -> Callable[..., Any]:
        def stepped(path: Path, *arguments: Any, **named: Any) -> Any:
            if self.n == self._at:
                # Of a folder that is removed some files may have gone.
                for file in [file for file in Path(path).rglob("*") if file.is_file()][:amid]:
                    os.remove(file)
                raise KeyboardInterrupt
            self.n += 1
            return step(path, *arguments, **named)

        return stepped


def end_again(features: Path) -> ExtractionRecord:
    """Add a shard to a data set of two, of which one file goes."""
    staged_errors = features / "_staging" / "more-errors"
    staged_errors.mkdir(parents=True, exist_ok=True)
    parts = parts_of(features, make_record().fingerprint, feature_maps=True)
    return finish(features, parts, staged_errors, make_record(), kept=["a-part-0.parquet"])


def go_on_after(
    features: Any, first: ExtractionRecord, end_again: Callable[[Any], object], at: int
) -> tuple[ExtractionRecord, bool]:
    """Do what the run after a killed one does; return the record, and whether it had to begin.

    Args:
        features: the folder, local or by its URI.
        first: the record before the end that was killed.
        end_again: ends the extraction, as the killed run would have.
        at: the step before which that was killed.
    """
    recover(features)
    was_undone = list_extractions(features) == [first]
    if was_undone:
        check_files(features, first)
        end_again(features)
    (found,) = list_extractions(features)
    assert list(found.files) == ["a-part-0.parquet", "c-part-0.parquet"], at
    check_files(features, found)
    return found, was_undone


def test_an_end_killed_at_any_step_is_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_undone, n_steps = 0, None
    for at in itertools.count():
        features = tmp_path / f"{at}"
        first = make_store(features, make_record())
        parts = parts_of(features, first.fingerprint, feature_maps=True)
        commit_shard(parts, "c", write_rows(features / "_staging" / "c", "b"), [])
        with monkeypatch.context() as patch:
            killed = Killed(patch, at)
            try:
                end_again(features)
            except KeyboardInterrupt:
                pass
            else:
                n_steps = at
        found, was_undone = go_on_after(features, first, end_again, at)
        n_undone += was_undone
        assert (features / "errors" / f"fingerprint={found.fingerprint}").is_dir()
        assert not list((features / found.fingerprint).glob("b-*"))
        if n_steps is not None:
            break
    assert killed.n == n_steps
    assert n_steps >= 10
    assert 0 < n_undone < n_steps


def make_errors_again(features: Path) -> Path:
    folder = features / "_staging" / "more-errors"
    folder.mkdir()
    return folder


def test_a_shard_that_was_cut_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = tmp_path / "_parts" / "x"
    failure = ("i", "file:///i", 3, "decode", "no image")
    for name in ("a", "b", "c"):
        commit_shard(parts, name, write_rows(tmp_path / name, name), [failure])
    file = parts / "a" / "part-0.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    (parts / "c" / "_shard.json").write_text("{")
    commit_shard(parts, "d", write_rows(tmp_path / "d", "d"), [failure])
    file = parts / "d" / "part-0.parquet"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))  # of the same length
    (kept,) = read_shards(parts)
    assert (kept.folder.name, kept.failures) == ("b", (failure,))
    assert not (parts / "a").exists()
    assert not (parts / "d").exists()
    assert "c is damaged: its images are computed again" in caplog.text


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda folder: (folder / "a-part-0.parquet").unlink(),
            "a-part-0.parquet, which is missing, and 1 images",
        ),
        (
            lambda folder: (folder / "a-part-0.parquet").write_bytes(b"PAR1"),
            "a-part-0.parquet, of 4 bytes, where",
        ),
        (lambda folder: write_rows(folder, "z"), "part-0.parquet, which is not one of them"),
    ],
    ids=["missing", "cut", "foreign"],
)
def test_files_that_are_not_as_they_were_left_are_named(tmp_path: Path, damage, told: str) -> None:
    record = make_store(tmp_path, make_record())
    damage(tmp_path / record.fingerprint)
    with pytest.raises(UserError, match=told):
        check_files(tmp_path, record)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"none"', '"keras"'),
        lambda text: text.replace("dddd", "eeee"),
        lambda text: text.replace('"n_rows": 2', '"n_rows": 3'),
        lambda text: text[:50],
        lambda text: json.dumps({"fingerprint": "x"}),
    ],
    ids=["preprocessing", "digest", "rows", "cut", "other"],
)
def test_an_edited_record_is_refused(tmp_path: Path, damage) -> None:
    record = make_store(tmp_path, make_record())
    file = tmp_path / record.fingerprint / RECORD_NAME
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=RECORD_NAME):
        read_record(file.parent)


def test_clearing_leaves_other_extractions_and_foreign_files(tmp_path: Path) -> None:
    one, two = make_record(), make_record(identity=dataclasses.replace(IDENTITY, contract=1))
    (tmp_path / "notes").mkdir()
    clear_extractions(tmp_path, [one.fingerprint])  # no store yet
    stored = []
    for record in (one, two):
        stored.append(make_store(tmp_path, record))
        shutil.rmtree(tmp_path / "_staging")
    (tmp_path / "manifest").mkdir()
    write_listing_record(tmp_path / "manifest", Listing(3, 0, "0"))
    shutil.copytree(tmp_path / one.fingerprint, tmp_path / "a copy")
    clear_extractions(tmp_path, [one.fingerprint])
    assert list_extractions(tmp_path) == stored[1:]
    assert (tmp_path / "manifest").exists()
    clear_extractions(tmp_path, [two.fingerprint])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a copy", "notes"]


def test_a_damaged_extraction_goes_with_the_named_ones(tmp_path: Path) -> None:
    record = make_store(tmp_path, make_record())
    (tmp_path / record.fingerprint / RECORD_NAME).write_text("{}")
    clear_extractions(tmp_path, [])
    assert not (tmp_path / record.fingerprint).exists()


def test_a_folder_whose_removal_was_stopped_is_no_shard(tmp_path: Path) -> None:
    record = make_record()
    parts = parts_of(tmp_path, record.fingerprint, feature_maps=True)
    write_rows(parts / "half-removed", "x")
    (found,) = [make_store(tmp_path, record)]
    assert list(found.files) == ["a-part-0.parquet", "b-part-0.parquet"]


def test_shards_without_maps_have_nothing_to_add_to_a_data_set_with_maps(tmp_path: Path) -> None:
    record = make_record()
    left = parts_of(tmp_path, record.fingerprint, feature_maps=False)
    commit_shard(left, "z", write_rows(tmp_path / "_staging" / "z", "a"), [])
    make_store(tmp_path, record)
    assert not left.exists()
