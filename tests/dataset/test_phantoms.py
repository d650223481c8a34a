from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cxr_spark.dataset import phantoms
from cxr_spark.dataset.adapters import parse_kermany
from cxr_spark.dataset.phantoms import draw_phantom, draw_phantoms, holds_phantoms, name_phantoms
from cxr_spark.errors import UserError


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.jpeg")}


def test_phantoms_have_kermanys_layout_and_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw_phantoms(tmp_path / name, n_images=60, image_size=32, seed=3)
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    assert sorted(one) == sorted(name_phantoms(60, 3))
    assert len(one) == 60
    facts = [parse_kermany(name) for name in one]
    found = {(f.official_split, f.finding) for f in facts}
    assert {finding for _, finding in found} == {"NORMAL", "BACTERIA", "VIRUS"}
    assert {split for split, _ in found} == {"train", "val", "test"}
    assert max(Counter(f.patient_id for f in facts).values()) > 1


def test_other_arguments_draw_other_phantoms_in_the_place_of_the_first(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    draw_phantoms(root, n_images=60, image_size=32, seed=0)
    first = files(root)
    before = next(root.rglob("*.jpeg")).stat().st_mtime_ns
    draw_phantoms(root, n_images=60, image_size=32, seed=0)
    assert next(root.rglob("*.jpeg")).stat().st_mtime_ns == before
    draw_phantoms(root, n_images=70, image_size=32, seed=1)
    assert len(files(root)) == 70
    assert files(root) != first
    assert holds_phantoms(root)


def test_what_a_killed_run_left_is_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is killed, there is a folder of phantoms, or none."""
    root, draw = tmp_path / "phantoms", phantoms.draw_phantom
    drawn = iter(range(30))

    def killed(*arguments):
        if next(drawn, None) is None:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(phantoms, "draw_phantom", killed)
    with pytest.raises(KeyboardInterrupt):
        draw_phantoms(root, n_images=60, image_size=32, seed=0)
    assert not root.exists()
    monkeypatch.setattr(phantoms, "draw_phantom", draw)
    draw_phantoms(root, n_images=60, image_size=32, seed=0)
    assert len(files(root)) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(UserError, match="no folder where phantoms are to be drawn"):
        draw_phantoms(tmp_path, n_images=60, image_size=32, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_pneumonia_brightens_the_lungs() -> None:
    means = {
        finding: np.mean([draw_phantom(finding, 64, 0, p, f"{p}")[16:48, 8:56] for p in range(30)])
        for finding in ("NORMAL", "BACTERIA", "VIRUS")
    }
    assert means["NORMAL"] < min(means["BACTERIA"], means["VIRUS"])
