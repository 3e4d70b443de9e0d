"""Weight files of the model families -> plain timm models, strictly.

Every importer infers the architecture from the tensors, never changes its argument, and fails when
a key is missing or left over. `.pth` files are read with `weights_only=True`; nothing in a file is
executed.
"""

import argparse
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .positions import Rule, check_image_size, resample_positions

StateDict = Mapping[str, Tensor]
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` or `.pth` file without executing anything in it.

    Args:
        path: A local file.

    Returns:
        What the file holds: name -> tensor (for `.pth` also nested dictionaries).

    Raises:
        ValueError: If the file is missing, is not a weight file, or holds anything but tensors,
            plain containers and numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: no such file. Got {str(path)!r}; expected a local weight file.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # `Namespace` is a bag of attributes; training scripts store their arguments in one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"weights: {path.name} is not a readable weight file. Got {type(error).__name__}: "
            f"{reason}. Expected .safetensors, or .pth with tensors only; download it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"weights: {path.name} holds no state dict. Got {type(content).__name__}; expected a "
            f"dictionary of tensors."
        )
    return content


def from_dinov2(
    state_dict: StateDict | str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> nn.Module:
    """A DINOv2-format checkpoint as a plain timm model.

    Handles mlp and SwiGLU blocks, with and without registers, any width and depth.

    Args:
        state_dict: DINOv2 keys (`blocks.0.attn.qkv.weight`, …), or a local file with them.
        image_size: Pixels; None = the size the positions were trained for. Positions are
            resampled once, here: by DINOv2's own rule (offset 0.1, no antialias) without
            registers, by timm's (which is DINOv2's for register models) with them.
        num_heads: None = width / 64, which holds for all published models; tensors cannot tell.

    Returns:
        timm `VisionTransformer` in eval, `num_classes=0`. Its attribute `mask_token` is the file's
        mask token [1, D] (a plain tensor, not part of the state dict), or None.

    Raises:
        ValueError: If a key is missing or left over, or a shape does not fit.

    Examples:
        >>> import timm
        >>> model = timm.create_model(
        ...     "vit_small_patch14_dinov2", num_classes=0, img_size=56, depth=2
        ... )
        >>> weights = dict(model.state_dict(), mask_token=torch.zeros(1, 384))
        >>> from_dinov2(weights, image_size=70).pos_embed.shape
        torch.Size([1, 26, 384])

    Source:
        DINOv2 `dinov2/models/vision_transformer.py`; timm `vision_transformer.py`
        (`_convert_dinov2`).
        *Same:* outputs, at any image size (timm's own loader differs by up to 1.5 % there).
        *Different:* timm recognises the file by its `mask_token` and drops it; here it is kept.
    """
    import timm

    tensors = dict(
        read_state_dict(state_dict) if isinstance(state_dict, str | Path) else state_dict
    )
    mask_token = tensors.pop("mask_token", None)
    arguments, native = _dinov2_arguments(tensors, num_heads)
    patch, registers = arguments["patch_size"], arguments["reg_tokens"]
    size = (native, native)
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_image_size(size, (patch, patch), "from_dinov2")
    grid = (size[0] // patch, size[1] // patch)
    rule: Rule = "timm" if registers else "dinov2"
    positions = resample_positions(tensors["pos_embed"], grid, prefix=1, rule=rule)
    if registers:
        # timm's register models keep the class position inside the class token.
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["reg_token"] = tensors.pop("register_tokens")
        positions = positions[:, 1:]
    tensors["pos_embed"] = positions
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    tensors = {
        key.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): value
        for key, value in tensors.items()
    }
    # The giant is timm's only SwiGLU architecture; the arguments give all sizes.
    family = "vit_giant_patch14" if swiglu else "vit_base_patch14"
    architecture = f"{family}{'_reg4' if registers else ''}_dinov2"
    model = timm.create_model(
        architecture, pretrained=False, num_classes=0, img_size=size, **arguments
    )
    load_strictly(model, tensors, "from_dinov2")
    # A plain attribute, not part of the state dict: timm's models have no such parameter.
    vars(model)["mask_token"] = None if mask_token is None else mask_token.detach().clone()
    return model.eval()


def _dinov2_arguments(tensors: StateDict, num_heads: int | None) -> tuple[dict[str, Any], int]:
    """Timm arguments and trained image size, from the tensors."""
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise ValueError(
            f"from_dinov2: not a DINOv2 state dict. Got {len(tensors)} keys such as "
            f"{sorted(tensors)[:3]}; expected {', '.join(missing)} among them."
        )
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    if num_heads is None:
        if width % 64:
            raise ValueError(
                f"from_dinov2: the number of heads cannot be inferred. Got width {width}, which "
                f"is not a multiple of 64; pass num_heads=."
            )
        num_heads = width // 64
    indices = [int(m[1]) for key in tensors if (m := re.match(r"blocks\.(\d+)\.", key))]
    first = tensors.get("blocks.0.mlp.w12.weight", tensors.get("blocks.0.mlp.fc1.weight"))
    if first is None:
        raise ValueError(
            "from_dinov2: the first block has no MLP. Expected blocks.0.mlp.fc1.weight or "
            "blocks.0.mlp.w12.weight."
        )
    registers = tensors["register_tokens"].shape[1] if "register_tokens" in tensors else 0
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    arguments = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": max(indices) + 1,
        "num_heads": num_heads,
        # timm takes int(width * ratio); the half keeps rounding from losing a row.
        "mlp_ratio": (first.shape[0] + 0.5) / width,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
        "reg_tokens": registers,
        "no_embed_class": registers > 0,
    }
    return arguments, side * patch


def load_strictly(model: nn.Module, tensors: StateDict, subject: str) -> None:
    """Load a state dict; any missing, left-over or misshapen key is an error that names it."""
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in tensors],
        "left over": [key for key in tensors if key not in own],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise ValueError(
            f"{subject}: the weights do not fit {type(model).__name__}. Got keys {'; '.join(found)}"
            f"; expected exactly the {len(own)} keys of the model. Check that the file belongs to "
            f"this model."
        )
    model.load_state_dict(dict(tensors))


def load_checkpoint(model: nn.Module, path: str | Path, subject: str) -> nn.Module:
    """Fill a timm model from a local file in timm's or DINOv2's format.

    Returns:
        The model, or one of the same architecture in which the positions have the file's grid.
    """
    tensors = read_state_dict(path)
    if set(tensors) != set(model.state_dict()) and "mask_token" in tensors:
        converted = from_dinov2(tensors)
        expected = {k: v.shape for k, v in model.state_dict().items() if k != "pos_embed"}
        found = {k: v.shape for k, v in converted.state_dict().items() if k != "pos_embed"}
        if expected != found:
            raise ValueError(
                f"{subject}: the file holds another model. Got {Path(path).name}, whose shapes are "
                f"not those of the model that was named."
            )
        vars(converted)["pretrained_cfg"] = vars(model)["pretrained_cfg"]
        return converted
    load_strictly(model, tensors, subject)
    return model
