import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from proteus.evaluation.dense.maps import open_both, open_depth, open_segmentation
from proteus.features import ShapeError


def photo(width=12, height=8):
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def ade20k(tmp_path):
    for split, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            save(photo(), tmp_path / "images" / split / f"ADE_{i}.jpg")
            labels = Image.fromarray(np.full((8, 12), [0, 1, 150][i], np.uint8))
            save(labels, tmp_path / "annotations" / split / f"ADE_{i}.png")
    return tmp_path


def depth_png(value):
    return Image.fromarray(np.full((8, 12), value, np.uint16))


@pytest.fixture
def nyu(tmp_path):
    for split, values in (("train", [1500, 9999]), ("test", [0])):
        lines = []
        for i, value in enumerate(values):
            save(photo(), tmp_path / split / "kitchen" / f"rgb_{i}.jpg")
            save(depth_png(value), tmp_path / split / "kitchen" / f"depth_{i}.png")
            lines.append(f"/{split}/kitchen/rgb_{i}.jpg {split}/kitchen/depth_{i}.png 518.8579")
        lines.append("/gone.jpg None 518.8579")
        (tmp_path / f"nyu_{split}.txt").write_text("\n".join(lines))
    return tmp_path


def pack(path, entries):
    with tarfile.open(path, "w") as tar:
        for name, image in entries:
            file = io.BytesIO()
            image.save(file, "PNG" if name.endswith("png") else "JPEG")
            member = tarfile.TarInfo(name)
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)


def test_ade20ks_layout_has_150_classes_and_zero_is_ignored(ade20k):
    train, test = (open_segmentation(ade20k, split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (3, 2, 150)
    assert [int(target.unique()) for _, target in train] == [255, 0, 149]
    assert train[0][0].size == (12, 8)


def test_maps_of_the_layout_may_be_coded_plainly(ade20k):
    data = open_segmentation(ade20k, split="train", num_classes=151, zero_is_ignored=False)
    assert [int(target.unique()) for _, target in data] == [0, 1, 150]


def test_the_toolboxs_lists_are_read_and_cropped_as_eigens(nyu):
    data = open_depth(nyu, split="train")
    assert len(data) == 2 and data.crop == "eigen"
    expected = np.float32([1500, 9999]) * np.float32(1e-3)
    assert [float(target.unique()) for _, target in data] == expected.tolist()
    assert float(open_depth(nyu, split="test")[0][1].max()) == 0


def test_mmsegs_layout_of_depth_has_no_crop_unless_told(tmp_path):
    save(photo(), tmp_path / "images/train/a/rgb.jpg")
    save(depth_png(700), tmp_path / "annotations/train/a/rgb.png")
    assert open_depth(tmp_path).crop is None
    assert open_depth(tmp_path, crop="eigen").crop == "eigen"
    assert float(open_depth(tmp_path)[0][1].max()) == pytest.approx(0.7)


def test_packs_bring_their_maps(tmp_path):
    labels = Image.fromarray(np.full((8, 12), 255, np.uint8))
    pack(tmp_path / "set-train-000.tar", [("0.jpg", photo()), ("0.seg.png", labels)])
    pack(tmp_path / "deep-test-000.tar", [("0.jpg", photo()), ("0.depth.png", depth_png(2500))])
    data = open_segmentation(tmp_path / "set", split="train", num_classes=3)
    assert data[0][1].unique().tolist() == [255]
    assert float(open_depth(tmp_path / "deep", split="test")[0][1].max()) == 2.5
    with pytest.raises(ValueError, match="number of classes is not known"):
        open_segmentation(tmp_path / "set", split="train")
    with pytest.raises(ValueError, match=r"Splits there: train"):
        open_segmentation(tmp_path / "set", split="test", num_classes=3)


def test_a_pack_image_without_a_map_is_an_error(tmp_path):
    pack(tmp_path / "set-train-000.tar", [("0.jpg", photo())])
    with pytest.raises(ValueError, match=r"no map. Got '0.jpg'.*expected 0.seg.png"):
        open_segmentation(tmp_path / "set-train-000.tar", num_classes=2)


def test_any_dataset_of_image_and_map_will_do():
    labels = [torch.zeros(8, 12).long(), Image.fromarray(np.ones((8, 12), np.uint8))]
    data = open_segmentation([(photo(), label) for label in labels], num_classes=2)
    assert [int(target.unique()) for _, target in data] == [0, 1]
    assert len(data.first(1)) == 1 and data.first(1).num_classes == 2
    assert open_segmentation(data) is data


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, bool])
def test_labels_of_any_integers_become_bytes(dtype):
    labels = np.ones((8, 12), dtype)
    for given in (labels, labels[None], labels[..., None]):
        target = open_segmentation([(photo(), given)], num_classes=2)[0][1]
        assert target.dtype == torch.uint8 and target.shape == (8, 12) and target.min() == 1


def test_an_image_may_be_one_pixel_high():
    image = photo(12, 1)
    labels, metres = torch.zeros(1, 12).long(), torch.ones(1, 12)
    assert open_segmentation([(image, labels)], num_classes=2)[0][1].shape == (1, 12)
    assert open_depth([(image, metres)])[0][1].shape == (1, 12)


def test_image_and_map_are_of_one_item_where_a_dataset_draws_at_random():
    class Random(torch.utils.data.Dataset):
        draws = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            self.draws += 1
            label = self.draws % 2
            return Image.new("RGB", (12, 8), (label,) * 3), torch.full((8, 12), label)

    data = open_segmentation(Random(), num_classes=2)
    for image, target in (data[i] for i in range(3)):
        assert image.getpixel((0, 0))[0] == int(target[0, 0])


@pytest.mark.parametrize("count", [0, -1, 256])
def test_class_255_would_be_ignored_so_there_are_255_at_most(count):
    with pytest.raises(ValueError, match=rf"num_classes must be in 1 … 255. Got {count}"):
        open_segmentation([(photo(), torch.zeros(8, 12).long())], num_classes=count)


@pytest.mark.parametrize("label", [-1, 3, 300])
def test_labels_beyond_the_classes_are_errors_in_ade20ks_coding_too(label):
    labels = torch.full((8, 12), label)
    data = open_segmentation([(photo(), labels)], num_classes=2, zero_is_ignored=True)
    with pytest.raises(ValueError, match=rf"Got {label} to {label} in .*; expected 0 to 2"):
        data[0]


def test_of_several_lists_none_is_guessed(nyu):
    (nyu / "other_train.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"several lists .* \['nyu_train.txt', 'other_train.txt'\]"
    ):
        open_depth(nyu, split="train")


def test_without_a_test_set_a_path_must_have_splits(ade20k, tmp_path):
    train, test = open_both(open_segmentation, ade20k, None)
    assert (len(train), len(test)) == (3, 2)
    rows = [(photo(), torch.ones(8, 12))]
    assert len(open_both(open_depth, rows, rows)[1]) == 1
    pack(tmp_path / "0.tar", [("0.jpg", photo()), ("0.depth.png", depth_png(2500))])
    for data in (rows, open_depth(rows), tmp_path / "0.tar"):
        with pytest.raises(ValueError, match=r"Got test=None .* Pass test=…"):
            open_both(open_depth, data, None)


def test_a_part_is_spread_over_the_set_and_keeps_pairs_together(ade20k):
    part = open_segmentation(ade20k, split="train").first(2)
    assert [int(target.unique()) for _, target in part] == [255, 0]
    assert [part.source.name(i) for i in range(2)] == ["ADE_0", "ADE_1"]


def test_the_stamp_changes_with_the_maps_the_classes_and_the_crop(ade20k, nyu):
    def stamp(**options):
        return open_segmentation(ade20k, **options).first(1).stamp()

    before = stamp()
    assert stamp() == before
    assert len({before, stamp(num_classes=9), stamp(num_classes=150, zero_is_ignored=False)}) == 3
    for path in (ade20k / "annotations/training").iterdir():
        save(Image.new("L", (12, 8), 7), path)
    assert stamp() != before
    depth = open_depth(nyu)
    before, depth.crop = depth.stamp(), None
    assert depth.stamp() != before


def test_bad_maps_are_errors(ade20k, nyu):
    with pytest.raises(ShapeError, match=r"8x12 and \(4, 4\)"):
        open_segmentation([(photo(), torch.zeros(4, 4).long())], num_classes=2)[0]
    with pytest.raises(ValueError, match="map of integers"):
        open_segmentation([(photo(), torch.zeros(8, 12))], num_classes=2)[0]
    with pytest.raises(ValueError, match="map of floats"):
        open_depth([(photo(), torch.zeros(8, 12).long())])[0]
    with pytest.raises(ValueError, match="has no map"):
        open_depth([photo()])[0]
    (ade20k / "annotations/training/ADE_1.png").unlink()
    with pytest.raises(ValueError, match=r"1 without a .png .* such as \['ADE_1'\]"):
        open_segmentation(ade20k, split="train")
    (nyu / "train/kitchen/depth_0.png").unlink()
    with pytest.raises(ValueError, match=r"lists what is not there"):
        open_depth(nyu, split="train")
    with pytest.raises(ValueError, match="unknown layout"):
        open_segmentation(nyu / "train", split="train")


def test_an_eight_bit_depth_file_is_an_error(tmp_path):
    save(photo(), tmp_path / "images/train/a.jpg")
    save(Image.new("L", (12, 8)), tmp_path / "annotations/train/a.png")
    with pytest.raises(ValueError, match=r"'a': its mode is L, expected 16 bits"):
        open_depth(tmp_path)[0]
