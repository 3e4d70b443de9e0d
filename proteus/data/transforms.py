"""The recipe's augmentation: timm's own objects, and the same distribution drawn as plain numbers.

`official` is the authors' pipeline, object for object. The fast pipeline draws the same random
decisions as a `Draw` for each sample and crops what it decodes. Flip, RandAugment and erasing are
then done by `proteus.data.on_device`, one by one on the CPU or for a whole batch on a GPU.
"""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..features import IMAGENET
from .decoding import Pixels

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing",
    "SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing",
    "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
NONE = -1  # no operation
MEAN, STD = IMAGENET
FILL = (124, 116, 104)  # the mean as timm rounds it, for what Rotate, Shear and Translate uncover
_MAGNITUDE, _MAGNITUDE_STD, _PROBABILITY = 9.0, 0.5, 0.5  # rand-m9-mstd0.5-inc1
_ERASE = 0.25


class Crop(NamedTuple):
    """A part of an image, pixels."""

    top: int
    left: int
    height: int
    width: int


class Draw(NamedTuple):
    """What is done to one sample after its crop.

    `operations`: two of `OPERATIONS` by number or `NONE`, each with its argument in timm's units
    (degrees, shear factor, share of the side, enhancement factor, threshold, bits kept).
    """

    flip: bool
    operations: tuple[tuple[int, float], tuple[int, float]]
    erase: Crop


def official(image_size: int = 224) -> Any:
    """The authors' training transform: PIL image -> normalised float tensor [3, S, S].

    Random resized crop (bicubic), flip, RandAugment `rand-m9-mstd0.5-inc1`, ImageNet statistics,
    random erasing with probability 0.25.

    Args:
        image_size: S, pixels.

    Returns:
        A torchvision `Compose` of timm's objects.

    Examples:
        >>> official(32)(Image.new("RGB", (50, 40))).shape
        torch.Size([3, 32, 32])

    Source:
        Proteus `pretrain/datasets.py` (`build_transform`), paper A.1.1.
        *Same:* objects and fields. The authors' `--color-jitter 0.3` is given and has no effect.
        *Different:* Pillow 13 refuses to posterize to 0 bits, which timm asks for once in some 770
        images; here that gives the black image that earlier versions gave.
    """
    from timm.data.transforms_factory import create_transform

    pipeline: Any = create_transform(
        input_size=image_size,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=_ERASE,
        re_mode="pixel",
        re_count=1,
    )
    for operation in pipeline.transforms[2].ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = posterize
    return pipeline


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each channel; 0 bits give black."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def draw_crop(
    height: int, width: int, rng: random.Random, scale: tuple[float, float] = (0.08, 1.0)
) -> Crop:
    """A random part: area uniform in `scale`, aspect ratio log-uniform in 3/4 … 4/3.

    Source:
        torchvision `RandomResizedCrop.get_params`, which timm's class follows.
        *Same:* ten attempts, then the largest centred part with an allowed ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return Crop(top, left, h, w)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def draw(rng: random.Random, size: int) -> Draw:
    """The random decisions of flip, RandAugment and erasing, as timm makes them."""
    flip = rng.random() < 0.5
    first, second = _draw_operation(rng), _draw_operation(rng)
    return Draw(flip, (first, second), _draw_erase(rng, size))


def _draw_operation(rng: random.Random) -> tuple[int, float]:
    number = rng.randrange(len(OPERATIONS))
    if rng.random() > _PROBABILITY:
        return NONE, 0.0
    level = min(10.0, max(0.0, rng.gauss(_MAGNITUDE, _MAGNITUDE_STD))) / 10
    sign = 1 if rng.random() < 0.5 else -1
    argument = ARGUMENT.get(OPERATIONS[number])
    return number, argument(level, sign) if argument else 0.0


# Argument for a level in [0, 1] and a sign, as timm computes it; operations without one are absent.
ARGUMENT: dict[str, Callable[[float, int], float]] = {
    "Rotate": lambda level, sign: sign * level * 30,
    "ShearX": lambda level, sign: sign * level * 0.3,
    "ShearY": lambda level, sign: sign * level * 0.3,
    "TranslateXRel": lambda level, sign: sign * level * 0.45,
    "TranslateYRel": lambda level, sign: sign * level * 0.45,
    "PosterizeIncreasing": lambda level, sign: 4 - int(level * 4),
    "SolarizeIncreasing": lambda level, sign: 256 - min(256, int(level * 256)),
    "SolarizeAdd": lambda level, sign: min(128, int(level * 110)),
    **{
        f"{kind}Increasing": lambda level, sign: max(0.1, 1 + sign * level * 0.9)
        for kind in ("Color", "Contrast", "Brightness", "Sharpness")
    },
}


def _draw_erase(rng: random.Random, size: int) -> Crop:
    if rng.random() > _ERASE:
        return Crop(0, 0, 0, 0)
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * size * size
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w < size and h < size:
            return Crop(rng.randint(0, size - h), rng.randint(0, size - w), h, w)
    return Crop(0, 0, 0, 0)


def crop_and_resize(pixels: Pixels, crop: Crop, size: int) -> Tensor:
    """A part of an image at [3, size, size], uint8, bicubic with antialias.

    Within 3 grey levels of Pillow's, four times as fast.
    """
    top, left, height, width = crop
    part = torch.from_numpy(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
    image = part.permute(2, 0, 1)[None]
    if (height, width) == (size, size):
        return image[0].contiguous()
    resized = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
    return resized[0].contiguous()


def pack(draws: list[Draw]) -> Tensor:
    """Draws as one float tensor [B, 9], so that they travel with their images."""
    return torch.tensor(
        [
            [d.flip, *d.operations[0], *d.operations[1], *d.erase]
            for d in draws
        ],
        dtype=torch.float32,
    )  # fmt: skip
