"""Encoded bytes to grey pixels of one size: strict decoding, and the resize of the seed study."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

try:
    import pyarrow as pa
except ImportError:  # machines that only measure the compute core need not have it
    pa = None

Grey = npt.NDArray[np.uint8]

# Radiographs have at most some 20 million pixels. Twice as many take 0.5 GB at most while they are
# decoded (a progressive CMYK JPEG); more is refused before any of it is.
MAX_PIXELS = 40_000_000
# A progressive JPEG has some ten scans, and each, even an empty one, costs a pass over all pixels.
MAX_SCANS = 500
MAX_SCANNED_PIXELS = 10**9  # in all passes together: seconds
# What is converted at a time of images that are not decoded to grey, so that no copy is large.
STRIP_PIXELS = 2**20

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
# What else goes by the name of .jpeg or .png: offset and bytes that tell it.
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (8, b"WEBP", "a WebP"),
    (0, b"BM", "a BMP"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (128, b"DICM", "a DICOM file"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a zip archive"),
)
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT: dict[int, Callable[[Grey], Grey]] = {
    2: lambda grey: grey[:, ::-1],
    3: lambda grey: grey[::-1, ::-1],
    4: lambda grey: grey[::-1],
    5: lambda grey: grey.T,
    6: lambda grey: grey[::-1].T,
    7: lambda grey: grey[::-1, ::-1].T,
    8: lambda grey: grey.T[::-1],
}


class UndecodableImage(ValueError):
    """The bytes are no whole JPEG or PNG; its text is the reason that the errors table gives."""


def decode_grey(encoded: bytes) -> Grey:
    """Return uint8 of shape (height, width): the luma of a JPEG or PNG, upright.

    Colour becomes ITU-R 601 luma, which a JPEG holds as it is; 16 bits a pixel are scaled to 8;
    what is transparent becomes black; an EXIF rotation is applied. What follows the image's end is
    ignored. A truncated image is an error, as is a PNG of which any checksum does not match; a
    JPEG has none, and is what Pillow makes of it.

    Raises:
        UndecodableImage: the bytes are empty, of another format, damaged, or of too many pixels.
    """
    if encoded.startswith(_JPEG):
        kind, opened = "JPEG", _open_jpeg
    elif encoded.startswith(_PNG):
        kind, opened = "PNG", _open_png
    else:
        raise UndecodableImage(_tell_other(encoded))
    try:
        with opened(encoded) as image:
            image.load()
            return _upright(_to_grey(image), image)
    except UndecodableImage:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UndecodableImage(f"the {kind} {_tell_why(error)}") from error


def _tell_other(encoded: bytes) -> str:
    if not encoded:
        return "the file is empty"
    for offset, mark, name in _OTHERS:
        if encoded.startswith(mark, offset):
            return f"the bytes are neither JPEG nor PNG, but {name}"
    return "the bytes are neither JPEG nor PNG"


def _tell_why(error: Exception) -> str:
    ended = isinstance(error.__cause__ or error, (IndexError, struct.error, EOFError))
    if ended or "truncated" in str(error).lower():
        return "is truncated"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def _open_jpeg(encoded: bytes) -> Image.Image:
    if b"\xff\xda" not in encoded:  # Pillow would look for it byte by byte
        raise UndecodableImage("the JPEG is truncated: it ends before its pixels begin")
    file = io.BytesIO(encoded)
    image = JpegImageFile(file)
    begin = file.tell()
    _check_size(image)
    if encoded.rfind(b"\xff\xd9", begin) < 0:  # zeros in place of its end decode to a picture
        raise UndecodableImage("the JPEG is truncated: its end marker is missing")
    most_scans = min(MAX_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height))
    if "progressive" in image.info and encoded.count(b"\xff\xda", begin) >= most_scans:
        raise UndecodableImage(f"the JPEG has more than {most_scans} scans")
    image.draft("L", image.size)  # luma alone: three times faster than RGB
    return image


def _open_png(encoded: bytes) -> Image.Image:
    _check_png(encoded)
    image = PngImageFile(io.BytesIO(encoded))
    _check_size(image)
    transparent, depth = image.info.get("transparency"), encoded[24]
    if image.mode == "L" and transparent is not None:  # Pillow scales pixels of 2 and 4 bits alone
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    elif image.mode == "RGB" and transparent is not None and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UndecodableImage(
            f"the image has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
        )


def _check_png(encoded: bytes) -> None:
    """Check that all chunks are there and match their checksums, which Pillow skips in part."""
    view, place, kind = memoryview(encoded), len(_PNG), b""
    while kind != b"IEND":
        if place + 12 > len(encoded):
            raise UndecodableImage("the PNG is truncated")
        length = int.from_bytes(view[place : place + 4], "big")
        kind, end = encoded[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(encoded):
            raise UndecodableImage("the PNG is truncated")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            name = kind.decode("ascii", "backslashreplace")
            raise UndecodableImage(f"the PNG is damaged: the checksum of its {name} is wrong")
        place = end + 4


def _upright(grey: Grey, image: Image.Image) -> Grey:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing; the pixels are whole
        turn = None
    return grey if turn is None else np.ascontiguousarray(turn(grey))


def _to_grey(image: Image.Image) -> Grey:
    if image.mode == "L" and "transparency" not in image.info:
        return _to_array(image)
    grey = np.empty((image.height, image.width), np.uint8)
    n_rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        bottom = min(top + n_rows, image.height)
        strip = image.crop((0, top, image.width, bottom))
        grey[top:bottom] = _strip_to_grey(strip)
    return grey


def _strip_to_grey(strip: Image.Image) -> Grey:
    if strip.mode == "I;16":  # 65535 is white
        deep = np.asarray(strip)
        if "transparency" in strip.info:
            deep = np.where(deep == strip.info["transparency"], 0, deep)
        grey: Grey = np.round(deep.astype(np.float32) / 257).astype(np.uint8)
        return grey
    if strip.mode in ("LA", "RGBA", "PA") or "transparency" in strip.info:
        rgba = strip.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        strip = Image.alpha_composite(black, rgba).convert("RGB")
    elif strip.mode == "CMYK":
        strip = strip.convert("RGB")
    return _to_array(strip if strip.mode == "L" else strip.convert("L"))


def _to_array(image: Image.Image) -> Grey:
    """Return an 'L' image as an array, without the copies that NumPy's own way makes of it.

    They take a tenth of the time that decoding a full-size X-ray takes.
    """
    if pa is None:
        return np.asarray(image)
    try:
        pixels: Grey = np.asarray(pa.array(image))
    except ValueError:  # Pillow keeps more than 16 MB in several pieces
        return np.asarray(image)
    return pixels.reshape(image.height, image.width)


def resize_bilinear(grey: Grey, image_size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return float32 of shape ``image_size`` in [0, 255], bilinear without antialiasing.

    The same as ``tf.image.resize``, which the seed study used, to 1e-3 grey levels.

    Args:
        grey: uint8 of shape (height, width).
        image_size: (height, width) of the result.
    """
    pixels = grey.astype(np.float32)
    if grey.shape == image_size:
        return pixels
    height, width = image_size
    resized: npt.NDArray[np.float32] = cv2.resize(
        pixels, (width, height), interpolation=cv2.INTER_LINEAR
    )
    return resized
