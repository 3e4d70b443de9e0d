"""Encoded bytes -> RGB pixels. Pillow decodes everything; simplejpeg, if installed, JPEG faster."""

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
        with _quietly():
            file = Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data
            if isinstance(data, bytes) and _is_bomb(*file.size):
                raise Image.DecompressionBombError(f"{file.width}x{file.height} pixels")
            file.load()
            # Not `ImageOps.exif_transpose`, which fails where metadata are damaged.
            turn = _UPRIGHT.get(file.getexif().get(_ORIENTATION, 1))
            return to_rgb(file if turn is None else file.transpose(turn))
    except _BROKEN as error:
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def _is_bomb(height: int, width: int) -> bool:
    """Whether it is above Pillow's limit, where Pillow warns; it raises above twice the limit."""
    return Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings: damaged metadata do not matter here."""
    # Filters belong to the process, so threads that set them at once would leave them changed.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    # Pillow judges what is unusual: CMYK, bombs, and what its metadata say is not upright.
    if colorspace in ("CMYK", "YCCK") or _is_bomb(height, width):
        return None
    if b"Exif\0\0" in data or b"tiff:Orientation" in data:  # Pillow heeds XMP, too
        try:
            with _quietly():
                if Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION) in _UPRIGHT:
                    return None
        except _BROKEN:
            return None
    return int(height), int(width)


def decode_pixels(data: bytes | Image.Image) -> Pixels:
    """`decode` as an array [H, W, 3], uint8; JPEG by the fast decoder where there is one."""
    if isinstance(data, bytes) and plain_jpeg_size(data) is not None:
        return decode_plain_jpeg(data)
    return np.array(decode(data))


def decode_plain_jpeg(data: bytes, least: tuple[int, int] | None = None) -> Pixels:
    """Decode what `plain_jpeg_size` has said yes to.

    Args:
        data: The file.
        least: (height, width) that the result must have at least; the image may then be decoded at
            1/2 … 1/8 of its size, which costs less. None = full size.

    Raises:
        CorruptImageError: If it is damaged or truncated.
    """
    height, width = least or (0, 0)
    # Scales above 1/2 are decoded more slowly than the whole.
    options = {"min_height": height, "min_width": width, "min_factor": 2} if least else {}
    try:
        pixels: Pixels = _simplejpeg.decode_jpeg(data, "RGB", **options)
        return pixels
    except ValueError:  # damaged, or a PNG by another name: Pillow says which
        return np.array(decode(data))
