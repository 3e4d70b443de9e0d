import dataclasses
import io
import itertools
import logging
import math
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from proteus.data import CorruptImageError, ImageLoader, center_resize, decode, open_source
from proteus.data.decoding import decode_pixels
from proteus.data.samples import Augmenter, Key
from proteus.data.transforms import draw_crop


@pytest.fixture
def folder(tmp_path):
    for n in range(22):
        pixels = np.random.default_rng(n).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n:02}.png")
    return tmp_path


def loader(folder, **options):
    options = {"batch_size": 4, "image_size": 16, "workers": 0, **options}
    return ImageLoader(open_source(folder), **options)


def take(data, count, start=0):
    return list(itertools.islice(data.batches(start), count))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_starts_later_gives_what_the_whole_one_would_have(folder, workers):
    whole = take(loader(folder), 12)
    later = take(loader(folder, workers=workers), 5, start=7)
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], later, strict=True))


def test_the_number_of_workers_changes_nothing(folder):
    one, three = take(loader(folder), 7), take(loader(folder, workers=2), 7)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_another_seed_gives_other_images(folder):
    first, second = take(loader(folder), 1)[0], take(loader(folder, seed=1), 1)[0]
    assert not torch.equal(first, second)


def test_another_seed_gives_another_order(folder):
    data = [loader(folder, seed=seed, batch_size=22) for seed in (0, 1)]
    for one in data:
        one.samples.augmenter.augment = "none"  # whole images: only the order is left to differ
    (first,), (second,) = (take(one, 1) for one in data)
    assert not torch.equal(first, second)
    key = lambda batch: sorted(image.sum().item() for image in batch)  # noqa: E731
    assert key(first) == key(second)


def test_every_epoch_is_a_new_permutation_without_repeats(tmp_path):
    for n in range(12):
        Image.new("RGB", (8, 8), (n * 20, 0, 0)).save(tmp_path / f"{n:02}.png")
    data = loader(tmp_path, image_size=8)
    first, second = (
        [int(v) for batch in take(data, 3, start) for v in batch[:, 0, 0, 0]] for start in (0, 3)
    )
    assert sorted(first) == sorted(second) == [n * 20 for n in range(12)]
    assert first != second


def test_an_image_is_cropped_anew_in_every_epoch(folder):
    data = loader(folder, batch_size=22)
    (first,), (second,) = take(data, 1), take(data, 1, start=1)
    assert not torch.equal(first.sort(0).values, second.sort(0).values)


def test_batches_are_uint8_and_an_epoch_leaves_the_rest_out(folder):
    data = loader(folder)
    batches = list(data)
    assert len(batches) == len(data) == 5
    assert batches[0].shape == (4, 3, 16, 16)
    assert batches[0].dtype == torch.uint8


def test_without_augmentation_images_come_in_order_and_centred(folder):
    batch = next(iter(loader(folder, augment="none")))
    image = center_resize(decode((folder / "02.png").read_bytes()), 16)
    assert np.array_equal(batch[2].permute(1, 2, 0).numpy(), np.asarray(image))


def test_too_few_images_say_which_batch_size_fits(folder):
    with pytest.raises(ValueError, match="at most 22"):
        loader(folder, batch_size=23)


def test_a_corrupt_image_is_replaced_counted_named_and_logged(folder, caplog):
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:200])
    data = loader(folder)
    with caplog.at_level(logging.WARNING, logger="proteus"):
        batches = take(data, 10)
    assert all(batch.shape == (4, 3, 16, 16) for batch in batches)
    assert list(data.skipped) == ["07.png"]
    assert [r.getMessage().count("07.png") for r in caplog.records] == [1]


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_five_percent_corrupt_is_an_error_that_names_some(folder, workers):
    for n in (3, 9):
        (folder / f"{n:02}.png").write_bytes(b"no image")
    with pytest.raises(CorruptImageError, match=r"2 of 22.*\d\d\.png.*\d\d\.png"):
        take(loader(folder, workers=workers), 11)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_mode_becomes_rgb(mode):
    assert decode(encode(Image.new("RGB", (9, 7), "red").convert(mode))).mode == "RGB"


def test_cmyk_jpeg_becomes_rgb():
    image = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = image.getpixel((4, 4))
    assert red > 200
    assert max(green, blue) < 60


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    values = np.asarray(decode(encode(Image.fromarray(ramp))))[..., 0].astype(int)
    assert np.abs(values - ramp // 257).max() <= 1


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    image = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0))[0] > 200


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


def test_decompression_bombs_are_corrupt(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for side in (8, 20):  # above the limit, above twice the limit
        with pytest.raises(CorruptImageError, match="DecompressionBomb"):
            decode(encode(Image.new("RGB", (side, side))))


@pytest.mark.parametrize("data", [b"", b"<html>", encode(Image.new("RGB", (64, 64)), "JPEG")[:300]])
def test_what_is_no_image_is_corrupt(data):
    with pytest.raises(CorruptImageError):
        decode(data)


def test_crops_have_the_distribution_of_torchvision_s():
    from torchvision.transforms import RandomResizedCrop

    image = Image.new("RGB", (90, 60))
    rng = random.Random(0)
    boxes = [draw_crop(60, 90, rng) for _ in range(4000)]
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    for statistic in (
        lambda top, left, h, w: h * w,
        lambda top, left, h, w: math.log(w / h),
        lambda top, left, h, w: top + h / 2,
        lambda top, left, h, w: left + w / 2,
    ):
        a, b = (np.array([statistic(*map(int, box)) for box in some]) for some in (boxes, theirs))
        error = math.hypot(a.std(), b.std()) / math.sqrt(4000)
        assert abs(a.mean() - b.mean()) < 4 * error
        assert a.std() == pytest.approx(b.std(), rel=0.07)


@pytest.mark.parametrize("augment", ["fast", "official", "crop"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_a_resumed_stream_goes_on_exactly(folder, augment, world_size, repeats):
    options = {"augment": augment, "repeats": repeats, "world_size": world_size, "batch_size": 2}
    for rank in range(world_size):
        whole = take(loader(folder, rank=rank, **options), 7)
        later = take(loader(folder, rank=rank, **options), 3, start=4)
        assert all(torch.equal(a, b) for a, b in zip(whole[4:], later, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning")
@pytest.mark.parametrize("workers", [1, 4])
def test_a_resumed_stream_goes_on_exactly_with_workers(folder, workers):
    options = {"augment": "fast", "repeats": 3}
    whole = take(loader(folder, **options), 8)
    later = take(loader(folder, workers=workers, **options), 4, start=4)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], later, strict=True))


def test_processes_get_the_parts_of_one_batch(folder):
    whole = take(loader(folder, batch_size=4), 5)
    parts = [take(loader(folder, batch_size=2, rank=r, world_size=2), 5) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.stack([first, second], 1).flatten(0, 1))


def test_copies_share_a_decode_and_differ(folder, monkeypatch):
    source = open_source(folder)
    read = []
    original = source.read
    source.read = lambda index: read.append(index) or original(index)
    data = ImageLoader(source, batch_size=6, image_size=16, workers=0, augment="fast", repeats=3)
    batch = next(data.batches())
    assert len(read) == 2
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(batch[1], batch[2])


def test_copies_on_different_processes_differ(folder):
    options = {"augment": "crop", "repeats": 3, "world_size": 3, "batch_size": 2}
    first = [next(loader(folder, rank=rank, **options).batches())[0] for rank in range(3)]
    indices = {int(loader(folder, rank=rank, **options).indices(0)[0]) for rank in range(3)}
    assert len(indices) == 1
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_a_jpeg_is_decoded_small_where_the_crops_allow_it(tmp_path):
    pytest.importorskip("simplejpeg")
    y, x = np.mgrid[:600, :800]
    smooth = np.stack([x * 255 // 800, y * 255 // 600, (x + y) * 255 // 1400], -1)
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    augmenter = Augmenter("fast", size=32, seed=0, scale=(0.9, 1), whole=True)
    small = augmenter((tmp_path / "a.jpg").read_bytes(), [Key(0, 0, 0)])[0][0]
    augmenter._least = lambda size, crops: None
    whole = augmenter((tmp_path / "a.jpg").read_bytes(), [Key(0, 0, 0)])[0][0]
    gap = (small.int() - whole.int()).abs().float()
    assert gap.mean() < 2.5
    assert gap.max() > 0


DEADLY = """
import itertools, os, signal, sys
from proteus.data import ImageLoader, open_source

source = open_source(sys.argv[1])
original = source.read

def deadly(index):
    if source.name(index) == "07.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(index)

source.read = deadly
loader = ImageLoader(source, batch_size=4, image_size=16, workers=1)
try:
    list(itertools.islice(loader.batches(), 6))
except ChildProcessError as error:
    print(error)
"""


def test_a_worker_that_dies_is_an_error_that_names_the_file(folder):
    # In a process of its own: none of the tests may be the one that died.
    done = subprocess.run(
        [sys.executable, "-c", DEADLY, str(folder)], capture_output=True, text=True, check=True
    )
    assert "a worker process died while it was at 07.png" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "strong"}, "unknown augmentation. Got 'strong'"),
        ({"repeats": 0}, "repeats is out of range. Got 0"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 8, "world_size": 4}, "at most 5"),
    ],
)
def test_settings_out_of_range_are_errors(folder, options, message):
    with pytest.raises(ValueError, match=message):
        loader(folder, **options)


@pytest.mark.parametrize("augment", ["fast", "official"])
def test_odd_images_survive_the_fast_decoder(tmp_path, augment):
    Image.new("CMYK", (40, 30), (0, 100, 100, 0)).save(tmp_path / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((20, 60, 3), 99, np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (30, 30), 80).save(tmp_path / "grey.jpg")
    Image.new("P", (30, 30)).save(tmp_path / "palette.png")
    Image.fromarray(np.full((30, 30), 40000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "png.jpg").write_bytes((tmp_path / "palette.png").read_bytes())
    data = loader(tmp_path, batch_size=6, augment=augment)
    assert next(data.batches()).shape == (6, 3, 16, 16)
    assert data.skipped == {}


def turned_jpegs():
    """Turned by EXIF, by EXIF behind 128 kB of other data, by damaged EXIF, and by XMP."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :30] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 6
    plain = encode(image, "JPEG", exif=exif)
    yield plain
    yield plain[:2] + (b"\xff\xe2\xff\xff" + bytes(65533)) * 2 + plain[2:]
    at = plain.index(b"Exif") + 17  # the first tag becomes one that does not hold text
    yield plain[:at] + b"\x00" + plain[at + 1 :]
    yield encode(image, "JPEG", xmp=b'<x:xmpmeta><a tiff:Orientation="6"/></x:xmpmeta>')


@pytest.mark.parametrize(
    "data", list(turned_jpegs()), ids=["exif", "late exif", "damaged exif", "xmp"]
)
def test_a_turned_jpeg_is_upright_for_both_decoders(data):
    assert decode_pixels(data).shape == (60, 20, 3)
    assert np.array_equal(decode_pixels(data), np.asarray(decode(data)))


@pytest.mark.parametrize("orientation", range(10))
def test_orientations_are_pillow_s(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    data = encode(Image.fromarray(pixels), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data), expected)


def test_decoding_in_threads_leaves_the_process_s_warnings_as_they_were():
    data = encode(Image.fromarray(np.zeros((300, 300, 3), np.uint8)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            list(pool.map(decode, [data] * 20))
            assert warnings.filters == before


def test_a_truncated_jpeg_is_corrupt_for_both_decoders(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "a.jpg"
    )
    data = (tmp_path / "a.jpg").read_bytes()
    for decoder in (decode, decode_pixels):
        with pytest.raises(CorruptImageError):
            decoder(data[: len(data) // 2])


def test_batches_for_a_device_are_finished_there(folder):
    # "meta" has no numbers, but takes the device's path up to them.
    samples = loader(folder, augment="fast", device="meta").samples
    batch = samples[[Key(0, n, 0) for n in range(4)]]
    assert batch.draws.shape == (4, 9)
    assert loader(folder, augment="fast").samples[[Key(0, 0, 0)]].draws is None


@pytest.fixture
def classes(tmp_path):
    """Two images of each class; an image's red value is its class's name."""
    for name in ("2", "10", "9", "1"):
        (tmp_path / name).mkdir()
        for n in range(2):
            pixels = np.random.default_rng(n).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            pixels[..., 0] = int(name)
            Image.fromarray(pixels).save(tmp_path / name / f"{n}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_labels_belong_to_the_images_which_are_those_without_labels(classes, augment, workers):
    options = {"augment": augment, "workers": workers}
    plain = take(loader(classes, **options), 4, start=1)
    data = loader(classes, labels=True, **options)
    assert data.classes == ["1", "2", "9", "10"]
    for alone, (images, labels) in zip(plain, take(data, 4, start=1), strict=True):
        assert torch.equal(alone, images)
        assert labels.dtype == torch.int64
        named = [int(data.classes[label]) for label in labels]
        assert named == images[:, 0].flatten(1).median(1).values.tolist()


def test_names_are_sorted_and_repeats_share_a_label(tmp_path):
    for name in ("b", "a", "c/d"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name / "0.png")
    data = loader(tmp_path, labels=True, repeats=3, batch_size=3, augment="fast")
    assert data.classes == ["a", "b", "c/d"]
    ((_, labels),) = take(data, 1)
    assert len(set(labels.tolist())) == 1


def test_the_classes_of_a_part_can_be_numbered_as_the_whole(classes):
    part = open_source(classes / "9").select([0, 1], "a part")
    part.places = [dataclasses.replace(place, label="9") for place in part.places]
    data = ImageLoader(part, batch_size=2, image_size=8, workers=0, labels=["1", "2", "9", "10"])
    assert next(iter(data))[1].tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"Got 1 names .* without \['9'\] of a part"):
        ImageLoader(part, batch_size=2, image_size=8, workers=0, labels=["1"])


def test_a_corrupt_image_s_place_is_labelled_as_the_image_that_fills_it(classes):
    for n in range(2, 12):
        Image.new("RGB", (20, 20), (1, 0, 0)).save(classes / "1" / f"{n}.png")
        Image.new("RGB", (20, 20), (2, 0, 0)).save(classes / "2" / f"{n}.png")
    source = open_source(classes)
    last = max(n for n in range(len(source)) if source.label(n) == "1")
    (classes / source.name(last)).write_bytes(b"no image")
    data = ImageLoader(source, batch_size=28, image_size=8, workers=0, augment="none", labels=True)
    images, labels = next(iter(data))
    assert list(data.skipped) == [source.name(last)]
    assert [int(data.classes[n]) for n in labels] == images[:, 0, 0, 0].tolist()


def test_labels_that_are_not_there_are_an_error(folder):
    with pytest.raises(ValueError, match=r"labels are asked for and not known. Got 00\.png"):
        loader(folder, labels=True)


def test_labels_go_to_the_device(classes):
    data = loader(classes, labels=True, device="meta", augment="crop")
    images, labels = next(iter(data))
    assert images.device.type == labels.device.type == "meta"
    assert labels.shape == (4,)
