"""Student: a trainable model, plus the mask token that timm's models do not have."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .features import Features
from .grids import spread
from .masking import check_hidden
from .models.build import load_backbone
from .models.fused import Layers
from .models.image_model import Backbone, ImageModel
from .models.parts import batch_norms, names_of
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
            `hf-hub:owner/repo`, `local-dir:folder`, `hf-transformers:owner/repo` (or a
            folder; it leaves by `backbone.save_pretrained`), or an `nn.Module`, used as it is;
            where `image_size` asks for another size than its own, a copy of it is.
        pretrained: Start from published weights instead of random ones (timm names, and
            `efficientnet_lite0|1|2` of the extra `teachers`).
        image_size: Pixels, a number or (height, width); None = 224, and of a module its own size
            (224 where it has none).
        grid: (h, w) of the patches instead: the image size at which the model has this grid.
        normalize: True = the model's own statistics (ImageNet's for a module that does not say);
            (mean, std) in [0, 1] units = these; False = images arrive normalised.
        drop_path: Rate of stochastic depth in training, for timm names. The paper's words say 0.1;
            the authors' code never passes it on.
        layers: Where the patches come from: a layer's number or several, as `Extractor.layers`
            numbers them (blocks of a transformer, stages of a CNN), negative ones from the end.
            Their patches are brought to the grid of the finest one, bilinearly, and put side by
            side in the order given; blocks go through the final norm. `cls` stays what the model
            returns, and so does the export. None = the output, as with -1.

    Attributes:
        backbone: The plain model; it is what `save_pretrained` writes.
        hides: How patches are hidden: `tokens`, where each patch has an embedding of its own that
            the mask token can replace; `pixels` in any other model with patches (CNNs, hierarchical
            transformers, stems that see neighbours), in the image itself, so that hidden means
            unseen; "" for a model that gives a vector alone (distil with `patch=0`).
        mask_token: What stands there instead, learned: of `tokens` [1, D], starting at zero (or at
            the backbone's own, if its file had one); of `pixels` a colour [1, 3] in normalised
            units, starting at zero, the mean colour; else None.
        embed_dim: Width D, of the class token where patches have another.
        patch_dim: Width of patches.
        layers: Numbers of the chosen layers, from 0 on; None = the output.
        grid: (h, w) of the patch grid at `image_size`.
        image_size: (height, width).
        frozen: Names of parameters that `freeze` froze.

    Raises:
        ValueError: If the name is unknown, or the model has no such layers.
        ShapeError: If the model cannot take the image size; also of a call with images of one.

    Examples:
        >>> student = Student("vit_tiny_patch16_224", image_size=64)
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> hidden = torch.zeros(2, 16, dtype=torch.bool)
        >>> student(images, hidden).patches.shape
        torch.Size([2, 16, 192])
        >>> stages = Student("test_resnet", image_size=64, layers=(-2, -1))
        >>> stages.grid, stages.patch_dim, stages.embed_dim
        ((4, 4), 288, 96)

    Source:
        Proteus (ICLR 2025), section 2.3; `pretrain/models_dinov2.py:643,684-692,812-866`.
        *Same:* the token replaces patch embeddings before class token and positions; starts at 0.
        *Different:* the token belongs to this wrapper and not to the exported backbone; it is not
        decayed (the authors' code decays it). Pixels are hidden from models without such
        embeddings, which the authors do not distil.
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: bool = False,
        image_size: int | tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        normalize: bool | Statistics = True,
        drop_path: float = 0.0,
        layers: Layers | None = None,
    ) -> None:
        check_numbers("Student", {"drop_path": drop_path})
        if image_size is None and grid is None and not isinstance(model, nn.Module):
            image_size = 224
        loaded = load_backbone(
            model,
            subject="Student",
            pretrained=pretrained,
            image_size=image_size,
            grid=grid,
            layers=layers,
            drop_path=drop_path,
        )
        loaded = _by_class_token(loaded)
        super().__init__(loaded, normalize, layers)
        self.architecture, self.arguments = loaded.architecture, loaded.arguments
        # Of the export, which normalises even where this student does not.
        own = isinstance(normalize, bool)
        self.statistics = loaded.statistics if own else check_statistics(normalize, "Student")
        self._check_it_can_leave()
        self._hide = _HideHook()
        self._resting: list[str] = []  # names of parameters that `learn_from` froze
        self.frozen: frozenset[str] = frozenset()
        self.mask_token: nn.Parameter | None = None
        self.hides: Literal["tokens", "pixels", ""] = ""
        if self.grid[0]:
            self._make_hiding()

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`.

        Args:
            images: The images.
            hidden: bool [B, N], True = the student does not see this patch; or [B, h, w] on a
                coarser grid (where it hides pixels, any): what touches a hidden cell is hidden.

        Raises:
            ShapeError: If `hidden` does not fit.
            ValueError: If the model cannot have patches hidden.
        """
        if hidden is not None:
            if self.mask_token is None:
                raise ValueError(self.cannot_hide())
            flat, own = hidden, self._grid_of(images)
            if hidden.ndim == 3:
                flat, own = hidden.flatten(1), (hidden.shape[1], hidden.shape[2])
            check_hidden("Student", flat, images.shape[0], own)
        return self.features(self.inputs(images), hidden)

    def cannot_hide(self) -> str:
        """The message for a model from which patches cannot be hidden."""
        return (
            f"Student: patches cannot be hidden from this model. Got {self.name!r}, which gives "
            f"one vector an image and no patches; expected a model with patches. Distil without "
            f"the patch term: ProteusLoss({self.embed_dim}, TEACHER_DIM, patch=0)."
        )

    def freeze(self, patterns: Iterable[str]) -> None:
        """Freeze parameters for good: no gradient, no place in an optimizer, no batch statistics.

        A frozen batch norm (both of its parameters are) normalises with the statistics that it
        has, in training too.

        Args:
            patterns: Of names of the plain model's parameters, or `mask_token`; `*`, `?` and
                `[0-5]` as in a shell: `patch_embed.*`, `blocks.[0-5].*`.

        Raises:
            ValueError: If a pattern means no parameter, or the model would learn nothing.

        Examples:
            >>> student = Student("vit_tiny_patch16_224", image_size=32)
            >>> student.freeze(["patch_embed.*", "blocks.[0-9].*"])
            >>> student.backbone.patch_embed.proj.weight.requires_grad
            False
        """
        named = self._by_short_name()
        frozen = self.frozen | names_of(patterns, named)
        if frozen.issuperset(named.keys() - {"mask_token"}):
            raise ValueError(
                f"frozen: nothing is left to learn. Got {list(patterns)}, which mean all of "
                f"{self.name!r}; expected patterns that leave some parameters."
            )
        for name in frozen:
            named[name].requires_grad_(False)
        self.frozen = frozenset(frozen)
        self._hold_batch_norms()

    def train(self, mode: bool = True) -> "Student":
        """As of any module, but a frozen batch norm stays in eval mode."""
        super().train(mode)
        self._hold_batch_norms()
        return self

    def _hold_batch_norms(self) -> None:
        for _, norm in batch_norms(self.backbone, self.frozen):
            norm.eval()

    def _by_short_name(self) -> dict[str, nn.Parameter]:
        """Parameters by the names that patterns mean: the plain model's own, and `mask_token`."""
        return {name.removeprefix("backbone."): p for name, p in self.named_parameters()}

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
            named[name].requires_grad_(name.removeprefix("backbone.") not in self.frozen)
        if self.mask_token is not None:
            self.mask_token.requires_grad_(hidden and "mask_token" not in self.frozen)
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
        if hidden is None or self.mask_token is None:
            return self._features(images)
        own = self._grid_of(images)
        cells = hidden if hidden.ndim == 3 else hidden.reshape(-1, *own)
        if self.hides == "pixels":
            unseen = spread(cells, (images.shape[-2], images.shape[-1]))[:, None]
            colour = self.mask_token.to(images.dtype).view(1, 3, 1, 1)
            return self._features(torch.where(unseen, colour, images))
        self._hide.hidden, self._hide.token = spread(cells, own), self.mask_token
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
            cls, plain = self.reader(self.backbone, image).cls, self.backbone(image)
        if isinstance(plain, Tensor) and equal(plain, cls):
            return
        shape = tuple(plain.shape) if isinstance(plain, Tensor) else type(plain).__name__
        raise ValueError(
            f"Student: what is distilled could not leave. Got {self.name!r}, which timm alone "
            f"calls for {shape}, another output than its vector {tuple(cls.shape)}; expected the "
            f"same. Build it with num_classes=0 and its own pooling, or choose another model."
        )

    @torch.no_grad()
    def _make_hiding(self) -> None:
        """Add the mask token, and its hook where patch embeddings can be replaced."""
        if isinstance(self.backbone, _EmbedsPatches) and self._embeds_one_token_a_patch():
            self.hides, self.mask_token = "tokens", nn.Parameter(self._first_mask_token())
            image = noise(self.inputs, self.image_size)
            hook = self.backbone.patch_embed.register_forward_hook(self._hide)
            with evaluating(self.backbone):
                if hidden_is_unseen(self.features, image, self.grid):
                    return
            hook.remove()  # its patch embedding looks at the pixels of neighbours
        self.hides = "pixels"
        self.mask_token = nn.Parameter(self.inputs.mean.new_zeros(1, 3))

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
