"""Teacher: a model that is frozen, stays in eval, and never builds a graph."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .features import Features
from .models.build import load_backbone
from .models.fused import Layers
from .models.image_model import ImageModel
from .weights.description import Statistics

Half = Literal["bf16", "fp16"]
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(ImageModel):
    """A frozen model that returns `Features`.

    It cannot be unfrozen by accident: `.train()` on it or on anything around it leaves it in eval,
    its parameters require no gradient, and its forward builds no graph.

    Args:
        model: A published name (`dinov2_vits14|b14|l14|g14`, each also `_reg`;
            `dinov3_vits16|b16|l16`; `clip_vitb16|l14`; `openclip_…`, `siglip_…`;
            `synclr_vitb16|l14`; `efficientnet_lite0|1|2`, whose weights are in packages, extra
            `teachers`), any timm name, `hf-hub:owner/repo`, `local-dir:folder`,
            `hf-transformers:owner/repo` (or a folder), a model of transformers, or any
            `nn.Module` that returns `Features`, a feature map [B, D, h, w] or a vector [B, D]. A
            module is used as it is, and frozen; where `image_size` asks for another size than its
            own, a copy of it is.
        pretrained: Load the published weights. False gives random ones, for tests.
        checkpoint: Local `.safetensors` or `.pth` file with the weights, instead of a download: in
            timm's format or the one its authors publish (see `proteus.weights`).
        image_size: Pixels, a number or (height, width); None = the model's own size. Positions are
            resampled once, here, by the rule of the model's family.
        grid: (h, w) of the patches instead: the image size at which the model has this grid, so
            that its tokens meet a student's of another patch size: `grid=student.grid`.
        normalize: True = the model's own statistics (ImageNet's for a module that does not say);
            (mean, std) in [0, 1] units = these; False = images arrive normalised.
        layers: Where the patches come from, a number or several; None = the output. See `Student`.
        precision: `bf16` or `fp16` = its forward computes in it (autocast), whatever the student
            does: for a step of float32 whose teacher costs less. None = as what is around it.

    Attributes:
        backbone: The plain model.
        embed_dim: Width D, of the class token where patches have another.
        patch_dim: Width of patches.
        layers: Numbers of the chosen layers, from 0 on; None = the output.
        grid: (h, w) of the patch grid at `image_size`.
        image_size: (height, width).
        objectives: The terms it supports: `("token", "feature", "patch")`, or `("token",)` for a
            model trained against text (CLIP, SigLIP), whose patch tokens no objective shaped, and
            for one that gives a vector alone.
            `Distiller` takes these where no loss is given.
        license: Licence of its weights, as timm or their package states it; "" where unknown.
        origin: Who made its weights, where they come from a package; "" elsewhere.

    Raises:
        ValueError: If the name is unknown, weights are missing, broken or do not fit exactly, or
            the model has no such layers.
        ShapeError: If the model cannot take the image size; also of a call with images of one.

    Examples:
        >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=64)
        >>> features = teacher(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        >>> features.cls.shape, features.patches.shape, features.grid
        (torch.Size([2, 192]), torch.Size([2, 16, 192]), (4, 4))
        >>> teacher.train().training
        False

    Source:
        Proteus (ICLR 2025), section 2; `pretrain/models_proteus_dinov2.py:46-53,113-130`.
        *Same:* features after the final norm, whole images, no gradient.
        *Different:* stays in eval under `.train()`; positions are resampled once and not in each
        step; each model normalises with its own statistics (the authors feed CLIP ImageNet's).
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: bool = True,
        checkpoint: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        normalize: bool | Statistics = True,
        layers: Layers | None = None,
        precision: Half | None = None,
    ) -> None:
        if precision not in (None, *_HALF):
            raise ValueError(
                f"Teacher: unknown precision. Got {precision!r}; expected {', '.join(_HALF)}, or "
                f"None to compute as what is around it."
            )
        loaded = load_backbone(
            model,
            subject="Teacher",
            pretrained=pretrained,
            checkpoint=checkpoint,
            image_size=image_size,
            grid=grid,
            layers=layers,
        )
        super().__init__(loaded, normalize, layers)
        self.objectives = loaded.objectives if self.grid[0] else ("token",)
        self.license, self.origin = loaded.license, loaded.origin
        self.precision = precision
        self.backbone.requires_grad_(False)
        self.train(False)
        self._shared: dict[tuple[Any, ...], _Shared] | None = None
        self._fitted: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Features:
        """`forward`, or within `shared` what it gave for the same images."""
        if self._shared is None:
            return super().__call__(images)  # type: ignore[no-any-return]
        return cast("Features", self._computed_once(images, self._shared))

    # No graph holds what was computed before; but the forward itself may be a compiled one.
    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def _computed_once(self, images: Tensor, shared: "dict[tuple[Any, ...], _Shared]") -> Features:
        place = _place_of(images)
        if place not in shared:
            shared[place] = _Shared(images, super().__call__(images))
        return shared[place].features()

    def fit(self, images: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """As of any model; within `shared` the same images are resized once."""
        own = image_size in (None, self.image_size)
        if not own or self._shared is None or images.shape[-2:] == self.image_size:
            return super().fit(images, image_size)
        place = _place_of(images)
        if place not in self._fitted:
            self._fitted[place] = images, super().fit(images)  # which holds their memory
        return self._fitted[place][1]

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Within it the same images go through the teacher once, whoever asks and however often.

        For several students of one batch. The same are images in the same memory, unchanged since;
        parts of a batch are told apart, and no image is compared, so the host waits for nothing.
        What was computed is forgotten at the end. Whoever gets features must not change them.

        Examples:
            >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
            >>> images = torch.rand(4, 3, 32, 32)
            >>> with teacher.shared():
            ...     teacher(images[::2]).cls is teacher(images[::2]).cls
            True
        """
        if self._shared is not None:  # an outer one decides for how long
            yield
            return
        self._shared = {}
        try:
            yield
        finally:
            self._shared, self._fitted = None, {}

    # `no_grad`, never `inference_mode`: the loss saves its target for backward, which inference
    # tensors refuse.
    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`, without a graph."""
        images = self.inputs(images)
        if self.precision is None:
            return self._features(images)
        with torch.autocast(images.device.type, _HALF[self.precision]):
            return self._features(images)

    def digest(self) -> str:
        """Of the first few numbers of each tensor: a name does not tell whose weights it got.

        To three digits: resampled positions differ in their last bits among machines.
        """
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):  # a module may keep other things in its state
                rounded = value.flatten()[:16].cpu().to(torch.bfloat16) + 0  # -0 is 0
                digest.update(rounded.double().numpy().tobytes())
        return digest.hexdigest()[:16]

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval whatever is asked, dropout and batch norm included."""
        return super().train(False)


class _Shared:
    """Features of some images; holds these, lest other ones get their memory."""

    def __init__(self, images: Tensor, features: Features) -> None:
        self._images, self._features = images, features
        self._versions = self._versions_now()

    def features(self) -> Features:
        if self._versions_now() != self._versions:
            raise ValueError(
                "Teacher: shared features were changed in place. Got one objective that writes "
                "into what the teacher returned, which others read, too. Let it write into a copy."
            )
        return self._features

    def _versions_now(self) -> tuple[int, int]:
        return self._features.cls._version, self._features.patches._version


def _place_of(images: Tensor) -> tuple[Any, ...]:
    """Where images lie, since when, and in which precision they would be computed with."""
    kind = images.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    memory = (images.device, images.untyped_storage().data_ptr(), images.storage_offset())
    version = 0 if images.is_inference() else images._version  # those count none
    return *memory, images.dtype, images.shape, images.stride(), version, precision
