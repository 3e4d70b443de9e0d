"""Scores of predictions against labels, in per cent, as plain functions on tensors."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..features import ShapeError

Metric = Literal["accuracy", "mean_class", "map_11"]
# As the authors' code makes them, in steps of a rounded 0.1: a recall of exactly 3/10, 6/10 or 7/10
# misses its point, which is 4e-17 to 1e-16 above. It is worth 0.02 points of mAP in places.
_RECALLS = tuple(np.arange(0.0, 1.1, 0.1).tolist())


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of right predictions, per cent.

    Args:
        predictions: long [n].
        labels: long [n].

    Raises:
        ShapeError: If the shapes differ or nothing is there.

    Examples:
        >>> accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]))
        75.0
    """
    _check(predictions, labels)
    return float((predictions == labels).double().mean()) * 100


def mean_class_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Accuracy of each class, averaged over the classes that occur in the labels, per cent.

    Takes what `accuracy` takes, and raises what it raises.

    Examples:
        >>> mean_class_accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]))
        75.0

    Source:
        Proteus `eval/fine_grained`, mean per class.
        *Different:* a class that is predicted but absent from the labels is left out; the authors'
        mean becomes NaN there.
    """
    _check(predictions, labels)
    counts = torch.bincount(labels)
    hits = torch.bincount(labels[predictions == labels], minlength=len(counts))
    present = counts > 0
    return float((hits[present].double() / counts[present]).mean()) * 100


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of images whose label is among the k highest scores, per cent.

    Args:
        scores: [n, classes].
        labels: long [n].
        k: At most the number of classes; more is the same as all.

    Raises:
        ShapeError: If the shapes do not fit.
        ValueError: If a score is NaN.

    Examples:
        >>> topk_accuracy(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]), 2)
        100.0
    """
    if scores.ndim != 2:
        raise ShapeError(f"metric: scores have shape {tuple(scores.shape)}; expected [n, classes].")
    _check(scores[:, 0], labels)
    _check_numbers(scores)
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(1).double().mean()) * 100


def eleven_point_ap(scores: Tensor, positives: Tensor) -> float:
    """Average precision of one class at recalls 0, 0.1 … 1, per cent (VOC 2007).

    The mean over the eleven recalls of the best precision at that recall or beyond. Images with
    equal scores are counted together.

    Args:
        scores: [n], higher = more likely.
        positives: 0/1 [n].

    Returns:
        Per cent; NaN where no image is positive.

    Raises:
        ShapeError: If the shapes differ or nothing is there.
        ValueError: If a score is NaN.

    Examples:
        >>> eleven_point_ap(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 1, 0]))
        100.0

    Source:
        Proteus `eval/fine_grained`, after the VOC 2007 devkit.
        *Same:* eleven recalls, to the last bit; maximum to the right; not the area under the curve.
    """
    _check(scores, positives)
    _check_numbers(scores)
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], positives[order].double().cumsum(0)
    if hits[-1] == 0:
        return float("nan")
    # A threshold takes in all images with the same score.
    last = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])
    position = torch.arange(1, len(ranked) + 1, device=ranked.device)[last]
    precision, recall = hits[last] / position, hits[last] / hits[-1]
    best = [precision[recall >= point] for point in _RECALLS]
    return float(torch.stack([p.max() if len(p) else p.new_zeros(()) for p in best]).mean()) * 100


def eleven_point_map(scores: Tensor, positives: Tensor) -> float:
    """Mean of `eleven_point_ap` over the classes, per cent.

    Args:
        scores: [n, classes].
        positives: 0/1 [n, classes].

    Raises:
        ShapeError: If the shapes differ.
        ValueError: If a class has no positive image, or a score is NaN.

    Examples:
        >>> eleven_point_map(torch.tensor([[0.9], [0.1]]), torch.tensor([[1], [0]]))
        100.0
    """
    _check(scores, positives)
    empty = (positives.sum(0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"metric: a class without a positive image has no average precision. Got none for "
            f"classes {empty[:5]}; expected at least one each. Leave these columns out."
        )
    values = [eleven_point_ap(scores[:, c], positives[:, c]) for c in range(scores.shape[1])]
    return sum(values) / len(values)


def check_metric(metric: Metric, labels: Tensor) -> None:
    """Raise `ValueError` for a metric that is unknown or does not fit the labels."""
    if metric not in ("accuracy", "mean_class", "map_11"):
        raise ValueError(
            f"evaluation: unknown metric. Got {metric!r}; expected 'accuracy', 'mean_class' or "
            f"'map_11'."
        )
    if (metric == "map_11") != (labels.ndim == 2):
        raise ValueError(
            f"evaluation: the metric does not fit the labels. Got {metric!r} and labels "
            f"{tuple(labels.shape)}; expected 'map_11' for several labels an image, only."
        )


def score_of(found: Tensor, labels: Tensor, metric: Metric) -> float:
    """The metric of a set, per cent, of predictions [n]; of scores [n, classes] for `map_11`."""
    if metric == "map_11":
        return eleven_point_map(found, labels)
    return accuracy(found, labels) if metric == "accuracy" else mean_class_accuracy(found, labels)


def _check(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or labels.numel() == 0:
        raise ShapeError(
            f"metric: predictions and labels do not fit. Got {tuple(predictions.shape)} and "
            f"{tuple(labels.shape)}; expected equal shapes, not empty."
        )


def _check_numbers(scores: Tensor) -> None:
    """Raise for NaN, which sorting takes for the largest."""
    if scores.isnan().any():
        raise ValueError(
            f"metric: scores are not numbers. Got NaN for {int(scores.isnan().sum())} of "
            f"{scores.numel()}. Check the model's weights, and whether its precision is enough."
        )
