"""Images that end or hold up the process that decodes them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from cxr_spark.engine.apart import DecoderApart
from cxr_spark.engine.pipeline import prepare, prepare_encoded
from tests.faulty_decoder import ENDS, ENDS_ONCE, HANGS, plant_fault

SIZE = (20, 30)


@pytest.fixture
def image(rng: np.random.Generator) -> bytes:
    return cv2.imencode(".jpg", rng.integers(0, 256, (40, 60), np.uint8))[1].tobytes()


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", plant_fault(tmp_path / "fault"))
    return tmp_path / "fault"


def test_an_image_decoded_apart_is_what_it_is_here(image: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image.jpeg"
    file.write_bytes(image)
    with DecoderApart() as decoder:
        one, two = (
            prepare(os.fsencode(file), SIZE, decode)
            for decode in (decoder.prepare_encoded, prepare_encoded)
        )
        broken = decoder.prepare_encoded(image[:-20], SIZE)
    assert one.pixels is not None
    assert two.pixels is not None
    assert np.array_equal(one.pixels, two.pixels)
    assert (one.height, one.width, one.pixels_digest) == (two.height, two.width, two.pixels_digest)
    assert (broken.stage, broken.error) == (
        "decode",
        "the JPEG is truncated: its end marker is missing",
    )
    assert not multiprocessing.active_children()


def test_what_ends_its_process_twice_is_an_error_and_its_neighbours_are_not(
    image: bytes, faulty: Path
) -> None:
    with DecoderApart() as decoder:
        before, ended, after = (
            decoder.prepare_encoded(encoded, SIZE) for encoded in (image, image + ENDS, image)
        )
    assert (ended.stage, ended.pixels) == ("decode", None)
    assert ended.error == "decoding it ends the process that does it (SIGSEGV)"
    assert before.pixels_digest == after.pixels_digest == prepare_encoded(image, SIZE).pixels_digest


def test_a_process_that_something_else_ended_costs_no_image(image: bytes, faulty: Path) -> None:
    with DecoderApart() as decoder:
        once = decoder.prepare_encoded(image + ENDS_ONCE, SIZE)
    assert (faulty / "once").exists()
    assert (once.error, once.pixels_digest) == (None, prepare_encoded(image, SIZE).pixels_digest)


def test_decoding_that_does_not_end_is_ended(image: bytes, faulty: Path) -> None:
    with DecoderApart(seconds=1) as decoder:
        began = time.monotonic()
        held_up = decoder.prepare_encoded(image + HANGS, SIZE)
        assert time.monotonic() - began < 30
        assert (held_up.stage, held_up.error) == ("decode", "decoding it takes longer than 1 s")
        assert decoder.prepare_encoded(image, SIZE).error is None


def test_threads_take_turns(image: bytes) -> None:
    images = [image, image[:-20]] * 8
    with DecoderApart() as decoder, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda encoded: decoder.prepare_encoded(encoded, SIZE), images))
    assert [prepared.error is None for prepared in found] == [True, False] * 8


def test_a_process_that_cannot_start_is_no_fault_of_an_image(
    image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with DecoderApart() as decoder, pytest.raises(RuntimeError, match=r"as it began \(status 3\)"):
        decoder.prepare_encoded(image, SIZE)


ASKED = """
import sys, time
from cxr_spark.engine.apart import DecoderApart

if __name__ == "__main__":
    DecoderApart().prepare_encoded(sys.stdin.buffer.read(), (20, 30))
    print("decoded", flush=True)
    time.sleep(600)
"""


def test_it_ends_with_the_process_that_asks_however_that_ends(image: bytes, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKED)
    asks = subprocess.Popen(
        [sys.executable, tmp_path / "asks.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert asks.stdin is not None
    assert asks.stdout is not None
    asks.stdin.write(image)
    asks.stdin.close()
    assert asks.stdout.readline() == b"decoded\n"
    children = psutil.Process(asks.pid).children(recursive=True)
    assert children
    asks.send_signal(signal.SIGKILL)
    asks.wait()
    asks.stdout.close()
    assert not psutil.wait_procs(children, timeout=20)[1]
