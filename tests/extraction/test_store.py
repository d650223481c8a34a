from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cxr_spark.errors import UserError
from cxr_spark.extraction.store import (
    RECORD_NAME,
    ExtractionRecord,
    Identity,
    Listing,
    clear_store,
    commit,
    list_extractions,
    read_record,
    write_listing_record,
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
    }
    return ExtractionRecord(**{**fields, **changes})  # type: ignore[arg-type]


def make_store(features: Path, record: ExtractionRecord) -> None:
    staged, errors = features / "_staging" / "rows", features / "_staging" / "errors"
    staged.mkdir(parents=True)
    errors.mkdir()
    commit(features, staged, errors, record)


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
    assert IDENTITY.fingerprint == "211b0705f061cc92"


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = make_record()
    make_store(tmp_path, record)
    assert list_extractions(tmp_path) == [record]
    assert (tmp_path / "errors" / f"fingerprint={record.fingerprint}").is_dir()


def test_images_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 images in, but 2 rows and 0 errors"):
        make_store(tmp_path, make_record(n_errors=0))
    assert list_extractions(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"none"', '"keras"'),
        lambda text: text.replace("dddd", "eeee"),
        lambda text: text[:50],
        lambda text: json.dumps({"fingerprint": "x"}),
    ],
    ids=["preprocessing", "digest", "cut", "other"],
)
def test_an_edited_record_is_refused(tmp_path: Path, damage) -> None:
    record = make_record()
    make_store(tmp_path, record)
    file = tmp_path / record.fingerprint / RECORD_NAME
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=RECORD_NAME):
        read_record(file.parent)


def test_clearing_leaves_other_extractions_of_the_same_images_and_foreign_files(
    tmp_path: Path,
) -> None:
    listing = Listing(3, 0, "0")
    one, two = make_record(), make_record(identity=dataclasses.replace(IDENTITY, contract=1))
    (tmp_path / "notes").mkdir()
    clear_store(tmp_path, listing, [one.fingerprint])  # no store yet
    for record in (one, two):
        make_store(tmp_path, record)
        (tmp_path / "_staging").rmdir()
    (tmp_path / "manifest").mkdir()
    write_listing_record(tmp_path / "manifest", listing)
    clear_store(tmp_path, listing, [one.fingerprint])
    assert list_extractions(tmp_path) == [two]
    clear_store(tmp_path, Listing(4, 0, "1"), [one.fingerprint])
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]
