"""Patches from chosen layers, brought to one grid and put side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..features import Features
from ..weights.positions import FAILURES
from .layers import count_layers, normalizes_layers, read_beside, tells_layers
from .probes import equal
from .read import Reader, evaluating

Layers = int | Sequence[int]


@dataclass(frozen=True)
class ChosenLayers:
    """A `Reader` of models whose patches are those of chosen layers, made by `choose`.

    It holds numbers and no model: a copied Teacher or Student must read its own.

    Attributes:
        numbers: The layers, from 0 on, in the order of their widths in the patches.
        total: Layers the model has.
        norm: Whether inner layers go through the model's final norm, where it has one for them.
    """

    numbers: tuple[int, ...]
    total: int
    norm: bool

    def __call__(self, model: nn.Module, images: Tensor) -> Features:
        """One forward of normalised images; `cls` is the model's own vector."""
        inner = sorted({*self.numbers} - {self.total - 1})
        layers, whole = read_beside(model, images, inner, self.total, norm=self.norm)
        found = dict(zip([*inner, self.total - 1], [*layers, whole], strict=True))
        return fuse(whole.cls, [found[number] for number in self.numbers])


def fuse(cls: Tensor, layers: Sequence[Features]) -> Features:
    """One `Features` of several layers of a model.

    Args:
        cls: The vector of the image, [B, D].
        layers: Their patches [B, N_i, D_i], each on a grid of its own over the same image.

    Returns:
        `cls`, and the patches [B, N, sum of D_i] in the order given, on the finest of the grids.
        Coarser ones are brought there bilinearly, with the middle of a pixel at its half.

    Examples:
        >>> fine = Features(torch.zeros(1, 8), torch.zeros(1, 16, 3), (4, 4))
        >>> coarse = Features(torch.zeros(1, 8), torch.zeros(1, 4, 8), (2, 2))
        >>> fused = fuse(coarse.cls, [coarse, fine])
        >>> fused.cls.shape, fused.patches.shape, fused.grid
        (torch.Size([1, 8]), torch.Size([1, 16, 11]), (4, 4))
    """
    grid = max((layer.grid for layer in layers), key=lambda grid: grid[0] * grid[1])
    return Features(cls, torch.cat([_patches_at(layer, grid) for layer in layers], -1), grid)


def _patches_at(layer: Features, grid: tuple[int, int]) -> Tensor:
    if layer.grid == grid:
        return layer.patches
    maps = layer.patches.mT.reshape(*layer.patches.mT.shape[:2], *layer.grid)
    return functional.interpolate(maps, size=grid, mode="bilinear").flatten(2).mT


@torch.no_grad()
def choose(
    model: nn.Module, which: Layers, read: Reader, image: Tensor, *, subject: str, name: str
) -> ChosenLayers:
    """How to read these layers of a model.

    Args:
        model: The plain model.
        which: A layer's number or several, negative ones from the end, each once.
        read: How the model is read without chosen layers.
        image: Normalised, [1, 3, H, W], to try it with.
        subject: First word of error messages.
        name: Of the model, for messages.

    Raises:
        ValueError: If the model has no such layers, tells none, or gives with them another vector
            than without.
    """
    if not tells_layers(model):
        raise _refused(subject, name, "which does not tell its inner layers")
    with evaluating(model):
        try:
            total = count_layers(model, image)
            chosen = ChosenLayers(
                _numbers(which, total, subject, name), total, normalizes_layers(model, image)
            )
            found, whole = chosen(model, image), read(model, image)
        except FAILURES as error:
            reason = " ".join(str(error).split())[:200]
            raise _refused(
                subject, name, f"whose layers cannot be read ({type(error).__name__}: {reason})"
            ) from error
    if 0 in found.grid:
        raise _refused(subject, name, "which gives no patches")
    if not equal(found.cls, whole.cls):
        raise _refused(subject, name, "which gives another vector together with its layers")
    return chosen


def _numbers(which: Layers, total: int, subject: str, name: str) -> tuple[int, ...]:
    given = [which] if isinstance(which, int) else list(which)
    numbers = tuple(number + total if number < 0 else number for number in given)
    fits = all(0 <= number < total for number in numbers) and len({*numbers}) == len(numbers)
    if not numbers or not fits:
        raise ValueError(
            f"{subject}: layers the model does not have. Got layers={which!r} of {name!r}; "
            f"expected different numbers in 0 … {total - 1}, or -{total} … -1 from the end."
        )
    return numbers


def _refused(subject: str, name: str, why: str) -> ValueError:
    return ValueError(
        f"{subject}: patches cannot come from chosen layers. Got {name!r}, {why}; expected a model "
        f"with timm's forward_intermediates. Leave layers= out, or wrap the model in a module "
        f"whose forward returns proteus.Features(cls, patches, grid) with the patches you want."
    )
