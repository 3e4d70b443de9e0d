"""Features on disk: what is read is what was stored, or nothing; and it is told."""

import os
import resource
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from proteus.evaluation import FeatureCache, extract_features, open_labelled

TENSORS = {
    "cls": torch.arange(12.0).reshape(6, 2), "patches": torch.zeros(6, 2),
    "labels": torch.arange(6) % 3,
}  # fmt: skip


@pytest.fixture
def stored(tmp_path):
    """A cache with features under one key, and their file."""
    cache = FeatureCache(tmp_path / "cache")
    cache.save("a" * 32, TENSORS)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    return cache, file


def same(found):
    return found is not None and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_what_is_stored_comes_back(stored, caplog):
    cache, _ = stored
    assert same(cache.load("a" * 32))
    assert cache.load("b" * 32) is None
    assert not caplog.records


def rewrite(file, **changes):
    """As a program would that knows nothing of checksums."""
    save_file(load_file(file) | changes, file)


DAMAGES = {
    "zeroed labels": lambda file: rewrite(file, labels=torch.zeros(6, dtype=torch.int64)),
    "missing rows": lambda file: save_file({k: v[:4] for k, v in load_file(file).items()}, file),
    "another dtype": lambda file: rewrite(file, cls=TENSORS["cls"].half()),
    "another shape": lambda file: rewrite(file, cls=TENSORS["cls"].reshape(6, 2, 1)),
    "an entry more": lambda file: rewrite(file, blocks=torch.zeros(6, 4, 2)),
    "an entry less": lambda file: save_file({"labels": TENSORS["labels"]}, file),
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(os.urandom(400)),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_told_and_never_used(stored, damage, caplog):
    cache, file = stored
    DAMAGES[damage](file)
    assert cache.load("a" * 32) is None
    assert f"{file} is damaged, and made again" in caplog.text
    cache.save("a" * 32, TENSORS)
    assert same(cache.load("a" * 32))


def test_features_of_another_model_are_not_taken_by_a_name(stored, caplog):
    cache, file = stored
    shutil.copy(file, file.with_name(file.name.replace("a" * 32, "b" * 32)))
    assert cache.load("b" * 32) is None
    assert "under another key" in caplog.text
    cache.save("a" * 32, TENSORS, 0)
    (part,) = cache.folder.rglob("000000.safetensors")
    shutil.copy(part, part.with_name("000001.safetensors"))
    assert cache.load("a" * 32, 1) is None


def test_a_file_from_before_there_were_checksums_is_read_if_its_rows_are_there(tmp_path, caplog):
    cache = FeatureCache(tmp_path)
    save_file(TENSORS, tmp_path / "old.safetensors")
    assert same(cache.load("old", rows=6))
    assert not caplog.records
    assert cache.load("old", rows=7) is None
    assert "rows are missing" in caplog.text
    cache.save("old", {**TENSORS, "cls": torch.ones(6, 2)})
    assert cache.load("old", rows=6)["cls"].eq(1).all()


@pytest.fixture
def images(tmp_path):
    for n in range(6):
        folder = tmp_path / "images" / str(n % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * n,) * 3).save(folder / f"{n}.png")
    return tmp_path / "images"


def test_a_damaged_note_of_a_set_is_not_believed(images, tmp_path):
    cache, data = FeatureCache(tmp_path / "cache"), open_labelled(images)
    found = cache.data_hash(data)
    (note,) = (tmp_path / "cache/data").iterdir()
    other = tmp_path / "cache/data/other"
    other.write_text(note.read_text().replace(found[0], "0" if found[0] != "0" else "1"))
    for content in (b"", b"\xff\xfe", other.read_bytes(), b"0" * 64, f"{found} {found}".encode()):
        note.write_bytes(content)
        assert cache.data_hash(data) == found
    assert note.read_text().startswith(f"{found} ")


def test_images_and_classes_may_have_any_name(images, tmp_path):
    folder = tmp_path / os.fsdecode(b"set \xff <b>")
    images.rename(folder)
    (folder / "0").rename(folder / os.fsdecode(b"bad \xff"))
    options = {"image_size": 16, "cache": tmp_path / "cache"}
    first = extract_features(model(), folder, **options)
    assert torch.equal(extract_features(model(), folder, **options).cls, first.cls)
    assert first.classes == ("1", os.fsdecode(b"bad \xff"))


def model():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 4, 8, stride=8)


def test_a_cache_that_is_a_file_is_an_error_before_any_work(images, tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(ValueError, match=r"cache: not a folder. Got .*which is a file"):
        extract_features(model(), images, image_size=16, cache=tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "mine"


def test_where_there_is_no_room_features_are_made_and_not_kept(images, tmp_path, caplog):
    """A limit on the size of files stands for a full disk."""
    options = {"image_size": 16, "batch_size": 1}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        found = extract_features(model(), images, cache=tmp_path / "cache", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(found.cls, extract_features(model(), images, **options).cls)
    assert caplog.text.count("could not be written") == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_two_extractions_on_one_cache_do_not_meet(images, tmp_path, monkeypatch):
    """The second runs whole each time that the first stores a part, and takes its parts away."""
    cache, save = FeatureCache(tmp_path / "cache"), FeatureCache.save
    options = {"image_size": 16, "batch_size": 1}
    other = []

    def meanwhile(self, key, tensors, part=None):
        if self is cache:
            second = FeatureCache(tmp_path / "cache")
            other.append(extract_features(model(), images, cache=second, **options))
        save(self, key, tensors, part)

    monkeypatch.setattr(FeatureCache, "save", meanwhile)
    found = extract_features(model(), images, cache=cache, **options)
    plain = extract_features(model(), images, **options)
    assert all(torch.equal(one.cls, plain.cls) for one in (found, *other))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    assert not list((tmp_path / "cache").rglob(".tmp*"))
