"""Models of transformers, known by their shape: images in, `Features` out.

What is `cls` and what is a patch differs from family to family, and so does whether the last norm
is behind the tokens. `FAMILIES` says it for each family whose output is rows of tokens, as
transformers' own image classifier of that family reads them:

* DINOv2 (also with registers), DINOv3, ViT, DeiT: the normed class token, which is the vector that
  their image classifiers take, and not the `pooler_output` of ViT and DeiT (a layer with tanh of
  another task, random in most files); patches normed. DeiT's distillation token is left out.
* I-JEPA has no class token: the average of the normed patches.
* CLIP: `pooler_output`, the normed class token in front of the projection to text. transformers
  leaves the patches without the last norm; here they pass it, so that both are of one space.
* SigLIP: `pooler_output`, its attention pooling; patches normed.
* BEiT, Data2Vec: `pooler_output`: the normed average of the patches, or, with
  `use_mean_pooling=False`, the class token. Behind an average the norm is that of the pooling; here
  each patch passes it too.
* Swin: `pooler_output`, the average; patches normed.
* DINOv3's ConvNeXt: the pooled vector and the patches, both normed.

A model that gives a feature map [B, D, h, w] needs no entry (ResNet, RegNet, ConvNeXt, MobileNet,
EfficientNet …): `pooler_output` and the map as they are, so that in ConvNeXt the vector is normed
and the map is not, as in timm. Everything else is refused: what masks its input (ViT-MAE), orders
its tokens in another way (Hiera), or returns logits or several stages.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from ..features import IMAGENET, Features, ShapeError
from ..traits import Trait
from ..weights.description import Statistics
from ..weights.positions import check_image_size

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5,) * 3, (0.5,) * 3)


@runtime_checkable
class TransformersModel(Trait, Protocol):
    """A `transformers.PreTrainedModel`: what it has and other modules do not."""

    config: Any
    main_input_name: str
    base_model_prefix: str


class Family(NamedTuple):
    """Where a family's vector and patches stand in its output.

    Attributes:
        vector: `token` = the first token, `pooled` = `pooler_output`, `mean` = of the patches.
        num_prefix_tokens: Tokens before the patches, without registers.
        registers: Whether there are registers behind the class token.
        resamples: Whether positions are resampled only where that is asked for.
        norm: End of the name of a layer that the patches have still to pass.
        stride: Of a model of stages: whether the last, incomplete patch is padded or cut off.
        statistics: Mean and std of its images, where all models of the family share them.
        objectives: The loss terms it supports as a teacher.
    """

    vector: Literal["token", "pooled", "mean"] = "token"
    num_prefix_tokens: int = 1
    registers: bool = False
    resamples: bool = True
    norm: str = ""
    stride: Literal["", "padded", "cut"] = ""
    statistics: Statistics = IMAGENET
    objectives: tuple[str, ...] = ("token", "feature", "patch")


_TEXT = ("token",)  # trained against text: no objective shaped the patches
_STAGES = Family("pooled", 0, stride="padded")
_BEIT = Family("pooled", norm="pooler.layernorm")
FAMILIES: Mapping[str, Family] = {
    "dinov2": Family(resamples=False),
    "dinov2_with_registers": Family(registers=True, resamples=False),
    "dinov3_vit": Family(registers=True, resamples=False),
    "vit": Family(),
    "deit": Family(num_prefix_tokens=2),
    "ijepa": Family("mean", 0),
    "clip_vision_model": Family(
        "pooled", norm="post_layernorm", statistics=_CLIP, objectives=_TEXT
    ),
    "siglip_vision_model": Family("pooled", 0, statistics=_HALF, objectives=_TEXT),
    "beit": _BEIT,
    "data2vec-vision": _BEIT,
    "swin": _STAGES,
    "swinv2": _STAGES,
    "dinov3_convnext": Family("pooled", resamples=False, stride="cut"),
}
_MAP = Family("pooled", 0, resamples=False)  # what gives a map says all itself


def family_of(model: TransformersModel) -> Family:
    """The model's entry in `FAMILIES`; for others, that of models which give a map."""
    return FAMILIES.get(model.config.model_type, _MAP)


def own_size(model: TransformersModel) -> tuple[int, int] | None:
    """(height, width) that the configuration says; None where it says none."""
    size = vars(model.config).get("image_size")
    return None if size is None else _pair(size)


def read_transformers(model: TransformersModel, images: Tensor) -> Features:
    """`Features` of normalised images, by the rule of the model's family.

    Images of another size than the model's own get positions that transformers resamples, by the
    model's own `interpolate_pos_encoding`, in each call.

    Raises:
        ShapeError: If the output is none of the forms above, or the image is no whole number of
            patches of a vision transformer.
    """
    family, size = family_of(model), (images.shape[-2], images.shape[-1])
    if model.main_input_name != "pixel_values":
        raise _unreadable(model, f"takes {model.main_input_name}")
    resample = family.resamples and size != own_size(model)
    options = {"interpolate_pos_encoding": True} if resample else {}
    try:
        output = cast("Any", model)(pixel_values=images, return_dict=True, **options)
    except (TypeError, ValueError) as error:  # it wants more than images, or masks them
        if family is not _MAP:
            raise
        raise _unreadable(model, f"raised {type(error).__name__}: {error}") from error
    tokens = output.get("last_hidden_state") if isinstance(output, Mapping) else None
    if tokens is None or "feature_maps" in output:
        raise _unreadable(model, f"returns {', '.join(output) or 'nothing'}")
    pooled = output.get("pooler_output")
    if family.vector == "pooled":
        if (
            pooled is None
            or pooled.flatten(1).shape[1] != tokens.shape[1 if tokens.ndim == 4 else 2]
        ):
            raise _unreadable(model, "gives no pooler_output of the width of its tokens")
        pooled = pooled.flatten(1)  # [B, D, 1, 1] of a CNN -> [B, D]
    if tokens.ndim == 4:
        return Features(pooled, tokens.flatten(2).mT, (tokens.shape[2], tokens.shape[3]))
    if family is _MAP or tokens.ndim != 3:
        raise _unreadable(model, f"is of the family {model.config.model_type!r}, unknown here")
    return _read_tokens(model, family, tokens, pooled, size)


def _read_tokens(
    model: TransformersModel, family: Family, tokens: Tensor, pooled: Any, size: tuple[int, int]
) -> Features:
    prefix = family.num_prefix_tokens
    prefix += model.config.num_register_tokens if family.registers else 0
    grid = _grid(model, family, size)
    patches = tokens[:, prefix:]  # [B, N, D]
    if patches.shape[1] != grid[0] * grid[1]:
        raise _unreadable(model, f"gives {patches.shape[1]} patches, not {grid[0]} x {grid[1]}")
    if family.norm:
        named = cast("nn.Module", model).named_modules()
        norm = next((layer for name, layer in named if name.endswith(family.norm)), None)
        patches = patches if norm is None else norm(patches)
    if family.vector == "pooled":
        return Features(pooled, patches, grid)
    return Features(tokens[:, 0] if family.vector == "token" else patches.mean(1), patches, grid)


def _grid(model: TransformersModel, family: Family, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the patches of an image, from the configuration."""
    config = model.config
    if not family.stride:
        patch = _pair(config.patch_size)
        check_image_size(size, patch, type(model).__name__)
        return size[0] // patch[0], size[1] // patch[1]
    # The stem of a ConvNeXt has no setting.
    first = _pair(config.patch_size) if family.stride == "padded" else (4, 4)
    height, width = (side * 2 ** (len(config.depths) - 1) for side in first)
    if family.stride == "cut":
        return size[0] // height, size[1] // width
    return -(-size[0] // height), -(-size[1] // width)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _unreadable(model: TransformersModel, found: str) -> ShapeError:
    inside = {
        "timm_wrapper": "its timm_model",
        "clip": "its vision_model",
        "siglip": "its vision_model",
        "clip_vision_model": "its vision_model, or a CLIPVisionModel",
    }.get(model.config.model_type, "its base_model, with a pooling layer where it has one")
    return ShapeError(
        f"{type(model).__name__}: the output cannot be read. Got a model of transformers that "
        f"{found}; expected last_hidden_state of a family of proteus.models.read_transformers, or "
        f"a feature map with its pooler_output. Give {inside}, or wrap the model in a module whose "
        f"forward returns proteus.Features(cls, patches, grid)."
    )
