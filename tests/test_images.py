from __future__ import annotations

import contextlib
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from cxr_spark.images import UndecodableImage, decode_grey, resize_bilinear
from tests.hostile import encode


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    smooth = cv2.GaussianBlur(rng.uniform(0, 255, (61, 47)), (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_png_comes_back_exactly(grey: np.ndarray) -> None:
    assert np.array_equal(decode_grey(encode(Image.fromarray(grey))), grey)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_has_the_pixels_of_an_accurate_decoder(
    grey: np.ndarray, mode: str, progressive: bool
) -> None:
    encoded = encode(Image.fromarray(grey).convert(mode), "JPEG", progressive=progressive)
    reference = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(decode_grey(encoded), reference)


def test_sixteen_bits_are_scaled_to_eight(grey: np.ndarray) -> None:
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(decode_grey(encode(deep)), grey)


def test_transparent_is_black_and_opaque_is_kept(grey: np.ndarray) -> None:
    alpha = np.zeros_like(grey)
    alpha[:, 20:] = 255
    for mode in ("LA", "RGBA"):
        image = Image.fromarray(grey).convert(mode)
        image.putalpha(Image.fromarray(alpha))
        decoded = decode_grey(encode(image))
        assert not decoded[:, :20].any()
        assert np.abs(decoded[:, 20:].astype(int) - grey[:, 20:]).max() <= 1


@pytest.mark.parametrize("mode", ["1", "P"])
def test_one_bit_and_palette_images_decode(grey: np.ndarray, mode: str) -> None:
    image = Image.fromarray(grey).convert(mode)
    assert np.array_equal(decode_grey(encode(image)), np.asarray(image.convert("L")))


def test_exif_rotation_is_applied(grey: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    encoded = encode(Image.fromarray(grey), "JPEG", exif=exif)
    assert decode_grey(encoded).shape == grey.shape[::-1]


def test_a_damaged_exif_block_does_not_matter(grey: np.ndarray, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    for kind in ("JPEG", "PNG"):
        whole = encode(Image.fromarray(grey), kind, exif=exif)
        start = whole.index(b"II*\x00" if b"II*\x00" in whole else b"MM\x00*")
        for _ in range(300):
            damaged = bytearray(whole)
            for place in rng.integers(start, start + 40, 4):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(UndecodableImage):  # what else comes out fails the test
                assert decode_grey(bytes(damaged)).size == grey.size


def test_cmyk_is_near_its_grey(grey: np.ndarray) -> None:
    encoded = encode(Image.fromarray(grey).convert("RGB").convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode_grey(encoded).astype(int) - grey).mean() < 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: b"", "empty"),
        (lambda _: b"x", "neither JPEG nor PNG"),
        (lambda _: b"this is a text, not an image", "neither JPEG nor PNG"),
        (lambda jpeg: jpeg[: len(jpeg) // 2], "truncated"),
        (lambda jpeg: jpeg[: int(len(jpeg) * 0.9)], "truncated"),
        (lambda jpeg: jpeg[:20], "truncated|neither"),
    ],
    ids=["empty", "one byte", "text", "half", "nine tenths", "header"],
)
def test_damaged_files_say_why(grey: np.ndarray, damage, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode_grey(damage(encode(Image.fromarray(grey), "JPEG")))


def test_other_formats_are_refused(grey: np.ndarray) -> None:
    for kind in ("TIFF", "GIF", "WEBP", "BMP"):
        with pytest.raises(UndecodableImage, match="neither JPEG nor PNG"):
            decode_grey(encode(Image.fromarray(grey), kind))


def test_scans_are_counted_by_their_pixels() -> None:
    """An image as large as any may have the scans that encoders make, and not hundreds."""
    side = 6300
    encoded = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
    assert decode_grey(encoded).shape == (side, side)
    scan = encoded[encoded.rindex(b"\xff\xc4") : -2]
    began = time.perf_counter()
    with pytest.raises(UndecodableImage, match="the JPEG has more than 25 scans"):
        decode_grey(encoded[:-2] + scan * 30 + b"\xff\xd9")
    assert time.perf_counter() - began < 1


def test_too_many_pixels_are_refused_before_decoding() -> None:
    encoded = bytearray(encode(Image.new("1", (8, 8))))
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    encoded[12:33] = header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UndecodableImage, match="pixels"):
        decode_grey(bytes(encoded))


@pytest.mark.parametrize("size", [(32, 40), (61, 47), (96, 128), (30, 23)])
def test_resize_is_that_of_tensorflow(grey: np.ndarray, size: tuple[int, int]) -> None:
    import tensorflow as tf

    reference = tf.image.resize(grey[..., None].astype(np.float32), size).numpy()[..., 0]
    resized = resize_bilinear(grey, size)
    assert resized.dtype == np.float32
    assert np.abs(resized - reference).max() < 1e-3
