import io
import itertools
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import proteus
from proteus.data import CorruptImageError, decode
from proteus.data.datasets import _Cell
from proteus.data.decoding import EXTENSIONS, FORMATS, decode_pixels, open_image

RAMP = np.tile(np.arange(256), (4, 1))  # of 8 bits


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(pixels, colour):
    """[H, W, C] as a PNG, which Pillow does not write with several channels."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(pixels, *, bits, kind=1, photometric=1, order="<"):
    """A TIFF of one strip with the tags that are given: sample format 1 unsigned, 2 signed."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    tags = {
        256: (3, width), 257: (3, height), 258: (3, bits), 259: (3, 1), 262: (3, photometric),
        273: (4, 0), 277: (3, channels), 278: (3, height), 279: (4, pixels.nbytes), 339: (3, kind),
    }  # fmt: skip
    behind = 8 + 2 + 12 * len(tags) + 4  # where that stands which is too long for its entry
    long = {258: bits, 339: kind} if channels > 1 else {}
    at = behind + 2 * channels * len(long)  # where the pixels stand
    entries = b""
    for tag, (form, value) in tags.items():
        count, packed = 1, struct.pack(f"{order}H2x" if form == 3 else f"{order}I", value)
        if tag in long:
            count = channels
            packed = struct.pack(f"{order}I", behind + 2 * channels * list(long).index(tag))
        elif tag == 273:
            packed = struct.pack(f"{order}I", at)
        entries += struct.pack(f"{order}HHI", tag, form, count) + packed
    extra = b"".join(struct.pack(f"{order}{channels}H", *[n] * channels) for n in long.values())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    head += struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return head + extra + pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()


def levels(data):
    return np.unique(np.array(decode(data)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_any_number_of_bits_in_a_file_of_16_is_a_picture(bits, kind):
    data = encoded((RAMP * ((1 << bits) - 1) // 255).astype(np.uint16), kind)
    pixels = np.array(decode(data))
    assert np.abs(pixels[..., 0].astype(int) - RAMP).max() <= 1
    assert np.array_equal(decode_pixels(data), pixels)


def test_a_picture_that_uses_its_16_bits_is_as_before():
    pixels = np.arange(0, 65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(np.array(decode(encoded(pixels, "PNG")))[..., 0], pixels >> 8)


@pytest.mark.parametrize(
    ("data", "right"),
    [
        (tiff(RAMP.astype(np.int16) * 16, bits=16, kind=2), True),
        (tiff(RAMP.astype(np.int16) - 128, bits=16, kind=2), False),
        (tiff(RAMP.astype(np.uint16) * 16, bits=16, order=">"), True),
        (tiff(RAMP.astype(np.int16) * 16, bits=16, kind=2, order=">"), True),
        (tiff(RAMP.astype(np.int32), bits=32, kind=2), True),
        (tiff(RAMP.astype(np.uint32) * 200, bits=32), True),
        (tiff(RAMP.astype(np.uint32) * 400_000, bits=32), False),
        (tiff(RAMP.astype(np.int32) - 1, bits=32, kind=2), False),
        (tiff(RAMP.astype(np.float32) / 255, bits=32, kind=3), False),
    ],
)
def test_integers_of_more_bits_are_a_picture_or_refused_and_never_black(data, right):
    if right:
        assert len(levels(data)) > 150
        return
    with pytest.raises(CorruptImageError, match="no agreed range"):
        decode(data)
    with pytest.raises(CorruptImageError):
        decode_pixels(data)


def test_white_that_is_zero_is_white():
    assert np.array(decode(tiff(np.zeros((2, 2), np.uint16), bits=16, photometric=0))).min() == 255


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("form", ["rgb.png", "rgba.png", "la.png", "rgb.tif", "big.tif"])
def test_colours_of_16_bits_are_a_picture_or_refused(form, bits):
    colours = {"rgb.png": (2, 3), "rgba.png": (6, 4), "la.png": (4, 2)}
    grey = (RAMP * ((1 << bits) - 1) // 255).astype(np.uint16)
    if form in colours:
        colour, channels = colours[form]
        pixels = np.stack([grey] * channels, -1)
        if channels in (2, 4):
            pixels[..., -1] = 65535  # opaque
        data = png_of_16_bits(pixels, colour)
    else:
        pixels = np.stack([grey] * 3, -1)
        data = tiff(pixels, bits=16, photometric=2, order=">" if form == "big.tif" else "<")
    if bits == 16:
        assert np.abs(np.array(decode(data))[..., 0].astype(int) - RAMP).max() <= 1
        return
    with pytest.raises(CorruptImageError, match="nearly black"):
        decode(data)


def test_a_range_that_a_format_states_is_kept():
    # PGM says 4095: a dark picture stays dark.
    pixels = np.full((2, 2), 1000, ">u2")
    data = b"P5 2 2 4095\n" + pixels.tobytes()
    assert np.array(decode(data)).max() == 1000 * 65535 // 4095 >> 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_mode_with_an_agreed_range_is_a_picture(mode):
    grey = Image.fromarray(RAMP.astype(np.uint8))
    image = grey.convert("RGB").convert(mode) if mode not in ("La", "RGBa", "PA") else None
    if image is None:
        image = grey.convert({"La": "LA", "RGBa": "RGBA", "PA": "LA"}[mode]).convert(mode)
    pixels = np.array(decode(image))
    assert pixels.shape == (4, 256, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_palette_keeps_its_colours_where_it_is_transparent():
    image = Image.new("P", (2, 1))
    image.putpalette([250, 10, 20, 5, 6, 7])
    image.putpixel((1, 0), 1)
    for transparency in (0, bytes([0, 128])):
        data = encoded(image, "PNG", transparency=transparency)
        assert np.array(decode(data)).tolist() == [[[250, 10, 20], [5, 6, 7]]]


def test_colours_of_lab_are_those_of_rgb():
    data = encoded(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF")
    assert np.array(decode(data)).min() > 250


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 50 50
%%EndComments
(MARK) (w) file closefile showpage
%%EOF
"""


@pytest.mark.parametrize("read", [decode, open_image, decode_pixels])
def test_no_program_is_started_for_an_image(read, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr("os.system", started.append)
    binary = struct.pack("<4sIIIIIIHH", b"\xc5\xd0\xd3\xc6", 30, len(POSTSCRIPT), 0, 0, 0, 0, 0, 0)
    for data in (POSTSCRIPT, binary[:30] + POSTSCRIPT, b"%PDF-1.4\n" + POSTSCRIPT):
        with pytest.raises(CorruptImageError, match="none of JPEG, PNG"):
            read(data)
    assert not started


@pytest.mark.parametrize("kind", ["TGA", "PCX", "ICO", "SGI", "PPM", "JPEG2000", "WEBP"])
def test_only_the_formats_of_the_list_are_decoded(kind):
    data = encoded(Image.new("RGB", (16, 16), (7, 8, 9)), kind)
    if kind in FORMATS:
        assert decode(data).size == (16, 16)
        return
    with pytest.raises(CorruptImageError, match="none of JPEG"):
        decode(data)


def test_nothing_else_opens_images():
    root = Path(proteus.__file__).parent
    opened = [path for path in root.rglob("*.py") if re.search(r"Image\.open\(", path.read_text())]
    assert opened == [root / "data" / "decoding.py"]


def test_extensions_are_those_of_the_formats_that_this_pillow_reads():
    assert {".jpg", ".jfif", ".jpe", ".png", ".apng", ".jp2", ".ppm", ".mpo"} <= EXTENSIONS
    assert not {".eps", ".ps", ".wmf", ".pdf", ".tga", ".pfm", ".fli", ".mpg"} & EXTENSIONS
    assert (".avif" in EXTENSIONS) == ("AVIF" in FORMATS)


def test_whatever_is_damaged_is_a_corrupt_image():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    for kind, cut in itertools.product(FORMATS, range(12)):
        data = bytearray(encoded(image, kind))
        for _ in range(6):  # mostly its head, which says what is to come
            data[int(len(data) * rng.random() ** 3)] = int(rng.integers(256))
        try:
            for read in (decode, decode_pixels):
                assert np.array(read(bytes(data[: len(data) - cut * 20]))).shape[2] == 3
        except CorruptImageError as error:
            assert " at 0x" not in str(error)


@pytest.mark.parametrize(
    "error", [KeyError("x"), IndexError("x"), TypeError("x"), ZeroDivisionError("x"), MemoryError()]
)
def test_whatever_a_decoder_raises_is_the_image_s_fault(error, monkeypatch):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(CorruptImageError, match=type(error).__name__):
        decode(b"x")


@pytest.mark.parametrize("cell", [{}, {"bytes": 5}, {"bytes": "x", "path": None}, {"path": 3}])
def test_a_cell_without_an_image_is_a_corrupt_image(cell):
    with pytest.raises(CorruptImageError, match="has no image"):
        _Cell("image")({"image": cell})
