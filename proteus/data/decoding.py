"""Encoded bytes -> RGB pixels. Pillow decodes everything; simplejpeg, if installed, JPEG faster."""

import io
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_ORIENTATION = 0x0112
# 1 MB, needs numpy only, releases the lock while it decodes.
_simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None


class CorruptImageError(ValueError):
    """An image cannot be decoded, or too many of a source cannot."""


def decode(data: bytes | Image.Image) -> Image.Image:
    """Decode to RGB, upright, the first frame of an animation.

    Args:
        data: An encoded image in any format Pillow reads, or one that Pillow has opened.

    Raises:
        CorruptImageError: If it is damaged, truncated, or larger than Pillow's safety limit.
    """
    try:
        with warnings.catch_warnings():
            # Above the limit Pillow warns, above twice the limit it raises: refuse both.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # damaged EXIF does not matter here
            file = Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data
            file.load()
            return to_rgb(ImageOps.exif_transpose(file))
    except (*_BROKEN, Image.DecompressionBombWarning) as error:
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB; 16 bits are scaled, not clipped."""
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range; save the image with integers")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image.convert("RGB")


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that the fast decoder may take; None for all others."""
    if _simplejpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colorspace, _ = _simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # Pillow judges what is unusual: CMYK, bombs, and what EXIF says is not upright.
    limit = Image.MAX_IMAGE_PIXELS
    if colorspace in ("CMYK", "YCCK") or (limit is not None and height * width > limit):
        return None
    if data.find(b"Exif\0\0", 0, 1 << 16) >= 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1) != 1:
                    return None
            except _BROKEN:
                return None
    return int(height), int(width)


def decode_pixels(data: bytes | Image.Image, least: tuple[int, int] | None = None) -> Pixels:
    """Decode to an array [H, W, 3], uint8, RGB, upright.

    Args:
        data: Encoded bytes, or an image that is decoded already.
        least: (height, width) that the result must have at least; JPEG may then be decoded at
            1/2 … 1/8 of its size, which costs less. None = full size.

    Raises:
        CorruptImageError: If it is damaged, truncated, or larger than Pillow's safety limit.
    """
    if isinstance(data, bytes) and plain_jpeg_size(data) is not None:
        return decode_plain_jpeg(data, least)
    return np.array(decode(data))


def decode_plain_jpeg(data: bytes, least: tuple[int, int] | None = None) -> Pixels:
    """`decode_pixels` for what `plain_jpeg_size` has said yes to; does not ask it again."""
    height, width = least or (0, 0)
    # Scales above 1/2 are decoded more slowly than the whole.
    options = {"min_height": height, "min_width": width, "min_factor": 2} if least else {}
    try:
        pixels: Pixels = _simplejpeg.decode_jpeg(data, "RGB", **options)
        return pixels
    except ValueError:  # damaged, or a PNG by another name: Pillow says which
        return np.array(decode(data))
