"""Scores of depth maps, with the meaning they have in mmseg and in the toolbox before it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...features import ShapeError
from ..result import plain

MIN_DEPTH, MAX_DEPTH = 1e-3, 10.0  # metres, NYU-Depth V2; both bounds are strict
# Rows and columns of a 480 x 640 map that Eigen et al. evaluate.
EIGEN_CROP = (slice(45, 471), slice(41, 601))

Convention = Literal["mmseg", "toolbox"]
Crop = Literal["eigen"] | None


def metres(millimetres: Tensor) -> Tensor:
    """Stored depth to metres: float32(mm) * float32(1e-3), as the reference codes read it.

    Multiplying, not dividing by 1000: the last bit decides whether a pixel is inside a bound.
    """
    return millimetres.float() * torch.tensor(1e-3, dtype=torch.float32)


def depth_mask(
    target: Tensor,
    *,
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
    crop: Crop = None,
) -> Tensor:
    """Which pixels count: min_depth < target < max_depth, both strict, inside the crop.

    Args:
        target: Metres, [H, W].
        min_depth: Metres.
        max_depth: Metres.
        crop: "eigen" = rows 45:471 and columns 41:601 of a 480 x 640 map.

    Raises:
        ShapeError: If the crop does not belong to maps of this size.
        ValueError: If the crop is unknown.
    """
    mask = (target > min_depth) & (target < max_depth)
    if crop is None:
        return mask
    if crop != "eigen":
        raise ValueError(f"depth: unknown crop. Got {crop!r}; expected 'eigen' or None.")
    if tuple(target.shape) != (480, 640):
        raise ShapeError(
            f"depth: the Eigen crop is defined for 480x640 maps. Got {tuple(target.shape)}; "
            f"use crop=None."
        )
    inside = torch.zeros_like(mask)
    inside[EIGEN_CROP] = True
    return mask & inside


@dataclass(frozen=True)
class DepthScores:
    """Scores of a set of depth maps: of each image, then the mean over the images.

    Attributes:
        d1: Share of pixels with max(p / t, t / p) < 1.25.
        d2: The same for 1.25 ** 2.
        d3: The same for 1.25 ** 3.
        abs_rel: Mean of abs(p - t) / t.
        sq_rel: Mean of (p - t) ** 2 / t, metres.
        rmse: Root mean square error, metres.
        rmse_log: Root mean square error of natural logarithms.
        log10: Mean absolute error of decimal logarithms.
        silog: Scale-invariant error in the chosen convention: "mmseg"
            sqrt(mean d^2 - 0.5 mean(d)^2), "toolbox" 100 sqrt(mean d^2 - mean(d)^2), with d the
            difference of natural logarithms.
        num_pixels: Pixels that count, of each image.
    """

    d1: float
    d2: float
    d3: float
    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    silog: float
    num_pixels: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON, None for NaN and infinity; the pixels of all images added up."""
        scores = {n: plain(v) for n, v in vars(self).items() if isinstance(v, float)}
        return {**scores, "num_images": len(self.num_pixels), "num_pixels": sum(self.num_pixels)}


def check_convention(convention: str) -> None:
    """Raise `ValueError` for what is neither "mmseg" nor "toolbox"."""
    if convention not in get_args(Convention):
        raise ValueError(
            f"depth: unknown convention. Got {convention!r}; expected 'mmseg' or 'toolbox'."
        )


_DEPTH_NAMES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")


def image_depth_scores(
    prediction: Tensor, target: Tensor, *, convention: Convention = "mmseg"
) -> dict[str, float]:
    """Scores of the pixels of one image, all of which count; all NaN if there are none.

    A prediction below 0 makes `rmse_log`, `log10` and `silog` NaN, one of 0 the first two infinite
    and `silog` NaN; the others stay, and `d1` to `d3` take what is below 0 for right. In the
    toolbox's convention a NaN `silog` is 0, which is a perfect score: clamp instead.

    Args:
        prediction: Metres, [n], floating.
        target: Metres, [n].
        convention: Which `silog`.
    """
    check_convention(convention)
    target = target.to(prediction)
    ratio = torch.maximum(target / prediction, prediction / target)
    difference = prediction - target
    logarithm = prediction.log() - target.log()

    def mean(values: Tensor) -> float:
        return float(values.double().mean())  # float32 sums of 200,000 pixels lose digits

    square, bias = mean(logarithm.square()), mean(logarithm)
    if convention == "mmseg":
        silog = _root(square - 0.5 * bias**2)
    else:
        silog = 100 * _root(square - bias**2)
        silog = 0.0 if math.isnan(silog) and len(target) else silog
    values = (
        *(mean((ratio < 1.25**n).float()) for n in (1, 2, 3)),
        mean(difference.abs() / target),
        mean(difference.square() / target),
        _root(mean(difference.square())),
        _root(square),
        mean((prediction.log10() - target.log10()).abs()),
        silog,
    )
    return dict(zip(_DEPTH_NAMES, values, strict=True))


def average_depth_scores(
    images: Sequence[DepthScores], *, convention: Convention = "mmseg"
) -> DepthScores:
    """Mean over images: "mmseg" with NaN (one bad image spoils it), "toolbox" without NaN.

    Args:
        images: Scores of each image.
        convention: Which mean.
    """
    check_convention(convention)
    if not images:
        raise ValueError("depth: no images to score. Got none; expected at least one.")
    table = torch.tensor([[vars(i)[n] for n in _DEPTH_NAMES] for i in images], dtype=torch.float64)
    means = table.mean(0) if convention == "mmseg" else table.nanmean(0)
    scores = dict(zip(_DEPTH_NAMES, means.tolist(), strict=True))
    return DepthScores(**scores, num_pixels=tuple(n for i in images for n in i.num_pixels))


def depth_scores(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    convention: Convention = "mmseg",
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
    crop: Crop = None,
    clamp: bool = False,
) -> DepthScores:
    """Compare depth maps.

    Args:
        predictions: Metres, one [H, W] for each image.
        targets: Metres, the same shapes; see `metres`.
        convention: "mmseg" (the paper's evaluation) or "toolbox" (Monocular-Depth-Estimation-
            Toolbox): they differ in `silog` and in what an image without valid pixels does to the
            means (mmseg: NaN; toolbox: left out).
        min_depth: Pixels at or below are left out.
        max_depth: Pixels at or above are left out.
        crop: "eigen" for NYU-Depth V2.
        clamp: Move predictions into [min_depth, max_depth] first. The reference codes do not, and
            a prediction <= 0 then makes the logarithmic scores NaN.

    Raises:
        ShapeError: If shapes differ.
        ValueError: If there are no images, or as many predictions as targets are not given.

    Examples:
        >>> target = torch.full((4, 4), 2.0)
        >>> scores = depth_scores([target * 1.5], [target])
        >>> round(scores.rmse, 4), scores.d1, scores.d2, scores.num_pixels
        (1.0, 0.0, 1.0, (16,))

    Source:
        mmseg `DepthMetric`; the toolbox's `metrics`, `pre_eval_to_metrics`.
        *Same:* strict bounds, per image and then the mean, strict thresholds.
        *Different:* `clamp` exists.
    """
    if len(predictions) != len(targets):
        raise ValueError(
            f"depth: one prediction for each target. Got {len(predictions)} and {len(targets)}."
        )
    images = []
    for prediction, target in zip(predictions, targets, strict=True):
        if prediction.shape != target.shape:
            raise ShapeError(
                f"depth: prediction and target differ in shape. Got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}; resize the prediction to the target's size first."
            )
        mask = depth_mask(target, min_depth=min_depth, max_depth=max_depth, crop=crop)
        values = prediction[mask].clamp(min_depth, max_depth) if clamp else prediction[mask]
        scores = image_depth_scores(values, target[mask], convention=convention)
        images.append(DepthScores(**scores, num_pixels=(int(mask.sum()),)))
    return average_depth_scores(images, convention=convention)


def silog_loss(prediction: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Scale-invariant training loss: sqrt(mean d^2 - 0.5 mean(d)^2) of each image, then the mean.

    Args:
        prediction: Metres, [B, ...]; values below eps are raised to it and get no gradient.
        target: Metres, the same shape; pixels at or below eps do not count.
        eps: Smallest depth.

    Returns:
        A scalar.

    Raises:
        ShapeError: If the shapes differ.

    Examples:
        >>> target = torch.full((1, 4), 2.0)
        >>> round(float(silog_loss(target * 2, target)), 4)  # log(2) * sqrt(0.5)
        0.4901

    Source:
        mmseg `SiLogLoss`.
        *Same:* value and gradient. *Different:* where an image has no valid pixel or is predicted
        perfectly its gradient is 0, and not NaN.
    """
    if prediction.shape != target.shape:
        raise ShapeError(
            f"silog_loss: shapes differ. Got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    prediction, target = prediction.flatten(1), target.flatten(1)
    valid = target > eps
    d = torch.where(valid, target.clamp(min=eps).log() - prediction.clamp(min=eps).log(), 0.0)
    valid = valid & ~d.isnan()
    d = torch.where(valid, d, 0.0)
    count = valid.sum(1).clamp(min=1)
    inner = d.square().sum(1) / count - 0.5 * (d.sum(1) / count).square()
    # The root's slope at 0 is infinite: keep those images out of it.
    positive = inner > 0
    return torch.where(positive, torch.where(positive, inner, 1.0).sqrt(), 0.0).mean()


def _root(value: float) -> float:
    """A square root that is NaN where rounding has made the value negative, as numpy's is."""
    return math.sqrt(value) if value >= 0 else math.nan
