"""Resample learned positions to another patch grid, by the rule of the model's family.

Two rules are in use and give different numbers (up to 1.5 % of the features for DINOv2):

* `dinov2`: bicubic without antialias, coordinates scaled by (grid + 0.1) / trained grid. DINOv2
  without registers, and the students of the Proteus authors.
* `timm`: bicubic with antialias to the exact size. Register models of DINOv2, and everything else.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..features import ShapeError
from ..traits import Trait

Rule = Literal["dinov2", "timm"]
# What the plain models raise for images that they cannot take.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def resample_positions(
    positions: Tensor, grid: tuple[int, int], *, prefix: int, rule: Rule
) -> Tensor:
    """Resample a position table to a new grid.

    Args:
        positions: [1, prefix + n, D]; the n patch positions are a square, row-major.
        grid: (h, w) wanted.
        prefix: How many leading entries (class token, registers) are kept as they are.
        rule: `dinov2` or `timm`.

    Returns:
        [1, prefix + h * w, D], same dtype. The input itself if the grid is the trained one.

    Raises:
        ValueError: If the n positions are not a square.

    Examples:
        >>> resample_positions(torch.zeros(1, 17, 8), (7, 7), prefix=1, rule="dinov2").shape
        torch.Size([1, 50, 8])

    Source:
        DINOv2 `vision_transformer.py` (`interpolate_pos_encoding`); timm `layers/pos_embed.py`.
        *Same:* both, to float rounding; bicubic in float32.
        *Different:* resampled once at construction, where DINOv2 does it in every forward.
    """
    kept, table = positions[:, :prefix], positions[:, prefix:]
    trained = math.isqrt(table.shape[1])
    if trained**2 != table.shape[1]:
        raise ValueError(
            f"positions: only square tables can be resampled. Got {table.shape[1]} patch "
            f"positions; expected a square number. Check the number of prefix tokens ({prefix})."
        )
    if grid == (trained, trained):
        return positions
    image = rearrange(table.float(), "b (h w) d -> b d h w", h=trained)
    if rule == "dinov2":
        # `scale_factor` and not `size`: PyTorch then samples at the coordinates of the factor
        # given, offset included, and those are the positions DINOv2 was evaluated with.
        factors = ((grid[0] + 0.1) / trained, (grid[1] + 0.1) / trained)
        image = F.interpolate(image, scale_factor=factors, mode="bicubic", antialias=False)
        assert tuple(image.shape[-2:]) == grid
    else:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    table = rearrange(image, "b d h w -> b (h w) d").to(positions.dtype)
    return torch.cat([kept, table], dim=1)


@runtime_checkable
class _PatchEmbed(Trait, Protocol):
    img_size: tuple[int, int] | None
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]


@runtime_checkable
class Resizable(Trait, Protocol):
    """A timm transformer whose input size is fixed when it is built, and can be changed."""

    patch_embed: _PatchEmbed

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """timm: change the input size, resampling positions by timm's rule."""


def is_resizable(model: object) -> TypeGuard[Any]:  # `Resizable`, and what it was before
    """Whether it is `Resizable`, its patch embedding included (EfficientViT's says no size)."""
    return isinstance(model, Resizable) and isinstance(model.patch_embed, _PatchEmbed)


@runtime_checkable
class _HasPositions(Trait, Protocol):
    pos_embed: nn.Parameter
    num_prefix_tokens: int
    no_embed_class: bool


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """224 -> (224, 224); two whole numbers stay what they are.

    Raises:
        ValueError: If it is neither, or not above 0.
    """
    sides = size if isinstance(size, Sequence) else (size, size)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1 or any(isinstance(side, bool) for side in sides):
        raise ValueError(
            f"image_size: wrong value. Got {size!r}; expected a whole number of pixels, or two: "
            f"(height, width)."
        )
    return height, width


def check_image_size(image_size: tuple[int, int], patch: tuple[int, int], subject: str) -> None:
    """Raise `ShapeError` unless the image is a whole number of patches."""
    if any(size < p or size % p for size, p in zip(image_size, patch, strict=True)):
        down = tuple(max(1, size // p) * p for size, p in zip(image_size, patch, strict=True))
        raise ShapeError(
            f"{subject}: image size is not a multiple of the patch size. Got "
            f"{image_size[0]}x{image_size[1]} with patches of {patch[0]}x{patch[1]}; expected "
            f"for example {down[0]}x{down[1]} or {down[0] + patch[0]}x{down[1] + patch[1]}."
        )


def refuse_size(
    error: Exception,
    subject: str,
    name: str,
    size: tuple[int, int],
    own: tuple[int, int] | None,
    *,
    fits: Callable[[tuple[int, int]], bool] | None = None,
) -> None:
    """Say in our words that a model cannot take images of a size, where that may be the reason.

    Args:
        error: What the model raised; one of `FAILURES`.
        subject: First word of the message.
        name: Of the model.
        size: (height, width) of the images.
        own: The size it was built for; None where it does not say.
        fits: Tells whether the model takes a size, to find one that is near.

    Raises:
        ShapeError: Unless the size is the model's own, or the device is what failed.
        ValueError: At construction (with `fits`), if the model fails at its own size.
    """
    if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
        return
    shown = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": .")
    got = f"Got {size[0]}x{size[1]} for {name}, which raised {shown}"
    if size == own:
        if fits is not None:
            raise ValueError(f"{subject}: the model fails on a grey RGB image. {got}.") from error
        return
    near = own
    if fits is not None and own is not None:
        near = next((one for one in _sizes_near(size, own) if fits(one)), None)
    expected = f"; expected for example {near[0]}x{near[1]}" if near else ""
    raise ShapeError(
        f"{subject}: the model cannot take images of this size. {got}{expected}. Build it with an "
        f"image_size that it can take, and give it images of that size."
    ) from error


def _sizes_near(size: tuple[int, int], own: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes that a model of windows may take, the nearest first, its own last."""
    found = []
    for parts in (8, 4, 2):
        height, width = (max(1, side // parts) for side in own)
        found.append(
            (max(round(size[0] / height), 1) * height, max(round(size[1] / width), 1) * width)
        )
    return [*found, own]


def fit_positions(model: Resizable, image_size: tuple[int, int], rule: Rule, subject: str) -> None:
    """Change the input size of a timm transformer, in place, positions by the given rule."""
    patch = model.patch_embed.patch_size
    check_image_size(image_size, patch, subject)
    grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    learned = isinstance(model, _HasPositions) and isinstance(model.pos_embed, Tensor)
    if not learned or rule == "timm":
        try:
            model.set_input_size(img_size=image_size)
        except FAILURES as error:
            refuse_size(error, subject, type(model).__name__, image_size, None)
            raise
        return
    assert isinstance(model, _HasPositions)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    with torch.no_grad():
        table = resample_positions(model.pos_embed, grid, prefix=prefix, rule=rule)
    trainable = model.pos_embed.requires_grad
    model.set_input_size(img_size=image_size)
    model.pos_embed = nn.Parameter(table, requires_grad=trainable)
