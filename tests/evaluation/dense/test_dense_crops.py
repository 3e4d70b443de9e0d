import numpy as np
import pytest
import torch
from PIL import Image

from proteus.evaluation.dense.crops import (
    DEPTH,
    SEGMENTATION,
    Augmentation,
    RandomCrops,
    all_windows,
    fitted_size,
    to_target,
)
from proteus.evaluation.dense.maps import open_depth, open_segmentation


@pytest.fixture
def pair():
    """A picture whose red channel says the class of each pixel, four vertical stripes."""
    labels = torch.arange(4).repeat_interleave(12).expand(32, 48)
    pixels = torch.stack([labels * 60, labels * 0 + 100, labels * 0], 2).byte()
    return Image.fromarray(pixels.numpy()), labels


@pytest.fixture
def data(pair):
    return open_segmentation([pair] * 3, num_classes=4)


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ((480, 640), 518, (518, 691)),
        ((683, 512), 518, (691, 518)),
        ((128, 171), 64, (64, 86)),
        ((100, 1000), 50, (20, 200)),  # more than four times as long as high
        ((512, 512), 518, (518, 518)),
    ],
)
def test_images_keep_their_ratio_and_get_the_short_side(sides, size, expected):
    assert fitted_size(*sides, size) == expected


def test_maps_keep_their_values_when_resized(pair):
    small = to_target(pair[1], (16, 24))
    assert small.unique().tolist() == [0, 1, 2, 3] and small.dtype == torch.long
    depth = to_target(torch.tensor([[0.0, 7.5]]), (2, 4))
    assert depth.unique().tolist() == [0, 7.5] and depth.dtype == torch.float32


def test_the_squares_without_augmentation_are_the_tests_windows(data):
    squares = list(all_windows(data, 16, 10))
    assert len(squares) == 3 * 2  # 24 pixels wide: [0, 16) and [8, 24)
    assert squares[0][0].shape == (3, 16, 16) and squares[0][0].dtype == torch.uint8
    assert torch.equal(squares[0][1][:, 8:], squares[1][1][:, :8])


def test_a_long_image_is_filled_up_with_what_does_not_count():
    image = Image.fromarray(np.full((10, 100, 3), 200, np.uint8))
    labels = torch.ones(10, 100).long()
    pixels, target = next(all_windows(open_segmentation([(image, labels)], num_classes=2), 8, 5))
    assert pixels.shape == (3, 8, 8) and pixels.unique().tolist() == [200]
    assert target[:3].unique().tolist() == [1] and target[3:].unique().tolist() == [255]
    _, metres = next(all_windows(open_depth([(image, labels.float())]), 8, 5))
    assert metres[3:].unique().tolist() == [0]


def test_a_crop_depends_on_its_draw_alone(data):
    crops = RandomCrops(data, 16, 10, SEGMENTATION, seed=3)
    for first, second in zip(crops[0, 5], crops[2, 5], strict=True):
        assert torch.equal(first, second)  # the three images are the same
    assert not torch.equal(crops[0, 5][0], crops[0, 6][0])
    other = RandomCrops(data, 16, 10, SEGMENTATION, seed=4)
    assert not torch.equal(crops[0, 5][0], other[0, 5][0])


@pytest.mark.parametrize("augmentation", [SEGMENTATION, DEPTH, None])
def test_image_and_map_are_cut_at_the_same_place(data, augmentation, monkeypatch):
    import proteus.evaluation.dense.crops as module

    monkeypatch.setattr(module, "_change_colours", lambda pixels, rng: pixels)
    crops = RandomCrops(data, 16, 10, augmentation)
    agree, flipped = [], 0
    for draw in range(20):
        pixels, target = crops[0, draw]
        counted = target != 255
        nearest = (pixels[0].float() / 60).round().long()
        agree.append(float((nearest == target)[counted].float().mean()))
        row = target[0][target[0] != 255]
        flipped += int(row[0] > row[-1])
    assert min(agree) > 0.85  # resizing blurs the borders of the stripes
    assert (flipped > 3) == (augmentation is not None)


def test_colours_change_and_maps_do_not(data):
    crops = RandomCrops(data, 16, 10, DEPTH)
    greens = {int(crops[0, draw][0][1].float().mean()) for draw in range(8)}
    assert len(greens) > 4
    assert {int(v) for draw in range(8) for v in crops[0, draw][1].unique()} <= {0, 1, 2, 3, 255}


def test_a_square_of_one_class_is_drawn_again():
    labels = torch.zeros(64, 64).long()
    labels[:, 56:] = 1
    data = open_segmentation([(Image.new("RGB", (64, 64)), labels)], num_classes=2)
    mixed = {}
    for share in (0.95, None):
        crops = RandomCrops(data, 16, 10, Augmentation((2.0, 2.0), share))
        mixed[share] = sum(len(crops[0, draw][1].unique()) == 2 for draw in range(30))
    assert mixed[0.95] > mixed[None] > 0
