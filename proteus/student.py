"""Student: a trainable model, plus the mask token that timm's models do not have."""

import logging
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .features import Features
from .masking import check_hidden
from .models.build import Backbone, ImageModel, load_backbone
from .models.probes import equal, graph_of, hidden_is_unseen, noise, reached
from .models.read import TokenModel, averages_beside_class_token, evaluating
from .ranges import check_numbers
from .traits import Trait
from .weights.description import Statistics, check_statistics

_logger = logging.getLogger(__name__)


@runtime_checkable
class _EmbedsPatches(Trait, Protocol):
    """A model that turns the image into patch embeddings first, and adds positions afterwards."""

    patch_embed: nn.Module


@runtime_checkable
class _HasMaskToken(Trait, Protocol):
    """DINOv2's own models, and what `proteus.weights` makes of their files."""

    mask_token: Tensor | None


class _HideHook:
    """Replaces hidden patch embeddings on their way out of `patch_embed`.

    One place works for every family: the patch embedding's output is what comes before the class
    token and the positions are added: ViT, EVA / DINOv3 (RoPE), register models, DINOv2's own.
    The hook lives on the module from the start, because registering it inside forward would break
    the graph of `torch.compile`; it does nothing unless `hidden` is set. It holds no module, so a
    copy of the backbone alone drags nothing along.
    """

    def __init__(self) -> None:
        self.hidden: Tensor | None = None
        self.token: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.hidden is None or self.token is None:
            return output
        hidden = self.hidden.view(*output.shape[:-1], 1)  # output is [B, N, D] or [B, h, w, D]
        return torch.where(hidden, self.token.to(output.dtype), output)


class Student(ImageModel):
    """A trainable model that returns `Features`, of the whole image or with patches hidden.

    Args:
        model: `vit_tiny_patch14`, `vit_small_patch14`, `vit_base_patch14` or `vit_large_patch14`
            (the paper's students: LayerScale 1.0, random init), any timm name,
            `hf-hub:owner/repo`, `local-dir:folder`, or an `nn.Module`, which is used as it is;
            where `image_size` asks for another size than its own, a copy of it is.
        pretrained: Start from published weights instead of random ones (timm names).
        image_size: Pixels, a number or (height, width); None = 224, and of a module its own size
            (224 where it has none).
        normalize: True = the model's own statistics (ImageNet's for a module that does not say);
            (mean, std) in [0, 1] units = these; False = images arrive normalised.
        drop_path: Rate of stochastic depth in training, for timm names. The paper's words say 0.1;
            the authors' code never passes it on.

    Attributes:
        backbone: The plain model; it is what `save_pretrained` writes.
        mask_token: Parameter [1, D], starts at zero (or at the backbone's own, if its file had
            one); None if the model has no patch embedding and so cannot have patches hidden (then
            distil with `ProteusLoss(..., patch=0)`).
        embed_dim: Width D.
        grid: (h, w) of the patch grid at `image_size`.
        image_size: (height, width).

    Raises:
        ValueError: If the name is unknown.
        ShapeError: If the model cannot take the image size; also of a call with images of one.

    Examples:
        >>> student = Student("vit_tiny_patch16_224", image_size=64)
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> hidden = torch.zeros(2, 16, dtype=torch.bool)
        >>> student(images, hidden).patches.shape
        torch.Size([2, 16, 192])

    Source:
        Proteus (ICLR 2025), section 2.3; `pretrain/models_dinov2.py:643,684-692,812-866`.
        *Same:* the token replaces patch embeddings before class token and positions; starts at 0.
        *Different:* the token belongs to this wrapper and not to the exported backbone; it is not
        decayed (the authors' code decays it).
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: bool = False,
        image_size: int | tuple[int, int] | None = None,
        normalize: bool | Statistics = True,
        drop_path: float = 0.0,
    ) -> None:
        check_numbers("Student", {"drop_path": drop_path})
        if image_size is None and not isinstance(model, nn.Module):
            image_size = 224
        loaded = load_backbone(
            model,
            subject="Student",
            pretrained=pretrained,
            image_size=image_size,
            drop_path=drop_path,
        )
        loaded = _by_class_token(loaded)
        super().__init__(loaded, normalize)
        self.architecture, self.arguments = loaded.architecture, loaded.arguments
        # Of the export, which normalises even where this student does not.
        own = isinstance(normalize, bool)
        self.statistics = loaded.statistics if own else check_statistics(normalize, "Student")
        self._check_it_can_leave()
        self._hide = _HideHook()
        self._resting: list[str] = []  # names of parameters that `learn_from` froze
        self.mask_token: nn.Parameter | None = None
        self._why_not_hidden = self._make_hiding()

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`.

        Args:
            images: The images.
            hidden: bool [B, N], True = the student does not see this patch.

        Raises:
            ShapeError: If `hidden` is not [B, N].
            ValueError: If the model cannot have patches hidden.
        """
        if hidden is not None:
            if self.mask_token is None:
                raise ValueError(self.cannot_hide())
            check_hidden("Student", hidden, images.shape[0], self.grid)
        return self.features(self.inputs(images), hidden)

    def cannot_hide(self) -> str:
        """The message for a model from which patches cannot be hidden."""
        return (
            f"Student: patches cannot be hidden from this model. Got {self.name!r}, "
            f"{self._why_not_hidden}; expected a ViT. Distil without the patch term: "
            f"ProteusLoss({self.embed_dim}, TEACHER_DIM, patch=0)."
        )

    def learn_from(self, *, cls: bool, patches: bool, hidden: bool) -> None:
        """Freeze the parameters that a gradient of these outputs cannot reach.

        They would keep their random values, and stop DDP, which waits for every gradient. What an
        earlier call froze learns again; what the user froze stays frozen.

        Args:
            cls: Whether a loss uses the class token.
            patches: Whether a loss uses the patches.
            hidden: Whether patches are hidden.
        """
        named = dict(self.named_parameters())
        for name in self._resting:
            named[name].requires_grad_(True)
        if self.mask_token is not None:
            self.mask_token.requires_grad_(hidden)
        image = noise(self.inputs, self.image_size)
        mask = image.new_zeros(1, self.grid[0] * self.grid[1]).bool() if hidden else None
        with evaluating(self.backbone):
            features = graph_of(lambda: self.features(image, mask))
        learning = reached([features.cls] * cls + [features.patches] * patches)
        self._resting = [n for n, p in named.items() if p.requires_grad and id(p) not in learning]
        for name in self._resting:
            named[name].requires_grad_(False)
        if self._resting:
            _logger.info(
                "Student: no gradient reaches %s of %s, which stay as they are.",
                ", ".join(self._resting),
                self.name,
            )

    def features(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """As a call, for images that are normalised already; nothing is checked."""
        if hidden is None:
            return self._features(images)
        self._hide.hidden, self._hide.token = hidden, self.mask_token
        try:
            return self._features(images)
        finally:
            self._hide.hidden = self._hide.token = None

    @torch.no_grad()
    def _check_it_can_leave(self) -> None:
        """Refuse a timm model that, called without us, returns another vector than `cls`."""
        if not self.architecture:
            return
        image = noise(self.inputs, self.image_size)
        with evaluating(self.backbone):
            cls, plain = self._read(self.backbone, image).cls, self.backbone(image)
        if isinstance(plain, Tensor) and equal(plain, cls):
            return
        shape = tuple(plain.shape) if isinstance(plain, Tensor) else type(plain).__name__
        raise ValueError(
            f"Student: what is distilled could not leave. Got {self.name!r}, which timm alone "
            f"calls for {shape}, another output than its vector {tuple(cls.shape)}; expected the "
            f"same. Build it with num_classes=0 and its own pooling, or choose another model."
        )

    @torch.no_grad()
    def _make_hiding(self) -> str:
        """Add the mask token and its hook, or say why patches cannot be hidden."""
        if not isinstance(self.backbone, _EmbedsPatches):
            return "which has no patch embedding"
        if not self._embeds_one_token_a_patch():
            return "whose patch embedding does not give one token for each patch that comes out"
        self.mask_token = nn.Parameter(self._first_mask_token())
        image = noise(self.inputs, self.image_size)
        hook = self.backbone.patch_embed.register_forward_hook(self._hide)
        with evaluating(self.backbone):
            works = hidden_is_unseen(self.features, image, self.grid)
        if works:
            return ""
        hook.remove()
        self.mask_token = None
        return "which looks at the pixels of hidden patches: its patch embedding sees neighbours"

    def _embeds_one_token_a_patch(self) -> bool:
        """Whether `patch_embed` gives exactly the tokens that come out (Swin merges them)."""
        assert isinstance(self.backbone, _EmbedsPatches)
        shapes: list[tuple[int, ...]] = []
        hook = self.backbone.patch_embed.register_forward_hook(
            lambda module, args, output: shapes.append(
                tuple(output.shape) if isinstance(output, Tensor) else ()
            )
        )
        try:
            self._probe()
        finally:
            hook.remove()
        flat, map_ = (1, self.grid[0] * self.grid[1]), (1, *self.grid)
        return shapes in ([(*flat, self.embed_dim)], [(*map_, self.embed_dim)])

    def _first_mask_token(self) -> Tensor:
        """Zero, or the trained one that came with the backbone: [1, D]."""
        like = self.inputs.mean
        token = self.backbone.mask_token if isinstance(self.backbone, _HasMaskToken) else None
        if isinstance(token, nn.Parameter):
            token.requires_grad_(False)  # it gets no gradient, which would stop DDP
        if isinstance(token, Tensor) and token.numel() == self.embed_dim:
            return token.detach().to(like).reshape(1, -1).clone()
        return like.new_zeros(1, self.embed_dim)


def _by_class_token(loaded: Backbone) -> Backbone:
    """Let a model whose class token stands for the image return it, also without us."""
    if not loaded.architecture or not averages_beside_class_token(loaded.model):
        return loaded
    assert isinstance(loaded.model, TokenModel)
    loaded.model.global_pool = "token"
    return replace(loaded, arguments={**(loaded.arguments or {}), "global_pool": "token"})
