"""Encoded bytes to grey pixels of one size: strict decoding, and the resize of the seed study."""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import pyarrow as pa
except ImportError:  # machines that only measure the compute core need not have it
    pa = None

# Radiographs have at most some 20 million pixels. More is refused before any of it is decoded.
MAX_PIXELS = 89_478_485


class UndecodableImage(ValueError):
    """The bytes are no whole JPEG or PNG; its text is the reason that the errors table gives."""


def decode_grey(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Return uint8 of shape (height, width): the luma of a JPEG or PNG, upright.

    Colour becomes ITU-R 601 luma, which a JPEG holds as it is; 16 bits a pixel are scaled to 8;
    what is transparent becomes black; an EXIF rotation is applied. A truncated image is an error.

    Raises:
        UndecodableImage: the bytes are empty, of another format, damaged, or of too many pixels.
    """
    if not encoded:
        raise UndecodableImage("the file is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableImage(
                    f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
                )
            if image.format == "JPEG":
                image.draft("L", image.size)  # luma alone: three times faster than RGB
            image.load()
            return _to_grey(_upright(image))
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage("the bytes are neither JPEG nor PNG") from None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UndecodableImage(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing; the pixels are whole
        return image


def _to_grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit PNG: 65535 is white
        grey: npt.NDArray[np.uint8] = np.round(np.asarray(image, np.float32) / 257).astype(np.uint8)
        return grey
    if image.mode == "LA" or "transparency" in image.info or image.mode in ("RGBA", "PA"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert(
            "RGB"
        )
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    return _to_array(image if image.mode == "L" else image.convert("L"))


def _to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return an 'L' image as an array, without the copies that NumPy's own way makes of it.

    They take a tenth of the time that decoding a full-size X-ray takes.
    """
    if pa is None:
        return np.asarray(image)
    pixels: npt.NDArray[np.uint8] = np.asarray(pa.array(image))
    return pixels.reshape(image.height, image.width)


def resize_bilinear(
    grey: npt.NDArray[np.uint8], image_size: tuple[int, int]
) -> npt.NDArray[np.float32]:
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
