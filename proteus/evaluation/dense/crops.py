"""From images of any size to the squares that a dense head is trained on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .maps import DenseImages
from .seg_scores import IGNORE
from .sliding import windows

_MOST_ELONGATED = 4  # the long side goes up to four times the size, then the short one shrinks
_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image before a square is cut out.

    Attributes:
        scale: Range of the factor on the test size.
        largest_share: A square of which one class covers more is drawn again, up to ten times;
            None for maps without classes.
    """

    scale: tuple[float, float]
    largest_share: float | None


SEGMENTATION = Augmentation((0.5, 2.0), 0.75)
DEPTH = Augmentation((0.8, 1.5), None)


def fitted_size(height: int, width: int, size: float) -> tuple[int, int]:
    """(height, width) with the short side at `size`, the ratio kept.

    Examples:
        >>> fitted_size(480, 640, 518), fitted_size(100, 1000, 50)
        ((518, 691), (20, 200))

    Source:
        mmseg `Resize(scale=(4 * size, size), keep_ratio=True)`.
        *Same:* the rounding; an image more than four times as long as high gets a long side of
        4 * size and a shorter short one.
    """
    scale = min(_MOST_ELONGATED * size / max(height, width), size / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def to_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize to (height, width), bilinear: uint8 [3, h, w].

    Source:
        mmseg `Resize`. *Different:* Pillow smooths when it makes an image smaller, OpenCV does not.
    """
    image = image.convert("RGB")
    if size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_target(target: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another size, nearest neighbour; its values stay what they are."""
    if tuple(target.shape) == size:
        return target
    resized = F.interpolate(target[None, None].double(), size=size, mode="nearest-exact")
    return resized[0, 0].to(target.dtype)


def all_windows(data: DenseImages, size: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every window that a test with these settings would see: (uint8 [3, S, S], map [S, S])."""
    for index in range(len(data)):
        pixels, target = _fitted(data, index, size)
        for rows, columns in windows((target.shape[0], target.shape[1]), size, stride):
            yield _square(pixels, target, rows, columns, size)


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """Squares, drawn anew each time; a key is (image, draw), and the draw is the seed.

    Args:
        data: Images and maps.
        size: Side of the squares, pixels.
        stride: Distance of the test's windows.
        augmentation: Scale, crop and mirror at random and change colours; None = one of the
            windows that a test would see.
        seed: Of the run.

    Source:
        The authors' `ade20k_518.py`, `nyu_518x518.py`.
        *Same:* ranges of scale, share of one class, mirroring. *Different:* changes of colour are
        torchvision's, not mmseg's and albumentations'; no `RandomDepthMix`; what is smaller than
        the square is filled with its border, and not counted.
    """

    def __init__(
        self,
        data: DenseImages,
        size: int,
        stride: int,
        augmentation: Augmentation | None,
        seed: int = 0,
    ) -> None:
        self.data, self.size, self.stride = data, size, stride
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, draw = key
        rng = random.Random(f"{self.seed} {draw}")
        if self.augmentation is None:
            pixels, target = _fitted(self.data, index, self.size)
            size = (target.shape[0], target.shape[1])
            rows, columns = rng.choice(windows(size, self.size, self.stride))
            return _square(pixels, target, rows, columns, self.size)
        scale = rng.uniform(*self.augmentation.scale)
        pixels, target = _fitted(self.data, index, self.size * scale)
        pixels, target = self._crop(pixels, target, self.augmentation.largest_share, rng)
        if rng.random() < 0.5:
            pixels, target = pixels.flip(2), target.flip(1)
        return _change_colours(pixels, rng), target

    def _crop(
        self, pixels: Tensor, target: Tensor, share: float | None, rng: random.Random
    ) -> tuple[Tensor, Tensor]:
        for _ in range(_TRIES):
            top, left = (rng.randint(0, max(side - self.size, 0)) for side in target.shape)
            rows, columns = (top, top + self.size), (left, left + self.size)
            square = _square(pixels, target, rows, columns, self.size)
            if share is None or _share(square[1]) < share:
                break
        return square


def _fitted(data: DenseImages, index: int, size: float) -> tuple[Tensor, Tensor]:
    """An image and its map with the short side at `size`."""
    image, target = data[index]
    fitted = fitted_size(image.height, image.width, size)
    return to_pixels(image, fitted), to_target(target, fitted)


def _square(
    pixels: Tensor, target: Tensor, rows: tuple[int, int], columns: tuple[int, int], size: int
) -> tuple[Tensor, Tensor]:
    """A window, filled up to a full square; what is added does not count."""
    pixels, target = pixels[:, slice(*rows), slice(*columns)], target[slice(*rows), slice(*columns)]
    bottom, right = (size - side for side in target.shape)
    if not bottom and not right:
        return pixels, target
    padding = (0, right, 0, bottom)
    pixels = F.pad(pixels[None].float(), padding, mode="replicate")[0].to(pixels.dtype)
    nothing = 0 if target.is_floating_point() else IGNORE
    return pixels, F.pad(target, padding, value=nothing)


def _share(target: Tensor) -> float:
    """Of the largest class, of all labelled pixels; 1 where there is only one, as in mmseg."""
    counts = target[target != IGNORE].long().bincount()
    return float(counts.max() / counts.sum()) if int((counts > 0).sum()) > 1 else 1.0


def _change_colours(pixels: Tensor, rng: random.Random) -> Tensor:
    from torchvision.transforms import functional as colour

    pixels = colour.adjust_brightness(pixels, rng.uniform(0.875, 1.125))
    pixels = colour.adjust_contrast(pixels, rng.uniform(0.5, 1.5))
    pixels = colour.adjust_saturation(pixels, rng.uniform(0.5, 1.5))
    changed: Tensor = colour.adjust_hue(pixels, rng.uniform(-0.05, 0.05))
    return changed
