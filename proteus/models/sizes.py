"""Let a timm transformer take images of other sizes than its own, in the same weights."""

from typing import Protocol, runtime_checkable

from timm.layers.format import Format
from torch import nn

from ..traits import Trait


@runtime_checkable
class _Embedding(Trait, Protocol):
    strict_img_size: bool
    flatten: bool
    output_fmt: Format


@runtime_checkable
class _TakesSizes(Trait, Protocol):
    """timm's ViT and EVA: positions are brought to the image's grid in each forward, if asked."""

    dynamic_img_size: bool
    patch_embed: _Embedding


def let_take_sizes(model: nn.Module) -> None:
    """Switch on what timm's `dynamic_img_size=True` builds; nothing for any other model.

    At its own size the model computes what it did, from the same weights.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
        >>> let_take_sizes(model)
        >>> model.forward_features(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 5, 192])
    """
    if not isinstance(model, _TakesSizes) or model.dynamic_img_size:
        return
    embedding = model.patch_embed
    if not isinstance(embedding, _Embedding):
        return
    model.dynamic_img_size = True
    embedding.strict_img_size = embedding.flatten = False
    embedding.output_fmt = Format.NHWC
