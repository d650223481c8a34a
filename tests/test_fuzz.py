"""Random bytes and names: no exception but the declared ones, and no call longer than a second.

``CXR_FUZZ_EXAMPLES`` is the number of inputs, over all tests, of the full form, each run of which
tries others. Without it a few are tried, the same in every run.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cxr_spark.dataset.adapters import PathFacts, UnrecognisedPath, make_adapter
from cxr_spark.dataset.listing import path_to_uri, uri_to_path, walk_images
from cxr_spark.engine.pipeline import prepare
from cxr_spark.errors import UserError
from cxr_spark.images import MAX_PIXELS, UndecodableImage, decode_grey
from tests.hostile import (
    cmyk_jpeg,
    interlaced_png,
    jpeg,
    png,
    resign,
    sixteen_bit_png,
    turned,
    two_bit_png,
    ycck_jpeg,
)

FULL = "CXR_FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("CXR_FUZZ_EXAMPLES", "2000"))

JPEGS = [
    jpeg(), jpeg("RGB"), jpeg(progressive=True), jpeg("RGB", progressive=True), cmyk_jpeg(),
    ycck_jpeg(), turned("JPEG", 6),
]  # fmt: skip
PNGS = [png(), interlaced_png(), two_bit_png(), sixteen_bit_png(), turned("PNG", 8)]

# An image as a list of changes: a share of its length, what is done there, and with what.
changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "replace", "insert", "remove", "repeat", "cut"]),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)
names = st.binary(min_size=1, max_size=60).filter(lambda name: not set(name) & {0, 47})
stems = st.from_regex(
    r"\A(train/|val/|test/|x/)?(NORMAL/|PNEUMONIA/|/)?"
    r"(person|NORMAL2-|IM-|BACTERIA-|VIRUS-)?\d{0,9}(_bacteria_|_virus_|-)?\d{0,9}.{0,9}\Z"
)


def fuzz(share: float, **parameters: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that runs a test over its share of the examples."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            max_examples=max(1, round(EXAMPLES * share)),
            deadline=datetime.timedelta(seconds=1),
            derandomize=not FULL,
            database=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        return limits(given(**parameters)(test))

    return decorate


def change(encoded: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """Return bytes after some changes."""
    changed = bytearray(encoded)
    for share, what, value in edits:
        place = int(share * len(changed))
        if what == "flip" and changed:
            changed[place] ^= 1 << value[0] % 8
        elif what == "replace":
            changed[place : place + len(value)] = value
        elif what == "insert":
            changed[place:place] = value
        elif what == "remove":
            del changed[place : place + value[0]]
        elif what == "repeat":
            changed[place:place] = changed[place : place + 16 * value[0]]
        elif what == "cut":
            del changed[place:]
    return bytes(changed)


def check(encoded: bytes) -> None:
    """Fail if anything but grey pixels or the declared exception comes out."""
    with contextlib.suppress(UndecodableImage):
        grey = decode_grey(encoded)
        assert grey.dtype == np.uint8
        assert grey.ndim == 2
        assert 0 < grey.size <= MAX_PIXELS


@fuzz(0.3, encoded=st.sampled_from(JPEGS), edits=changes)
def test_changed_jpegs(encoded: bytes, edits: list[tuple[float, str, bytes]]) -> None:
    check(change(encoded, edits))


@fuzz(0.2, encoded=st.sampled_from(PNGS), edits=changes, signed=st.booleans())
def test_changed_pngs(encoded: bytes, edits: list[tuple[float, str, bytes]], signed: bool) -> None:
    changed = change(encoded, edits)
    check(resign(changed) if signed else changed)


@fuzz(
    0.1,
    start=st.sampled_from([b"", b"\xff\xd8\xff", JPEGS[0][:200], PNGS[0][:8], PNGS[0][:33]]),
    rest=st.binary(max_size=2000),
    end=st.sampled_from([b"", b"\xff\xd9", PNGS[0][-12:]]),
)
def test_any_bytes(start: bytes, rest: bytes, end: bytes) -> None:
    check(start + rest + end)


@fuzz(0.1, encoded=st.sampled_from(JPEGS + PNGS), edits=changes, size=st.integers(1, 300))
def test_changed_files(
    fuzzed_file: Path, encoded: bytes, edits: list[tuple[float, str, bytes]], size: int
) -> None:
    fuzzed_file.write_bytes(change(encoded, edits))
    image = prepare(os.fsencode(fuzzed_file), (size, 7))
    assert (image.pixels is None) == (image.stage == "decode") == (image.error is not None)
    assert image.error is None or len(image.error) > 8
    if image.pixels is not None:
        assert image.pixels.shape == (size, 7)
        assert image.pixels.min() >= 0
        assert image.pixels.max() <= 255


@fuzz(
    0.15,
    image_id=st.one_of(stems, st.text(max_size=60)),
    pattern=st.sampled_from([None, r"p\d+", r"(\d+)", r"person(\d+)?", r"^(.*)/", "()"]),
)
def test_paths(image_id: str, pattern: str | None) -> None:
    for adapter in (make_adapter("kermany"), make_adapter("folder", pattern)):
        with contextlib.suppress(UnrecognisedPath):
            facts = adapter(image_id)
            assert isinstance(facts, PathFacts)
            assert facts.finding in image_id or facts.finding in {"BACTERIA", "VIRUS"}
            assert facts.patient_id is None or 0 < len(facts.patient_id) <= len(image_id)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of patterns whose meaning may change
@fuzz(0.05, pattern=st.text(st.one_of(st.sampled_from("()[]{}*+?|^$.,09a:=!"), st.characters())))
def test_patient_patterns(pattern: str) -> None:
    with contextlib.suppress(UserError):
        make_adapter("folder", pattern)


@fuzz(0.07, name=names)
def test_uris_lead_back_to_any_path(name: bytes) -> None:
    uri = path_to_uri(b"/images/" + name)
    assert uri.isascii()
    assert uri.isprintable()
    assert uri_to_path(uri) == b"/images/" + name


@fuzz(0.03, found=st.sets(names, max_size=4))
def test_any_names_are_listed(fuzzed_folder: Path, found: set[bytes]) -> None:
    """Each once, with an image_id of its own, and a URI that leads back to it."""
    files = [os.path.join(os.fsencode(fuzzed_folder), name + b".png") for name in found]
    for file in files:
        open(file, "wb").close()
    try:
        images = list(walk_images(str(fuzzed_folder)))
    finally:
        for file in files:
            os.unlink(file)
    assert sorted(uri_to_path(image.path) for image in images) == sorted(files)
    assert len({image.image_id for image in images}) == len(files)
    for image in images:
        image.image_id.encode()


@pytest.fixture(scope="module")
def fuzzed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def fuzzed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "image.jpeg"
