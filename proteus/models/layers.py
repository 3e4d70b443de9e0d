"""Features of a model's inner layers, for the families that tell them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..features import Features
from ..traits import Trait
from .read import Reader, TimmModel, TokenModel, norms_after_pooling, read_vector


@runtime_checkable
class _Layered(Trait, Protocol):
    """timm's models that return what their blocks or stages give."""

    def forward_intermediates(self, x: Tensor) -> Any: ...


@runtime_checkable
class _LayeredTokens(TimmModel, TokenModel, Protocol):
    """timm's transformers with one row of tokens."""

    blocks: nn.Module

    def forward_intermediates(self, x: Tensor) -> Any: ...


@runtime_checkable
class _Dinov2(Trait, Protocol):
    """DINOv2's own classes."""

    n_blocks: int

    def get_intermediate_layers(self, x: Tensor) -> Any: ...


def count_layers(model: nn.Module, images: Tensor) -> int:
    """How many layers a model tells; 1, its output, where it tells none."""
    if isinstance(model, _LayeredTokens) and isinstance(
        model.blocks, nn.Sequential | nn.ModuleList
    ):
        return len(model.blocks)
    if isinstance(model, _Layered):
        intermediates: Any = model.forward_intermediates
        return len(intermediates(images, indices=None, intermediates_only=True))
    return model.n_blocks if isinstance(model, _Dinov2) else 1


def read_layers(
    model: nn.Module,
    read: Reader,
    images: Tensor,
    indices: Sequence[int],
    total: int,
    *,
    norm: bool,
) -> list[Features]:
    """The layers with these numbers (ascending), of normalised images."""
    if isinstance(model, _LayeredTokens):
        return _read_blocks(model, images, indices, total, norm=norm)
    if isinstance(model, _Layered):
        return _read_stages(model, read, images, indices, total, norm=norm)
    if isinstance(model, _Dinov2):
        layers: Any = model.get_intermediate_layers
        patch: Any = vars(model)["patch_size"]
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        outputs = layers(images, n=list(indices), return_class_token=True, norm=norm)
        return [Features(cls, patches, grid) for patches, cls in outputs]
    if not norm:
        raise ValueError(
            f"evaluation: this model does not tell its inner layers. Got {type(model).__name__}; "
            f"expected a model with timm's forward_intermediates."
        )
    return [read(model, images)]


def _read_blocks(
    model: _LayeredTokens, images: Tensor, indices: Sequence[int], total: int, *, norm: bool
) -> list[Features]:
    forward: Any = model.forward_intermediates
    # The whole model runs only where its last output is asked for.
    whole = norm and indices[-1] == total - 1
    options = {"indices": list(indices), "norm": norm, "output_fmt": "NLC"}
    final: Any = None
    if whole:
        final, outputs = forward(images, return_prefix_tokens=True, **options)
    else:
        outputs = forward(
            images, return_prefix_tokens=True, intermediates_only=True, stop_early=True, **options
        )
    embed: Any = model.patch_embed
    grid = embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
    pools = norms_after_pooling(model)
    pooled = pools or model.cls_token is None
    features = []
    for output in outputs:
        patches, prefix = output if isinstance(output, tuple) else (output, None)
        if pools and norm:
            patches = model.fc_norm(patches)
        cls = patches.mean(1) if pooled or prefix is None else prefix[:, 0]
        features.append(Features(cls, patches, grid))
    if whole:
        features[-1] = features[-1]._replace(cls=read_vector(model, final))
    return features


def _read_stages(
    model: _Layered, read: Reader, images: Tensor, indices: Sequence[int], total: int, *, norm: bool
) -> list[Features]:
    forward: Any = model.forward_intermediates
    features = []
    inner = [index for index in indices if not (norm and index == total - 1)]
    if inner:
        options = {"indices": inner, "norm": norm, "output_fmt": "NCHW"}
        for output in forward(images, intermediates_only=True, **options):
            grid = (output.shape[2], output.shape[3])
            features.append(Features(output.mean((2, 3)), output.flatten(2).mT, grid))
    if len(inner) < len(indices):
        assert isinstance(model, nn.Module)
        features.append(read(model, images))
    return features
