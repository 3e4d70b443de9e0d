"""mmseg's segmentation scores (case 06)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from proteus.evaluation.dense.seg_scores import (
    add_areas,
    reduce_zero_label,
    segmentation_areas,
    segmentation_scores,
)

FOLDER = Path(__file__).parent / "06_dense"
RESULTS = json.loads((FOLDER / "results.json").read_text())["segmentation"]
MAPS = load_file(FOLDER / "segmentation.safetensors")
CLASSES = RESULTS["num_classes"]


@pytest.fixture(scope="module")
def areas():
    return [segmentation_areas(MAPS[f"pred{i}"], MAPS[f"label{i}"], CLASSES) for i in range(3)]


def test_the_areas_of_each_image_are_mmsegs(areas):
    expected = RESULTS["per_image_areas_intersect_union_pred_label"]
    for ours, theirs in zip(areas, expected, strict=True):
        assert [ours.intersect.tolist(), ours.union.tolist()] == theirs[:2]
        assert [ours.predicted.tolist(), ours.labelled.tolist()] == theirs[2:]


def test_the_areas_of_the_set_are_mmsegs(areas):
    total = add_areas(areas)
    assert total.intersect.tolist() == RESULTS["mIoU"]["total_area_intersect"]
    assert total.union.tolist() == RESULTS["mIoU"]["total_area_union"]
    assert total.predicted.tolist() == RESULTS["mIoU"]["total_area_pred"]
    assert total.labelled.tolist() == RESULTS["mIoU"]["total_area_label"]


def test_the_scores_are_mmsegs(areas):
    scores = segmentation_scores(add_areas(areas))
    expected = RESULTS["mIoU"]["unrounded"]
    assert scores.aacc == pytest.approx(expected["aAcc"], abs=1e-6)
    for ours, theirs in ((scores.iou, expected["IoU"]), (scores.accuracy, expected["Acc"])):
        reference = [float(x) for x in theirs]
        assert ours == pytest.approx(reference, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("ours", "group", "theirs"),
    [
        ("miou", "mIoU", "mIoU"),
        ("macc", "mIoU", "mAcc"),
        ("aacc", "mIoU", "aAcc"),
        ("mdice", "mDice", "mDice"),
        ("mfscore", "mFscore", "mFscore"),
        ("mprecision", "mFscore", "mPrecision"),
        ("mrecall", "mFscore", "mRecall"),
    ],
)
def test_the_reported_means_are_mmsegs(areas, ours, group, theirs):
    reported = RESULTS[group].get("reported", RESULTS[group])[theirs]
    scores = segmentation_scores(add_areas(areas))
    assert round(100 * getattr(scores, ours), 2) == pytest.approx(reported, abs=1e-4)


def test_the_means_with_nan_as_zero_are_mmsegs(areas):
    scores = segmentation_scores(add_areas(areas), nan_to_num=0)
    expected = RESULTS["mIoU_nan_to_num_0"]
    assert round(100 * scores.miou, 2) == pytest.approx(expected["mIoU"], abs=1e-4)
    assert round(100 * scores.macc, 2) == pytest.approx(expected["mAcc"], abs=1e-4)


def test_the_mean_over_images_would_be_wrong(areas):
    single = [segmentation_scores(area).miou for area in areas]
    assert sum(single) / 3 == pytest.approx(RESULTS["wrong_mean_of_per_image_mIoU"], abs=1e-6)
    assert sum(single) / 3 != pytest.approx(segmentation_scores(add_areas(areas)).miou, abs=1e-3)


def test_ade20ks_coding_is_reduced_as_mmseg_does():
    for i in range(3):
        assert torch.equal(reduce_zero_label(MAPS[f"raw_label{i}"]), MAPS[f"label{i}"])
