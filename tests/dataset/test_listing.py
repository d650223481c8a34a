from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from cxr_spark.dataset.listing import path_to_uri, uri_to_path, walk_images

ODD_NAMES = [
    b"_hidden.jpeg",
    b".hidden.png",
    b"with space.jpg",
    b"with:colon.jpeg",
    b"per%20cent.jpeg",
    b"hash#and?mark.jpeg",
    b"quote'\".jpeg",
    b"line\nbreak.jpeg",
    b"umlaut-\xc3\xa4.jpeg",
    b"not-utf8-\xff\xfe.jpeg",
    b"LOUD.JPEG",
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = os.fsencode(tmp_path)
    for name in ODD_NAMES:
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(b"x")
    (tmp_path / "empty.jpeg").touch()
    (tmp_path / "dangling.jpeg").symlink_to("nowhere")
    (tmp_path / "loop.jpeg").symlink_to("loop.jpeg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a-b").mkdir()
    (tmp_path / "a-b" / "1.png").write_bytes(b"x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"x")
    (tmp_path / "folder.jpeg").mkdir()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    return tmp_path


def test_walk_finds_every_entry_with_an_image_suffix(odd: Path) -> None:
    found = {image.image_id: image for image in walk_images(str(odd))}
    expected = {name.decode("utf-8", "backslashreplace") for name in ODD_NAMES}
    expected |= {"empty.jpeg", "dangling.jpeg", "loop.jpeg", "folder.jpeg", "a/1.png", "a-b/1.png"}
    assert set(found) == expected
    assert found["empty.jpeg"].length == 0
    assert found["dangling.jpeg"].length == -1
    assert found["a/1.png"].length == 1
    assert found["a/1.png"].modified_us == os.stat(odd / "a" / "1.png").st_mtime_ns // 1000


def test_uris_lead_back_to_the_exact_names(odd: Path) -> None:
    for image in walk_images(str(odd)):
        path = uri_to_path(image.path)
        assert path_to_uri(path) == image.path
        assert image.path.isascii()
        assert os.path.lexists(path)
    with pytest.raises(ValueError, match="file://"):
        uri_to_path("s3a://bucket/key")


def test_no_two_paths_share_an_image_id(tmp_path: Path) -> None:
    for name in (b"\xff.png", b"\\xff.png", b"\\\\xff.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    assert len({image.image_id for image in walk_images(str(tmp_path))}) == 3


@pytest.mark.parametrize(("seconds", "year"), [(1e10, 2262), (-1e10, 1677)])
def test_times_that_pandas_cannot_hold_stand_as_its_last_or_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, year: int
) -> None:
    (tmp_path / "wrong.png").touch()
    status = SimpleNamespace(st_size=0, st_mtime_ns=int(seconds * 1e9))
    with monkeypatch.context() as patch:  # few file systems store such times
        patch.setattr("os.stat", lambda path: status)
        (image,) = walk_images(str(tmp_path))
    assert pd.to_datetime(image.modified_us, unit="us").year == year


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    nested = "d/" * 100
    (tmp_path / nested).mkdir(parents=True)
    (tmp_path / nested / "deep.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        (image,) = walk_images(str(tmp_path))
    finally:
        sys.setrecursionlimit(limit)
    assert image.image_id == nested + "deep.png"


def test_links_to_folders_are_followed_but_not_into_what_holds_them(tmp_path: Path) -> None:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b" / "1.png").touch()
    (tmp_path / "root" / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "root" / "c").symlink_to("a")
    (tmp_path / "link").symlink_to("root")
    found = [image.image_id for image in walk_images(str(tmp_path / "link"))]
    assert found == ["a/b/1.png", "c/b/1.png"]


def test_a_folder_that_cannot_be_read_is_an_entry_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.png").touch()
    scandir = os.scandir

    def refuse(path: bytes) -> object:
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    closed, image = walk_images(str(tmp_path))
    assert (closed.image_id, closed.problem) == (
        "closed/",
        "the folder cannot be read: Permission denied",
    )
    assert image.problem == ""


def test_walk_is_in_the_order_of_sorted_paths(odd: Path) -> None:
    found = [image.image_id for image in walk_images(str(odd))]
    slow = sorted(
        (
            os.fsencode(path.relative_to(odd))
            for path in odd.rglob("*")
            if path.name.lower().endswith((".jpeg", ".jpg", ".png")) and "back/" not in str(path)
        ),
        key=lambda name: name + b"/" if name == b"folder.jpeg" else name,
    )
    assert found == [name.decode("utf-8", "backslashreplace") for name in slow]
