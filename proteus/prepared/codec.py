"""How a token is stored, what it takes, and what it loses."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Tokens = Literal["all", "cls"]
Dtype = Literal["fp32", "fp16", "int8"]
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_SCALE = 4  # bytes of a token's scale, of int8
_CHECKED = 16  # bytes of a row's checksum, and of the number of the image it shows
_LARGEST = 127


def check_dtype(tokens: str, dtype: str) -> None:
    """Raise `ValueError` unless both are known."""
    if tokens not in get_args(Tokens):
        raise ValueError(f"prepare: unknown tokens. Got {tokens!r}; expected 'all' or 'cls'.")
    if dtype not in get_args(Dtype):
        raise ValueError(
            f"prepare: unknown dtype. Got {dtype!r}; expected 'fp32', 'fp16' or 'int8'."
        )


def bytes_of_an_image(
    cls_dim: int, patch_dim: int, patches: int, *, tokens: Tokens = "all", dtype: Dtype = "fp16"
) -> int:
    """Bytes that the features of one view of an image take on disk, checks included.

    Args:
        cls_dim: Width of the class token.
        patch_dim: Width of patches.
        patches: How many there are.
        tokens: `all`, or `cls` = the class token alone.
        dtype: Of the numbers.

    Examples:
        >>> bytes_of_an_image(384, 384, 256), bytes_of_an_image(384, 384, 256, tokens="cls")
        (197392, 784)
        >>> bytes_of_an_image(384, 384, 256, dtype="int8")  # a scale for each token
        99732
    """
    check_dtype(tokens, dtype)
    count = patches if tokens == "all" else 0
    scales = _SCALE * (1 + count) if dtype == "int8" else 0
    return _BYTES[dtype] * (cls_dim + count * patch_dim) + scales + _CHECKED


def encode(name: str, values: Tensor, dtype: Dtype) -> dict[str, Tensor]:
    """Tokens [..., D] as they are stored: `name`, and for int8 `name_scale` [..., 1].

    Raises:
        ValueError: If a value is not finite, or too large for fp16.
    """
    values = values.detach().float()
    if not bool(values.isfinite().all()):
        raise ValueError(
            "prepare: the teacher gave values that are not finite. Look at its weights, or let it "
            "compute in float32 (precision=None)."
        )
    if dtype == "fp32":
        return {name: values}
    if dtype == "fp16":
        largest = float(values.abs().max()) if values.numel() else 0.0
        if largest > torch.finfo(torch.float16).max:
            raise ValueError(
                f"prepare: features are too large for fp16. Got values up to {largest:.3g}; "
                f"expected at most 65504. Use int8, which scales each token, or fp32."
            )
        return {name: values.half()}
    scale = values.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = scale / _LARGEST
    stored = (values / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return {name: stored, f"{name}_scale": scale}


def decode(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """What `encode` stored, as float32."""
    values = stored[name].float()
    scale = stored.get(f"{name}_scale")
    return values if scale is None else values * scale
