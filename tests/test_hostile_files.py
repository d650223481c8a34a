"""What comes of hostile files on the path that every worker takes, without Spark."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_spark.dataset.listing import Listed, uri_to_path, walk_images
from cxr_spark.engine.pipeline import prepare
from cxr_spark.images import UndecodableImage, decode_grey
from tests.conftest import ROOT
from tests.hostile import HOSTILE, Fails, Hostile, encode, flip, jpeg, pillow, plant, png

NOBODY = 65534
LARGE = [row for row in HOSTILE if row.kind == "300 MB"]
ODD_NAMES = tuple(row for row in HOSTILE if row.kind == "odd name")
PREPARE = """
import re, sys
from pathlib import Path
from cxr_spark.engine.pipeline import prepare
def peak():  # getrusage tells that of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
image = prepare(sys.argv[1].encode(), (224, 224))
print(image.height, peak() - before)
"""
LIST = """
import json, sys
from cxr_spark.dataset.listing import uri_to_path, walk_images
from cxr_spark.engine.pipeline import prepare
images = {i.image_id: prepare(uri_to_path(i.path), (8, 8)).height for i in walk_images(sys.argv[1])}
print(json.dumps([sys.getfilesystemencoding(), images]))
"""


def run_python(code: str, argument: Path, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, argument],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@contextlib.contextmanager
def without_roots_rights() -> Iterator[None]:
    """Lose root's right to read everything, if it is root who runs the tests."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, open to users who may not come to it by its whole path."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: row.id)
def test_a_file_is_listed_and_is_its_pixels_or_a_reason(folder: Path, row: Hostile) -> None:
    plant(b".", tuple(r for r in HOSTILE if r is row or r.name == b"8-bit.png"))
    found = {os.path.basename(uri_to_path(image.path)): image for image in walk_images(str(folder))}
    listed = Listed(row.name, found[row.name].length, found[row.name].modified_us)
    row.spoil(row.name)
    with without_roots_rights():
        image = prepare(listed, (56, 48))
    if isinstance(row.outcome, Fails):
        assert (image.pixels, image.stage) == (None, row.outcome.stage)
        assert re.search(row.outcome.reason, image.error or "")
        return
    grey = row.outcome.grey()
    assert (image.error, image.height, image.width) == (None, *grey.shape)
    assert image.pixels is not None
    assert image.pixels.shape == (56, 48)
    decoded = decode_grey(Path(os.fsdecode(row.name)).read_bytes())
    differences = np.abs(decoded - grey.astype(np.float32))
    assert differences.mean() <= row.outcome.tolerance
    assert differences.max() <= 10 * row.outcome.tolerance


def test_no_two_files_of_the_table_have_one_name() -> None:
    assert len({row.name for row in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("row", LARGE, ids=lambda row: row.id)
def test_a_large_file_is_refused_before_it_is_read(folder: Path, row: Hostile) -> None:
    plant(b".", (row,))
    tracemalloc.start()
    try:
        assert prepare(row.name, (8, 8)).stage == "read"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the memory there")
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGBA", {"format": "PNG", "compress_level": 1}),
        ("I;16", {"format": "PNG", "compress_level": 1}),
        ("CMYK", {"format": "JPEG", "progressive": True}),
    ],
    ids=["alpha", "16 bits", "progressive CMYK"],
)
def test_decoding_as_many_pixels_as_are_accepted_has_a_bound(
    tmp_path: Path, mode: str, options: dict[str, object]
) -> None:
    file = tmp_path / "largest.png"
    Image.new(mode, (8000, 5000)).save(file, **options)
    height, kilobytes = run_python(PREPARE, file).split()
    assert height == "5000"
    assert 0.1e9 < int(kilobytes) * 1024 < 0.55e9


def try_ours(encoded: bytes) -> tuple[np.ndarray | None, str]:
    try:
        return decode_grey(encoded), ""
    except UndecodableImage as error:
        return None, str(error)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {}), ("RGB", {}), ("L", {"progressive": True}), ("CMYK", {})],
    ids=["grey", "colour", "progressive", "CMYK"],
)
def test_a_flipped_bit_gives_pillows_pixels_or_an_error(
    mode: str, options: dict[str, object], rng: np.random.Generator
) -> None:
    whole = jpeg(mode, **options)
    n_same = n_refused = 0
    for bit in rng.choice(8 * len(whole), 500, replace=False):
        flipped = flip(whole, int(bit))
        found, reason = try_ours(flipped)
        try:
            expected = pillow(flipped)
        except Exception:
            expected = None
        if found is None:
            assert expected is None or "end marker" in reason
            n_refused += 1
        else:
            assert np.array_equal(found, expected)
            n_same += not np.array_equal(found, pillow(whole))
    assert n_refused > 10
    assert n_same > 100  # pictures that no decoder knows to be wrong


def test_every_flipped_bit_of_a_png_is_an_error(rng: np.random.Generator) -> None:
    whole = png()
    for bit in rng.choice(8 * len(whole), 500, replace=False):
        with pytest.raises(UndecodableImage, match="damaged|truncated|neither"):
            decode_grey(flip(whole, int(bit)))


@pytest.mark.parametrize("side", [4000, 4200], ids=["in one piece", "in several"])
def test_images_of_any_memory_layout_decode(side: int) -> None:
    wide = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint8)
    encoded = encode(Image.fromarray(wide), "PNG", compress_level=1)
    assert np.array_equal(decode_grey(encoded), wide)


@pytest.mark.parametrize("utf8", ["0", "1"], ids=["ascii", "utf-8"])
def test_odd_names_are_read_under_the_plain_locale(tmp_path: Path, utf8: str) -> None:
    folder = tmp_path / "R\xf6ntgen"
    folder.mkdir()
    plant(os.fsencode(folder), ODD_NAMES)
    encoding, images = json.loads(
        run_python(LIST, folder, LC_ALL="C", PYTHONUTF8=utf8, PYTHONCOERCECLOCALE="0")
    )
    assert encoding == {"0": "ascii", "1": "utf-8"}[utf8]
    here = {i.image_id: prepare(uri_to_path(i.path), (8, 8)).height for i in walk_images(folder)}
    assert images == here
    assert list(here.values()) == [61] * len(ODD_NAMES)
