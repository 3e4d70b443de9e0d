"""Any model, frozen and ready to be measured: `as_extractor`."""

import copy
import hashlib
import pickle
from collections.abc import Callable, Sequence
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ..features import IMAGENET, FeatureExtractor, Features
from ..traits import Trait
from ..weights.description import Description, Statistics, choose_statistics, read_config
from ..weights.positions import (
    FAILURES,
    check_image_size,
    fit_positions,
    is_resizable,
    refuse_size,
    to_pair,
)
from .fused import ChosenLayers
from .layers import count_layers, read_layers
from .names import position_rule
from .read import ImageInput, Reader, reader_for
from .read_transformers import TransformersModel, family_of, own_size

_SUBJECT = "evaluation"
_PROBE_SIZE = (224, 224)
_Function = FunctionType | BuiltinFunctionType


@runtime_checkable
class _Wrapped(Trait, Protocol):
    """`Teacher`, `Student`: a plain model, its way in and out. Known by shape, not by class."""

    backbone: nn.Module
    inputs: ImageInput
    image_size: tuple[int, int]
    reader: Reader


@runtime_checkable
class _HasConfig(Trait, Protocol):
    """timm's models say what they are and how their images were normalised."""

    pretrained_cfg: Any


@runtime_checkable
class _Plain(Trait, Protocol):
    """timm's models and DINOv2's own, which take normalised images (and may have `embed_dim`)."""

    def forward_features(self, x: Tensor) -> Any: ...


@runtime_checkable
class _SaysSize(Trait, Protocol):
    """A callable that knows the size it is made for."""

    image_size: tuple[int, int]


class Extractor(nn.Module):
    """A model in eval, without gradients, that returns `Features` at any size it can take.

    Built by `as_extractor`. It shares the weights of the model it was built from, and changes
    nothing about that model: neither its mode nor its positions.

    Attributes:
        model: The plain model, with positions for `image_size`.
        inputs: Normalisation; None for a model that does its own.
        image_size: (height, width) it was built for; other sizes work too.
        embed_dim: Width D, of the class token where patches have another.
        patch_size: (height, width) of a patch in pixels; (0, 0) for a model without patches.
        num_layers: Layers that `layers` can return: blocks of a transformer, stages of a CNN.
        trainable: Whether its forward builds a graph; see `trainable_copy`.

    Examples:
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
        >>> extractor = as_extractor(model, image_size=64)
        >>> extractor(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).grid
        (4, 6)
        >>> [layer.patches.shape[-1] for layer in extractor.layers(torch.zeros(1, 3, 64, 64), 2)]
        [192, 192]
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ImageInput | None,
        read: Reader,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.image_size = model, inputs, image_size
        self._read, self.trainable = read, False
        self._resized: dict[tuple[int, int], nn.Module] = {}
        self._layer_count: int | None = None
        self.train(False)
        with torch.no_grad():
            sample = self(self._blank())
        self.embed_dim: int = sample.cls.shape[-1]
        rows, columns = sample.grid
        self.patch_size = (image_size[0] // rows, image_size[1] // columns) if rows else (0, 0)

    @property
    def device(self) -> torch.device:
        """Where its weights are; images are brought there."""
        first = next(chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def num_layers(self) -> int:
        """How many layers `layers` knows."""
        if self._layer_count is None:
            with torch.no_grad():
                self._layer_count = count_layers(self.model, self._enter(self._blank()))
        return self._layer_count

    def forward(self, images: Tensor) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`.

        Raises:
            ValueError: If H or W is not a multiple of the patch size of a transformer.
        """
        images = self._enter(images)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            try:
                return self._read(self._model_for(images), images)
            except FAILURES as error:
                size = (images.shape[-2], images.shape[-1])
                refuse_size(error, _SUBJECT, type(self.model).__name__, size, self.image_size)
                raise

    def layers(
        self, images: Tensor, which: int | Sequence[int], *, norm: bool = True
    ) -> list[Features]:
        """Features of several layers, in the order of the layers.

        Args:
            images: As for a call.
            which: The last n layers (a number), or the layers with these numbers, from 0 on.
            norm: Put each through the model's final norm, as linear probes do. False = the layers'
                own outputs, as dense protocols use. CNNs have no such norm, and it changes nothing.

        Returns:
            One `Features` a layer. For a model without a class token, and for the stages of a CNN
            or Swin, whose widths differ, `cls` is the mean of the patches, except for the last
            layer with `norm`, where it is what a call returns.

        Raises:
            ValueError: If the model has fewer layers, or cannot tell its layers.
        """
        total = self.num_layers
        indices = list(range(total - which, total)) if isinstance(which, int) else sorted(which)
        if not indices or indices[0] < 0 or indices[-1] >= total or len({*indices}) < len(indices):
            raise ValueError(
                f"evaluation: layers the model does not have. Got {which!r}; expected different "
                f"numbers in 0 … {total - 1}, or how many of the last, at most {total}."
            )
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            model = self._model_for(images)
            return read_layers(model, self._enter(images), indices, total, norm=norm)

    def trainable_copy(self) -> "Extractor":
        """A copy with weights of its own that builds a graph, for fine-tuning.

        It is in train mode when told so; the original stays as it is.
        """
        ours = copy.deepcopy(self)
        ours.trainable, ours._resized = True, {}
        ours.requires_grad_(True)
        return ours

    def train(self, mode: bool = True) -> "Extractor":
        """Stay in eval unless this is a trainable copy."""
        return super().train(mode and self.trainable)

    def fingerprint(self) -> str | None:
        """sha256 over weights, architecture and input statistics, the model's part of cache keys.

        None for a callable that is not a module: nothing can be known about it.
        """
        if isinstance(self.model, _Call):
            return None
        digest = hashlib.sha256()
        if isinstance(self._read, ChosenLayers):
            digest.update(repr(self._read).encode())
        for name, module in self.model.named_modules():
            # What weights cannot tell: heads, activations, eps, scales.
            facts = sorted(
                (key, value.__qualname__ if isinstance(value, _Function) else repr(value))
                for key, value in vars(module).items()
                if key != "training" and isinstance(value, int | float | str | tuple | _Function)
            )
            digest.update(repr((name, type(module).__name__, facts)).encode())
        # Buffers that are not saved, such as statistics, count too.
        tensors = {**self.model.state_dict(), **dict(self.model.named_buffers())}
        for key, tensor in sorted(tensors.items()):
            if not isinstance(tensor, Tensor):  # a module may keep other things in its state
                digest.update(repr(key).encode() + pickle.dumps(tensor))
                continue
            digest.update(repr((key, tensor.dtype, tuple(tensor.shape))).encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        if self.inputs is not None:
            numbers = self.inputs.mean.flatten().tolist(), self.inputs.std.flatten().tolist()
            digest.update(repr((self.inputs.normalizes, numbers)).encode())
        return digest.hexdigest()

    def _enter(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return images if self.inputs is None else self.inputs(images)

    def _model_for(self, images: Tensor) -> nn.Module:
        """The model with positions for the size of these images."""
        size = (images.shape[-2], images.shape[-1])
        if size == self.image_size or not is_resizable(self.model):
            return self.model
        if size not in self._resized:
            self._resized[size] = _fit(self.model, size).eval()
        return self._resized[size]

    def _blank(self) -> Tensor:
        if self.inputs is None or self.inputs.normalizes:
            return torch.full((1, 3, *self.image_size), 0.5)
        return torch.zeros(1, 3, *self.image_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Extractor":
        self._resized = {}  # not registered, so `.to()` does not reach them
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """What `print(extractor)` says first."""
        return f"embed_dim={self.embed_dim}, image_size={self.image_size}"


def as_extractor(
    model: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    normalize: bool | Statistics = True,
    device: str | torch.device | None = None,
) -> Extractor:
    """Make a model ready to be measured, whatever it is.

    Args:
        model: A `Student`, a `Teacher`, a timm model (also a CNN), any other `nn.Module` that
            returns `Features`, a feature map or a vector, a callable with an `embed_dim` that
            satisfies `FeatureExtractor`, or an `Extractor`. Of a `Student` or `Teacher` with chosen
            layers a call returns the patches of these; `Extractor.layers` knows all layers still.
        image_size: Pixels; None = the model's own. Positions are resampled once, by the rule of the
            model's family, on a copy that shares all other weights.
        normalize: True = the model's own statistics (of `Student`, `Teacher` or timm's
            `pretrained_cfg`; ImageNet's for other modules; none for a `FeatureExtractor`, which
            does it itself); (mean, std) in [0, 1] units = these; False = images arrive normalised.
        device: Where to run; None = where the model is. Another device gets a copy of the weights.

    Raises:
        ValueError: If it is no model, or the size is not a multiple of the patch size.

    Examples:
        >>> as_extractor(nn.Conv2d(3, 8, 4, stride=4), image_size=32).patch_size
        (4, 4)
    """
    if isinstance(model, Extractor):
        plain, statistics, read = model.model, _statistics_of(model.inputs), model._read
        native: tuple[int, int] | None = model.image_size
    else:
        plain, statistics = _open(model)
        read = model.reader if isinstance(model, _Wrapped) else reader_for(plain)
        native = _native_size(plain)
        if isinstance(model, _Wrapped) and isinstance(plain, TransformersModel):
            native = model.image_size  # its configuration says the size of its positions
    if normalize is not True and isinstance(plain, _Call):
        raise ValueError(
            f"evaluation: normalize= would be ignored. Got {type(model).__name__}, which "
            f"normalises its images itself; leave normalize= out."
        )
    statistics = choose_statistics(normalize, statistics, _SUBJECT)
    size = native if image_size is None else to_pair(image_size)
    if is_resizable(plain):
        check_image_size(size or _PROBE_SIZE, plain.patch_embed.patch_size, _SUBJECT)
    if size is not None and size != native and is_resizable(plain):
        plain = _fit(plain, size)
    else:
        plain = _share(plain)
    inputs = None if isinstance(plain, _Call) else ImageInput(statistics, _SUBJECT)
    if device is not None:
        plain = copy.deepcopy(plain).to(device)
    inputs = None if inputs is None else inputs.like(plain)
    try:
        return Extractor(plain, inputs, read, size or _PROBE_SIZE)
    except FAILURES as error:
        refuse_size(error, _SUBJECT, type(plain).__name__, size or _PROBE_SIZE, native)
        raise


class _Call(nn.Module):
    """A callable that returns `Features` of images as the user has them."""

    def __init__(self, call: FeatureExtractor) -> None:
        super().__init__()
        self.call = call

    def forward(self, images: Tensor) -> Features:
        return self.call(images)


def _open(model: Any) -> tuple[nn.Module, Statistics | None]:
    """The plain model inside, and the statistics its images are normalised with."""
    if isinstance(model, _Wrapped):
        return model.backbone, _statistics_of(model.inputs)
    described = isinstance(model, _HasConfig | _Plain | TransformersModel)
    if described and isinstance(model, nn.Module):
        return model, _described(model).statistics
    if isinstance(model, FeatureExtractor):
        return _Call(model), None
    if isinstance(model, nn.Module):
        return model, IMAGENET
    raise ValueError(
        f"evaluation: not a model. Got {type(model).__name__}; expected a Student, a Teacher, a "
        f"timm model, an nn.Module, or a callable with an embed_dim that returns Features."
    )


def _statistics_of(inputs: ImageInput | None) -> Statistics | None:
    if inputs is None or not inputs.normalizes:
        return None
    return inputs.mean.flatten().tolist(), inputs.std.flatten().tolist()


def _described(model: object) -> Description:
    """What a model of timm or transformers says about its images; the defaults for others."""
    if isinstance(model, TransformersModel):
        return Description(family_of(model).statistics, own_size(model), "", "")
    config = model.pretrained_cfg if isinstance(model, _HasConfig) else None
    return read_config(config, f"{_SUBJECT}: {type(model).__name__}")


def _native_size(model: nn.Module) -> tuple[int, int] | None:
    """The size a timm model is built for; None where it does not matter or is not known."""
    if isinstance(model, _Call):
        return model.call.image_size if isinstance(model.call, _SaysSize) else None
    size = _described(model).image_size
    if is_resizable(model):
        # Protocol attributes are timm's; `img_size` is None where any size is taken.
        embed: Any = model.patch_embed
        size = embed.img_size or size
    return to_pair(size) if size else None


def _share(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same weights: a mode and positions of its own."""
    weights = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def _fit(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A copy for another image size; only the positions are new."""
    ours = _share(model)
    rule = position_rule(_described(model).architecture)
    fit_positions(cast("Any", ours), size, rule, _SUBJECT)
    return ours
