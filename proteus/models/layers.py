"""Features of a model's inner layers, for the families that tell them."""

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from ..features import Features
from ..traits import Trait
from .read import (
    TimmModel,
    TokenModel,
    norms_after_pooling,
    read_final,
    read_vector,
    reader_for,
)


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


def tells_layers(model: nn.Module) -> bool:
    """Whether inner layers and the output can be had of one forward."""
    return isinstance(model, _Dinov2) or (
        isinstance(model, _Layered) and isinstance(model, TimmModel)
    )


def normalizes_layers(model: nn.Module, images: Tensor) -> bool:
    """Whether inner layers can be asked for behind the final norm; Hiera has none for them."""
    if not isinstance(model, _Layered):
        return True
    forward: Any = model.forward_intermediates
    try:
        forward(images, indices=[0], norm=True, intermediates_only=True)
    except AssertionError:
        return False
    return True


def read_beside(
    model: nn.Module, images: Tensor, inner: Sequence[int], total: int, *, norm: bool
) -> tuple[list[Features], Features]:
    """These inner layers (ascending) and what a call returns, of one forward.

    Of the layers, `cls` is the mean of the patches.
    """
    if not inner:
        return [], reader_for(model)(model, images)
    if isinstance(model, _Dinov2):
        *layers, whole = _read_dinov2(model, images, [*inner, total - 1], norm=norm)
        return layers, whole
    assert isinstance(model, TimmModel)
    assert isinstance(model, _Layered)
    tokens = isinstance(model, _LayeredTokens)
    forward: Any = model.forward_intermediates
    options = {"norm": norm, "output_fmt": "NLC" if tokens else "NCHW"}
    # Hiera would stop early by itself, and then give no output.
    final, outputs = forward(images, indices=list(inner), stop_early=False, **options)
    whole = read_final(model, final, images)
    if not tokens:
        return [_of_map(output) for output in outputs], whole
    if norm and norms_after_pooling(model):
        outputs = [cast("Any", model).fc_norm(output) for output in outputs]
    return [Features(output.mean(1), output, whole.grid) for output in outputs], whole


def read_layers(
    model: nn.Module,
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
        return _read_stages(model, images, indices, total, norm=norm)
    if isinstance(model, _Dinov2):
        return _read_dinov2(model, images, indices, norm=norm)
    if not norm:
        raise ValueError(
            f"evaluation: this model does not tell its inner layers. Got {type(model).__name__}; "
            f"expected a model with timm's forward_intermediates."
        )
    return [reader_for(model)(model, images)]


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
    model: _Layered, images: Tensor, indices: Sequence[int], total: int, *, norm: bool
) -> list[Features]:
    forward: Any = model.forward_intermediates
    features = []
    inner = [index for index in indices if not (norm and index == total - 1)]
    if inner:
        options = {"indices": inner, "output_fmt": "NCHW", "intermediates_only": True}
        try:
            outputs = forward(images, norm=norm, **options)
        except AssertionError:  # Hiera has no norm for inner layers
            outputs = forward(images, norm=False, **options)
        for output in outputs:
            features.append(_of_map(output))
    if len(inner) < len(indices):
        assert isinstance(model, nn.Module)
        features.append(reader_for(model)(model, images))
    return features


def _read_dinov2(
    model: _Dinov2, images: Tensor, indices: Sequence[int], *, norm: bool
) -> list[Features]:
    layers: Any = model.get_intermediate_layers
    patch: Any = vars(model)["patch_size"]
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    outputs = layers(images, n=list(indices), return_class_token=True, norm=norm)
    return [Features(cls, patches, grid) for patches, cls in outputs]


def _of_map(output: Tensor) -> Features:
    grid = (output.shape[2], output.shape[3])
    return Features(output.mean((2, 3)), output.flatten(2).mT, grid)
