"""What is done to a local path is done to one of another file system: fsspec's, and S3's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_spark import paths
from cxr_spark.errors import UserError
from cxr_spark.files import write_json
from cxr_spark.paths import (
    RemotePath,
    Status,
    StoreError,
    absolute,
    as_path,
    below,
    check_remote_folder,
    entries,
    location,
    map_files,
    move,
    moves_at_once,
    remove_tree,
    settle,
)
from tests.conftest import S3

Make = Callable[[], RemotePath]


@pytest.fixture(params=["fsspec", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> RemotePath:
    """A folder with nothing in it."""
    if request.param == "fsspec":
        return RemotePath(f"local://{tmp_path}/root")
    (tmp_path / "empty").mkdir()
    return RemotePath(s3.upload(tmp_path / "empty"))


def fill(folder: RemotePath) -> None:
    for name in ("a b/part-0.parquet", "a b/_record.json", "c%/x/part-1.parquet", "top.txt"):
        (folder / name).write_bytes(name.encode())


def test_a_folder_is_there_once_something_lies_in_it(store: RemotePath) -> None:
    assert not store.exists()
    assert not store.is_dir()
    assert list(store.iterdir()) == list(store.glob("*")) == list(store.rglob("*")) == []
    store.mkdir(parents=True, exist_ok=True)
    fill(store)
    assert store.is_dir()
    assert (store / "a b").is_dir()
    assert (store / "a b" / "_record.json").exists()
    assert not (store / "a b" / "_record.json").is_dir()
    assert not (store / "a").exists()
    with pytest.raises(FileNotFoundError):
        (store / "a b").stat()


def test_names_are_what_they_were_written_by(store: RemotePath) -> None:
    fill(store)
    assert [path.name for path in store.iterdir()] == ["a b", "c%", "top.txt"]
    assert [below(p, store) for p in entries(store, "*/*.parquet")] == ["a b/part-0.parquet"]
    found = [below(p, store) for p in sorted(store.rglob("*"))]
    assert "c%/x/part-1.parquet" in found
    (file,) = store.glob("c%/x/*")
    assert isinstance(file, RemotePath)
    assert (file.name, file.suffix, file.parent.name) == ("part-1.parquet", ".parquet", "x")
    assert file.parent.parent.parent == store
    assert file.with_name("y") == store / "c%/x/y" == store.joinpath("c%", "x", "y")
    assert file.read_bytes() == file.read_text().encode() == b"c%/x/part-1.parquet"
    assert file.stat().st_size == (store / "c%/x/part-1.parquet").stat().st_size == 19
    with file.open() as opened:
        assert opened.read() == b"c%/x/part-1.parquet"
    again = pickle.loads(pickle.dumps(file))
    assert again == file
    assert hash(again) == hash(file)


@pytest.mark.parametrize("how", [move, settle])
def test_files_and_folders_go_elsewhere(store: RemotePath, how: Callable[..., None]) -> None:
    fill(store)
    how(store / "top.txt", store / "new" / "top.txt")
    how(store / "a b", store / "new" / "a")
    names = [below(path, store) for path in sorted(store.rglob("*.*"))]
    there = ["new/a/_record.json", "new/a/part-0.parquet", "new/top.txt"]
    was = ["a b/_record.json", "a b/part-0.parquet", "top.txt"]
    assert sorted(names) == sorted(there + ["c%/x/part-1.parquet"] + (was if how is settle else []))
    assert (store / "new/a/part-0.parquet").read_bytes() == b"a b/part-0.parquet"
    assert not moves_at_once(store)
    assert moves_at_once(Path("x"))


def test_a_copy_is_waited_for_and_looked_at(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure answers before it has copied; S3 copies no object of more than five gigabytes."""
    store = RemotePath(f"local://{tmp_path}/root")
    fill(store)
    monkeypatch.setattr(paths, "COPY_S", 0.0)
    size = paths.RemotePath.stat
    monkeypatch.setattr(paths.RemotePath, "stat", lambda path: Status(size(path).st_size + 1))
    with pytest.raises(StoreError, match="has 7 bytes after it was copied, not 8"):
        settle(store / "top.txt", store / "new.txt")
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    there = RemotePath(s3.upload(tmp_path / "empty"))
    (there / "large").write_bytes(bytes(range(256)) * 40)
    monkeypatch.setattr(paths, "MOST_AT_ONCE", 10)
    monkeypatch.setattr(paths, "BYTES_A_PART", 1000)
    move(there / "large", there / "moved")
    assert (there / "moved").read_bytes() == bytes(range(256)) * 40
    assert not (there / "large").exists()


def test_what_is_removed_is_gone(store: RemotePath) -> None:
    fill(store)
    (store / "top.txt").unlink()
    (store / "top.txt").unlink(missing_ok=True)
    remove_tree(store / "a b")
    remove_tree(store / "never", ignore_errors=True)
    remove_tree(store / "c%/x/part-1.parquet")
    assert [path for path in store.rglob("*") if not path.is_dir()] == []
    (store / "c%/x").rmdir()
    assert not list((store / "c%/x").iterdir())
    # pyarrow leaves an empty object for the folder of what it removes from S3.
    assert (store / "c%/x").exists() == store.uri.startswith("s3a:")


def test_json_is_written_and_several_files_are_read_at_once(store: RemotePath) -> None:
    for k in range(40):
        write_json(store / f"{k:02d}.json", {"k": k})
    found = list(map_files(lambda file: file.read_text(), entries(store, "*.json")))
    assert found == [f'{{\n  "k": {k}\n}}\n' for k in range(40)]


def test_a_uri_is_a_path_and_spark_is_told_what_it_takes(tmp_path: Path) -> None:
    path = as_path("s3://bucket/a%20b?region=x")
    assert isinstance(path, RemotePath)
    assert location(path / "c") == "s3a://bucket/a b/c"
    assert absolute(path) is path
    assert as_path("hdfs://host:8020/f/") == RemotePath("hdfs://host:8020/f")
    assert as_path("some/folder") == Path("some/folder")
    assert as_path(path) is path
    assert location(tmp_path / "x") == f"file://{tmp_path}/x"
    assert absolute(Path("x")) == Path.cwd() / "x"


def test_what_cannot_be_an_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a folder under --features\. Received: .*\(a file\)"):
        check_remote_folder(RemotePath(f"local://{tmp_path}/file"), "features")
    with pytest.raises(UserError, match="which Spark takes for patterns"):
        check_remote_folder(RemotePath(f"local://{tmp_path}/%5Bx"), "features")
    with pytest.raises(UserError, match="a folder under --features"):
        check_remote_folder(RemotePath("nothing-knows-it://a/b"), "features")
    check_remote_folder(RemotePath(f"local://{tmp_path}/new"), "features")
