"""OpenAI CLIP's visual tower -> a plain timm model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .positions import check_image_size, resample_positions
from .state_dicts import (
    StateDict,
    load_strictly,
    model_tensors,
    naming,
    open_weights,
    refuse_not_finite,
    rename,
)
from .vit import check_needed, depth_of, hand_back, heads_of, image_pair

_NEEDED = {
    "class_embedding": 1,
    "positional_embedding": 2,
    "conv1.weight": 4,
    "ln_pre.weight": 1,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}
# Beside the visual tower: the text tower and what belongs to both.
_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
_SHARED = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
_NAMES = (
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("transformer.resblocks.", "blocks."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
)


def from_openai_clip(
    state_dict: Mapping[str, Any] | str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> nn.Module:
    """The visual tower of an OpenAI CLIP checkpoint as a plain timm model.

    QuickGELU, a norm before the blocks (`ln_pre`), features behind `ln_post`, the projection into
    the space shared with text dropped, as Proteus uses CLIP.

    Args:
        state_dict: OpenAI's keys, of the whole model (`visual.…`, the text tower is left alone) or
            of the visual tower alone, or a local file. OpenAI's own downloads are TorchScript
            programs, which are not run; the error says how to convert one.
        image_size: Pixels; None = the trained size. Positions are resampled once, by timm's rule
            (CLIP itself has none).
        num_heads: None = width / 64, which holds for all published models.

    Returns:
        timm `VisionTransformer` in eval, `num_classes=0`, in float32 (OpenAI's files hold half
        precision), with `mask_token` as in `from_dinov2`.

    Raises:
        ValueError: If a key is missing or left over, or the file is of another family.

    Examples:
        >>> from proteus import Teacher
        >>> model = from_openai_clip("ViT-B-16.pth")  # doctest: +SKIP
        >>> teacher = Teacher(model)  # doctest: +SKIP

    Source:
        OpenAI CLIP `clip/model.py` (`VisionTransformer`); Proteus `pretrain/models_clip.py`.
        *Same:* the class token, LayerNorm eps 1e-5.
        *Different:* patch tokens are normed by `ln_post` too, as timm does; the authors hand them
        back without it, and no objective of the paper uses them.
    """
    with naming(state_dict):
        content = open_weights(state_dict, "from_openai_clip")
        tensors = visual_tower(model_tensors(content, "from_openai_clip"), "from_openai_clip")
        return build_clip(tensors, image_size, num_heads, "from_openai_clip")


def visual_tower(tensors: dict[str, Tensor], subject: str) -> dict[str, Tensor]:
    """The visual tower under bare names; unknown others stay, to be complained of."""
    if "visual.class_embedding" not in tensors:
        return tensors
    kept = {k: v for k, v in tensors.items() if not k.startswith((*_TEXT, *_SHARED))}
    return rename(kept, lambda name: name.removeprefix("visual."), subject)


def build_clip(
    tensors: StateDict,
    image_size: int | tuple[int, int] | None,
    num_heads: int | None,
    subject: str,
) -> nn.Module:
    """A timm model for a visual tower under OpenAI's bare names."""
    import timm

    check_needed(tensors, _NEEDED, subject)
    refuse_not_finite(tensors, subject)  # here under the file's own names
    tensors = dict(tensors)
    mask_token = tensors.pop("mask_token", None)
    tensors.pop("proj", None)
    width, patch = tensors["conv1.weight"].shape[0], tensors["conv1.weight"].shape[-1]
    hidden = tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    native = math.isqrt(tensors["positional_embedding"].shape[0] - 1) * patch
    size = image_pair(image_size, native)
    check_image_size(size, (patch, patch), subject)
    arguments: dict[str, Any] = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth_of(tensors, r"transformer\.resblocks\.(\d+)\."),
        "num_heads": heads_of(width, num_heads, subject),
        "mlp_ratio": (hidden + 0.5) / width,
    }
    grid = (size[0] // patch, size[1] // patch)
    tensors["class_embedding"] = tensors["class_embedding"].reshape(1, 1, -1)
    positions = tensors["positional_embedding"].float()[None]  # OpenAI's are in half precision
    tensors["positional_embedding"] = resample_positions(positions, grid, prefix=1, rule="timm")
    model = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224", pretrained=False, num_classes=0, **arguments
    )
    load_strictly(model, rename(tensors, _timm_name, subject), subject)
    return hand_back(model, mask_token, arguments, subject)


def _timm_name(name: str) -> str:
    for theirs, timms in _NAMES:
        name = name.replace(theirs, timms)
    return name
