"""Any timm model or `nn.Module` -> `Features`: build it, feed it, read it.

`load_backbone` turns a name into a plain model, `ImageInput` is the way in (range check and the
model's own normalisation), `Reader` the way out. `Teacher` and `Student` are made of these three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from .catalog import STUDENTS, TEACHERS, Entry, position_rule, unknown_name
from .features import Features, ShapeError
from .positions import Resizable, check_image_size, fit_positions

Statistics = tuple[Sequence[float], Sequence[float]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Backbone:
    """A plain model and what must be known to feed it.

    Attributes:
        model: The plain model; nothing of ours inside.
        name: What the user called it, for messages.
        image_size: (height, width) it is built for, or the size to try it with.
        fixed_size: Whether other sizes are refused by the model.
        statistics: Its mean and std.
        architecture: timm architecture, "" for other modules.
        arguments: timm arguments that rebuild it together with the architecture.
    """

    model: nn.Module
    name: str
    image_size: tuple[int, int]
    fixed_size: bool
    statistics: Statistics = IMAGENET
    architecture: str = ""
    arguments: dict[str, Any] | None = None


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """224 -> (224, 224)."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@runtime_checkable
class _HasConfig(Protocol):
    pretrained_cfg: Any


def load_backbone(
    model: str | nn.Module,
    *,
    subject: str,
    pretrained: bool,
    checkpoint: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Backbone:
    """Build the model a user asked for, or raise; never a different one.

    Args:
        model: A name of `proteus.catalog`, a timm name, `local-dir:FOLDER`, `hf-hub:OWNER/REPO`, or
            a module, which is used as it is.
        subject: "Teacher" or "Student", the first word of error messages.
        pretrained: Load the published weights.
        checkpoint: A local `.safetensors` or `.pth` file with the weights instead.
        image_size: Pixels; None = the model's own. Positions are resampled here, once, by the rule
            of the model's family.

    Raises:
        ValueError: If the name is unknown, weights are missing, or the size does not fit.
    """
    size = None if image_size is None else to_pair(image_size)
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError(
                f"{subject}: checkpoint= goes with a name. Got a module of type "
                f"{type(model).__name__}; load its weights before, with load_state_dict."
            )
        backbone = _describe(model, type(model).__name__, size)
    else:
        backbone = _create(model, subject, pretrained, checkpoint, size)
    if isinstance(backbone.model, Resizable):
        patch = backbone.model.patch_embed.patch_size
        check_image_size(size or backbone.image_size, patch, subject)
    if size is None or size == backbone.image_size:
        return backbone
    if isinstance(backbone.model, Resizable):
        fit_positions(backbone.model, size, position_rule(backbone.architecture), subject)
    if backbone.arguments is not None and backbone.fixed_size:
        backbone = replace(backbone, arguments={**backbone.arguments, "img_size": size})
    return replace(backbone, image_size=size)


def _create(
    name: str,
    subject: str,
    pretrained: bool,
    checkpoint: str | Path | None,
    size: tuple[int, int] | None,
) -> Backbone:
    """A named model; at its native size if it gets weights, else directly at the wanted one."""
    import timm

    entry = {**STUDENTS, **TEACHERS}.get(name, Entry(name))
    source = entry.architecture
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{subject}: no model there. Got {name!r}, which has no config.json; expected a "
                f"folder in timm's layout, such as the export folder of a run."
            )
    elif not source.startswith("hf-hub:"):
        architecture, _, tag = source.partition(".")
        tags = [t.partition(".")[2] for t in timm.list_models(architecture + ".*", pretrained=True)]
        if not timm.is_model(architecture) or (tag and tag not in tags):
            known = [*STUDENTS, *TEACHERS, *timm.list_models(), *timm.list_models(pretrained=True)]
            raise ValueError(unknown_name(subject, name, known))
    from_file = source.startswith(("local-dir:", "hf-hub:"))
    weights = from_file or (pretrained and checkpoint is None)
    if weights and not entry.published:
        raise ValueError(
            f"{subject}: no published weights. Got {name!r} with pretrained=True; expected "
            f"checkpoint='FILE', or pretrained=False for random weights."
        )
    arguments = dict(entry.arguments)
    target = size or (to_pair(entry.image_size) if entry.image_size else None)
    config = None if from_file else timm.get_pretrained_cfg(source)
    if target and not weights and checkpoint is None and config and config.fixed_input_size:
        arguments["img_size"] = target
    try:
        model = timm.create_model(source, pretrained=weights, num_classes=0, **arguments)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        if size is not None and "img_size" in arguments and not weights:
            raise ValueError(f"{subject}: {name} cannot be built at {size}. {error}") from error
        raise ValueError(
            f"{subject}: the model could not be loaded. Got {name!r} and from timm: "
            f"{type(error).__name__}: {error}. Without a connection pass checkpoint='FILE' or "
            f"'local-dir:FOLDER'."
        ) from error
    if checkpoint is not None:
        from .weights import load_checkpoint

        model = load_checkpoint(model, checkpoint, subject)
    described = _describe(model, name, size)
    return replace(described, arguments={**(described.arguments or {}), **arguments})


def _describe(model: nn.Module, name: str, size: tuple[int, int] | None) -> Backbone:
    """What a built model says about itself."""
    if not isinstance(model, _HasConfig):
        fallback = size or (224, 224)
        return Backbone(model, name, fallback, fixed_size=False)
    config: dict[str, Any] = dict(cast("Any", model.pretrained_cfg) or {})
    native = tuple(config.get("input_size", (3, 224, 224))[1:])
    fixed = isinstance(model, Resizable)
    if fixed:
        native = tuple(cast("Any", model).patch_embed.img_size or native)
    return Backbone(
        model,
        name,
        cast("tuple[int, int]", native),
        fixed_size=fixed,
        statistics=(config.get("mean", IMAGENET[0]), config.get("std", IMAGENET[1])),
        architecture=config.get("architecture") or "",
        arguments={"img_size": native} if fixed else {},
    )


class ImageInput(nn.Module):
    """RGB images as the user has them -> what the model expects.

    Args:
        statistics: (mean, std) per channel in [0, 1] units, or None for images that are
            normalised already.
        subject: First word of error messages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: Statistics | None, subject: str) -> None:
        super().__init__()
        self.normalizes, self.subject = statistics is not None, subject
        mean, std = statistics or ((0.0,) * 3, (1.0,) * 3)
        # Not persistent: statistics belong to the model's description, not to its weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
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
        self._check_range(images)
        return (images - self.mean) / self.std

    def _check_range(self, images: Tensor) -> None:
        # The first batch only: reading two numbers makes the host wait for the device.
        if self._range_seen or images.numel() == 0 or images.is_meta:
            return
        low, high = float(images.min()), float(images.max())
        if not (low >= -0.01 and high <= 1.01):  # written so that NaN fails
            raise ValueError(
                f"{self.subject}: images are not in [0, 1]. Got values from {low:.3g} to "
                f"{high:.3g}; expected RGB float in [0, 1] or uint8. Drop Normalize from your "
                f"transform (each model normalises its own input), or build the model with "
                f"normalize=False."
            )
        self._range_seen = True


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
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            blank = inputs.mean.expand(1, 3, *size).contiguous()
            return read(model, (blank - inputs.mean) / inputs.std)
    finally:
        for module, training in modes.items():
            module.training = training
