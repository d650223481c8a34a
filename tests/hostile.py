"""Hostile files, and what must come of each: one table, ``HOSTILE``, that tests run over."""

from __future__ import annotations

import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

Maker = Callable[[bytes], None]

ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# First row, first column, and steps of the seven passes of Adam7.
ADAM7 = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
    (1, 0, 2, 1),
)  # fmt: skip
# How a picture is stored that is upright when an EXIF orientation is applied.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda grey: np.rot90(grey, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda grey: np.transpose(np.rot90(grey, 2)),
    8: lambda grey: np.rot90(grey, -1),
}


@dataclass(frozen=True)
class Decodes:
    """The file is an image.

    Attributes:
        grey: returns its pixels, uint8 of shape (height, width), from another source.
        tolerance: mean difference in grey levels; 0 where every pixel must be the same.
    """

    grey: Callable[[], np.ndarray]
    tolerance: float = 0


@dataclass(frozen=True)
class Fails:
    """The file is a row of the errors table.

    Attributes:
        stage: of the error.
        reason: regular expression found in the reason.
    """

    stage: str
    reason: str


def leave(path: bytes) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Hostile:
    """A file and what must come of it.

    Attributes:
        kind: the class of files that it stands for.
        name: bytes of its name.
        make: makes it at a path.
        outcome: what must come of it.
        spoil: what happens to it after it was listed and before it is read.
    """

    kind: str
    name: bytes
    make: Maker
    outcome: Decodes | Fails
    spoil: Maker = leave

    @property
    def id(self) -> str:
        """What pytest calls it."""
        return ascii(self.name.decode("utf-8", "backslashreplace"))[1:-1]


@functools.cache
def picture() -> np.ndarray:
    """Return a smooth grey picture of 61 x 47."""
    noise = np.random.default_rng(0).uniform(0, 255, (61, 47))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@functools.cache
def colour() -> np.ndarray:
    """Return an RGB picture of 61 x 47 whose channels differ."""
    return np.stack([picture(), picture()[::-1], picture()[:, ::-1]], axis=-1)


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return ITU-R 601 luma, rounded."""
    return np.round(rgb @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


@functools.cache
def alpha() -> np.ndarray:
    """Return an alpha channel: a quarter transparent, a quarter half so, the rest opaque."""
    shares = np.full((61, 47), 255, np.uint8)
    shares[:, :12], shares[:, 12:24] = 0, 128
    return shares


def over_black() -> np.ndarray:
    """Return the picture, with ``alpha``, over black."""
    return np.round(picture() * (alpha() / 255)).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return an image as a file of a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(mode: str = "L", **options: object) -> bytes:
    """Return the picture as JPEG; in colour where ``mode`` has any."""
    pixels = picture() if mode == "L" else colour()
    return encode(Image.fromarray(pixels).convert(mode), "JPEG", quality=90, **options)


@functools.cache
def large_jpeg() -> bytes:
    """Return a JPEG of 5,000 x 4,000 pixels."""
    return encode(Image.fromarray(picture()).resize((4000, 5000)), "JPEG")


def png() -> bytes:
    """Return the picture as an ordinary PNG."""
    return encode(Image.fromarray(picture()), "PNG")


def opencv(encoded: bytes) -> np.ndarray:
    """Return grey pixels as OpenCV decodes them, EXIF rotation applied."""
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)


def pillow(encoded: bytes) -> np.ndarray:
    """Return the grey pixels of a JPEG as Pillow decodes them.

    Raises:
        Exception: nearly any, where Pillow accepts no image.
    """
    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
        image.draft("L", image.size)
        image.load()
        if image.mode == "CMYK":
            image = image.convert("RGB")
        return np.asarray(image.convert("L"))


def flip(encoded: bytes, bit: int) -> bytes:
    """Return bytes with one bit flipped."""
    flipped = bytearray(encoded)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def cut(encoded: bytes, percent: int) -> bytes:
    """Return the first hundredths of bytes."""
    return encoded[: len(encoded) * percent // 100]


def zeroed(encoded: bytes) -> bytes:
    """Return bytes with zeros in place of the second half, as of a download that was cut off."""
    return encoded[: len(encoded) // 2] + bytes(5 * len(encoded))


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(
    size: tuple[int, int],
    depth: int,
    colour_type: int,
    scanlines: bytes,
    *,
    interlaced: bool = False,
    before: bytes = b"",
) -> bytes:
    """Return a PNG of given scan lines, each with its filter byte.

    Args:
        size: (height, width).
        depth: bits a sample.
        colour_type: as in IHDR.
        scanlines: before compression.
        interlaced: whether they are those of Adam7.
        before: chunks that stand before the pixels.
    """
    height, width = size
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(scanlines, 9))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND", b"")


def scanlines(samples: np.ndarray) -> bytes:
    """Return the scan lines, without filters, of an array of bytes of shape (height, n_bytes)."""
    return b"".join(b"\0" + row.tobytes() for row in samples)


def interlaced_png() -> bytes:
    """Return the picture as an interlaced PNG, which Pillow does not write."""
    passes = (picture()[y::dy, x::dx] for y, x, dy, dx in ADAM7)
    lines = b"".join(scanlines(part) for part in passes if part.size)
    return make_png(picture().shape, 8, 0, lines, interlaced=True)


def two_bit_png() -> bytes:
    """Return samples 0 to 3, of which 1 is transparent."""
    packed = np.full((4, 1), 0b00_01_10_11, np.uint8)
    return make_png((4, 4), 2, 0, scanlines(packed), before=chunk(b"tRNS", b"\0\x01"))


def sixteen_bit_png(*, transparent: int | None = None) -> bytes:
    """Return the picture with 16 bits a pixel, the lower eight of which are noise."""
    options = {} if transparent is None else {"transparency": transparent}
    return encode(Image.fromarray(sixteen_bit()), "PNG", **options)


@functools.cache
def sixteen_bit() -> np.ndarray:
    """Return uint16 pixels."""
    noise = np.random.default_rng(1).integers(0, 256, picture().shape)
    return (picture().astype(np.uint16) * 256 + noise).astype(np.uint16)


def scaled_to_eight(deep: np.ndarray) -> np.ndarray:
    """Return uint16 as uint8: 65535 is 255."""
    return np.round(deep / 65535 * 255).astype(np.uint8)


def deep_png(channels: np.ndarray) -> bytes:
    """Return a PNG of 16 bits a sample, of 8-bit channels in the order of OpenCV."""
    return cv2.imencode(".png", channels.astype(np.uint16) * 257)[1].tobytes()


def damage_png(kind: bytes, *, checksum: bool) -> bytes:
    """Return a PNG with a bit flipped in one chunk, in its checksum or in its body."""
    encoded = png()
    place = encoded.index(kind)
    length = int.from_bytes(encoded[place - 4 : place], "big")
    return flip(encoded, 8 * (place + 4 + (length if checksum else length // 2)))


def resign(encoded: bytes) -> bytes:
    """Return a PNG with the right checksum wherever a chunk is whole."""
    signed, place = bytearray(encoded), len(PNG_SIGNATURE)
    while place + 12 <= len(encoded):
        end = place + 8 + int.from_bytes(encoded[place : place + 4], "big")
        if end + 4 > len(encoded):
            break
        signed[end : end + 4] = struct.pack(">I", zlib.crc32(encoded[place + 4 : end]))
        place = end + 4
    return bytes(signed)


def ycck_jpeg() -> bytes:
    """Return a YCCK JPEG of ``colour`` without black, by Adobe's convention, all inverted."""
    ycc = np.asarray(Image.fromarray(255 - colour()).convert("YCbCr"))
    planes = 255 - np.dstack([ycc, np.full((61, 47), 255, np.uint8)])  # Pillow inverts on writing
    encoded = encode(Image.frombuffer("CMYK", (47, 61), planes.tobytes()), "JPEG", quality=95)
    adobe = encoded.index(b"Adobe")
    return encoded[: adobe + 11] + b"\x02" + encoded[adobe + 12 :]  # 2: components are YCCK


def cmyk_jpeg() -> bytes:
    """Return a CMYK JPEG of ``colour``."""
    return encode(Image.fromarray(colour()).convert("CMYK"), "JPEG", quality=95)


def declare_jpeg(size: tuple[int, int], *, depth: int = 8) -> bytes:
    """Return a JPEG whose header tells another (height, width) or depth than it has."""
    encoded = jpeg()
    frame = encoded.index(b"\xff\xc0") + 4
    return encoded[:frame] + struct.pack(">BHH", depth, *size) + encoded[frame + 5 :]


def many_scans_jpeg() -> bytes:
    """Return a progressive JPEG with its last scan a thousand times."""
    encoded = jpeg(progressive=True)
    scan = encoded[encoded.rindex(b"\xff\xc4") : -2]
    return encoded[:-2] + scan * 1000 + b"\xff\xd9"


def exif(orientation: int) -> Image.Exif:
    """Return an EXIF block."""
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def turned(kind: str, orientation: int) -> bytes:
    """Return the picture stored turned, with the EXIF orientation that makes it upright."""
    stored = np.ascontiguousarray(STORED[orientation](picture()))
    return encode(Image.fromarray(stored), kind, exif=exif(orientation))


def zip_archive() -> bytes:
    """Return a zip archive that holds a JPEG."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.jpeg", jpeg())
    return file.getvalue()


def write_bomb(path: bytes) -> None:
    """Write a whole PNG of 30,000 x 30,000 white pixels of one bit, 110 kB."""
    deflate = zlib.compressobj(9)
    line = b"\0" + b"\xff" * (30_000 // 8)
    pixels = b"".join([*(deflate.compress(line) for _ in range(30_000)), deflate.flush()])
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(PNG_SIGNATURE + chunk(b"IHDR", header))
        file.write(chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def write(content: Callable[..., bytes], *arguments: object) -> Maker:
    """Return what writes a file of content that is made when it is written."""

    def make(path: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content(*arguments))

    return make


def write_padded(content: Callable[[], bytes], n_bytes: int) -> Maker:
    """Return what writes a file that zeros fill up, taking no room on the disk."""

    def make(path: bytes) -> None:
        write(content)(path)
        os.truncate(path, n_bytes)

    return make


def link(target: bytes) -> Maker:
    """Return what makes a symbolic link."""
    return lambda path: os.symlink(target, path)


def write_unreadable(path: bytes) -> None:
    """Write a good image that nobody but root may read."""
    write(png)(path)
    os.chmod(path, 0)


# What each name must survive is that the file behind it is a good image.
NAMES = (
    b"two  spaces .png",
    b"quote's.png",
    b'double"quote.png',
    b"line\nbreak\r.png",
    b"tab\tand\x07bell.png",
    b"a:colon.png",
    b"key=value.png",
    b"per%20cent%.png",
    b"hash#and?mark&.png",
    b"*[glob]{a,b}.png",
    b"back\\slash\\xff.png",
    b"<script>alert(1)<!-- .png",
    b"$(id);`id`.png",
    b"-rf.png",
    b"_underscore.png",
    b".hidden.png",
    b".png",
    b"..png",
    b"LOUD.PNG",
    b"R\xc3\xb6ntgen.png",
    b"Ro\xcc\x88ntgen.png",
    b"\xe8\x83\xb8\xe9\x83\xa8-\xf0\x9f\xab\x81.png",
    b"right-\xe2\x80\xaeto-left.png",
    b"not-utf8-\xff\xfe.png",
    b"latin1-R\xf6ntgen.png",
    b"surrogate-\xed\xa0\x80.png",
    b"n" * 251 + b".png",
)

PICTURE = Decodes(picture)
TRUNCATED = Fails("decode", "truncated")
CHANGED = Fails("read", "changed since it was listed")
NEITHER = Fails("decode", "neither JPEG nor PNG")
TOO_MANY_PIXELS = Fails("decode", r"has \d+ x \d+ pixels, more than 40,000,000")


def _jpegs(kind: str, name: bytes, content: Callable[..., bytes], *arguments: object) -> Hostile:
    """Return a row of a JPEG that must decode as OpenCV decodes it."""
    reference = Decodes(lambda: opencv(content(*arguments)))
    return Hostile(kind, name, write(content, *arguments), reference)


HOSTILE = (
    Hostile("empty", b"empty.jpeg", write(bytes), Fails("decode", "the file is empty")),
    Hostile("one byte", b"one-byte.jpeg", write(lambda: b"\xff"), NEITHER),
    Hostile("text", b"text.jpeg", write(lambda: b"this is a text\n" * 99), NEITHER),
    Hostile("zip", b"zip.jpeg", write(zip_archive), Fails("decode", "neither .* a zip archive")),
    *(
        Hostile(
            "truncated JPEG",
            b"cut-%d.jpeg" % percent,
            write(lambda percent=percent: cut(jpeg(), percent)),
            TRUNCATED,
        )
        for percent in (1, 10, 50, 90, 99)
    ),
    *(
        Hostile(
            "truncated progressive JPEG",
            b"progressive-cut-%d.jpeg" % percent,
            write(lambda percent=percent: cut(jpeg(progressive=True), percent)),
            TRUNCATED,
        )
        for percent in (1, 10, 50, 90, 99)
    ),
    *(
        Hostile(
            "truncated PNG",
            b"cut-%d.png" % percent,
            write(lambda percent=percent: cut(png(), percent)),
            TRUNCATED,
        )
        for percent in (1, 10, 50, 90, 99)
    ),
    Hostile("JPEG ended by zeros", b"zeroed.jpeg", write(lambda: zeroed(jpeg())), TRUNCATED),
    Hostile(
        "PNG ended by zeros", b"zeroed.png", write(lambda: zeroed(png())),
        Fails("decode", "checksum of its IDAT is wrong"),
    ),
    Hostile("JPEG without its last byte", b"last.jpeg", write(lambda: jpeg()[:-1]), TRUNCATED),
    Hostile("JPEG of a header alone", b"start.jpeg", write(lambda: b"\xff\xd8\xff"), TRUNCATED),
    _jpegs("JPEG with trailing garbage", b"trailing.jpeg", lambda: jpeg() + b"garbage" * 999),
    Hostile(
        "PNG with trailing garbage",
        b"trailing.png",
        write(lambda: png() + b"garbage" * 999),
        PICTURE,
    ),
    Hostile(
        "JPEG with a flipped bit that Pillow accepts",
        b"flipped.jpeg",
        write(lambda: flip(jpeg(), 8 * (len(jpeg()) - 300))),
        Decodes(lambda: pillow(flip(jpeg(), 8 * (len(jpeg()) - 300)))),
    ),
    _jpegs("ordinary JPEG", b"ordinary.jpeg", jpeg),
    _jpegs("JPEG of 20 million pixels", b"large-radiograph.jpeg", large_jpeg),
    _jpegs("colour JPEG", b"colour.jpeg", jpeg, "RGB"),
    _jpegs("progressive JPEG", b"progressive.jpeg", lambda: jpeg(progressive=True)),
    _jpegs("progressive JPEG", b"progressive-rgb.jpeg", lambda: jpeg("RGB", progressive=True)),
    Hostile("CMYK JPEG", b"cmyk.jpeg", write(cmyk_jpeg), Decodes(lambda: luma(colour()), 2)),
    Hostile("YCCK JPEG", b"ycck.jpeg", write(ycck_jpeg), Decodes(lambda: luma(colour()), 2)),
    *(
        _jpegs("JPEG with EXIF rotation", b"exif-%d.jpeg" % turn, turned, "JPEG", turn)
        for turn in STORED
    ),
    *(
        Hostile(
            "PNG with EXIF rotation", b"exif-%d.png" % turn, write(turned, "PNG", turn), PICTURE
        )
        for turn in STORED
    ),
    Hostile(
        "JPEG of 12 bits", b"12-bit.jpeg", write(lambda: declare_jpeg((61, 47), depth=12)),
        Fails("decode", "12-bit"),
    ),
    Hostile(
        "JPEG of a thousand scans", b"scans.jpeg", write(many_scans_jpeg),
        Fails("decode", "more than 500 scans"),
    ),
    Hostile(
        "PNG of 1 bit", b"1-bit.png",
        write(lambda: encode(Image.fromarray(picture() > 127), "PNG")),
        Decodes(lambda: (picture() > 127) * np.uint8(255)),
    ),
    Hostile("PNG of 8 bits", b"8-bit.png", write(png), PICTURE),
    Hostile(
        "PNG of 16 bits", b"16-bit.png", write(sixteen_bit_png),
        Decodes(lambda: scaled_to_eight(sixteen_bit())),
    ),
    Hostile(
        "PNG of 16 bits, one value transparent", b"16-bit-trns.png",
        write(lambda: sixteen_bit_png(transparent=int(sixteen_bit()[0, 0]))),
        Decodes(
            lambda: scaled_to_eight(sixteen_bit() * (sixteen_bit() != sixteen_bit()[0, 0]))
        ),
    ),
    Hostile(
        "colour PNG of 16 bits", b"16-bit-rgb.png", write(lambda: deep_png(colour())),
        Decodes(lambda: luma(colour()[..., ::-1]), 0.6),
    ),
    Hostile(
        "PNG with alpha, 16 bits", b"16-bit-rgba.png",
        write(lambda: deep_png(np.dstack([picture()] * 3 + [alpha()]))),
        Decodes(over_black, 0.6),
    ),
    Hostile(
        "colour PNG", b"rgb.png", write(lambda: encode(Image.fromarray(colour()), "PNG")),
        Decodes(lambda: luma(colour()), 0.6),
    ),
    Hostile(
        "palette PNG", b"palette.png",
        write(lambda: encode(Image.fromarray(picture()).convert("P"), "PNG")),
        PICTURE,
    ),
    Hostile(
        "palette PNG with a transparent entry", b"palette-trns.png",
        write(
            lambda: encode(
                Image.fromarray(picture()).convert("P"), "PNG", transparency=int(picture()[9, 9])
            )
        ),
        Decodes(lambda: picture() * (picture() != picture()[9, 9])),
    ),
    *(
        Hostile(
            "PNG with alpha", b"alpha-%s.png" % mode.encode(),
            write(
                lambda mode=mode: encode(
                    Image.merge(mode, [Image.fromarray(picture())] * (len(mode) - 1)
                    + [Image.fromarray(alpha())]), "PNG",
                )
            ),
            Decodes(over_black, 0.6),
        )
        for mode in ("LA", "RGBA")
    ),
    Hostile(
        "PNG of 2 bits, one value transparent", b"2-bit-trns.png", write(two_bit_png),
        Decodes(lambda: np.tile(np.array([0, 0, 170, 255], np.uint8), (4, 1))),
    ),
    Hostile("interlaced PNG", b"interlaced.png", write(interlaced_png), PICTURE),
    *(
        Hostile(
            "PNG with a bad checksum", b"checksum-%s.png" % kind,
            write(lambda kind=kind: damage_png(kind, checksum=True)),
            Fails("decode", f"checksum of its {kind.decode()} is wrong"),
        )
        for kind in (b"IHDR", b"IDAT", b"IEND")
    ),
    Hostile(
        "PNG with a flipped bit", b"flipped.png",
        write(lambda: damage_png(b"IDAT", checksum=False)),
        Fails("decode", "checksum of its IDAT is wrong"),
    ),
    *(
        Hostile(
            f"{size[0]:,} x {size[1]:,} pixels", b"%d-x-%d.png" % size,
            write(lambda size=size: encode(Image.new("L", size[::-1], 77), "PNG")),
            Decodes(lambda size=size: np.full(size, 77, np.uint8)),
        )
        for size in ((1, 1), (1, 20_000), (20_000, 1))
    ),
    _jpegs("1 x 20,000 pixels", b"1-x-20000.jpeg", encode, Image.new("L", (20_000, 1), 77), "JPEG"),
    Hostile("30,000 x 30,000 pixels", b"bomb.png", write_bomb, TOO_MANY_PIXELS),
    Hostile(
        "30,000 x 30,000 pixels", b"bomb.jpeg", write(declare_jpeg, (30_000, 30_000)),
        TOO_MANY_PIXELS,
    ),
    Hostile(
        "50,000 x 50,000 pixels declared", b"declared.png",
        write(make_png, (50_000, 50_000), 8, 0, b""),
        TOO_MANY_PIXELS,
    ),
    *(
        Hostile(
            f"{kind} named .png", b"%s.png" % kind.lower().encode(),
            write(lambda kind=kind: encode(Image.fromarray(picture()), kind)),
            Fails("decode", f"(?i)neither JPEG nor PNG, but a {kind}"),
        )
        for kind in ("TIFF", "GIF", "WEBP", "BMP")
    ),
    Hostile(
        "DICOM named .jpeg", b"dicom.jpeg", write(lambda: bytes(128) + b"DICM" + bytes(99)),
        Fails("decode", "neither JPEG nor PNG, but a DICOM"),
    ),
    Hostile(
        "300 MB", b"large.jpeg", write_padded(jpeg, 300_000_000),
        Fails("read", "has 300,000,000 bytes, more than 67,108,864"),
    ),
    Hostile(
        "300 MB", b"zeros.png", write_padded(bytes, 300_000_000),
        Fails("read", "has 300,000,000 bytes, more than 67,108,864"),
    ),
    *(Hostile("odd name", name, write(png), PICTURE) for name in NAMES),
    Hostile("directory", b"directory.jpeg", os.mkdir, Fails("read", "Is a directory")),
    Hostile("named pipe", b"pipe.jpeg", os.mkfifo, Fails("read", "not a regular file")),
    Hostile("dangling link", b"dangling.jpeg", link(b"nowhere"), Fails("read", "No such file")),
    Hostile("looping link", b"loop.jpeg", link(b"loop.jpeg"), Fails("read", "levels of symbolic")),
    Hostile("link to an image", b"link.png", link(b"8-bit.png"), PICTURE),
    Hostile(
        "no permission to read", b"unreadable.png", write_unreadable,
        Fails("read", "Permission denied"),
    ),
    Hostile(
        "removed after it was listed", b"removed.png", write(png), Fails("read", "No such file"),
        spoil=os.unlink,
    ),
    Hostile(
        "cut after it was listed", b"shortened.png", write(png), CHANGED,
        spoil=lambda path: os.truncate(path, 200),
    ),
    Hostile("the same image twice", b"twin-1.png", write(png), PICTURE),
    Hostile("the same image twice", b"twin-2.png", write(png), PICTURE),
)  # fmt: skip


def plant(folder: bytes, rows: tuple[Hostile, ...]) -> None:
    """Make files in a folder that exists."""
    for row in rows:
        row.make(os.path.join(folder, row.name))
