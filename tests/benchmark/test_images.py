"""Generated images are of the sizes that X-rays come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_spark.benchmark.images import KINDS, ImageKind, draw_images, find_images
from cxr_spark.errors import UserError
from cxr_spark.images import decode_grey
from tests.benchmark.test_peers import settings
from tests.dataset.test_pack import ROWS, write_pack


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_what_it_says(kind: ImageKind, tmp_path: Path) -> None:
    draw_images(tmp_path, kind, 60)
    images = find_images(tmp_path, None, kind.name)
    assert len(set(images.paths)) == 60
    assert len({Path(path.decode()).stat().st_ino for path in images.paths}) <= 24
    encoded = Path(images.paths[0].decode()).read_bytes()
    assert decode_grey(encoded).shape == (kind.height, kind.width)
    if kind.width == 1328:
        assert 180_000 < len(encoded) < 220_000


def test_a_sample_is_even_over_the_sorted_paths(tmp_path: Path) -> None:
    draw_images(tmp_path, KINDS[-1], 60)
    everything, some = (find_images(tmp_path, limit, "x").paths for limit in (None, 6))
    assert some == everything[::10]


def test_a_pack_serves_the_sections_that_read_no_files(tmp_path: Path) -> None:
    write_pack(tmp_path / "pack")
    images = str(tmp_path / "pack")
    assert settings(images=images, sections=["extraction"]).images == tmp_path / "pack"
    assert len(find_images(tmp_path / "pack", None, "x").paths) == len(ROWS) - 1
    with pytest.raises(UserError, match="for engine, which read files.*a pack. Give --sections"):
        settings(images=images)
    with pytest.raises(UserError, match="for peers, which"):
        settings(images=images, sections=["extraction"], peers=str(tmp_path))
