"""Two models, two patch sizes: how images, tokens and masks of one get to the grid of the other.

The rule, for any pair:

1. Images arrive once, at the size of the model that takes the larger ones; on the device each model
   gets them at its own `image_size` (`resize`: antialiased).
2. Where the image sizes are chosen so that the grids agree (a teacher of 14-pixel patches at 196
   beside a student of 16-pixel ones at 224: `Teacher(..., grid=student.grid)`), tokens are compared
   as they are.
3. Elsewhere the finer tokens are averaged to the coarser grid (`meet`), each by the area it covers.
4. Masks are drawn on that common grid; what touches a hidden cell is hidden (`spread`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import Features, ShapeError

Grid = tuple[int, int]
_NEAR = 4 / 3
_ASPECT = 1.1  # sides are rounded to whole patches, so that forms differ a little


def common_grid(one: Grid, other: Grid) -> Grid:
    """The coarser grid, by each side; (0, 0) where one of them has no patches.

    Examples:
        >>> common_grid((16, 16), (14, 14)), common_grid((7, 12), (14, 10))
        ((14, 14), (7, 10))
    """
    return min(one[0], other[0]), min(one[1], other[1])


def meet(student: Features, teacher: Features) -> tuple[Features, Features]:
    """Both on their common grid; what is on it already comes back as it is.

    Args:
        student: Of the student, any width.
        teacher: Of the teacher, any width, of the same images.

    Examples:
        >>> fine = Features(torch.zeros(2, 8), torch.zeros(2, 16, 8), (4, 4))
        >>> coarse = Features(torch.zeros(2, 6), torch.zeros(2, 4, 6), (2, 2))
        >>> [features.grid for features in meet(fine, coarse)]
        [(2, 2), (2, 2)]
    """
    grid = common_grid(student.grid, teacher.grid)
    return average_to(student, grid), average_to(teacher, grid)


def average_to(features: Features, grid: Grid) -> Features:
    """Patches on a coarser grid: each the mean of what covers its place, weighted by area.

    Exact for any two grids: 28 to 14 is the mean of 2 x 2, 16 to 14 weights what lies across a
    border by its share. Class tokens stay.

    Args:
        features: Patches [B, N, D].
        grid: (h, w), no finer than theirs.

    Returns:
        Patches [B, h * w, D]; the input itself where the grid is its own, or has no patches.

    Raises:
        ShapeError: If the grid is finer.

    Examples:
        >>> patches = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
        >>> average_to(Features(torch.zeros(1, 1), patches, (2, 2)), (1, 2)).patches.flatten()
        tensor([1., 2.])
    """
    if grid == features.grid or 0 in grid:
        return features
    if grid[0] > features.grid[0] or grid[1] > features.grid[1]:
        raise ShapeError(
            f"grids: patches can only be averaged to a coarser grid. Got {features.grid} to {grid}."
        )
    maps = features.patches.reshape(-1, *features.grid, features.patches.shape[-1])  # [B, H, W, D]
    rows = _shares(features.grid[0], grid[0], maps)
    columns = _shares(features.grid[1], grid[1], maps)
    patches = torch.einsum("hH,wW,bHWd->bhwd", rows, columns, maps).flatten(1, 2)
    return Features(features.cls, patches, grid)


def _shares(fine: int, coarse: int, like: Tensor) -> Tensor:
    """[coarse, fine]: how much of each coarse cell each fine one covers; rows sum to 1."""
    # In whole units: a fine cell is `coarse` long, a coarse one `fine`.
    ends = torch.arange(fine + 1, device=like.device) * coarse
    start = torch.arange(coarse, device=like.device)[:, None] * fine
    covered = torch.minimum(ends[1:], start + fine) - torch.maximum(ends[:-1], start)
    return covered.clamp(min=0).to(like.dtype) / fine


def spread(hidden: Tensor, grid: Grid) -> Tensor:
    """Masks on a finer grid (of patches, or of pixels): hidden where it touches a hidden cell.

    Args:
        hidden: bool [B, h, w].
        grid: (H, W), no coarser.

    Returns:
        bool [B, H, W]; the input itself where the grid is its own.

    Raises:
        ShapeError: If the grid is coarser.

    Examples:
        >>> spread(torch.tensor([[[True, False]]]), (1, 4))
        tensor([[[ True,  True, False, False]]])
        >>> spread(torch.tensor([[[True, False]]]), (1, 3))
        tensor([[[ True,  True, False]]])
    """
    own = (hidden.shape[1], hidden.shape[2])
    if own == grid:
        return hidden
    if own[0] > grid[0] or own[1] > grid[1]:
        raise ShapeError(
            f"masks: they are finer than what is to be hidden. Got {own} on a grid of {grid}; "
            f"expected masks on that grid, or on a coarser one."
        )
    for dim, (coarse, fine) in enumerate(zip(own, grid, strict=True), 1):
        place = torch.arange(fine, device=hidden.device)
        first = place * coarse // fine
        last = ((place + 1) * coarse - 1) // fine
        found = hidden.index_select(dim, first)
        if fine % coarse:
            found = found | hidden.index_select(dim, last)
        hidden = found
    return hidden


def partner_size(size: tuple[int, int], grid: Grid, patch: Grid) -> tuple[int, int]:
    """The image size for the other model of a pair: where its grid is the same, if that is near.

    Within a third of `size`, what a patch shows changes little, and tokens compare one to one. A
    CNN of stride 32 beside patches of 16 would have to see images twice as large as it was trained
    for: it gets `size`, and the finer tokens are averaged.

    Args:
        size: (height, width) of the one model.
        grid: Its (h, w).
        patch: (height, width) of the other's patches in pixels; (0, 0) if it has none.

    Examples:
        >>> partner_size((224, 224), (14, 14), (14, 14)), partner_size((224, 224), (14, 14), (8, 8))
        ((196, 196), (224, 224))
    """
    wanted = grid[0] * patch[0], grid[1] * patch[1]
    ratios = [one / other for one, other in zip(wanted, size, strict=True)]
    near = all(1 / _NEAR <= ratio <= _NEAR for ratio in ratios)
    return wanted if near else size


def check_fits(subject: str, images: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise `ShapeError` unless images are at least of a model's size, and of its form."""
    ratios = images[0] / size[0], images[1] / size[1]
    if min(ratios) < 1 or max(ratios) > _ASPECT * min(ratios):
        raise ShapeError(
            f"{subject}: images do not fit the model. Got {images[0]}x{images[1]} for a model at "
            f"{size[0]}x{size[1]}; expected this size, or a larger one of the same form. Load the "
            f"images so, or build the model with image_size={images}."
        )


def resize(images: Tensor, size: tuple[int, int], subject: str) -> Tensor:
    """Images as they arrive -> images of a model's size, antialiased, on their device.

    Args:
        images: RGB [B, 3, H, W], uint8 or float.
        size: (height, width) of the model.
        subject: First word of error messages.

    Returns:
        The images themselves where they have the size; else float [B, 3, height, width], uint8 in
        [0, 1].

    Raises:
        ShapeError: If the images are smaller, or of another form.
    """
    found = (images.shape[-2], images.shape[-1])
    if found == size:
        return images
    check_fits(subject, found, size)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return F.interpolate(images, size, mode="bilinear", antialias=True)
