from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from cxr_spark.dataset.root import open_root
from cxr_spark.report.thumbnails import choose_samples, thumbnail


def test_a_small_picture_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ramp = np.tile(np.linspace(0, 255, 600, dtype=np.uint8), (400, 1))
    Image.fromarray(ramp).save(tmp_path / "a" / "x.png")
    uri = thumbnail(open_root(tmp_path), "a/x.png")
    assert uri is not None
    kind, _, encoded = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.size == (200, 133)
    assert np.asarray(picture)[60, 10] < 40 < 215 < np.asarray(picture)[60, 190]


def test_what_is_gone_damaged_or_elsewhere_has_none(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "text.jpeg").write_text("no picture")
    Image.new("L", (9, 9)).save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    for name in ("loop.png", "pipe.png", "gone.png", "text.jpeg", "../outside.png", "link.png"):
        assert thumbnail(open_root(root), name) is None


def test_samples_are_the_same_in_any_order_and_of_a_larger_folder_mostly() -> None:
    names = [f"train/{k}.jpeg" for k in range(100)]
    chosen = choose_samples(names)
    assert choose_samples(names[::-1]) == chosen
    assert len(set(chosen)) == 6
    assert chosen != names[:6]
    assert choose_samples(names[:2], 6) != []
    assert set(chosen) - set(choose_samples([*names, "train/x.jpeg"])) <= {chosen[-1]}
