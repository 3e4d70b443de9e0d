"""EfficientNet files with the names of efficientnet_pytorch -> timm's names, by rule."""

import re

from torch import Tensor, nn

from .state_dicts import StateDict

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def is_efficientnet(tensors: StateDict) -> bool:
    """Whether the tensors have the names of efficientnet_pytorch."""
    return "_conv_stem.weight" in tensors


def timm_names(model: nn.Module, tensors: StateDict) -> dict[str, Tensor]:
    """The tensors under the names of a timm EfficientNet.

    The files count blocks through, timm counts them stage by stage; which block has which layers
    is the model's to say. A name that no rule knows stays, and is left over when they are loaded.

    Args:
        model: The timm model that was named.
        tensors: Names such as `_blocks.3._expand_conv.weight`.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        >>> list(timm_names(model, {"_blocks.2._bn2.bias": torch.zeros(24)}))
        ['blocks.1.1.bn3.bias']
    """
    own = model.state_dict()
    found = (re.match(r"blocks\.\d+\.\d+\.", name) for name in own)
    blocks = list(dict.fromkeys(match[0] for match in found if match))
    return {_timm_name(name, blocks, own): value for name, value in tensors.items()}


def _timm_name(name: str, blocks: list[str], own: StateDict) -> str:
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name)
    if match is None:
        return name
    number, layer, weight = match.groups()
    prefix, rule = "", _OUTSIDE
    if number is not None:
        if int(number) >= len(blocks):
            return name
        prefix = blocks[int(number)]
        rule = _INVERTED if f"{prefix}conv_pwl.weight" in own else _SEPARABLE
    return f"{prefix}{rule[layer]}.{weight}" if layer in rule else name
