"""Resample learned positions to another patch grid, by the rule of the model's family.

Two rules are in use and give different numbers (up to 1.5 % of the features for DINOv2):

* `dinov2`: bicubic without antialias, coordinates scaled by (grid + 0.1) / trained grid. DINOv2
  without registers, and the students of the Proteus authors.
* `timm`: bicubic with antialias to the exact size. Register models of DINOv2, and everything else.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Rule = Literal["dinov2", "timm"]


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
class _PatchEmbed(Protocol):
    img_size: tuple[int, int] | None
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]


@runtime_checkable
class Resizable(Protocol):
    """A timm transformer whose input size is fixed when it is built, and can be changed."""

    patch_embed: _PatchEmbed

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """timm: change the input size, resampling positions by timm's rule."""


def is_resizable(model: object) -> TypeGuard[Any]:  # `Resizable`, and what it was before
    """Whether it is `Resizable`, its patch embedding included (EfficientViT's says no size)."""
    return isinstance(model, Resizable) and isinstance(model.patch_embed, _PatchEmbed)


@runtime_checkable
class _HasPositions(Protocol):
    pos_embed: nn.Parameter
    num_prefix_tokens: int
    no_embed_class: bool


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """224 -> (224, 224); two whole numbers stay what they are.

    Raises:
        ValueError: If it is neither.
    """
    try:
        side = operator.index(size)  # type: ignore[arg-type]
        return side, side
    except TypeError:
        pass
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ValueError(
        f"image size: got {size!r}; expected a number of pixels, or two: (height, width)."
    )


def check_image_size(image_size: tuple[int, int], patch: tuple[int, int], subject: str) -> None:
    """Raise `ValueError` unless the image is a whole number of patches."""
    if any(size < p or size % p for size, p in zip(image_size, patch, strict=True)):
        down = tuple(max(1, size // p) * p for size, p in zip(image_size, patch, strict=True))
        raise ValueError(
            f"{subject}: image size is not a multiple of the patch size. Got "
            f"{image_size[0]}x{image_size[1]} with patches of {patch[0]}x{patch[1]}; expected "
            f"for example {down[0]}x{down[1]} or {down[0] + patch[0]}x{down[1] + patch[1]}."
        )


def fit_positions(model: Resizable, image_size: tuple[int, int], rule: Rule, subject: str) -> None:
    """Change the input size of a timm transformer, in place, positions by the given rule."""
    patch = model.patch_embed.patch_size
    check_image_size(image_size, patch, subject)
    grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    learned = isinstance(model, _HasPositions) and isinstance(model.pos_embed, Tensor)
    if not learned or rule == "timm":
        model.set_input_size(img_size=image_size)
        return
    assert isinstance(model, _HasPositions)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    with torch.no_grad():
        table = resample_positions(model.pos_embed, grid, prefix=prefix, rule=rule)
    trainable = model.pos_embed.requires_grad
    model.set_input_size(img_size=image_size)
    model.pos_embed = nn.Parameter(table, requires_grad=trainable)
