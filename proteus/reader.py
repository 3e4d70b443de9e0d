"""Images in, `Features` out, for any timm model or `nn.Module`.

`ImageInput` is the way in (range check and the model's own normalisation), a `Reader` the way out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .features import Features, ShapeError

Statistics = tuple[Sequence[float], Sequence[float]]
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
class _TokenModel(Protocol):
    """timm's transformers with one row of tokens: ViT, EVA / DINOv3, BEiT, DeiT."""

    patch_embed: _PatchEmbed
    num_prefix_tokens: int
    cls_token: Tensor | None
    norm: nn.Module
    fc_norm: nn.Module

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...


@runtime_checkable
class _MapModel(Protocol):
    """timm's other models: a feature map, channels first or last."""

    num_features: int

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...


@runtime_checkable
class _FeatureModel(Protocol):
    """DINOv2's own classes (`torch.hub`): a dictionary of normed tokens."""

    def forward_features(self, x: Tensor) -> Any: ...


# A plain function of the model, never a closure over it: a copied Teacher or Student must read its
# own model, not the one it was copied from.
Reader = Callable[[Any, Tensor], Features]


def reader_for(model: nn.Module) -> Reader:
    """How to get `Features` out of this model, decided once from what the model is."""
    if isinstance(model, _TokenModel):
        return _read_tokens
    if isinstance(model, _MapModel):
        return _read_map
    return _read_dictionary if isinstance(model, _FeatureModel) else _read_call


def _read_tokens(model: _TokenModel, images: Tensor) -> Features:
    grid = model.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
    tokens = model.forward_features(images)
    # Models trained with average pooling keep their last norm behind the pooling; then the class
    # token, if there is one, was never trained and the pooled vector is what stands for the image.
    pools = isinstance(model.norm, nn.Identity) and not isinstance(model.fc_norm, nn.Identity)
    patches = tokens[:, model.num_prefix_tokens :]
    if pools or model.cls_token is None:
        pooled = model.forward_head(tokens, pre_logits=True)
        return Features(pooled, model.fc_norm(patches) if pools else patches, grid)
    return Features(tokens[:, 0], patches, grid)


def _read_map(model: _MapModel, images: Tensor) -> Features:
    output = model.forward_features(images)
    if output.ndim != 4:
        return _read_output(output, images)
    channels_last = output.shape[1] != model.num_features  # as in Swin
    features = _read_output(output.permute(0, 3, 1, 2) if channels_last else output, images)
    pooled = model.forward_head(output, pre_logits=True)
    # Some heads (MobileNetV3) widen the vector after pooling; then the mean of the map stands in.
    return features._replace(cls=pooled) if pooled.shape == features.cls.shape else features


def _read_dictionary(model: _FeatureModel, images: Tensor) -> Features:
    return _read_output(model.forward_features(images), images)


def _read_call(model: nn.Module, images: Tensor) -> Features:
    return _read_output(model(images), images)


def _read_output(output: Any, images: Tensor) -> Features:
    """`Features` from what a module returned, where that is unambiguous."""
    if isinstance(output, Features):
        return output
    if isinstance(output, dict) and "x_norm_clstoken" in output:
        patches = output["x_norm_patchtokens"]
        return Features(output["x_norm_clstoken"], patches, _infer_grid(patches, images))
    if isinstance(output, Tensor) and output.ndim == 4:
        return Features(
            output.mean((2, 3)),
            output.flatten(2).transpose(1, 2),
            (output.shape[2], output.shape[3]),
        )
    if isinstance(output, Tensor) and output.ndim == 2:
        return Features(output, output.new_zeros(output.shape[0], 0, output.shape[1]), (0, 0))
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"model: the output cannot be read. Got {shape}; expected Features, a feature "
        f"map [B, D, h, w] or a vector [B, D]. Wrap the model in a module whose forward returns "
        f"proteus.Features(cls, patches, grid)."
    )


def _infer_grid(patches: Tensor, images: Tensor) -> tuple[int, int]:
    count, height, width = patches.shape[1], images.shape[-2], images.shape[-1]
    rows = round((count * height / width) ** 0.5)
    if rows == 0 or count % rows:
        raise ShapeError(
            f"patch grid: {count} patches do not form a grid for {height}x{width} images. "
            f"Return proteus.Features(cls, patches, grid) from the model."
        )
    return rows, count // rows


def probe(read: Reader, model: nn.Module, inputs: ImageInput, size: tuple[int, int]) -> Features:
    """One grey image through the model, without a trace: width and grid at construction."""
    with evaluating(model), torch.no_grad():
        blank = inputs.mean.expand(1, 3, *size).contiguous()
        return read(model, (blank - inputs.mean) / inputs.std)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards every module is in its own mode again."""
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode
