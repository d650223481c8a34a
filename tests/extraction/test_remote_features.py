"""A feature store by its URI: what Spark writes, and what a run that was stopped leaves there."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileSystem

from cxr_spark import paths
from cxr_spark.config import Experiment
from cxr_spark.errors import RunFailed, UserError
from cxr_spark.extraction import job, lock
from cxr_spark.extraction.job import STAGING, ExtractionRequest, _clear_staging, extract
from cxr_spark.extraction.listing import (
    Listing,
    _replace,
    is_missing,
    read_listing_record,
    remove_listing,
    stage_listing,
    write_listing_record,
)
from cxr_spark.extraction.load import load_backbones
from cxr_spark.extraction.lock import locked
from cxr_spark.extraction.shards import commit_shard, finish, parts_of, read_shards, recover
from cxr_spark.extraction.store import (
    ExtractionRecord,
    check_files,
    list_extractions,
    read_errors,
)
from cxr_spark.paths import RemotePath, StoreError, as_path, remove_tree
from cxr_spark.spark_jobs import check_seen_by_spark
from cxr_spark.training.reader import read_inputs, read_keys, stream_inputs
from tests.conftest import S3
from tests.extraction.test_job import read, run
from tests.extraction.test_store import go_on_after, make_record
from tests.test_jobs import submit

# Spark and fsspec both take a URI of this scheme for a local folder, and nothing else does.
SCHEME = {
    "fs.local.impl": "org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme",
    "fs.viewfs.mounttable.default.link./tmp": "file:///tmp",
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder that ``there`` is, where this test may look at it."""
    if tmp_path.parts[1] != "tmp":
        pytest.skip("the scheme of these tests is mounted at /tmp")
    return tmp_path / "features"


@pytest.fixture
def there(here: Path) -> RemotePath:
    """A features folder by its URI."""
    return RemotePath(f"local://{here}")


@pytest.fixture
def with_scheme(spark: Any) -> Any:
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    for key, value in SCHEME.items():
        conf.set(key, value)
    return spark


def extract_to(
    spark: Any, experiment: Experiment, images: Path, features: RemotePath, cache: Path, **how: Any
) -> list[ExtractionRecord]:
    cache.mkdir(exist_ok=True)
    backbones = list(load_backbones(experiment, cache, feature_maps=False))
    request = ExtractionRequest(experiment, str(images), features, False)
    return extract(spark, request, lambda: backbones, **how)


def test_features_by_uri_are_those_of_a_folder_and_grow_as_they_do(
    with_scheme, experiment, phantoms: Path, here: Path, there: RemotePath, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for folder in ("train", "val", "test"):
        (images / folder).symlink_to(phantoms / folder)
    (record,) = extract_to(with_scheme, experiment, images, there, tmp_path / "cache")
    (of_folder,) = run(with_scheme, experiment, phantoms, tmp_path / "local")
    assert (record.n_images, record.n_rows, record.n_errors) == (90, 90, 0)
    one, two = read(here, record), read(tmp_path / "local", of_folder)
    assert one["image_id"].tolist() == two["image_id"].tolist()
    np.testing.assert_allclose(np.stack(one["pooled"]), np.stack(two["pooled"]), rtol=1e-5)
    names = [record.fingerprint, "errors", "manifest"]
    assert sorted(path.name for path in here.iterdir()) == names
    check_files(there, record)
    assert list_extractions(there) == [record]
    before = {f: f.stat().st_mtime_ns for f in here.rglob("*.parquet")}
    assert extract_to(with_scheme, experiment, images, there, tmp_path / "cache") == [record]
    assert {f: f.stat().st_mtime_ns for f in here.rglob("*.parquet")} == before
    (images / "more" / "PNEUMONIA").mkdir(parents=True)
    (images / "test").unlink()
    (images / "test").mkdir()
    for file in (phantoms / "test").rglob("*.jpeg"):
        new = images / "test" / file.relative_to(phantoms / "test")
        new.parent.mkdir(exist_ok=True)
        new.symlink_to(file)
    (images / "test" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(b"no image")
    (again,) = extract_to(with_scheme, experiment, images, there, tmp_path / "cache")
    assert (again.n_images, again.n_rows, again.n_errors) == (91, 90, 1)
    assert [row["stage"] for row in read_errors(there, again)] == ["decode"]
    (anew,) = extract_to(with_scheme, experiment, images, there, tmp_path / "cache", overwrite=True)
    assert dataclasses.replace(anew, files={}) == dataclasses.replace(again, files={})


@pytest.fixture(scope="module")
def stored(spark, phantoms: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished store in a local folder, with maps."""
    features = tmp_path_factory.mktemp("stored") / "features"
    experiment = Experiment(
        backbones=["MobileNetV3Small"], weights="random", image_size=48, name="x",  # type: ignore[arg-type]
    )  # fmt: skip
    (record,) = run(spark, experiment, phantoms, features, maps=True)
    return features, record


def test_a_store_on_a_server_is_read_as_a_folder_is(stored, s3: S3) -> None:
    features, record = stored
    there = as_path(s3.upload(features))
    assert isinstance(there, RemotePath)
    assert list_extractions(there) == [record]
    check_files(there, record)
    assert read_errors(there, record) == read_errors(features, record)
    keys, expected = read_keys(there, record), read_keys(features, record)
    assert keys.image_id.tolist() == expected.image_id.tolist()
    for takes in ("pooled", "feature_map"):
        found = read_inputs(there, record, takes, keys.image_id)
        wanted = read_inputs(features, record, takes, keys.image_id)
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, two)
        groups = list(stream_inputs(there, record, takes, keys.image_id, seed=1))
        assert sorted(np.concatenate([g.positions for g in groups])) == list(range(90))


def test_a_store_on_a_server_is_looked_at_before_petastorm_is(stored, s3: S3) -> None:
    features, record = stored
    root = s3.upload(features)
    s3.write(root, f"{record.fingerprint}/x/_common_metadata", b"x")
    there = as_path(root)
    with pytest.raises(UserError, match="petastorm would unpickle"):
        read_keys(there, record)


def write_rows(folder: RemotePath, *image_ids: str) -> RemotePath:
    content = io.BytesIO()
    pq.write_table(pa.table({"image_id": list(image_ids)}), content)
    (folder / "part-0.parquet").write_bytes(content.getvalue())
    return folder


def stage_errors(features: RemotePath) -> RemotePath:
    row = {"image_id": "e", "path": "/e", "length": 0, "stage": "read", "error": "no"}
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), content)
    folder = features / "_staging" / "errors"
    (folder / "part-0.parquet").write_bytes(content.getvalue())
    (folder / "_SUCCESS").write_bytes(b"")
    return folder


def make_store(features: RemotePath) -> ExtractionRecord:
    """Two shards of a row each, and the end of the extraction."""
    parts = parts_of(features, make_record().fingerprint, feature_maps=True)
    for name in ("a", "b"):
        commit_shard(parts, name, write_rows(features / "_staging" / name, name), [])
    return finish(features, parts, stage_errors(features), make_record())


def end_again(features: RemotePath) -> ExtractionRecord:
    """Add a shard to a data set of two, of which one file goes."""
    parts = parts_of(features, make_record().fingerprint, feature_maps=True)
    return finish(features, parts, stage_errors(features), make_record(), kept=["a-part-0.parquet"])


@pytest.mark.parametrize("kind", ["fsspec", "s3"])
def test_shards_on_a_store_end_as_those_of_a_folder(kind: str, tmp_path: Path, s3: S3) -> None:
    (tmp_path / "empty").mkdir()
    root = s3.upload(tmp_path / "empty") if kind == "s3" else f"local://{tmp_path}/features"
    features = RemotePath(root)
    record = make_store(features)
    assert list_extractions(features) == [record]
    check_files(features, record)
    assert [row["image_id"] for row in read_errors(features, record)] == ["e"]
    parts = parts_of(features, record.fingerprint, feature_maps=True)
    assert read_shards(parts) == []
    commit_shard(parts, "c", write_rows(features / "_staging" / "c", "b"), [])
    commit_shard(parts, "d", write_rows(features / "_staging" / "d", "d"), [])
    (parts / "d" / "part-0.parquet").write_bytes(b"PAR1 no more")
    assert [shard.folder.name for shard in read_shards(parts)] == ["c"]
    assert list(end_again(features).files) == ["a-part-0.parquet", "c-part-0.parquet"]
    assert not list(features.glob("_parts/*/*"))


class Killed:
    """A file system that ends the process, so to say, before the step ``at`` of those that write.

    Of a folder that is removed some files have gone by then.
    """

    STEPS = ("copy_file", "delete_dir", "delete_file", "open_output_stream")

    def __init__(self, at: int) -> None:
        self.n, self._at, self._lock = 0, at, threading.Lock()

    def of(self, files: FileSystem) -> FileSystem:
        killed = self

        class Watched:
            def __getattr__(self, name: str) -> Any:
                step = getattr(files, name)
                return killed._before(files, step) if name in Killed.STEPS else step

        watched: Any = Watched()
        return watched

    def _before(self, files: FileSystem, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                if self.n >= self._at:
                    if step.__name__ == "delete_dir":
                        found = files.get_file_info(FileSelector(arguments[0], recursive=True))
                        for info in [info for info in found if info.is_file][::2]:
                            files.delete_file(info.path)
                    raise KeyboardInterrupt
                self.n += 1
                return step(*arguments, **named)

        return stepped


def test_an_end_killed_at_any_step_is_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a store that renames nothing."""
    locate, n_undone, n_steps = paths.locate, 0, None
    for at in itertools.count():
        features = RemotePath(f"local://{tmp_path}/{at}")
        first = make_store(features)
        parts = parts_of(features, first.fingerprint, feature_maps=True)
        commit_shard(parts, "c", write_rows(features / "_staging" / "c", "b"), [])
        killed = Killed(at)

        def watched(uri: str, killed: Killed = killed) -> tuple[FileSystem, str]:
            files, path = locate(uri)
            return killed.of(files), path

        with monkeypatch.context() as patch:
            patch.setattr(paths, "locate", watched)
            try:
                end_again(features)
            except KeyboardInterrupt:
                pass
            else:
                n_steps = at
        found, was_undone = go_on_after(features, first, end_again, at)
        n_undone += was_undone
        assert [row["image_id"] for row in read_errors(features, found)] == ["e"], at
        assert read_shards(parts) == [], at
        if n_steps is not None:
            break
    assert killed.n == n_steps
    assert n_steps >= 10
    assert 0 < n_undone < n_steps


def test_a_store_that_spark_does_not_see_is_told_in_one_line(
    spark, experiment, phantoms: Path, tmp_path: Path, s3: S3
) -> None:
    """pip's Spark has no connector for S3; and a scheme may be mounted elsewhere."""
    (tmp_path / "empty").mkdir()
    there = as_path(s3.upload(tmp_path / "empty"))
    assert isinstance(there, RemotePath)
    with pytest.raises(UserError, match=r"Expected Spark to reach s3a://.*S3AFileSystem not found"):
        extract_to(spark, experiment, phantoms, there, tmp_path / "cache")
    assert not (there / "_lock").exists()
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    conf.set("fs.elsewhere.impl", SCHEME["fs.local.impl"])
    conf.set("fs.viewfs.mounttable.default.link./tmp", f"file://{tmp_path}")
    with pytest.raises(UserError, match="endpoint or region of the one are not those of the other"):
        check_seen_by_spark(spark, RemotePath(f"elsewhere://{tmp_path}/x"))


N_STEPS = 16


@pytest.mark.parametrize("at", range(N_STEPS + 1))
def test_a_manifest_whose_move_was_stopped_is_moved_again(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was in its place comes back, or the new one is there; nobody's is left."""
    features = RemotePath(f"local://{tmp_path}/features")
    staging = features / f"{STAGING}1"
    for folder, name in ((features / "manifest", "old"), (staging / "joined", "new")):
        (folder / f"part-{name}.parquet").write_bytes(b"")
        write_listing_record(folder, Listing(1, 0, name))
    locate, killed = paths.locate, Killed(at)

    def watched(uri: str) -> tuple[FileSystem, str]:
        files, path = locate(uri)
        return killed.of(files), path

    completed = False
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(paths, "locate", watched)
        _replace(features / "manifest", staging / "joined")
        completed = True
    assert completed == (at >= N_STEPS)
    _clear_staging(features)
    listing = read_listing_record(features)
    assert listing is not None
    assert list(listing.files) == [f"part-{listing.digest}.parquet"]
    assert [path.name for path in features.iterdir()] == ["manifest"]


def test_a_folder_of_somebody_elses_is_not_taken_for_a_manifest(tmp_path: Path) -> None:
    manifest = RemotePath(f"local://{tmp_path}/features/manifest")
    assert is_missing(manifest)
    (manifest / "part-0.parquet").write_bytes(b"")
    assert not is_missing(manifest)
    remove_listing(manifest)
    assert is_missing(manifest)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["fsspec", "s3"])
def test_one_run_at_a_time_writes_to_a_store(kind: str, tmp_path: Path, s3: S3) -> None:
    (tmp_path / "empty").mkdir()
    root = s3.upload(tmp_path / "empty") if kind == "s3" else f"local://{tmp_path}/features"
    features = RemotePath(root)
    with locked(features) as check:
        held = (features / "_lock").read_text()
        told = r"a second run \(process \d+ on .* writes to it"
        with pytest.raises(UserError, match=told), locked(features):
            raise AssertionError
        check()
    assert not (features / "_lock").exists()
    (features / "_lock").write_bytes(held.encode())  # of one that was killed
    with locked(features):
        assert (features / "_lock").read_text() != held


@pytest.mark.usefixtures("quick")
def test_a_lock_that_is_being_written_is_somebodys(tmp_path: Path) -> None:
    """Not every store writes whole or not at all: it may be read while there is nothing in it."""
    features, stop = RemotePath(f"local://{tmp_path}/features"), threading.Event()
    (features / "_lock").write_bytes(b"")

    def write() -> None:
        for n in itertools.count():
            if stop.wait(0.05):
                return
            (features / "_lock").write_bytes(f"another\nx\n{n}\n".encode() if n % 2 else b"")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"a second run \(another writes"), locked(features):
            raise AssertionError
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("quick")
def test_a_run_that_lost_its_lock_commits_nothing_more(
    with_scheme, experiment, phantoms: Path, there: RemotePath, tmp_path: Path, monkeypatch
) -> None:
    """As after a machine stood still for long: another run has taken the folder meanwhile."""
    other = b"another\nx\n1\n"

    def stage(*arguments: Any, **named: Any) -> Any:
        (there / "_lock").write_bytes(other)
        time.sleep(1)
        return stage_listing(*arguments, **named)

    monkeypatch.setattr(job, "stage_listing", stage)
    with pytest.raises(RunFailed, match=r"not this run's any more \(held by another\)"):
        extract_to(with_scheme, experiment, phantoms, there, tmp_path / "cache")
    assert (there / "_lock").read_bytes() == other
    assert not (there / "manifest").exists()
    assert list(there.glob("_staging-*"))  # it may be the other's


def test_what_a_store_says_is_one_kind_of_error(tmp_path: Path, monkeypatch) -> None:
    features = RemotePath(f"local://{tmp_path}/features")
    make_store(features)

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            raise ValueError("the key\nhas expired")

    refusing: Any = Refusing()
    monkeypatch.setattr(paths, "locate", lambda uri: (refusing, uri))
    for do in (list_extractions, recover, lambda path: remove_tree(path), lambda p: p.read_bytes()):
        with pytest.raises(StoreError, match="local://.*: the key has expired"):
            do(features)


def test_an_end_that_was_not_written_to_its_end_was_not_begun(tmp_path: Path) -> None:
    features = RemotePath(f"local://{tmp_path}/features")
    parts = parts_of(features, make_record().fingerprint, feature_maps=True)
    for name in ("a", "b"):
        commit_shard(parts, name, write_rows(features / "_staging" / name, name), [])
    (parts / "_finish.json").write_bytes(b'{"record": {"fing')
    recover(features)
    assert [shard.folder.name for shard in read_shards(parts)] == ["a", "b"]
    finish(features, parts, stage_errors(features), make_record())
    assert len(list_extractions(features)) == 1


@pytest.mark.usefixtures("quick")
def test_of_two_runs_that_begin_together_one_goes_on(tmp_path: Path) -> None:
    features, told = RemotePath(f"local://{tmp_path}/features"), list[str]()
    both = threading.Barrier(2)

    def go() -> None:
        both.wait()
        try:
            with locked(features):
                told.append("went on")
                ended.wait(5)
        except UserError:
            told.append("refused")
            ended.set()

    ended = threading.Event()
    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["refused", "went on"]


def test_a_grid_keeps_its_features_where_a_uri_says(
    here: Path, there: RemotePath, tmp_path: Path
) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(
        "phantoms: {n_images: 90, image_size: 64, seed: 0}\nimage_size: 48\nweights: random\n"
        "backbones: [MobileNetV3Small]\nheads: [gap]\nseeds: [0]\n"
    )
    given = [("--conf", f"spark.hadoop.{key}={value}") for key, value in SCHEME.items()]
    done = submit(
        *itertools.chain(*given), "jobs/grid.py", "--config", str(config),
        "--run", str(tmp_path / "run"), "--features", str(there),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "results.csv").exists()
    assert len(list_extractions(there)) == 1
