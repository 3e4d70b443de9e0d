"""How large a teacher's features of one image are when they are kept."""

import math
from typing import Literal, TypeAlias, get_args

from .ranges import check_numbers

Kept: TypeAlias = Literal["all", "cls"]
Stored: TypeAlias = Literal["fp32", "fp16", "int8"]
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_SCALE = 2  # bytes of the number that all of an int8 token are multiplied with


def target_bytes(
    grid: tuple[int, int],
    embed_dim: int,
    patch_dim: int | None = None,
    *,
    tokens: Kept = "all",
    dtype: Stored = "fp16",
    views: int = 1,
) -> int:
    """Bytes of a teacher's features of one image, without any file's header.

    Args:
        grid: (h, w) of its patches; (0, 0) = it has none.
        embed_dim: Width of its class token.
        patch_dim: Width of its patches; None = the same.
        tokens: `all`, or the class token alone.
        dtype: Of the numbers; `int8` has one fp16 scale for each token.
        views: Crops of the image that are kept.

    Raises:
        ValueError: If a setting is unknown, or there are less than one view.

    Examples:
        >>> target_bytes((16, 16), 768, views=1)
        394752
        >>> target_bytes((16, 16), 768, tokens="cls", dtype="int8", views=10)
        7700
    """
    if tokens not in get_args(Kept) or dtype not in get_args(Stored):
        raise ValueError(
            f"targets: unknown format. Got tokens={tokens!r}, dtype={dtype!r}; expected "
            f"{' or '.join(get_args(Kept))}, and {', '.join(get_args(Stored))}."
        )
    check_numbers("targets", {"repeats": views})
    rows = math.prod(grid) if tokens == "all" else 0
    numbers = embed_dim + rows * (patch_dim or embed_dim)
    scales = (1 + rows) * _SCALE if dtype == "int8" else 0
    return views * (numbers * _BYTES[dtype] + scales)
