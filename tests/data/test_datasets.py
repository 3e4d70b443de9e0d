import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from proteus.data import (
    CorruptImageError,
    ImageLoader,
    StreamLoader,
    make_loader,
    merge,
    open_source,
    single_image,
)

SIZE = {"batch_size": 4, "image_size": 16}


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def take(loader, count, start=0):
    return list(itertools.islice(loader.batches(start), count))


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return picture(index), 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", ["crop", "fast", "official"])
def test_a_torch_dataset_is_a_source(workers, augment):
    loader = ImageLoader(open_source(Pairs()), **SIZE, workers=workers, augment=augment)
    again = ImageLoader(open_source(Pairs()), **SIZE, workers=0, augment=augment)
    assert all(torch.equal(a, b) for a, b in zip(take(loader, 3), take(again, 3), strict=True))


def test_tensors_are_images_too():
    uint8 = torch.randint(0, 256, (8, 3, 20, 24), dtype=torch.uint8)
    whole = ImageLoader(open_source(TensorDataset(uint8)), **SIZE, workers=0, augment="none")
    floats = open_source(TensorDataset(uint8 / 255))
    again = ImageLoader(floats, **SIZE, workers=0, augment="none")
    assert torch.equal(next(whole.batches()), next(again.batches()))
    wrong = ImageLoader(open_source(TensorDataset(uint8 / 99)), **SIZE, workers=0)
    with pytest.raises(ValueError, match=r"not in \[0, 1\].*drop Normalize"):
        next(wrong.batches())


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (7, "not a source. Got a int"),
        (iter([picture(1)]), "an iterator can be read only once"),
        (TensorDataset(torch.zeros(0)), "is empty"),
    ],
)
def test_what_is_no_dataset_is_an_error(dataset, message):
    with pytest.raises(ValueError, match=message):
        open_source(dataset)


class Restarting(IterableDataset):
    """Its own iterator, anew for each pass."""

    def __iter__(self):
        self.left = [picture(n) for n in range(8)]
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


def test_a_dataset_that_is_its_own_iterator_is_no_mere_iterator():
    loader = make_loader(open_source(Restarting()), **SIZE)
    assert len(take(loader, 6)) == 6


def test_items_that_are_no_images_are_an_error():
    loader = ImageLoader(open_source(TensorDataset(torch.zeros(8, 5))), **SIZE, workers=0)
    with pytest.raises(ValueError, match=r"items are no images. Got \(5,\)"):
        next(loader.batches())


class Stream(IterableDataset):
    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __iter__(self):
        return (b"broken" if n in self.broken else picture(n) for n in range(self.count))


def test_a_stream_resumes_exactly_and_goes_round(caplog):
    loader = make_loader(open_source(Stream(10, broken={3})), **SIZE)
    assert isinstance(loader, StreamLoader)
    whole = take(loader, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], take(loader, 2, start=4), strict=True))
    assert len(loader.skipped) >= 2  # once in each pass
    one = make_loader(open_source(Stream(10, broken={3})), **SIZE, workers=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, take(one, 6), strict=True))


def test_processes_share_a_stream():
    options = {"image_size": 16, "augment": "none"}
    whole = take(make_loader(open_source(Stream(16)), batch_size=8, **options), 2)
    parts = [
        take(
            make_loader(open_source(Stream(16)), batch_size=4, rank=rank, world_size=2, **options),
            2,
        )
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(whole)[0::2], torch.cat(parts[0]))
    assert torch.equal(torch.cat(whole)[1::2], torch.cat(parts[1]))


def test_a_stream_of_rubbish_or_nothing_is_an_error():
    with pytest.raises(ValueError, match="more than 5% are corrupt"):
        take(make_loader(open_source(Stream(300, broken=set(range(150)))), **SIZE), 60)
    with pytest.raises(ValueError, match="gives nothing"):
        take(make_loader(open_source(Stream(0)), **SIZE), 1)
    with pytest.raises(ValueError, match="no repeated augmentation"):
        make_loader(open_source(Stream(9)), **SIZE, repeats=3)
    with pytest.raises(ValueError, match="a stream has no labels"):
        make_loader(open_source(Stream(9)), **SIZE, labels=True)


@pytest.mark.filterwarnings("ignore")  # of datasets and pyarrow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_without_its_image_is_left_out(tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    for number in range(30):
        picture(number).save(tmp_path / f"{number}.png")
    cells = [None, *(str(tmp_path / f"{number}.png") for number in range(30))]
    table = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())
    (tmp_path / "4.png").unlink()
    source = open_source(table.to_iterable_dataset() if streaming else table)
    loader = make_loader(source, **SIZE, workers=1, augment="none")
    if streaming:
        take(loader, 10)
    else:
        with pytest.raises(CorruptImageError, match="2 of 31"):
            take(loader, 4)
    reasons = " ".join(loader.skipped.values())
    assert "the row has no image in its column 'image'" in reasons
    assert "4.png: cannot be read" in reasons


@pytest.mark.filterwarnings("ignore")  # of datasets and pyarrow
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets(tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    for number in range(12):
        (tmp_path / "train").mkdir(exist_ok=True)
        picture(number).save(tmp_path / f"train/{number:02}.png")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), split="train", streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    loader = make_loader(open_source(loaded), **SIZE, workers=1, seed=2)
    whole = take(loader, 5)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], take(loader, 2, start=3), strict=True))
    assert isinstance(loader, StreamLoader if streaming else ImageLoader)


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_by_name_is_timm_s_spelling(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split, streaming):
        asked.append((name, split, streaming))
        return datasets.Dataset.from_dict(
            {"image": [picture(0)] * 4}, features=datasets.Features({"image": datasets.Image()})
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_source("hfds/me/photos:test")) == 4
    open_source("hfids/me/photos")
    assert asked == [("me/photos", "test", False), ("me/photos", "train", True)]


def test_a_list_file_is_a_source(tmp_path):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "list.txt").write_text("# mine\n2.png\n\n0.png\n")
    source = open_source(tmp_path / "list.txt")
    assert [source.name(i) for i in range(2)] == ["2.png", "0.png"]
    (tmp_path / "list.txt").write_text("2.png\n9.png\n")
    with pytest.raises(ValueError, match=r"lists files that are not there. Got 1 of 2.*9\.png"):
        open_source(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"world_size": 0}, "world_size=0"),
        ({"augment": "Fast"}, "unknown augmentation. Got 'Fast'"),
        ({"augment": "official"}, "a stream cannot do this"),
        ({"batch_size": 0}, "batch_size is out of range. Got 0"),
        ({"scale": (2, 3)}, r"scale=\(2, 3\)"),
    ],
)
def test_what_a_stream_cannot_do_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(open_source(Stream(8)), **{**SIZE, **options})


def test_a_stream_shorter_than_the_number_of_processes_does_not_hang():
    with pytest.raises(ValueError, match=r"nothing to process 30. Got 24 images"):
        take(make_loader(open_source(Stream(24)), **SIZE, rank=30, world_size=32), 1)


def test_datasets_and_folders_are_merged(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        picture(50 + number).save(tmp_path / f"photos/{number}.png")
    large = Image.effect_noise((90, 80), 60).convert("RGB")
    large.save(tmp_path / "large.png")
    views, _ = single_image(tmp_path / "large.png", 5, size=40)
    merged, manifest = merge([open_source(Pairs()), open_source(tmp_path / "photos"), views])
    assert manifest.images == len(merged) == 12 + 4 + 5
    loader = ImageLoader(merged, batch_size=21, image_size=16, workers=1, augment="fast")
    assert next(loader.batches()).shape == (21, 3, 16, 16)
    assert loader.skipped == {}
    assert np.array_equal(np.asarray(merged.read(20)), np.asarray(views.read(4)))
    part = merged.select([20, 0], "two")
    assert np.array_equal(np.asarray(part.read(0)), np.asarray(views.read(4)))
    for source in (merged, open_source(Pairs())):
        with pytest.raises(ValueError, match="only files can be listed"):
            source.save_list(tmp_path / "list.json")


def test_a_part_of_a_dataset_keeps_its_names():
    whole = open_source(Pairs())
    part = whole.select([3, 1], "two").select([1], "one")
    assert (part.description, len(part), part.name(0)) == ("one", 1, whole.name(1))
    assert np.array_equal(np.asarray(part.read(0)), np.asarray(whole.read(1)))


def test_black_images_of_different_shapes_are_different():
    shapes = [("RGB", (8, 16)), ("RGB", (16, 8)), ("L", (24, 16))]
    merged, _ = merge([open_source([Image.new(mode, size) for mode, size in shapes])])
    assert len(merged) == 3


def test_a_broken_image_in_a_dataset_is_replaced():
    whole = io.BytesIO()
    picture(0).save(whole, "JPEG")
    cut = whole.getvalue()[:-100]
    for augment in ("crop", "fast"):
        images = [picture(n) for n in range(40)]
        images[3] = Image.open(io.BytesIO(cut))
        loader = ImageLoader(
            open_source(images), batch_size=40, image_size=16, workers=0, augment=augment
        )
        assert next(loader.batches()).shape[0] == 40
        assert list(loader.skipped) == ["list[3]"]


def test_a_turned_image_in_a_dataset_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(tmp_path / "turned.jpg", exif=exif)
    options = {"batch_size": 1, "image_size": 16, "workers": 0, "augment": "none"}
    opened = ImageLoader(
        open_source([Image.open(io.BytesIO((tmp_path / "turned.jpg").read_bytes()))]), **options
    )
    folder = ImageLoader(open_source(tmp_path), **options)
    assert torch.equal(next(opened.batches()), next(folder.batches()))


def test_integers_that_are_no_bytes_are_refused():
    loader = ImageLoader(
        open_source(TensorDataset(torch.full((8, 3, 9, 9), 300))), **SIZE, workers=0
    )
    with pytest.raises(ValueError, match=r"neither uint8 nor float. Got torch.int64"):
        next(loader.batches())
