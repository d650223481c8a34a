from __future__ import annotations

import errno

import pytest

from cxr_spark.files import disk_is_full, without_nan


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


def test_json_has_no_nan() -> None:
    content = {"rows": [{"a": float("nan"), "b": (1.5, float("inf"))}], "c": None, "d": "NaN"}
    assert without_nan(content) == {"rows": [{"a": None, "b": [1.5, None]}], "c": None, "d": "NaN"}
