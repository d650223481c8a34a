"""Packs without Spark: what is read of them, and what is told of damaged ones."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_spark.dataset.listing import FoundImage
from cxr_spark.dataset.manifest import check_images
from cxr_spark.dataset.pack import (
    INDEX,
    RECORD,
    PackRecord,
    check_pack,
    find_packed,
    is_pack,
    list_packed,
    place_of,
    read_pack_record,
    write_pack_record,
)
from cxr_spark.dataset.pack_reader import PackReader
from cxr_spark.dataset.pack_writer import BYTES_A_GROUP, ROWS_A_GROUP, open_part
from cxr_spark.dataset.root import list_images, open_root
from cxr_spark.errors import UserError

PART = "part-00000-0a1b2c3d.parquet"
# image_id, modified_us, content, error
ROWS = [
    ("a/1.png", 1_000_001, b"one", None),
    ("a/2.png", -5, b"", None),
    ("b/3.png", 7, None, "Permission denied"),
    ("b/", 0, None, "the folder cannot be read: Permission denied"),
]


def write_pack(root: Path, rows=ROWS) -> PackRecord:
    """Write a pack of one part, as ``packing`` does."""
    root.mkdir()
    placed = []
    with open_part(root / PART) as part:
        for position, (image_id, modified_us, content, error) in enumerate(rows):
            length = -1 if content is None else len(content)
            row_group, row = part.add(image_id, length, modified_us, content, error)
            problem = error if image_id.endswith("/") else None
            placed.append(
                {
                    "position": position, "image_id": image_id, "length": length,
                    "modified_us": modified_us, "problem": problem, "error": error,
                    "part": PART, "row_group": row_group, "row": row,
                }
            )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(placed), root / INDEX)
    sizes = {name: (root / name).stat().st_size for name in (PART, INDEX)}
    n_errors = sum(content is None for _, _, content, _ in rows)
    parts = {PART: (sizes[PART], len(rows))}
    record = PackRecord("/images", None, len(rows), n_errors, sizes[INDEX], parts)
    write_pack_record(root, record)
    return record


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    root = tmp_path / "odd #%name"
    write_pack(root)
    return root


def read(reader: PackReader, found: FoundImage) -> bytes:
    return reader.find(found.path, found.image_id, found.length, found.modified_us).read()


def test_a_pack_gives_what_was_put_in(packed: Path) -> None:
    assert is_pack(packed)
    assert check_pack(packed) == read_pack_record(packed)
    found = list(list_images(str(packed)))
    assert [image.image_id for image in found] == [row[0] for row in ROWS]
    assert [image.modified_us for image in found] == [row[1] for row in ROWS]
    assert [image.length for image in found] == [3, 0, -1, -1]
    assert [image.problem for image in found] == ["", "", "", ROWS[3][3]]
    with PackReader() as reader:
        assert [read(reader, image) for image in found[:2]] == [b"one", b""]
        for image, row in zip(found[2:], ROWS[2:], strict=True):
            with pytest.raises(OSError, match=".") as raised:
                read(reader, image)
            assert raised.value.strerror == row[3]


def test_one_image_is_found_by_its_name(packed: Path) -> None:
    find = find_packed(packed)
    assert find("a/1.png") == next(list_packed(packed))
    assert find("a/9.png") is None
    of_root = open_root(packed)
    assert of_root("a/1.png") == b"one"
    for name in ("a/9.png", "b/3.png", f"../{packed.name}/{RECORD}"):
        with pytest.raises(OSError, match="no such image|Permission denied"):
            of_root(name)


def test_row_groups_are_small_in_rows_and_bytes(tmp_path: Path) -> None:
    third = b"x" * (BYTES_A_GROUP // 3)
    large = [(f"{i}.png", i, third, None) for i in range(7)]
    large.append(("huge.png", 0, third * 5, None))
    small = [(f"s{i}.png", i, b"y", None) for i in range(ROWS_A_GROUP + 1)]
    write_pack(tmp_path / "pack", large + small)
    with pq.ParquetFile(tmp_path / "pack" / PART) as part:
        groups = [part.metadata.row_group(i) for i in range(part.num_row_groups)]
        assert [group.num_rows for group in groups] == [3, 3, 1, 1, ROWS_A_GROUP, 1]
        assert part.metadata.row_group(0).column(5).compression == "UNCOMPRESSED"
    with PackReader() as reader:
        for image, row in zip(list_packed(tmp_path / "pack"), large + small, strict=True):
            assert read(reader, image) == row[2]


def test_a_group_is_read_once_for_its_images(packed: Path, monkeypatch) -> None:
    from cxr_spark.dataset import pack_reader

    asked = []
    read_group = pack_reader._read_group
    monkeypatch.setattr(
        pack_reader, "_read_group", lambda *place: asked.append(place[1]) or read_group(*place)
    )
    first = next(list_packed(packed))
    with PackReader() as reader:
        for _ in range(3):
            read(reader, first)
        assert asked == [0]
        assert reader._open is not None
    assert reader._open is None
    assert not reader._groups


def test_threads_share_a_reader(tmp_path: Path) -> None:
    rows = [(f"{i}.png", i, str(i).encode() * 9, None) for i in range(5 * ROWS_A_GROUP)]
    write_pack(tmp_path / "pack", rows)
    found = list(list_packed(tmp_path / "pack"))
    with PackReader() as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda image: read(reader, image), found)) == [r[2] for r in rows]
        assert len(reader._groups) == 2


def without(root: Path, name: str) -> None:
    (root / name).unlink()


def cut(root: Path, name: str) -> None:
    os.truncate(root / name, (root / name).stat().st_size - 9)


def link(root: Path, name: str) -> None:
    (root / name).rename(root.parent / "moved")
    (root / name).symlink_to(root.parent / "moved")


def add_foreign(root: Path, name: str) -> None:
    (root / "part-00007-ffffffff.parquet").write_bytes((root / name).read_bytes())


def touch(root: Path, name: str) -> None:
    (root / name).touch()


def pipe(root: Path, name: str) -> None:
    (root / name).unlink()
    os.mkfifo(root / name)


def write_text(root: Path, name: str) -> None:
    (root / name).write_text("[]")


def other_version(root: Path, name: str) -> None:
    (root / name).write_text(json.dumps({**json.loads((root / name).read_text()), "version": 2}))


def names_elsewhere(root: Path, name: str) -> None:
    record = read_pack_record(root)
    parts = {"../part-00000-0a1b2c3d.parquet": (1, 1)}
    write_pack_record(root, dataclasses.replace(record, parts=parts))


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        (PART, without, f"{PART}, which is missing"),
        (PART, cut, f"{PART}, of .* bytes, where .* were written"),
        (PART, link, f"{PART}, which is no regular file"),
        (PART, add_foreign, "part-00007-ffffffff.parquet, which is not one of them"),
        ("new.jpeg", touch, "new.jpeg, which is not one of them"),
        (RECORD, pipe, "the record of a pack.*not a regular file"),
        (INDEX, without, f"{INDEX}, which is missing"),
        (INDEX, cut, f"{INDEX}, of"),
        (RECORD, write_text, "the record of a pack"),
        (RECORD, other_version, "of version 2"),
        (RECORD, names_elsewhere, "which names '../part"),
        (RECORD, without, f"a whole pack, under --images.*lacks {RECORD}"),
    ],
)
def test_a_pack_that_is_not_whole_is_refused_before_anything_starts(
    packed: Path, name: str, spoil: Callable[[Path, str], None], told: str
) -> None:
    spoil(packed, name)
    with pytest.raises(UserError, match=told):
        check_images(str(packed), "folder", None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"part": "part-00001-0a1b2c3d.parquet"}, "names 'part-00001"),
        ({"part": f"../other/{PART}"}, "names '../other"),
        ({"row": None}, "says nothing of where .* lies"),
        ({}, "has 1 rows, where 4 were written"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(packed: Path, change, told: str) -> None:
    row = pq.read_table(packed / INDEX).slice(0, 1).to_pylist()[0]
    pq.write_table(pa.Table.from_pylist([{**row, **change}]), packed / INDEX)
    with pytest.raises(UserError, match=told):
        list(list_packed(packed))


@pytest.mark.parametrize(
    "path",
    [
        "file:///etc/passwd",
        "pack:///etc/passwd#0.0",
        f"pack://relative/{PART}#0.0",
        f"pack:///pack/{PART}#0",
        f"pack:///pack/{PART}#-1.0",
        f"pack:///pack/{PART}/../x#0.0",
    ],
)
def test_a_path_that_names_no_part_is_none(path: str) -> None:
    with pytest.raises(ValueError, match="path of a packed image"):
        place_of(path)


def test_what_befalls_a_part_after_the_listing_is_the_reason_of_its_images(packed: Path) -> None:
    first, *_ = found = list(list_packed(packed))
    part, whole = packed / PART, (packed / PART).read_bytes()

    def reason(image: FoundImage = first) -> str:
        with PackReader() as reader, pytest.raises(OSError, match=".") as raised:
            read(reader, image)
        return raised.value.strerror or ""

    part.write_bytes(whole.replace(b"one", b"onf", 1))
    assert reason() == f"{PART} of the pack is damaged: a checksum is wrong"
    part.write_bytes(whole[:-9])
    assert reason().startswith(f"{PART} of the pack cannot be read: ")
    part.unlink()
    assert reason() == f"{PART} of the pack cannot be read: No such file or directory"
    (packed.parent / "moved").write_bytes(whole)
    part.symlink_to(packed.parent / "moved")
    assert "symbolic links" in reason()
    part.unlink()
    os.mkfifo(part)
    assert reason() == f"{PART} of the pack cannot be read: not a regular file"
    part.unlink()
    part.write_bytes(whole)
    for changed in (
        dataclasses.replace(first, path=found[1].path),
        dataclasses.replace(first, length=4),
        dataclasses.replace(first, modified_us=1_000_002),
        dataclasses.replace(first, path=first.path[:-1] + "9"),
    ):
        assert "holds another image there than was listed" in reason(changed)
    assert "no number 7" in reason(dataclasses.replace(first, path=first.path[:-3] + "7.0"))


def test_a_part_whose_groups_would_fill_the_memory_is_not_read(packed: Path) -> None:
    first = next(list_packed(packed))
    n = ROWS_A_GROUP + 1
    table = pa.table(
        {
            "image_id": ["a/1.png"] * n, "length": [3] * n,
            "modified": pa.array([1_000_001] * n, pa.timestamp("us", "UTC")),
            "error": pa.nulls(n, pa.string()), "crc32": [zlib.crc32(b"one")] * n,
            "content": [b"one"] * n,
        }
    )  # fmt: skip
    pq.write_table(table, packed / PART)
    with PackReader() as reader, pytest.raises(OSError, match="larger than a pack's are"):
        read(reader, first)


def test_a_part_that_states_one_value_for_many_is_not_read(packed: Path) -> None:
    first = next(list_packed(packed))
    pq.write_table(pq.read_table(packed / PART), packed / PART, use_dictionary=True)
    with PackReader() as reader, pytest.raises(OSError, match="repeats values"):
        read(reader, first)
