import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from proteus.data import (
    CorruptImageError,
    ImageLoader,
    merge,
    open_source,
    single_image,
    sub_class,
    sub_data,
)


@pytest.fixture
def folder(tmp_path):
    """Five classes of 10, 11, … 14 images."""
    number = 0
    for name in range(5):
        (tmp_path / "set" / f"class{name}").mkdir(parents=True)
        for n in range(10 + name):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / f"class{name}" / f"{n}.png")
            number += 1
    return tmp_path / "set"


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_sub_data_takes_the_same_share_of_each_class(folder):
    part, manifest = sub_data(open_source(folder), 0.3, seed=1)
    counts = Counter(part.label(i) for i in range(len(part)))
    assert counts == {f"class{n}": round(0.3 * (10 + n)) for n in range(5)}
    assert manifest.parts == counts
    assert manifest.images == len(part)
    assert names(part) == names(sub_data(open_source(folder), 0.3, seed=1)[0])
    other, different = sub_data(open_source(folder), 0.3, seed=2)
    assert names(part) != names(other)
    assert manifest.digest != different.digest


def test_sub_class_takes_whole_classes(folder):
    part, manifest = sub_class(open_source(folder), 0.4, seed=0)
    counts = Counter(part.label(i) for i in range(len(part)))
    assert len(counts) == 2
    assert all(count == 10 + int(name[-1]) for name, count in counts.items())
    assert json.loads(str(manifest))["settings"]["fraction"] == 0.4


def test_labels_can_be_given(folder):
    source = open_source(folder)
    labels = [str(i % 3) for i in range(len(source))]
    part, _ = sub_class(source, 0.34, labels=labels)
    assert len({labels[names(source).index(name)] for name in names(part)}) == 1


def test_merge_keeps_the_first_of_equal_files(folder, tmp_path):
    copy = tmp_path / "other"
    copy.mkdir()
    (copy / "again.png").write_bytes((folder / "class0/0.png").read_bytes())
    (copy / "new.png").write_bytes((folder / "class0/0.png").read_bytes() + b"x")
    merged, manifest = merge([open_source(folder), open_source(copy)])
    assert len(merged) == 61
    assert manifest.dropped == {"again.png": "the same file as class0/0.png"}
    assert manifest.parts == {str(folder): 60, str(copy): 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: sub_data(s, 0), "fraction out of range"),
        (lambda s: sub_class(s, 1.5), "fraction out of range"),
        (lambda s: sub_data(s, 0.5, labels=["a"]), "one label for each image"),
        (lambda s: merge([]), "no source"),
    ],
)
def test_bad_arguments_are_errors(folder, call, message):
    with pytest.raises(ValueError, match=message):
        call(open_source(folder))


def test_images_without_a_class_cannot_be_drawn_by_class(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="the classes are not known"):
        sub_data(open_source(tmp_path), 0.5)


def test_a_list_is_saved_and_opened_again(folder, tmp_path):
    part, _ = sub_data(open_source(folder), 0.2)
    part.save_list(tmp_path / "part.json")
    again = open_source(tmp_path / "part.json")
    assert names(again) == names(part)
    assert [again.read(i) for i in range(3)] == [part.read(i) for i in range(3)]
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="no list of images"):
        open_source(tmp_path / "broken.json")


def test_views_of_one_image(tmp_path):
    y, x = np.mgrid[:300, :400]
    Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)).save(
        tmp_path / "large.png"
    )
    source, manifest = single_image(tmp_path / "large.png", 1000, seed=3, size=64)
    assert len(source) == manifest.images == 1000
    views = [np.asarray(source.read(i)) for i in (0, 1, 0)]
    assert views[0].shape == (64, 64, 3)
    assert np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[1])
    other, _ = single_image(tmp_path / "large.png", 10, seed=4, size=64)
    assert not np.array_equal(np.asarray(other.read(0)), views[0])
    loader = ImageLoader(source, batch_size=4, image_size=32, workers=0, augment="fast")
    assert next(loader.batches()).shape == (4, 3, 32, 32)
    with pytest.raises(ValueError, match="400x300"):
        single_image(tmp_path / "large.png", 10, size=512)
    with pytest.raises(ValueError, match="no files to list"):
        source.save_list(tmp_path / "list.json")


def test_a_list_holds_wherever_it_is_opened_and_says_what_is_gone(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_source("set").save_list("list.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = open_source("../list.json")
    assert isinstance(again.read(0), bytes)
    (folder / "class0/0.png").unlink()
    with pytest.raises(ValueError, match=r"lists what is not there. Got 60 images, 1 files"):
        open_source("../list.json")
    with pytest.raises(ValueError, match=r"a list is a \.json file"):
        again.save_list("photo.png")


def test_equal_names_in_two_folders_are_counted_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for n in range(30):
            Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / name / f"{n}.png")
        for n in range(3):
            (tmp_path / name / f"{n}.png").write_bytes(b"broken")
    source = open_source([tmp_path / "one", tmp_path / "two"])
    assert len(set(names(source))) == 60
    loader = ImageLoader(source, batch_size=60, image_size=8, workers=0)
    with pytest.raises(CorruptImageError, match="more than 5% are corrupt"):
        next(loader.batches())
    _, manifest = merge([open_source(tmp_path / "one"), open_source(tmp_path / "two")])
    assert manifest.dropped[f"{tmp_path}/two/5.png"] == f"the same file as {tmp_path}/one/5.png"


@pytest.mark.parametrize("kind", ["gone", "pipe", "folder", "text"])
def test_a_single_image_that_cannot_be_read_is_named(tmp_path, kind):
    path = tmp_path / "large.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no image")
    with pytest.raises(ValueError, match=r"single_image: .*large\.png' cannot be read"):
        single_image(path, 3)
