from __future__ import annotations

from cxr_spark.extraction.account import most_frequent


def test_the_ten_most_frequent_reasons_come_first_each_with_an_image() -> None:
    kinds = "abcdefghijkl"
    reasons = [
        (f"image-{kind}-{i}", "decode", f"{kind} has {i} bytes")
        for k, kind in enumerate(kinds)
        for i in range(k + 1)
    ]
    assert most_frequent(reasons) == [
        f"{k + 1} x decode: {kinds[k]} has 0 bytes (first: image-{kinds[k]}-0)"
        for k in range(11, 1, -1)
    ]
