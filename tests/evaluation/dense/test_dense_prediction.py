import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from proteus.evaluation.dense import prediction
from proteus.evaluation.dense.maps import open_segmentation
from proteus.evaluation.dense.prediction import score_set
from proteus.evaluation.dense.segmentation import score_segmentation, segmentation
from proteus.features import ShapeError


def rows(*sizes):
    generator = np.random.default_rng(0)
    return [
        (
            Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)),
            torch.from_numpy(generator.integers(0, 2, size)),
        )
        for size in sizes
    ]


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 6, 4, stride=4)
    options = {"num_classes": 2, "image_size": 18, "iterations": 3, "batch_size": 2}
    return segmentation(model, rows((20, 24)), rows((20, 24)), **options).predictor


@pytest.mark.parametrize(
    ("height", "width"),
    [(18, 18), (20, 31), (31, 20), (7, 9), (18, 90), (3, 60), (1, 1), (60, 50)],
)
def test_maps_have_the_size_of_their_images(predictor, height, width):
    """Smaller than the window, longer than four times their height, no multiple of the patch."""
    output = predictor([rows((height, width))[0][0]])
    assert output.shape == (1, 2, height, width) and bool(output.isfinite().all())


def test_images_of_one_size_go_together(predictor):
    images = [image for image, _ in rows((20, 24), (20, 24))]
    together = predictor(images)
    for image, output in zip(images, together, strict=True):
        assert torch.allclose(predictor([image])[0], output, atol=1e-5)
    with pytest.raises(ShapeError, match=r"Got 2 images .* \[\(20, 24\), \(24, 20\)\]"):
        predictor([images[0], images[0].rotate(90, expand=True)])
    with pytest.raises(ShapeError, match="Got 0 images"):
        predictor([])


@pytest.mark.parametrize(("most", "expected"), [(1 << 29, [3, 1, 1]), (1, [1] * 5)])
def test_a_batch_ends_where_its_maps_would_fill_the_memory(predictor, monkeypatch, most, expected):
    monkeypatch.setattr(prediction, "_MOST_VALUES", most)
    sizes, forward = [], predictor.forward
    monkeypatch.setattr(predictor, "forward", lambda x: sizes.append(len(x)) or forward(x))
    data = open_segmentation(rows((20, 24), (20, 24), (20, 24), (24, 20), (20, 24)), num_classes=2)
    found = score_set(predictor, data, lambda output, target: (output, target))
    assert sizes == expected
    assert len(found) == 5
    for number, (output, target) in enumerate(found):
        image, expected_target = data[number]
        assert torch.allclose(output, forward([image])[0], atol=1e-5)
        assert torch.equal(target, expected_target)


def test_a_map_of_nan_is_an_error_and_not_a_class(predictor, monkeypatch):
    bias = predictor.decoder.head.bias
    monkeypatch.setattr(bias, "data", torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"not finite. Got NaN or infinity for 'list\[0\]'"):
        score_segmentation(predictor, open_segmentation(rows((20, 24)), num_classes=2))
