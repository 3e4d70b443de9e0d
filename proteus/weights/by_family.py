"""A local file into a model that was asked for by name: `Teacher(..., checkpoint=)`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .efficientnet_lite import is_efficientnet, timm_names
from .openai_clip import build_clip, visual_tower
from .proteus_authors import from_proteus
from .state_dicts import load_strictly, model_tensors, naming, read_state_dict, without_classifier
from .vit import from_dinov2, from_synclr

_PREFIXES = ("visual.trunk.", "visual.", "")  # open_clip puts the first two before a tower's names
_GEOMETRY = {
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "conv1.weight": "patch_embed.proj.weight",
    "pos_embed": "pos_embed",
    "positional_embedding": "pos_embed",
}


def load_checkpoint(model: nn.Module, path: str | Path, subject: str) -> nn.Module:
    """Fill a timm model from a local file in any of the formats its family comes in.

    timm's own, DINOv2's, SynCLR's, the Proteus authors', OpenAI's and open_clip's, DINOv3's,
    EfficientNet's with the names of efficientnet_pytorch.

    Args:
        model: The timm model that was named; tells what the file has to hold.
        path: `.safetensors` or `.pth`.
        subject: First word of error messages.

    Returns:
        The model, or one of the same architecture in which the positions have the file's grid.

    Raises:
        ValueError: If the file is unreadable or holds another model.
    """
    with naming(path):
        return _load(model, path, subject)


def _load(model: nn.Module, path: str | Path, subject: str) -> nn.Module:
    tensors = model_tensors(read_state_dict(path), subject)
    if is_efficientnet(tensors):
        tensors = timm_names(model, tensors)
    body = without_classifier(model, tensors)
    if set(body) == set(model.state_dict()):
        load_strictly(model, body, subject)
        return model
    converted = _convert(model, tensors, subject)
    if converted is None:
        load_strictly(model, _by_timm(model, body, subject), subject)
        return model
    expected = {k: v.shape for k, v in model.state_dict().items() if k != "pos_embed"}
    found = {k: v.shape for k, v in converted.state_dict().items() if k != "pos_embed"}
    if expected != found:
        raise ValueError(
            f"{subject}: the file holds another model. Got {Path(path).name}, whose tensors are "
            f"{_difference(found, expected)}; expected those of the model that was named."
        )
    vars(converted)["pretrained_cfg"] = vars(model)["pretrained_cfg"]
    return converted


def _convert(model: nn.Module, tensors: dict[str, Tensor], subject: str) -> nn.Module | None:
    """The file as a model, where its family is one we read ourselves."""
    from timm.layers import QuickGELU

    if any(name.startswith("student.backbone.") for name in tensors):
        return from_proteus(tensors)
    if "storage_tokens" in tensors:  # DINOv3: timm's
        return None
    bare = next(
        (p for p in ("", "visual.", "backbone.") if f"{p}blocks.0.norm1.weight" in tensors), None
    )
    if bare or (bare == "" and "mask_token" in tensors):
        return (from_synclr if bare == "visual." else from_dinov2)(tensors)
    tower = visual_tower(tensors, subject)
    quick = any(isinstance(module, QuickGELU) for module in model.modules())
    # open_clip writes OpenAI's names for models with the exact GELU; those are timm's to read.
    if "class_embedding" in tower and quick:
        return build_clip(tower, None, None, subject)
    return None


def _by_timm(model: nn.Module, tensors: dict[str, Tensor], subject: str) -> dict[str, Tensor]:
    """Timm's own conversion of foreign names, without what it would do silently."""
    from timm.models import eva, vision_transformer

    if isinstance(model, eva.Eva):
        convert: Any = eva.checkpoint_filter_fn
    elif isinstance(model, vision_transformer.VisionTransformer):
        convert = vision_transformer.checkpoint_filter_fn
    else:
        return tensors
    dinov3 = "storage_tokens" in tensors
    biased = any(k.endswith("qkv.bias") and bool(v.any()) for k, v in tensors.items())
    if dinov3 and biased and not any(name.endswith("q_bias") for name in model.state_dict()):
        raise ValueError(
            f"{subject}: the file's attention biases would be dropped. Got biases other than zero; "
            f"expected zeros, as in the distilled DINOv3 models. Name the model that has them "
            f"(…_qkvb)."
        )
    _check_geometry(model, tensors, subject)
    # timm takes keys out of the dictionary it is given, and adds a head where the file has one.
    converted = convert(dict(tensors), model)
    return {
        name: value
        for name, value in converted.items()
        if not name.startswith("head.") and isinstance(value, torch.Tensor)
    }


def _check_geometry(model: nn.Module, tensors: dict[str, Tensor], subject: str) -> None:
    """Refuse a file that timm would resample to the named model's patch or image size."""
    own = model.state_dict()
    prefix = next(p for p in _PREFIXES if any(key.startswith(p) for key in tensors))
    for theirs, ours in _GEOMETRY.items():
        value = tensors.get(prefix + theirs)
        if value is not None and ours in own and value.numel() != own[ours].numel():
            raise ValueError(
                f"{subject}: the file is for another image or patch size. Got {prefix}{theirs} "
                f"{tuple(value.shape)}; expected {tuple(own[ours].shape)}. Name the model of that "
                f"size."
            )


def _difference(found: dict[str, torch.Size], expected: dict[str, torch.Size]) -> str:
    for name, shape in found.items():
        if name not in expected:
            return f"others, such as {name}"
        if shape != expected[name]:
            return f"of other shapes, such as {name} {tuple(shape)} for {tuple(expected[name])}"
    return f"fewer, without {next(name for name in expected if name not in found)}"
