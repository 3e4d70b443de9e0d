"""Images in, `Features` out, for any timm model or `nn.Module`.

`ImageInput` is the way in (range check and the model's own normalisation), a `Reader` the way out.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..features import Features, ShapeError
from ..traits import Trait
from ..weights.description import Statistics
from .read_transformers import TransformersModel, read_transformers

_LOWEST, _HIGHEST = -0.01, 1.01  # of images in [0, 1] that were resized


class ImageInput(nn.Module):
    """RGB images as the user has them -> what the model expects.

    Args:
        statistics: (mean, std) per channel in [0, 1] units, or None for images that are
            normalised already.
        subject: First word of error messages.
    """

    mean: Tensor
    std: Tensor
    seen: Tensor

    def __init__(self, statistics: Statistics | None, subject: str) -> None:
        super().__init__()
        self.normalizes, self.subject = statistics is not None, subject
        mean, std = statistics or ((0.0,) * 3, (1.0,) * 3)
        # Not persistent: statistics belong to the model's description, not to its weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        # Lowest and highest value since the last check, 0 and 1 or beyond: of a rank, not of a run.
        self.register_buffer("seen", torch.tensor((0.0, 1.0)), persistent=False)
        self._range_seen = False

    def like(self, model: nn.Module) -> "ImageInput":
        """Move to the device and floating dtype of a model's first weight."""
        for weight in model.parameters():
            if weight.is_floating_point():
                return self.to(weight.device, weight.dtype)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """uint8 0-255 or float [0, 1], [B, 3, H, W] -> normalised, in the model's dtype."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(
                f"{self.subject}: images have the wrong shape. Got {tuple(images.shape)}; "
                f"expected RGB [B, 3, H, W]."
            )
        if images.dtype == torch.uint8:
            if not self.normalizes:
                raise ValueError(
                    f"{self.subject}: normalize=False takes normalised float images. Got uint8; "
                    f"expected float, or build it with normalize=True."
                )
            return (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        if not images.is_floating_point():
            raise ValueError(
                f"{self.subject}: images have the wrong dtype. Got {images.dtype}; "
                f"expected uint8 0-255 or float in [0, 1]."
            )
        images = images.to(self.mean.dtype)
        if not self.normalizes:
            return images
        self._note_range(images.detach())
        return (images - self.mean) / self.std

    def _note_range(self, images: Tensor) -> None:
        """Look at the first batch now; of the others keep what `check` reads later.

        Reading two numbers makes the host wait for the device.
        """
        if images.numel() == 0 or images.is_meta:
            return
        low, high = torch.aminmax(images)
        seen = self.seen
        seen.copy_(torch.stack([torch.minimum(seen[0], low), torch.maximum(seen[1], high)]))
        # Compiled, the first batch waits for `check` as well: reading it would break the graph.
        if not torch.compiler.is_compiling() and not self._range_seen:
            self.check()
            self._range_seen = True

    def outside(self) -> Tensor:
        """Whether images since the last `check` left [0, 1]: 0 or 1, a scalar on the device.

        Not for NaN, which the loss tells with the step.
        """
        low, high = self.seen
        return torch.logical_or(low < _LOWEST, high > _HIGHEST).float()

    def check(self) -> None:
        """Read the range of the images since the last check, which makes the host wait.

        Raises:
            ValueError: If float images were outside [0, 1].
        """
        low, high = self.seen.tolist()
        self.seen.copy_(self.seen.new_tensor((0.0, 1.0)))
        if not (low >= _LOWEST and high <= _HIGHEST):  # written so that NaN fails
            raise ValueError(
                f"{self.subject}: images are not in [0, 1]. Got values from {low:.3g} to "
                f"{high:.3g}; expected RGB float in [0, 1] or uint8. Drop Normalize from your "
                f"transform (each model normalises its own input), or build the model with "
                f"normalize=False."
            )


class _PatchEmbed(Protocol):
    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]: ...


@runtime_checkable
class _HasGrid(Trait, Protocol):
    """A model whose patch embedding tells its grid."""

    patch_embed: _PatchEmbed


@runtime_checkable
class TimmModel(Trait, Protocol):
    """timm's models: features, and a head that makes the family's own vector of them."""

    num_features: int

    def forward_features(self, x: Tensor) -> Any:
        """Images to features, whatever their form."""

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """Features to the vector in front of the classifier."""


@runtime_checkable
class TokenModel(Trait, Protocol):
    """timm's transformers with a class token, or none, before the patches: ViT, EVA, BEiT, DeiT."""

    patch_embed: nn.Module
    num_prefix_tokens: int
    cls_token: Tensor | None
    norm: nn.Module
    fc_norm: nn.Module
    global_pool: str


@runtime_checkable
class _FeatureModel(Trait, Protocol):
    """DINOv2's own classes (`torch.hub`): a dictionary of normed tokens."""

    def forward_features(self, x: Tensor) -> Any: ...


# A plain function of the model, never a closure over it: a copied Teacher or Student must read its
# own model, not the one it was copied from.
Reader = Callable[[Any, Tensor], Features]


def reader_for(model: nn.Module) -> Reader:
    """How to get `Features` out of this model, decided once from what the model is."""
    if isinstance(model, TransformersModel):
        return read_transformers
    if isinstance(model, TimmModel):
        return _read_timm
    return _read_dictionary if isinstance(model, _FeatureModel) else _read_call


def norms_after_pooling(model: nn.Module | TimmModel) -> bool:
    """Whether the last norm stands behind the average, as in models trained with it."""
    return (
        isinstance(model, TokenModel)
        and isinstance(model.norm, nn.Identity)
        and not isinstance(model.fc_norm, nn.Identity)
    )


def averages_beside_class_token(model: nn.Module | TimmModel) -> bool:
    """Whether timm averages the patches although a normed class token stands for the image.

    So it does for DINOv3. Behind the average a norm would mean that the average was trained, and
    the class token not.
    """
    return (
        isinstance(model, TokenModel)
        and model.cls_token is not None
        and not norms_after_pooling(model)
        and model.global_pool in ("", "avg", "avgmax", "max")
    )


def read_vector(model: TimmModel, output: Any) -> Tensor:
    """The family's own vector, from what `forward_features` gave: [B, D].

    It is what the plain model returns (with `num_classes=0`): class token, mean of two, average,
    attention pooling, and the layers behind it; but for DINOv3 the class token.
    """
    if averages_beside_class_token(model):
        return cast("Tensor", output[:, 0])
    try:
        return cast("Tensor", model.forward_head(output, pre_logits=True))
    except (NotImplementedError, TypeError) as error:
        raise _unreadable(model, output, f"no vector ({error})") from error


def _read_timm(model: TimmModel, images: Tensor) -> Features:
    return read_final(model, model.forward_features(images), images)


def read_final(model: TimmModel, output: Any, images: Tensor) -> Features:
    """`Features` of what `forward_features` gave for these images."""
    cls = read_vector(model, output)
    if not isinstance(output, Tensor):  # rows of several widths and grids: CoaT, CrossViT
        if not isinstance(cls, Tensor) or cls.ndim != 2:
            raise _unreadable(model, output, "several outputs and no vector")
        return _vector_alone(cls)
    if output.ndim == 4:
        channels_last = output.shape[1] != model.num_features  # as in Swin
        if channels_last and output.shape[3] != model.num_features:
            raise _unreadable(model, output, f"a map without the width {model.num_features}")
        patches = output.flatten(1, 2) if channels_last else output.flatten(2).mT
        first = 1 if channels_last else 2
        grid = (output.shape[first], output.shape[first + 1])
    elif output.ndim == 3:
        patches = output[:, _num_prefix_tokens(model) :]
        if not patches.shape[1] and cls.ndim == 2:  # PiT hands on the class token alone
            return _vector_alone(cls)
        grid = _token_grid(model, patches.shape[1], images, output)
        patches = cast("Any", model).fc_norm(patches) if norms_after_pooling(model) else patches
    elif output.ndim == 2:
        return _vector_alone(output)
    else:
        raise _unreadable(model, output, "neither tokens nor a map")
    if cls.ndim != 2:  # pooling is switched off
        cls = patches.mean(1)
    if cls.shape[-1] != patches.shape[-1]:
        if output.ndim != 4:
            raise _unreadable(model, output, f"a vector of another width, {tuple(cls.shape)}")
        patches = _through_head(model, patches, channels_last=channels_last)
    return Features(cls, patches, grid)


def _through_head(model: TimmModel, patches: Tensor, *, channels_last: bool) -> Tensor:
    """Each patch alone through what stands behind the pooling: [B, N, C] -> [B, N, D].

    Some heads widen the vector (MobileNetV3, HGNet); patches and `cls` must be of one space.
    """
    alone = patches.flatten(0, 1)  # [B * N, C]
    alone = alone[:, None, None] if channels_last else alone[:, :, None, None]
    # Statistics are those of whole images.
    norms = [m for m in cast("Any", model).modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        made: Tensor = model.forward_head(alone, pre_logits=True)  # [B * N, D]
    finally:
        for norm in norms:
            norm.training = True
    return made.view(*patches.shape[:2], -1)


def _num_prefix_tokens(model: TimmModel) -> int:
    """Tokens before the patches; several families have a class token and do not count it."""
    said = vars(model)
    if isinstance(said.get("num_prefix_tokens"), int):
        return int(said["num_prefix_tokens"])
    if said.get("global_pool") != "token":
        return 0
    token = cast("Any", model)._parameters.get("cls_token")
    return int(token.shape[1]) if token is not None and token.ndim == 3 else 1


def _token_grid(model: TimmModel, count: int, images: Tensor, output: Tensor) -> tuple[int, int]:
    size = (images.shape[-2], images.shape[-1])
    if isinstance(model, _HasGrid) and isinstance(model, TokenModel):
        grid = model.patch_embed.dynamic_feat_size(size)
    else:
        grid = _grid_of(count, size) or (0, 0)
    if not count or grid[0] * grid[1] != count:
        raise _unreadable(model, output, f"{count} patches that are no grid of the image")
    return grid


def _vector_alone(cls: Tensor) -> Features:
    return Features(cls, cls.new_zeros(cls.shape[0], 0, cls.shape[1]), (0, 0))


def _read_dictionary(model: _FeatureModel, images: Tensor) -> Features:
    return _read_output(model, model.forward_features(images), images)


def _read_call(model: nn.Module, images: Tensor) -> Features:
    return _read_output(model, model(images), images)


def _read_output(model: Any, output: Any, images: Tensor) -> Features:
    """`Features` from what a module returned, where that is unambiguous."""
    if isinstance(output, Features):
        return output
    if isinstance(output, dict) and "x_norm_clstoken" in output:
        patches = output["x_norm_patchtokens"]
        grid = _grid_of(patches.shape[1], (images.shape[-2], images.shape[-1]))
        if grid is None:
            raise _unreadable(model, patches, f"{patches.shape[1]} patches that are no grid")
        return Features(output["x_norm_clstoken"], patches, grid)
    if isinstance(output, Tensor) and output.ndim == 4:
        return Features(
            output.mean((2, 3)),
            output.flatten(2).mT,
            (output.shape[2], output.shape[3]),
        )
    if isinstance(output, Tensor) and output.ndim == 2:
        return _vector_alone(output)
    raise _unreadable(model, output, "no Features, feature map [B, D, h, w] or vector [B, D]")


def _grid_of(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of so many patches on an image of this size; None if they form none."""
    height, width = size
    rows = round((count * height / width) ** 0.5)
    if rows == 0 or count % rows:
        return None
    columns = count // rows
    # Of the image's own form: 6 patches are no grid of a square. Strides may round up.
    fits = rows == -(-columns * height // width) or columns == -(-rows * width // height)
    return (rows, columns) if fits else None


def _unreadable(model: Any, output: Any, found: str) -> ShapeError:
    config = vars(model).get("pretrained_cfg")
    name = dict(config).get("architecture") if isinstance(config, Mapping) else None
    advice = "Choose another model of `proteus info`, or wrap" if name else "Wrap"
    return ShapeError(
        f"{name or type(model).__name__}: the output cannot be read. Got {_shown(output)}, which "
        f"is {found}; expected a vector [B, D] and one token for each patch. {advice} the model in "
        f"a module whose forward returns proteus.Features(cls, patches, grid)."
    )


def _shown(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, list | tuple):
        return f"{type(output).__name__} of {', '.join(_shown(part) for part in output)}"
    return type(output).__name__


def probe(read: Reader, model: nn.Module, inputs: ImageInput, size: tuple[int, int]) -> Features:
    """One grey image through the model, without a trace: width and grid at construction."""
    with evaluating(model), torch.no_grad():
        blank = inputs.mean.expand(1, 3, *size).contiguous()
        return read(model, (blank - inputs.mean) / inputs.std)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards every module is in its own mode again."""
    modes = [(inner, inner.training) for inner in module.modules()]
    # LeViT and its kin keep what they computed from weights in eval mode, and forget it in `train`.
    module.train()
    module.eval()
    try:
        yield
    finally:
        module.train()
        for inner, mode in modes:
            inner.training = mode
