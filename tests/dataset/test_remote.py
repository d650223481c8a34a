"""Image roots by their URI: on an S3-compatible server, and on a file system that fsspec has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from cxr_spark import files, filesystems
from cxr_spark.config import load_experiment
from cxr_spark.dataset import remote
from cxr_spark.dataset.listing import walk_images
from cxr_spark.dataset.phantoms import holds_phantoms
from cxr_spark.dataset.remote import RemoteImage, read_ahead, walk_remote
from cxr_spark.dataset.root import check_root, open_root
from cxr_spark.engine.pipeline import one_ahead
from cxr_spark.errors import UserError
from cxr_spark.files import without_secret
from cxr_spark.filesystems import is_remote
from tests.conftest import S3, shared

NAMES = [
    "train/NORMAL/a.jpeg", "train/NORMAL/a b.JPG", "train/NORMAL/%41#?&=+.png",
    "train/NORMAL/\u00fc\u4e2d.jpeg", "train/NORMAL-1/a.png", "train/NORMAL.jpeg", "train/a\\b.png",
    "train/_x/.y.jpeg", "z.jpg", "train/NORMAL/text.txt", "train/NORMAL/empty.png",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"" if "empty" in name else name.encode())
    (tmp_path / "images" / "folder.png").mkdir()
    return tmp_path / "images"


def by_fsspec(folder: Path, _: S3) -> str:
    return f"local://{folder}"


def by_s3(folder: Path, s3: S3) -> str:
    return s3.upload(folder)


@pytest.mark.parametrize("put", [by_fsspec, by_s3])
def test_a_root_by_its_uri_has_the_images_of_the_folder_in_their_order(
    folder: Path, s3: S3, put: Any
) -> None:
    root = put(folder, s3)
    check_root(root)
    listed, there = list(walk_images(str(folder))), list(walk_remote(root))
    if put is by_s3:  # which has no empty folders
        listed = [image for image in listed if image.image_id != "folder.png"]
    told = [(image.image_id, image.problem) for image in listed]
    assert [(image.image_id, image.problem) for image in there] == told
    assert len(there) >= 10
    read = open_root(root)
    for image in there:
        if image.image_id == "folder.png":
            continue
        name = image.image_id.replace("\\\\", "\\")
        content = (folder / name).read_bytes()
        assert image.length == len(content)
        assert RemoteImage(image.path, image.length, image.modified_us).read() == content
        assert read(image.image_id) == content


def test_an_image_that_changed_or_went_since_it_was_listed_is_an_error(
    folder: Path, s3: S3
) -> None:
    (image,) = (i for i in walk_remote(f"local://{folder}") if i.image_id == "z.jpg")
    listed = RemoteImage(image.path, image.length, image.modified_us)
    file = folder / "z.jpg"
    os.utime(file, (1, 1))
    with pytest.raises(OSError, match="changed since it was listed"):
        listed.read()
    assert listed._replace(modified_us=None).read() == b"z.jpg"
    file.write_bytes(b"other bytes")
    with pytest.raises(OSError, match="changed since it was listed"):
        listed._replace(modified_us=None).read()
    file.unlink()
    with pytest.raises(FileNotFoundError):
        listed.read()
    with pytest.raises(PermissionError, match="outside"):
        open_root(f"local://{folder}")("../x.jpeg")


def test_a_file_too_large_for_a_worker_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 3)
    with pytest.raises(OSError, match="more than 3"):
        open_root(f"local://{folder}")("z.jpg")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("local:///nowhere/at/all", "nothing is there"),
        ("{file}", "a file"),
        ("{s3}/nothing", "nothing is there"),
        ("unheard://bucket/x", "Protocol not known"),
        ("s3://BUCKET_?region=x&endpoint_override=127.0.0.1:1&scheme=http", "127.0.0.1|curl|S3"),
    ],
)
def test_a_root_that_is_not_there_is_told_in_one_line(
    uri: str, told: str, folder: Path, s3: S3
) -> None:
    root = uri.format(file=f"local://{folder}/z.jpg", s3="s3://nobody-has-it")
    if "nobody" in root:
        root += "?" + s3.query
    with pytest.raises(UserError, match=told) as raised:
        check_root(root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://KEY:Zm9v@bucket/x", "without a user"),
        ("s3://KEY:Zm/9v@bucket/x", "without a user"),
        ("s3://KEY:Zm?9v@bucket/x", "without a user"),
        ("s3://Zm9v@bucket/x", "without a user"),
        ("gs://bucket:Zm9v/x", "without a user"),
        ("s3://bucket/a//b", "without '//'"),
        ("s3://bucket/a/../b", "without '//'"),
        ("hdfs://KEY:Zm9v@name:9000/x", "without a user"),
        ("abfss://container:Zm9v@account/x", "without a user"),
        ("ftp://KEY:Zm9v@host/x", "without a user"),
        ("s3://bucket/x?access_key=Zm9v", "any option but endpoint_override, region, scheme,"),
        ("s3://bucket/x?region=a&sig=Zm9v", "any option"),
        ("s3://bucket/x?s%65cret=Zm9v", "any option"),
        ("abfss://container@account/x?sv=1&sig=Zm9v", "any option but none"),
        ("s3://bucket/x#y", "%23"),
        ("s3:/KEY:Zm9v@bucket", "begins with s3://"),
        ("s3://[bucket/x", "without a user"),
    ],
)
def test_a_uri_that_would_tell_a_secret_or_means_another_is_refused(uri: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        files.root(uri)
    for shown in (str(raised.value), without_secret(uri)):
        assert "Zm" not in shown or "gs:" in uri  # what looks like a port is shown
        assert "9v" not in shown or "gs:" in uri


@pytest.mark.parametrize("field", ["images", "features", "run"])
def test_a_uri_in_the_yaml_file_keeps_its_secret(field: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(f"{field}: s3://KEY:Zm9v@bucket/x?a=Zm9v", encoding="utf-8")
    with pytest.raises(UserError, match=f"Expected a valid {field}") as raised:
        load_experiment(str(file), {})
    assert "Zm9v" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "root", "far"),
    [
        ("s3a://bucket/a b?region=eu-west-1", "s3a://bucket/a b?region=eu-west-1", True),
        ("s3://b.c-d/x@y:z?scheme=http&endpoint_override=h:1", None, True),
        ("gs://bucket/x", None, True),
        ("local:///a/b", None, True),
        ("abfss://container@account.host/x", "abfss://container@account.host/x", True),
        ("hdfs://name:9000/x", "hdfs://name:9000/x", True),
        ("file:///a/b", "/a/b", False),
        ("a/b", "a/b", False),
        ("c:/x", "c:/x", False),
    ],
)
def test_an_image_root_is_a_path_or_a_uri(text: str, root: str | None, far: bool) -> None:
    assert files.root(text) == (root or text)
    assert is_remote(root or text) == far


@dataclass
class Watched:
    """Counts how many of its images are read and not yet handed over."""

    held: int = 0
    most: int = 0
    read: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def watched_images(
    n: int, length: int, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> list[RemoteImage]:
    def read(image: RemoteImage) -> bytes:
        with watched.lock:
            watched.held += 1
            watched.most = max(watched.most, watched.held)
            watched.read.append(int(image.uri))
        time.sleep(0.005)
        return image.uri.encode()

    monkeypatch.setattr(RemoteImage, "read", read)
    return [RemoteImage(str(k), length, 0) for k in range(n)]


@pytest.mark.parametrize("n_readers", [1, 8])
@pytest.mark.parametrize("length", [10, 2**24, 2**26])
def test_images_are_read_ahead_once_each_within_bounds(
    n_readers: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as 32 MB hold, and at most 256, beside those that are asked for."""
    watched = Watched()
    images = watched_images(600, length, watched, monkeypatch)
    sources = read_ahead(images)

    def take(k: int) -> bytes:
        content = sources[k].read()
        with watched.lock:
            watched.held -= 1
        return content

    with ThreadPoolExecutor(n_readers) as pool:
        assert list(pool.map(take, range(600))) == [str(k).encode() for k in range(600)]
    assert sorted(watched.read) == list(range(600))
    fit = max(1, min(257, 2**25 // length))
    assert min(fit, 8) <= watched.most <= fit + n_readers


def test_a_group_is_read_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second while the first is computed."""
    watched = Watched()
    images = watched_images(20, 10, watched, monkeypatch)
    groups = one_ahead(read_ahead(images[k : k + 10]) for k in (0, 10))
    first = next(groups)
    until = time.monotonic() + 10
    while len(watched.read) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(watched.read) == list(range(20))
    assert [image.read() for image in first] == [str(k).encode() for k in range(10)]
    assert [image.read() for image in next(groups)] == [str(k).encode() for k in range(10, 20)]
    assert not list(groups)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_one_ahead_changes_nothing_of_what_is_yielded(n: int) -> None:
    assert list(one_ahead(iter(range(n)))) == list(range(n))


def test_what_is_no_remote_image_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    images = watched_images(2, 1, Watched(), monkeypatch)

    class Local:
        def read(self) -> bytes:
            return b"local"

    local = Local()
    assert [source.read() for source in read_ahead([images[0], local, images[1]])] == [
        b"0", b"local", b"1",
    ]  # fmt: skip
    assert read_ahead([local]) == [local]


def test_a_failure_ahead_is_raised_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(image: RemoteImage) -> bytes:
        if image.uri == "1":
            raise FileNotFoundError(2, "no such file")
        return b"x"

    monkeypatch.setattr(RemoteImage, "read", read)
    first, second, third = read_ahead([RemoteImage(str(k), 1, 0) for k in range(3)])
    assert first.read() == b"x"
    with pytest.raises(FileNotFoundError):
        second.read()
    assert third.read() == b"x"


def test_a_folder_that_cannot_be_listed_is_listed_again_and_then_ends_the_walk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of it among the errors would lose its images for a moment's trouble."""
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0))
    root, failures = f"local://{folder}", [2]
    whole = list(walk_remote(root))
    connect = filesystems._connect

    class Failing:
        def __init__(self, files: Any) -> None:
            self._files = files

        def get_file_info(self, what: Any) -> Any:
            if "NORMAL" in getattr(what, "base_dir", "") and failures[0]:
                failures[0] -= 1
                raise OSError("AWS Error SLOW_DOWN")
            return self._files.get_file_info(what)

    def connected(*place: str) -> Any:
        files, base = connect(*place)
        return Failing(files), base

    monkeypatch.setattr(filesystems, "_connect", connected)
    assert list(walk_remote(root)) == whole
    failures[0] = 3
    with pytest.raises(UserError, match="Expected to list local://.*NORMAL.*SLOW_DOWN"):
        list(walk_remote(root))


def test_an_object_and_what_lies_in_it_are_told_apart_and_empty_parts_refused(s3: S3) -> None:
    with tempfile.TemporaryDirectory() as empty:
        root = s3.upload(Path(empty))
    for name in ("a.png", "a.png/b.png"):
        s3.write(root, name, name.encode())
    assert [i.image_id for i in walk_remote(root)] == ["a.png", "a.png/b.png"]
    boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1").put_object(
        Bucket=root.split("/")[2], Key="root/x//c.png", Body=b"c"
    )
    with pytest.raises(UserError, match="without an empty part"):
        list(walk_remote(root))


def test_what_is_unknown_of_a_file_is_not_compared(folder: Path) -> None:
    (image,) = (i for i in walk_remote(f"local://{folder}") if i.image_id == "z.jpg")
    for length, modified in ((-1, image.modified_us), (image.length, 0), (-1, None)):
        assert RemoteImage(image.path, length, modified).read() == b"z.jpg"
    with pytest.raises(OSError, match="changed"):
        RemoteImage(image.path, -1, image.modified_us + 10**6).read()


def test_a_file_replaced_while_it_is_read_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = (i for i in walk_remote(f"local://{folder}") if i.image_id == "z.jpg")
    connect = filesystems._connect

    class Replacing:
        def __init__(self, files: Any) -> None:
            self.get_file_info, self._files = files.get_file_info, files

        def open_input_stream(self, path: str) -> Any:
            (folder / "z.jpg").write_bytes(b"other")
            os.utime(folder / "z.jpg", (2, 2))
            return self._files.open_input_stream(path)

    def connected(*place: str) -> Any:
        files, base = connect(*place)
        return Replacing(files), base

    monkeypatch.setattr(filesystems, "_connect", connected)
    with pytest.raises(OSError, match="changed since it was listed"):
        RemoteImage(image.path, image.length, image.modified_us).read()


def test_phantoms_are_known_wherever_they_lie(phantoms: Path, folder: Path, s3: S3) -> None:
    assert holds_phantoms(s3.upload(phantoms))
    assert holds_phantoms(f"local://{phantoms}")
    assert not holds_phantoms(s3.upload(folder))


def test_real_images_on_a_server_are_those_of_the_folder(s3: S3) -> None:
    root = shared("data/chest_xray_224/test/NORMAL")
    some = sorted(root.iterdir())[:40]
    uri = s3.upload(root, [file.name for file in some])
    read = open_root(uri)
    assert [read(image.image_id) for image in walk_remote(uri)] == [f.read_bytes() for f in some]


def test_many_threads_may_be_the_first_to_ask(folder: Path, s3: S3) -> None:
    """In a process of its own: pyarrow crashed where they connected at once."""
    root = s3.upload(folder)
    listed = [
        (i.path, i.length, i.modified_us) for i in walk_remote(root) if i.image_id.endswith("g")
    ]
    program = (
        "import sys\n"
        "from cxr_spark.dataset.remote import RemoteImage, read_ahead\n"
        f"images = read_ahead([RemoteImage(*one) for one in {listed * 4!r}])\n"
        "print(sum(len(image.read()) for image in images))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4 * sum(length for _, length, _ in listed)
