"""DINOv2 and SynCLR weights: vision transformers under timm's own key names, or nearly."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .positions import Rule, check_image_size, resample_positions, to_pair
from .state_dicts import (
    StateDict,
    load_strictly,
    model_tensors,
    naming,
    open_weights,
    refuse_not_finite,
    rename,
)

# Rank of the tensors from which the architecture is read.
_NEEDED = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "norm.weight": 1}
_OPTIONAL = {"register_tokens": 3, "blocks.0.mlp.w12.weight": 2, "blocks.0.mlp.fc1.weight": 2}


def from_dinov2(
    state_dict: Mapping[str, Any] | str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> nn.Module:
    """A DINOv2-format checkpoint as a plain timm model.

    Handles mlp and SwiGLU blocks, with and without registers, any width and depth.

    Args:
        state_dict: DINOv2 keys (`blocks.0.attn.qkv.weight`, …), also under `model`, `state_dict` or
            `teacher` and with `module.` or `backbone.` before them, or a local file with them.
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
        >>> import timm, torch
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
    with naming(state_dict):
        tensors = model_tensors(open_weights(state_dict, "from_dinov2"), "from_dinov2")
        if "backbone.cls_token" in tensors:
            # DINOv2's training checkpoints: the backbone beside the heads of its own objectives.
            heads = ("dino_head.", "ibot_head.")
            tensors = {k: v for k, v in tensors.items() if not k.startswith(heads)}
            tensors = rename(tensors, lambda key: key.removeprefix("backbone."), "from_dinov2")
        return build_vit(tensors, image_size, num_heads, "from_dinov2")


def from_synclr(
    state_dict: Mapping[str, Any] | str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> nn.Module:
    """A SynCLR checkpoint as a plain timm model: a ViT without LayerScale.

    Args:
        state_dict: SynCLR's keys, with `module.visual.`, `visual.` or nothing before them, also
            under `model` or `state_dict`, or a local file. Beside a `visual.` tower the heads of
            the training objective are left alone; they are no part of the backbone.
        image_size: Pixels; None = the trained size. SynCLR resamples as DINOv2 does.
        num_heads: None = width / 64, which holds for both published models.

    Returns:
        timm `VisionTransformer` in eval, `num_classes=0`, with `mask_token` as in `from_dinov2`.

    Raises:
        ValueError: If a key is missing or left over, or the file is of another family.

    Examples:
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
        >>> weights = {f"module.visual.{k}": v for k, v in model.state_dict().items()}
        >>> from_synclr({"model": weights}, image_size=64).pos_embed.shape
        torch.Size([1, 17, 192])

    Source:
        SynCLR `eval/main_downstream_linear.py` (keys); Proteus `pretrain/models_synclr.py`.
        *Same:* outputs, position rule, ImageNet statistics.
        *Different:* the authors load with `strict=False`; here a missing or left-over key of the
        backbone is an error.
    """
    with naming(state_dict):
        tensors = model_tensors(open_weights(state_dict, "from_synclr"), "from_synclr")
        if "visual.cls_token" in tensors:
            tower = "visual."
            tensors = {k.removeprefix(tower): v for k, v in tensors.items() if k.startswith(tower)}
        if "blocks.0.ls1.gamma" in tensors:
            raise ValueError(
                "from_synclr: the file is of another family. Got LayerScale (blocks.0.ls1.gamma), "
                "which SynCLR has not; expected a SynCLR file. Use from_dinov2."
            )
        return build_vit(tensors, image_size, num_heads, "from_synclr")


def build_vit(
    tensors: StateDict,
    image_size: int | tuple[int, int] | None,
    num_heads: int | None,
    subject: str,
) -> nn.Module:
    """A timm model for tensors under DINOv2's bare names; SynCLR's are a subset of them."""
    import timm

    tensors = dict(tensors)
    mask_token = tensors.pop("mask_token", None)
    arguments, native = _arguments(tensors, num_heads, subject)
    patch, registers = arguments["patch_size"], arguments["reg_tokens"]
    size = image_pair(image_size, native)
    check_image_size(size, (patch, patch), subject)
    grid = (size[0] // patch, size[1] // patch)
    rule: Rule = "timm" if registers else "dinov2"
    # In float32 also where the file is in half precision.
    positions = resample_positions(tensors["pos_embed"].float(), grid, prefix=1, rule=rule)
    if registers:
        # timm's register models keep the class position inside the class token.
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        positions = positions[:, 1:]
    tensors["pos_embed"] = positions
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    tensors = rename(tensors, _timm_name, subject)
    # The giant is timm's only SwiGLU architecture; the arguments give all sizes. The family also
    # says which statistics and which position rule belong to the model: DINOv2's and SynCLR's are
    # the same.
    family = "vit_giant_patch14" if swiglu else "vit_base_patch14"
    architecture = f"{family}{'_reg4' if registers else ''}_dinov2"
    model = timm.create_model(
        architecture, pretrained=False, num_classes=0, img_size=size, **arguments
    )
    load_strictly(model, tensors, subject)
    return hand_back(model, mask_token, {"img_size": size, **arguments}, subject)


def _timm_name(name: str) -> str:
    if name == "register_tokens":
        return "reg_token"
    return name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")


def _arguments(
    tensors: StateDict, num_heads: int | None, subject: str
) -> tuple[dict[str, Any], int]:
    """Timm arguments and trained image size, from the tensors."""
    there = {key: rank for key, rank in _OPTIONAL.items() if key in tensors}
    check_needed(tensors, {**_NEEDED, **there}, subject)
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    first = tensors.get("blocks.0.mlp.w12.weight", tensors.get("blocks.0.mlp.fc1.weight"))
    if first is None:
        raise ValueError(
            f"{subject}: the first block has no MLP. Expected blocks.0.mlp.fc1.weight or "
            f"blocks.0.mlp.w12.weight."
        )
    registers = tensors["register_tokens"].shape[1] if "register_tokens" in tensors else 0
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    arguments = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth_of(tensors, r"blocks\.(\d+)\."),
        "num_heads": heads_of(width, num_heads, subject),
        # timm takes int(width * ratio); the half keeps rounding from losing a row.
        "mlp_ratio": (first.shape[0] + 0.5) / width,
        # 0 and not None, which timm takes for "not given".
        "init_values": 1.0 if "blocks.0.ls1.gamma" in tensors else 0.0,
        "reg_tokens": registers,
        "no_embed_class": registers > 0,
    }
    return arguments, side * patch


def check_needed(tensors: StateDict, needed: Mapping[str, int], subject: str) -> None:
    """Raise unless the tensors that tell the architecture are there, with the right rank."""
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise ValueError(
            f"{subject}: the file is of another family. Got {len(tensors)} keys such as "
            f"{sorted(tensors)[:3]}; expected {', '.join(missing)} among them."
        )
    for key, rank in needed.items():
        if tensors[key].ndim != rank or tensors[key].numel() == 0:
            raise ValueError(
                f"{subject}: {key} has the wrong shape. Got {tuple(tensors[key].shape)}; expected "
                f"{rank} dimensions, none of them 0."
            )
        if not tensors[key].is_floating_point():
            raise ValueError(
                f"{subject}: {key} is of another kind. Got {tensors[key].dtype}; expected floating "
                f"point."
            )


def depth_of(tensors: StateDict, pattern: str) -> int:
    """How many blocks: one more than the highest index in the names."""
    highest = max((int(m[1]) for key in tensors if (m := re.match(pattern, key))), default=0)
    return min(highest + 1, len(tensors))  # a name must not make us build a billion of them


def heads_of(width: int, num_heads: int | None, subject: str) -> int:
    """The number of heads, which no tensor tells."""
    if num_heads is not None and (num_heads < 1 or width % num_heads):
        raise ValueError(
            f"{subject}: width {width} cannot be split into num_heads={num_heads}. Expected a "
            f"divisor of the width."
        )
    if num_heads is None and width % 64:
        raise ValueError(
            f"{subject}: the number of heads cannot be inferred. Got width {width}, which is not a "
            f"multiple of 64; pass num_heads=."
        )
    return num_heads or width // 64


def image_pair(image_size: int | tuple[int, int] | None, native: int) -> tuple[int, int]:
    """The size asked for as (height, width); None = the trained one."""
    return to_pair(native if image_size is None else image_size)


def hand_back(
    model: nn.Module, mask_token: Tensor | None, arguments: dict[str, Any], subject: str
) -> nn.Module:
    """Attach what timm's models have no place for, as plain attributes, and go to eval."""
    if mask_token is not None:
        if mask_token.numel() != arguments["embed_dim"] or not mask_token.is_floating_point():
            raise ValueError(
                f"{subject}: mask_token has the wrong shape or kind. Got {tuple(mask_token.shape)} "
                f"{mask_token.dtype}; expected {arguments['embed_dim']} values in floating point."
            )
        refuse_not_finite({"mask_token": mask_token}, subject)
        mask_token = mask_token.detach().clone().reshape(1, -1)
    vars(model)["mask_token"] = mask_token
    # timm records these itself from 1.0.31 on; an export needs them with every version.
    vars(model)["_model_args"] = arguments
    return model.eval()
