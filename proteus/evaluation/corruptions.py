"""Corrupted images, made when they are asked for: twelve of ImageNet-C's kinds, in torch.

For any set of images. The published ImageNet-C is files: `imagenet_c` reads them, and only they
give an mCE that can be compared with published ones.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from ..data import decode
from ..features import ShapeError

SEVERITIES = (1, 2, 3, 4, 5)
# Blurs are given in pixels of the 224-pixel images of ImageNet-C and shrink with the image.
_REFERENCE_SIZE = 224


def corrupt(images: Tensor, name: str, severity: int, *, seeds: Sequence[int]) -> Tensor:
    """Corrupt a batch; what is random depends on the seed of the image alone.

    Args:
        images: uint8 [B, 3, H, W], RGB.
        name: One of `CORRUPTIONS`.
        severity: 1 (weak) to 5 (strong).
        seeds: One for each image, for example its index in the set: the same image is corrupted in
            the same way whatever the batch, the device or the number of processes.

    Returns:
        uint8 [B, 3, H, W], on the images' device.

    Raises:
        ShapeError: If images have another shape or number than seeds.
        ValueError: If the name, the severity or the dtype is not one of those above.

    Examples:
        >>> images = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
        >>> noisy = corrupt(images, "gaussian_noise", 3, seeds=[0, 1])
        >>> noisy.shape, bool((noisy != images).any())
        (torch.Size([2, 3, 8, 8]), True)

    Source:
        Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations" (ICLR 2019).
        *Same:* the kinds, five severities, their published strengths. *Different:* own code, so
        single pixels differ; blurs scale with the shorter side; motion blur is a line of weights
        around each pixel, not ImageMagick's trail; grey pixels stay grey when saturated. No glass,
        zoom and elastic blur, no weather.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(seeds) != images.shape[0]:
        raise ShapeError(
            f"corrupt: one seed for each RGB image. Got images {tuple(images.shape)} and "
            f"{len(seeds)} seeds; expected [B, 3, H, W] and B."
        )
    if images.dtype != torch.uint8:
        raise ValueError(f"corrupt: images must be uint8 0-255. Got {images.dtype}.")
    if name not in CORRUPTIONS:
        known = ", ".join(CORRUPTIONS)
        raise ValueError(f"corrupt: no such corruption. Got {name!r}; expected one of {known}.")
    if severity not in SEVERITIES:
        raise ValueError(f"corrupt: the severity must be 1 to 5. Got {severity!r}.")
    function, strengths = CORRUPTIONS[name]
    results = []
    for image, seed in zip(images, seeds, strict=True):
        # On the CPU: a GPU's generator gives other numbers.
        generator = torch.Generator().manual_seed(int(seed))
        result = function(image.cpu().float() / 255, strengths[severity - 1], generator)
        results.append((result.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.stack(results).to(images.device)


def _gaussian_noise(image: Tensor, scale: float, generator: Generator) -> Tensor:
    return image + scale * torch.randn(image.shape, generator=generator)


def _shot_noise(image: Tensor, photons: float, generator: Generator) -> Tensor:
    return torch.poisson(image * photons, generator=generator) / photons


def _impulse_noise(image: Tensor, amount: float, generator: Generator) -> Tensor:
    drawn = torch.rand(image.shape, generator=generator)  # each channel on its own
    salted = torch.where(drawn < amount / 2, 0.0, image)
    return torch.where(drawn > 1 - amount / 2, 1.0, salted)


def _speckle_noise(image: Tensor, scale: float, generator: Generator) -> Tensor:
    return image + image * scale * torch.randn(image.shape, generator=generator)


def _gaussian_blur(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    sigma = sigma * _relative_size(image)
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1.0)
    weights = torch.exp(-x.square() / (2 * sigma**2))
    return _filter(_filter(image, weights[None]), weights[:, None])


def _defocus_blur(image: Tensor, radius: float, generator: Generator) -> Tensor:
    radius = max(radius * _relative_size(image), 0.5)
    side = math.ceil(radius)
    x = torch.arange(-side, side + 1.0)
    distance = (x[:, None].square() + x.square()).sqrt()
    return _filter(image, (radius + 0.5 - distance).clamp(0, 1))  # a disc with a soft edge


def _motion_blur(image: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    radius, sigma = (max(value * _relative_size(image), 0.5) for value in strength)
    angle = math.radians(90 * float(torch.rand((), generator=generator)) - 45)
    side = math.ceil(radius)
    kernel = torch.zeros(2 * side + 1, 2 * side + 1)
    for step in torch.linspace(-radius, radius, 8 * side + 1).tolist():
        row, column = side + step * math.sin(angle), side + step * math.cos(angle)
        kernel[round(row), round(column)] += math.exp(-(step**2) / (2 * sigma**2))
    return _filter(image, kernel)


def _brightness(image: Tensor, amount: float, generator: Generator) -> Tensor:
    value = image.amax(0, keepdim=True)  # HSV's; hue and saturation stay
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, image * brighter / value.clamp(min=1e-8), brighter)


def _contrast(image: Tensor, factor: float, generator: Generator) -> Tensor:
    mean = image.mean((1, 2), keepdim=True)
    return (image - mean) * factor + mean


def _saturate(image: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    factor, offset = strength
    value, least = image.amax(0, keepdim=True), image.amin(0, keepdim=True)
    saturation = (value - least) / value.clamp(min=1e-8)
    target = (saturation * factor + offset).clamp(0, 1)
    return value - (value - image) * target / saturation.clamp(min=1e-8)


def _pixelate(image: Tensor, factor: float, generator: Generator) -> Tensor:
    height, width = image.shape[1:]
    small = (max(1, int(height * factor)), max(1, int(width * factor)))
    coarse = F.adaptive_avg_pool2d(image[None], small)
    return F.interpolate(coarse, size=(height, width), mode="nearest")[0]


def _jpeg(image: Tensor, quality: int, generator: Generator) -> Tensor:
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(decode(file.getvalue()))).permute(2, 0, 1).float() / 255


def _relative_size(image: Tensor) -> float:
    return min(image.shape[1:]) / _REFERENCE_SIZE


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Weighted mean around each pixel; beyond the border the border goes on."""
    rows, columns = kernel.shape
    padded = F.pad(image[:, None], (columns // 2,) * 2 + (rows // 2,) * 2, mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, Any, Generator], Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg, (25, 18, 15, 10, 7)),
}
