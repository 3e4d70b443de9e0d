"""Encoded bytes -> RGB pixels. Pillow decodes everything; simplejpeg, if installed, JPEG faster."""

import contextlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ..files import open_regular

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Image.init()  # Pillow knows its formats only now
# What is decoded, whatever a file is called. Pillow reads more, some of it by starting a program
# (PostScript), some without a mark that would tell it from other files (TGA).
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN and name in Image.EXTENSION.values()  # as this Pillow was built
)
# Pixels in a PFM are floats, which are refused: such files are maps beside images.
EXTENSIONS = frozenset(
    name for name, kind in Image.EXTENSION.items() if kind in (*FORMATS, "MPO") and name != ".pfm"
)
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
_BYTES_A_PIXEL = 12  # more than any format needs
_BITS = (8, 10, 12, 14, 16)  # of sensors
_PHOTOMETRIC, _MIN_IS_WHITE = 262, 0  # a tag of TIFF and its value
# 1 MB, needs numpy only, releases the lock while it decodes.
_simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None


class CorruptImageError(ValueError):
    """An image cannot be decoded, or too many of a source cannot."""


def read_file(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of an image: a whole file or `size` bytes of it, from `offset` on.

    Raises:
        OSError: If it cannot be read, is no regular file, ends before, or is larger than an image
            within Pillow's safety limit can be.
    """
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            end = length if size is None else offset + size
            if not 0 <= offset <= end <= length:
                raise OSError(f"bytes {offset} to {end} are asked for, and it has {length}")
            most = _BYTES_A_PIXEL * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else end
            if end - offset > most:
                raise OSError(f"{end - offset} bytes are more than any image needs")
            file.seek(offset)
            return file.read(end - offset)
    except ValueError as error:  # a name that cannot be one
        raise OSError(f"{error}") from error


def open_image(data: bytes) -> Image.Image:
    """Decode the first frame of an encoded image as it is, in its own mode.

    Here and in `decode` is where encoded images are opened, all of them: only `FORMATS`, none of
    whose decoders starts a program.

    Raises:
        CorruptImageError: If it is damaged, of another format, or larger than Pillow's safety
            limit.
    """
    with _decoding():
        file = _open(data)
        file.load()
        return file


def decode(data: bytes | Image.Image) -> Image.Image:
    """Decode to RGB, upright, the first frame of an animation.

    Integers of more than 8 bits are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds
    the image's values, since a file of 16 bits does not say how many its sensor had (by 16 where
    the format states a range: PGM, JPEG 2000). Transparency is dropped. Refused are floats,
    integers below 0 or above 65535, and colours of 16 bits that use the lower 12 alone, of which
    Pillow keeps next to nothing.

    Args:
        data: An encoded image in one of `FORMATS`, or one that Pillow has opened.

    Raises:
        CorruptImageError: If it is damaged, truncated, of another format, larger than Pillow's
            safety limit, or if its values have no agreed range.

    Examples:
        >>> pixels = np.array([[0, 512, 1023]], np.uint16)
        >>> [decode(Image.fromarray(pixels)).getpixel((x, 0)) for x in range(3)]
        [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    """
    with _decoding():
        file = _open(data) if isinstance(data, bytes) else data
        wide = _has_wide_colours(file)
        file.load()
        if wide:
            _check_wide_colours(file)
        # Not `ImageOps.exif_transpose`, which fails where metadata are damaged.
        turn = _UPRIGHT.get(file.getexif().get(_ORIENTATION, 1))
        image = to_rgb(file)
        return image if turn is None else image.transpose(turn)


def _open(data: bytes) -> Image.Image:
    """Its pixels are not decoded yet."""
    file = Image.open(io.BytesIO(data), formats=FORMATS)
    if _is_bomb(*file.size):
        raise Image.DecompressionBombError(f"{file.width}x{file.height} pixels")
    return file


def _is_bomb(height: int, width: int) -> bool:
    """Whether it is above Pillow's limit, where Pillow warns; it raises above twice the limit."""
    return Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """What is raised within becomes a `CorruptImageError`: damage makes decoders raise anything.

    Without Pillow's warnings: damaged metadata do not matter.
    """
    try:
        # Filters belong to the process, so threads that set them at once would leave them changed.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:
        raise CorruptImageError(f"damaged, or none of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB, see `decode`."""
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range; save the image with integers")
    if image.mode.startswith("I"):
        image = _narrow(image)
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Integers of more than 8 bits as 8."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"integer pixels from {low} to {high} have no agreed range; save the image with 8 or "
            f"16 bits"
        )
    stated = image.format in ("PPM", "JPEG2000")  # and Pillow has scaled these to 16 bits
    bits = 16 if stated else next(bits for bits in _BITS if high < 1 << bits)
    pixels = (values >> (bits - 8)).astype(np.uint8)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _MIN_IS_WHITE
        pixels = 255 - pixels if inverted else pixels
    return Image.fromarray(pixels)


def _has_wide_colours(image: Image.Image) -> bool:
    """Whether a file whose pixels are not decoded yet holds 16 bits a channel."""
    if image.mode.startswith("I") or not isinstance(image, ImageFile.ImageFile):
        return False
    return any(re.search(r";16[BLN]", repr(tile)) for tile in image.tile)  # as Pillow calls them


def _check_wide_colours(image: Image.Image) -> None:
    """Pillow keeps the upper 8 bits of 16: refuse what has nothing in the upper 4."""
    ranges: Any = image.getextrema()
    bands = zip(image.getbands(), ranges, strict=True)
    if max(high for name, (_, high) in bands if name != "A") < 16:
        raise ValueError(
            "channels of 16 bits that use the lower 12 alone are nearly black to Pillow; save the "
            "image with 8 bits"
        )


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
            with _decoding():
                turned = _open(data).getexif().get(_ORIENTATION) in _UPRIGHT
        except CorruptImageError:
            return None
        if turned:
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
