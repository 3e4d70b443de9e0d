import pytest
import torch

from proteus import Features
from proteus.evaluation import compare_features
from proteus.features import ShapeError


def test_equal_and_opposite_features():
    one = Features(torch.randn(3, 5), torch.randn(3, 4, 5), (2, 2))
    same = compare_features(one, one)
    assert same == {"cls_mse": 0, "cls_cosine": 1, "patch_mse": 0, "patch_cosine": 1}
    other = compare_features(Features(-one.cls, one.patches * 2, one.grid), one)
    assert other["cls_cosine"] == -1
    assert other["patch_cosine"] == 1
    assert other["patch_mse"] == pytest.approx(float(one.patches.square().mean()))


def test_widths_must_agree():
    with pytest.raises(ShapeError):
        compare_features(
            Features(torch.zeros(1, 2), torch.zeros(1, 1, 2), (1, 1)),
            Features(torch.zeros(1, 3), torch.zeros(1, 1, 3), (1, 1)),
        )
