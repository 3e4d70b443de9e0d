import math

import pytest
import torch

from proteus.evaluation.dense.seg_scores import (
    add_areas,
    reduce_zero_label,
    segmentation_areas,
    segmentation_scores,
)
from proteus.features import ShapeError


def test_the_scores_of_a_set_are_not_the_mean_of_its_images_scores():
    pairs = [([0, 0, 0, 1], [0, 0, 0, 0]), ([1], [1])]
    areas = [segmentation_areas(torch.tensor(p), torch.tensor(t), 2) for p, t in pairs]
    whole = segmentation_scores(add_areas(areas)).miou
    single = sum(segmentation_scores(a).miou for a in areas) / 2
    assert whole == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert single != pytest.approx(whole)


def test_ignored_pixels_count_nowhere():
    label = torch.tensor([[0, 255], [255, 1]], dtype=torch.uint8)
    areas = segmentation_areas(torch.tensor([[0, 0], [1, 1]]), label, 2)
    assert areas.intersect.tolist() == areas.predicted.tolist() == areas.labelled.tolist() == [1, 1]
    assert segmentation_scores(areas).aacc == 1


def test_a_label_outside_the_classes_is_an_error_where_mmseg_says_nothing():
    with pytest.raises(
        ValueError, match=r"a label is no class. Got values 0 to 7; expected 0 to 2"
    ):
        segmentation_areas(torch.tensor([0, 1]), torch.tensor([0, 7]), 3)
    with pytest.raises(ValueError, match="a prediction is no class"):
        segmentation_areas(torch.tensor([0, 3]), torch.tensor([0, 0]), 3)


def test_maps_of_two_sizes_are_an_error():
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(3, 2\)"):
        segmentation_areas(torch.zeros(2, 3), torch.zeros(3, 2), 2)
    with pytest.raises(ValueError, match="no images"):
        add_areas([])


def test_scores_become_json_without_nan():
    areas = segmentation_areas(torch.tensor([0]), torch.tensor([0]), 2)
    scores = segmentation_scores(areas).to_dict()
    assert scores["iou"] == [1.0, None]
    assert scores["miou"] == 1.0


def test_a_set_of_ignored_pixels_has_no_score():
    areas = segmentation_areas(torch.tensor([0]), torch.tensor([255]), 2)
    assert math.isnan(segmentation_scores(areas).miou)
    assert math.isnan(segmentation_scores(areas).aacc)
    zeros = segmentation_scores(areas, nan_to_num=0)
    assert zeros.miou == zeros.aacc == 0


def test_reducing_the_zero_label_is_for_bytes():
    with pytest.raises(ValueError, match="takes uint8"):
        reduce_zero_label(torch.tensor([0, 1]))
