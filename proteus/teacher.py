"""Teacher: a model that is frozen, stays in eval, and never builds a graph."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .features import Features
from .models.build import ImageModel, load_backbone
from .weights.description import Statistics


class Teacher(ImageModel):
    """A frozen model that returns `Features`.

    It cannot be unfrozen by accident: `.train()` on it or on anything around it leaves it in eval,
    its parameters require no gradient, and its forward builds no graph.

    Args:
        model: A published name (`dinov2_vits14|b14|l14|g14`, each also `_reg`;
            `dinov3_vits16|b16|l16`; `clip_vitb16|l14`; `openclip_…`, `siglip_…`;
            `synclr_vitb16|l14`), any timm name, `hf-hub:owner/repo`, `local-dir:folder`,
            or any `nn.Module` that returns `Features`, a feature map [B, D, h, w] or a vector
            [B, D]. A module is used as it is, and frozen; where `image_size` asks for another size
            than its own, a copy of it is.
        pretrained: Load the published weights. False gives random ones, for tests.
        checkpoint: Local `.safetensors` or `.pth` file with the weights, instead of a download: in
            timm's format or the one its authors publish (see `proteus.weights`).
        image_size: Pixels, a number or (height, width); None = the model's own size. Positions are
            resampled once, here, by the rule of the model's family.
        normalize: True = the model's own statistics (ImageNet's for a module that does not say);
            (mean, std) in [0, 1] units = these; False = images arrive normalised.

    Attributes:
        backbone: The plain model.
        embed_dim: Width D, of the class token where patches have another.
        patch_dim: Width of patches.
        grid: (h, w) of the patch grid at `image_size`.
        image_size: (height, width).
        objectives: The terms it supports: `("token", "feature", "patch")`, or `("token",)` for a
            model trained against text (CLIP, SigLIP), whose patch tokens no objective shaped, and
            for one that gives a vector alone.
            `Distiller` takes these where no loss is given.
        license: Licence of its weights, as timm states it; "" where unknown.

    Raises:
        ValueError: If the name is unknown, or weights are missing, broken or do not fit exactly.
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
        normalize: bool | Statistics = True,
    ) -> None:
        loaded = load_backbone(
            model,
            subject="Teacher",
            pretrained=pretrained,
            checkpoint=checkpoint,
            image_size=image_size,
        )
        super().__init__(loaded, normalize)
        self.objectives = loaded.objectives if self.grid[0] else ("token",)
        self.license = loaded.license
        self.backbone.requires_grad_(False)
        self.train(False)

    # `no_grad`, never `inference_mode`: the loss saves its target for backward, which inference
    # tensors refuse.
    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`, without a graph."""
        return self._features(self.inputs(images))

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval whatever is asked, dropout and batch norm included."""
        return super().train(False)
