"""Heads that turn the features of four layers into a map: linear, UperNet, DPT.

The last two are transformers' (extra `eval`), for which only the neck that makes four scales out
of a transformer's one is written here.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...features import Features
from ...words import install
from .layers_of import first_seen

Head = Literal["linear", "norm_linear", "upernet", "dpt"]
HEADS: tuple[Head, ...] = get_args(Head)
_SCALES = (4, 2, 1, 0.5)


class Decoder(nn.Module):
    """Features of some layers -> a map [B, C, h, w] of any size; `head` is what is trained."""

    def forward(self, layers: Sequence[Features]) -> Tensor:
        """The map; its size is the head's own, and is resized to the image's by the caller."""
        raise NotImplementedError

    def auxiliary(self, layers: Sequence[Features]) -> Tensor | None:
        """A second map that helps in training; None for heads without one."""
        return None

    def last(self) -> nn.Conv2d:
        """The convolution whose output is the map."""
        raise NotImplementedError


def build_decoder(
    head: Head, layers: Sequence[Features], num_outputs: int, *, channels: int | None = None
) -> Decoder:
    """A new head for features like these.

    Args:
        head: "linear", "norm_linear" (with a batch norm before it), "upernet" or "dpt".
        layers: Features of one batch, as `read_dense` gives them, for the widths and grids.
        num_outputs: Channels of the map.
        channels: Width inside UperNet (None = the features') and DPT (None = 256).

    Raises:
        ValueError: If the head is unknown, does not take `channels`, or transformers is missing.

    Examples:
        >>> layers = [Features(torch.zeros(2, 8), torch.zeros(2, 6, 8), (2, 3))] * 4
        >>> build_decoder("linear", layers, 5)(layers).shape
        torch.Size([2, 5, 2, 3])
    """
    if head not in HEADS:
        raise ValueError(f"decoder: no such head. Got {head!r}; expected one of {HEADS}.")
    if min(layer.patches.shape[1] for layer in layers) == 0:
        raise ValueError(
            "decoder: the model has no patches, only a vector for the image. Nothing can be "
            "predicted for pixels; take a model that returns patches."
        )
    if head in ("linear", "norm_linear"):
        if channels is not None:
            raise ValueError(f"decoder: channels= would be ignored. Got {channels}, head {head!r}.")
        return LinearDecoder(layers, num_outputs, norm=head == "norm_linear")
    build = UperNetDecoder if head == "upernet" else DPTDecoder
    try:
        return build(layers, num_outputs, channels)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"decoder: {head!r} needs transformers. Got {error}. Use head 'linear', or install it. "
            f"{install('transformers')}"
        ) from error


def to_map(features: Features) -> Tensor:
    """[B, N, D] -> [B, D, h, w]."""
    batch, _, width = features.patches.shape
    return features.patches.mT.reshape(batch, width, *features.grid)


def _widths(layers: Sequence[Features]) -> list[int]:
    return [layer.patches.shape[-1] for layer in layers]


def _one_scale(layers: Sequence[Features]) -> bool:
    return len({(layer.grid, layer.patches.shape[-1]) for layer in layers}) == 1


class LinearDecoder(Decoder):
    """All layers side by side and one 1x1 convolution, with `norm` after a batch norm.

    Without a norm the scale of a model's features decides what a learning rate means: cross
    entropy bears it, a regression does not. DINOv2's linear heads have the norm, the paper's not.

    Source:
        mmseg `FCNHead` with `num_convs=0`, `resize_concat`, as in the authors' configs.
        *Same:* without `norm`: no norm, no dropout; weights N(0, 0.01), bias 0; layers of other
        grids (CNNs) are resized to the first one's. *Different:* a layer that is chosen twice is
        seen once.
    """

    def __init__(self, layers: Sequence[Features], num_outputs: int, *, norm: bool = False) -> None:
        super().__init__()
        self.used = sorted(set(first_seen(layers)))
        widths = _widths([layers[number] for number in self.used])
        # Only shifted and scaled: the convolution that follows has weights of its own.
        self.norm = nn.BatchNorm2d(sum(widths), affine=False) if norm else nn.Identity()
        self.head = nn.Conv2d(sum(widths), num_outputs, 1)
        _start_small(self.head)

    def forward(self, layers: Sequence[Features]) -> Tensor:
        """Logits on the grid of the first layer."""
        maps = [to_map(layers[number]) for number in self.used]
        grid = maps[0].shape[-2:]
        output: Tensor = self.head(self.norm(torch.cat([_resize(m, grid) for m in maps], 1)))
        return output

    def last(self) -> nn.Conv2d:
        """The only convolution."""
        return self.head


class Pyramid(nn.Module):
    """Four scales out of a transformer's one: x4, x2, x1, x1/2.

    Source:
        mmseg `Feature2Pyramid`, as BEiT, iBOT and SynCLR use it.
        *Same:* x4 = transposed convolution, batch norm, GELU, transposed convolution (2x2, stride
        2); x2 = one of them; x1/2 = max pooling. *Different:* batch norm is not synchronised.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        up = [nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(3)]
        self.scales = nn.ModuleList(
            [
                nn.Sequential(up[0], nn.BatchNorm2d(width), nn.GELU(), up[1]),
                up[2],
                nn.Identity(),
                # Ceiling, so that a grid of one patch stays one.
                nn.MaxPool2d(2, stride=2, ceil_mode=True),
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps [B, D, h, w] -> 4h, 2h, h, h/2."""
        return [scale(m) for scale, m in zip(self.scales, maps, strict=True)]


class UperNetDecoder(Decoder):
    """UperNet with an auxiliary head: transformers' modules on four scales.

    Source:
        SynCLR's and the authors' `upernet_mae.py`.
        *Same:* pyramid of the patch features, pooling scales 1, 2, 3, 6, auxiliary convolution on
        the third layer, weight 0.4. *Different:* no dropout (0.1 there) before the classifier;
        batch norm is not synchronised; weights start as in torch.
    """

    def __init__(
        self, layers: Sequence[Features], num_outputs: int, channels: int | None = None
    ) -> None:
        super().__init__()
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        widths = _widths(layers)
        self.pyramid = Pyramid(widths[0]) if _one_scale(layers) else None
        config: Any = UperNetConfig(
            hidden_size=channels or widths[-1], auxiliary_channels=channels or 256
        )
        config.num_labels = num_outputs
        head: Any = UperNetHead  # untyped
        self.head = head(config, widths)
        self.extra = UperNetFCNHead(config, widths)
        _start_small(self.head.classifier, self.extra.classifier)

    def forward(self, layers: Sequence[Features]) -> Tensor:
        """Logits at four times the patch grid."""
        maps = [to_map(layer) for layer in layers]
        output: Tensor = self.head(self.pyramid(maps) if self.pyramid else maps)
        return output

    def auxiliary(self, layers: Sequence[Features]) -> Tensor | None:
        """Logits from the third layer alone."""
        output: Tensor = self.extra([to_map(layer) for layer in layers])
        return output

    def last(self) -> nn.Conv2d:
        """The classifier of the main head."""
        convolution = self.head.classifier
        assert isinstance(convolution, nn.Conv2d)
        return convolution


class DPTDecoder(Decoder):
    """DPT: transformers' neck, and its convolutional head.

    Source:
        Ranftl et al. 2021; the authors' `dpt_head_depth.py`.
        *Same:* the class token is read by projection, widths D/8, D/4, D/2, D, fusion with batch
        norm and without bias, a 3x3 convolution with batch norm, dropout 0.1, no activation at the
        end. *Different:* batch norm is not synchronised; weights start as in torch. The stages of a
        CNN have their scales already and go straight to the fusion.
    """

    def __init__(
        self, layers: Sequence[Features], num_outputs: int, channels: int | None = None
    ) -> None:
        super().__init__()
        from transformers import DPTConfig
        from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

        widths = _widths(layers)
        one_scale = _one_scale(layers)
        config: Any = DPTConfig(
            hidden_size=widths[-1],
            neck_hidden_sizes=[max(widths[-1] // n, 1) for n in (8, 4, 2, 1)]
            if one_scale
            else widths,
            reassemble_factors=list(_SCALES),
            readout_type="project",
            fusion_hidden_size=channels or 256,
            use_batch_norm_in_fusion_residual=True,
            use_bias_in_fusion_residual=False,
            semantic_classifier_dropout=0.1,
        )
        config.num_labels = num_outputs
        self.neck = DPTNeck(config)
        if not one_scale:
            self.neck.reassemble_stage = None
        # The first fusion has nothing to add to; its unused half would only collect weight decay.
        first: Any = self.neck.fusion_stage.layers[0]
        first.residual_layer1 = None
        # Without the last upsampling: the map is resized to the image's size once.
        self.head = DPTSemanticSegmentationHead(config).head[:-1]
        _start_small(self.last())

    def forward(self, layers: Sequence[Features]) -> Tensor:
        """A map at eight times the patch grid."""
        if self.neck.reassemble_stage is None:
            fused = self.neck([to_map(layer) for layer in layers])
        else:
            states = [torch.cat([layer.cls[:, None], layer.patches], 1) for layer in layers]
            fused = self.neck(states, *layers[0].grid)
        output: Tensor = self.head(fused[-1])
        return output

    def last(self) -> nn.Conv2d:
        """The final 1x1 convolution."""
        convolution = self.head[-1]
        assert isinstance(convolution, nn.Conv2d)
        return convolution


def _start_small(*convolutions: Any) -> None:
    """Mmseg's start of a classifier."""
    for convolution in convolutions:
        nn.init.normal_(convolution.weight, std=0.01)
        nn.init.zeros_(convolution.bias)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
