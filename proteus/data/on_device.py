"""Flip, RandAugment and erasing, as drawn: of one image on the CPU, of a whole batch on a GPU.

In a batch each operation runs once, on all images that drew it. Which images those are is known to
the host, so nothing waits for the device.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .transforms import ARGUMENT, FILL, MEAN, NONE, OPERATIONS, STD, Draw, posterize

_WARP = {"resample": Image.Resampling.BICUBIC, "fillcolor": FILL}


def finish(images: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Apply what was drawn for each sample.

    Args:
        images: uint8 [B, 3, S, S], cropped and resized.
        draws: float [B, 9] on the CPU, see `transforms.pack`.
        generator: Of the noise that fills erased parts, on the device of the images.

    Returns:
        uint8 [B, 3, S, S].

    Source:
        timm `data/auto_augment.py`, `data/random_erasing.py`.
        *Same:* decisions and their order; point operations and enhancements to the grey level.
        *Different:* Rotate, Shear and Translate interpolate with another bicubic kernel (the same
        pixels to within 2 grey levels on average); erased parts hold the recipe's noise cut to
        0 … 255, which normalised noise exceeds in 4 % of its values.
    """
    device, size = images.device, images.shape[-1]
    flipped = _send(draws[:, 0].bool(), device)
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    for layer in (1, 3):
        chosen = draws[:, layer].long()
        for number in sorted(set(chosen.tolist())):
            if number == NONE:
                continue
            rows = (chosen == number).nonzero().squeeze(1)
            arguments = _send(draws[rows, layer + 1], device)
            where = _send(rows, device)
            changed = _APPLY[OPERATIONS[number]](images[where], arguments)
            images = images.index_copy(0, where, changed)
    boxes = draws[:, 5:].long()
    rows = (boxes[:, 2] > 0).nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    where, boxes = _send(rows, device), _send(boxes[rows], device)
    line = torch.arange(size, device=device)
    inside = _between(line, boxes[:, 0], boxes[:, 2])[:, :, None]
    inside = inside & _between(line, boxes[:, 1], boxes[:, 3])[:, None, :]
    mean = _send(torch.tensor(MEAN), device).view(1, 3, 1, 1)
    std = _send(torch.tensor(STD), device).view(1, 3, 1, 1)
    noise = torch.randn(len(rows), 3, size, size, device=device, generator=generator)
    noise = ((noise * std + mean) * 255).round().clamp(0, 255).byte()
    erased = torch.where(inside[:, None], noise, images[where])
    return images.index_copy(0, where, erased)


def apply(image: Tensor, draw: Draw, rng: random.Random) -> Tensor:
    """Do what was drawn, on the CPU, with timm's operations; for a GPU see `finish`.

    Args:
        image: uint8 [3, S, S].
        draw: Flip, RandAugment and erasing.
        rng: Seeds the noise.
    """
    from timm.data.auto_augment import NAME_TO_OP

    if draw.flip:
        image = image.flip(-1)
    if any(number != NONE for number, _ in draw.operations):
        pixels = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        for number, argument in draw.operations:
            if number == NONE:
                continue
            name = OPERATIONS[number]
            whole = name.startswith(("Posterize", "Solarize"))
            value = () if name not in ARGUMENT else (int(argument) if whole else argument,)
            options = _WARP if name.startswith(("Rotate", "Shear", "Translate")) else {}
            operation: Any = posterize if name == "PosterizeIncreasing" else NAME_TO_OP[name]
            pixels = operation(pixels, *value, **options)
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    top, left, height, width = draw.erase
    if height:
        noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((3, height, width), "f4")
        mean, std = np.array(MEAN, "f4"), np.array(STD, "f4")
        noise = noise * std[:, None, None] + mean[:, None, None]
        image = image.clone()
        image[:, top : top + height, left : left + width] = torch.from_numpy(
            (noise * 255).round().clip(0, 255).astype(np.uint8)
        )
    return image


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for what is queued there; the host's copy is staged first."""
    return tensor.to(device, non_blocking=True)


def _between(line: Tensor, start: Tensor, length: Tensor) -> Tensor:
    return (line >= start[:, None]) & (line < (start + length)[:, None])


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """A table [B, 3, 256] applied to each channel."""
    return table.byte().gather(-1, images.flatten(2).long()).view_as(images)


def _ramp(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device, dtype=torch.float64)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low = images.amin((2, 3)).double()[..., None]
    high = images.amax((2, 3)).double()[..., None]
    scale = 255 / (high - low).clamp(min=1)
    table = (_ramp(images) * scale - low * scale).clamp(0, 255).floor()
    return _look_up(images, torch.where(high > low, table, _ramp(images)))


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(-1, values, torch.ones_like(values))
    last = counts.gather(-1, images.amax((2, 3)).long()[..., None])
    step = (values.shape[-1] - last) // 255
    before = counts.cumsum(-1) - counts
    table = (step // 2 + before) // step.clamp(min=1)
    identity = torch.arange(256, device=images.device).expand_as(table)
    return _look_up(images, torch.where(step > 0, table.clamp(max=255), identity))


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    keep = 256 - (256 / 2**bits).long()
    return images & keep.byte().view(-1, 1, 1, 1)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images.short() < threshold.view(-1, 1, 1, 1), images, 255 - images)


def _solarize_add(images: Tensor, add: Tensor) -> Tensor:
    raised = (images.short() + add.short().view(-1, 1, 1, 1)).clamp(max=255).byte()
    return torch.where(images < 128, raised, images)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Pillow's `Image.blend`: the result is cut, not rounded."""
    factor = factor.view(-1, 1, 1, 1)
    mixed = degenerate + factor * (images.float() - degenerate)
    return mixed.clamp(0, 255).byte()


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None].float()


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images), images, factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = (_grey(images).double().mean((2, 3), keepdim=True) + 0.5).floor().float()
    return _blend(mean, images, factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros((), device=images.device), images, factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    inner = (F.conv2d(smooth, kernel / 13, groups=3) + 0.5).floor()
    smooth = F.pad(inner, (1, 1, 1, 1))
    edge = torch.ones_like(images[:1, :1], dtype=torch.bool)
    edge[..., 1:-1, 1:-1] = False  # Pillow's filter leaves the outermost pixels
    return _blend(torch.where(edge, images.float(), smooth), images, factor)


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Output pixel centre -> input point by matrix [B, 2, 3], in pixels; bicubic."""
    size = images.shape[-1]
    line = torch.arange(size, device=images.device) + 0.5
    entry = matrix[:, :, :, None, None]
    across, down = line[None, None, :], line[None, :, None]
    x = entry[:, 0, 0] * across + (entry[:, 0, 1] * down + entry[:, 0, 2])
    y = entry[:, 1, 0] * across + (entry[:, 1, 1] * down + entry[:, 1, 2])
    grid = torch.stack([x, y], -1).mul_(2 / size).sub_(1)
    warped = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    warped = warped.add_(0.5).clamp_(0, 255).byte()
    outside = (x < 0) | (x >= size) | (y < 0) | (y >= size)
    fill = _send(torch.tensor(FILL, dtype=torch.uint8), images.device).view(1, 3, 1, 1)
    return torch.where(outside[:, None], fill, warped)


def _entry(row: int, column: int, *, relative: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """A warp that differs from the identity in one entry of its matrix."""

    def apply(images: Tensor, argument: Tensor) -> Tensor:
        matrix = torch.eye(2, 3, device=argument.device).repeat(len(argument), 1, 1)
        matrix[:, row, column] = argument * images.shape[-1] if relative else argument
        return _warp(images, matrix)

    return apply


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise around the centre."""
    angle, half = -degrees * (math.pi / 180), images.shape[-1] / 2
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cos, sin, half - half * cos - half * sin], -1),
            torch.stack([-sin, cos, half + half * sin - half * cos], -1),
        ],
        1,
    )
    return _warp(images, matrix)


_APPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda images, _: 255 - images,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": _brightness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _entry(0, 1),
    "ShearY": _entry(1, 0),
    "TranslateXRel": _entry(0, 2, relative=True),
    "TranslateYRel": _entry(1, 2, relative=True),
}
