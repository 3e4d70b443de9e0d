"""Scores of label maps, with the meaning they have in mmseg: areas, summed over the whole set."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...features import ShapeError
from ..result import plain

IGNORE = 255


class Areas(NamedTuple):
    """Pixel counts of each class, int64 [C]; those of several images are added up.

    Attributes:
        intersect: Pixels that are predicted right.
        predicted: Pixels predicted as the class, where the label is not ignored.
        labelled: Pixels labelled as the class.
    """

    intersect: Tensor
    predicted: Tensor
    labelled: Tensor

    @property
    def union(self) -> Tensor:
        """Pixels predicted or labelled as the class."""
        return self.predicted + self.labelled - self.intersect


def reduce_zero_label(labels: Tensor) -> Tensor:
    """ADE20K's coding to class indices: 0 (no class) -> 255 (ignored), n -> n - 1.

    Args:
        labels: uint8, any shape.

    Examples:
        >>> reduce_zero_label(torch.tensor([0, 1, 150, 255], dtype=torch.uint8)).tolist()
        [255, 0, 149, 255]

    Source:
        mmseg `LoadAnnotations(reduce_zero_label=True)`.
        *Same:* 255 stays 255.
    """
    if labels.dtype != torch.uint8:
        raise ValueError(f"labels: reduce_zero_label takes uint8. Got {labels.dtype}.")
    return torch.where((labels == 0) | (labels == IGNORE), labels.new_tensor(IGNORE), labels - 1)


def segmentation_areas(
    prediction: Tensor, label: Tensor, num_classes: int, ignore: int = IGNORE
) -> Areas:
    """Count the pixels of one image (or of a batch).

    Args:
        prediction: Class indices, integer, any shape.
        label: Class indices or `ignore`, of the same shape.
        num_classes: Number of classes C.
        ignore: Label of the pixels that do not count.

    Raises:
        ShapeError: If the shapes differ.
        ValueError: If a label is neither a class nor `ignore`, or a prediction is no class.

    Examples:
        >>> areas = segmentation_areas(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2)
        >>> areas.intersect.tolist(), areas.union.tolist()
        ([1, 0], [2, 1])

    Source:
        mmseg `IoUMetric.intersect_and_union`.
        *Same:* the counts. *Different:* a label outside the classes is an error, and not left
        out of its class's area but kept in the prediction's.
    """
    if prediction.shape != label.shape:
        raise ShapeError(
            f"segmentation: prediction and label differ in shape. Got {tuple(prediction.shape)} "
            f"and {tuple(label.shape)}; resize the logits to the label's size first."
        )
    kept = label != ignore
    prediction, label = prediction[kept].long(), label[kept].long()
    for name, values in (("label", label), ("prediction", prediction)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(
                f"segmentation: a {name} is no class. Got values {int(values.min())} to "
                f"{int(values.max())}; expected 0 to {num_classes - 1}"
                + (f" or {ignore} (ignored)." if name == "label" else ".")
            )
    right = prediction[prediction == label]
    return Areas(*(v.bincount(minlength=num_classes) for v in (right, prediction, label)))


def add_areas(areas: Iterable[Areas]) -> Areas:
    """The areas of a whole set: sums over its images."""
    rows = list(areas)
    if not rows:
        raise ValueError("segmentation: no images to score. Got none; expected at least one.")
    return Areas(*(torch.stack(column).sum(0) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a set of label maps; fractions of 1. NaN: nothing to measure.

    Attributes:
        miou: Mean over classes of intersection / union; classes that occur neither in labels
            nor in predictions are left out.
        macc: Mean over labelled classes of the share of their pixels that is right.
        aacc: Share of all pixels that is right.
        mdice: Mean over classes of 2 intersect / (predicted + labelled).
        mfscore: Mean over classes of the harmonic mean of precision and recall; NaN classes
            (no precision, no recall, or both 0) are left out.
        mprecision: Mean over predicted classes.
        mrecall: Mean over labelled classes, the same as `macc`.
        iou: Of each class.
        accuracy: Of each class.
        dice: Of each class.
        fscore: Of each class.
    """

    miou: float
    macc: float
    aacc: float
    mdice: float
    mfscore: float
    mprecision: float
    mrecall: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    dice: tuple[float, ...]
    fscore: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON; None stands for NaN."""
        return {
            name: plain(value) if isinstance(value, float) else [plain(x) for x in value]
            for name, value in vars(self).items()
        }


def segmentation_scores(areas: Areas, *, nan_to_num: float | None = None) -> SegmentationScores:
    """Scores from the areas of a whole set.

    Args:
        areas: Of all images, see `add_areas`. The mean of per-image scores is another number.
        nan_to_num: Value of what has no score; such classes then count in the means.

    Examples:
        >>> areas = segmentation_areas(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        >>> scores = segmentation_scores(areas)
        >>> scores.miou, scores.iou[2]
        (0.5, nan)

    Source:
        mmseg `IoUMetric.total_area_to_metrics`.
        *Same:* NaN classes are left out of the means; a class that is only predicted has IoU 0.
        *Different:* fractions, not per cent rounded to two decimals.
    """
    intersect, predicted, labelled = (area.double() for area in areas)
    precision, recall = intersect / predicted, intersect / labelled
    found = {
        "iou": intersect / (predicted + labelled - intersect),
        "accuracy": recall,
        "all": intersect.sum() / labelled.sum(),
        "dice": 2 * intersect / (predicted + labelled),
        "fscore": 2 * precision * recall / (precision + recall),
        "precision": precision,
    }
    if nan_to_num is not None:
        found = {name: values.nan_to_num(nan=nan_to_num) for name, values in found.items()}
    mean = {name: float(values.nanmean()) for name, values in found.items()}
    return SegmentationScores(
        miou=mean["iou"],
        macc=mean["accuracy"],
        aacc=mean["all"],
        mdice=mean["dice"],
        mfscore=mean["fscore"],
        mprecision=mean["precision"],
        mrecall=mean["accuracy"],
        iou=tuple(found["iou"].tolist()),
        accuracy=tuple(found["accuracy"].tolist()),
        dice=tuple(found["dice"].tolist()),
        fscore=tuple(found["fscore"].tolist()),
    )
