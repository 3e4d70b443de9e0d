"""Predict a map over an image of any size with windows of one size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def window_positions(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows along one side; the last one is moved back inside.

    Args:
        length: Side of the image, pixels.
        window: Side of the window; an image that is shorter is one window of its own length.
        stride: Distance between windows.

    Examples:
        >>> window_positions(691, 518, 345)
        [(0, 518), (173, 691)]
        >>> window_positions(300, 518, 345)
        [(0, 300)]

    Source:
        mmseg `EncoderDecoder.slide_inference`.
        *Same:* the positions.
    """
    if window < 1 or not 1 <= stride <= window:
        raise ValueError(
            f"sliding window: the stride must be in 1 … {window} (the window), or pixels are "
            f"missed. Got window {window} and stride {stride}."
        )
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(index * stride + window, length) for index in range(count)]
    return [(max(end - window, 0), end) for end in ends]


def windows(
    size: tuple[int, int], window: int, stride: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """((top, bottom), (left, right)) of all windows of an image, row by row."""
    rows, columns = (window_positions(side, window, stride) for side in size)
    return [(row, column) for row in rows for column in columns]


@torch.no_grad()
def slide(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    window: int,
    stride: int,
    flip: bool = False,
) -> Tensor:
    """The mean of the predictions of all windows that cover a pixel.

    Args:
        predict: Images [B, 3, h, w] to a map [B, C, h, w]. It sees windows of `window` x `window`
            pixels, smaller where the image is.
        images: [B, 3, H, W].
        window: Side of a window, pixels.
        stride: Distance between windows, at most `window`.
        flip: Average with the prediction for the mirrored image.

    Returns:
        [B, C, H, W], float32.

    Examples:
        >>> image = torch.arange(12.0).view(1, 1, 2, 6).expand(1, 3, 2, 6)
        >>> torch.equal(slide(lambda x: x[:, :1], image, window=4, stride=2), image[:, :1])
        True

    Source:
        mmseg `slide_inference` and `DepthEstimator.slide_flip_inference`; 518 / 345 for
        segmentation, 518 / 129 with flip for depth.
        *Same:* positions; maps are averaged before the softmax; the mirrored windows' maps are
        mirrored back and averaged in.
    """
    height, width = images.shape[-2:]
    total, covered = None, images.new_zeros(1, 1, height, width, dtype=torch.float32)
    for (top, bottom), (left, right) in windows((height, width), window, stride):
        part = images[:, :, top:bottom, left:right]
        output = predict(part).float()
        if flip:
            output = (output + predict(part.flip(3)).float().flip(3)) / 2
        if total is None:
            total = output.new_zeros(output.shape[0], output.shape[1], height, width)
            covered = covered.to(output.device)
        total[:, :, top:bottom, left:right] += output
        covered[:, :, top:bottom, left:right] += 1
    assert total is not None  # there is always one window
    return total / covered


def pad_to_multiple(images: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Repeat the last row and column until both sides are multiples; cut the map afterwards.

    Args:
        images: [B, 3, H, W], floating.
        multiple: (height, width) of a patch, pixels.

    Examples:
        >>> pad_to_multiple(torch.zeros(1, 3, 64, 86), (14, 14)).shape
        torch.Size([1, 3, 70, 98])
    """
    bottom, right = (-side % m for side, m in zip(images.shape[-2:], multiple, strict=True))
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
