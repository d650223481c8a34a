from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cxr_spark.errors import UserError
from cxr_spark.files import disk_is_full, local_path, refuse_links, replacing, without_nan


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("java.io.IOException: No space left on device\n\tat x"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("No space"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number_and_by_what_java_says(
    error: Exception, full: bool
) -> None:
    assert disk_is_full(error) is full


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///a/b c%20", "/a/b c%20"),
        ("file:/a", "/a"),
        ("FILE:///a", "/a"),
        ("a/b", "a/b"),
        ("c:/x", "c:/x"),
        ("x:y/z", "x:y/z"),
    ],
)
def test_a_folder_may_be_given_by_its_uri(text: str, path: str) -> None:
    assert local_path(text) == path


@pytest.mark.parametrize(
    "uri", ["s3a://b/f", "hdfs:/f", "abfss://c@a/f", "gs://b", "file://host/f"]
)
def test_what_no_node_has_mounted_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="a folder that driver and executors have mounted"):
        local_path(uri)


def test_json_has_no_nan() -> None:
    content = {"rows": [{"a": float("nan"), "b": (1.5, float("inf"))}], "c": None, "d": "NaN"}
    assert without_nan(content) == {"rows": [{"a": None, "b": [1.5, None]}], "c": None, "d": "NaN"}


def test_two_that_write_one_file_leave_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "head.keras"
    with replacing(file) as one:
        one.write_text("half")
        with replacing(file) as other:
            other.write_text("whole")
        assert file.read_text() == "whole"
        one.write_text("whole as well")
    assert one.suffix == other.suffix == ".keras"
    assert file.read_text() == "whole as well"
    with pytest.raises(FileNotFoundError), replacing(file) as beside:
        beside.with_name("no folder").joinpath("x").write_text("ha")
    assert [f.name for f in tmp_path.iterdir()] == ["head.keras"]
    assert file.read_text() == "whole as well"


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    refuse_links(tmp_path / "new", "run")
    (tmp_path / "heads").mkdir()
    refuse_links(tmp_path, "run")
    (tmp_path / "_parts").mkdir()
    (tmp_path / "_parts" / "0a").symlink_to("/elsewhere")
    with pytest.raises(UserError, match=r"--features to hold no links.*0a \(to /elsewhere\)"):
        refuse_links(tmp_path, "features")
    (tmp_path / "_parts" / "0a").unlink()
    (tmp_path / "figures").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"--run to hold no links.*figures \(to /nowhere\)"):
        refuse_links(tmp_path, "run")
