"""A fitted probe as a module from images to scores, for robustness and for users."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.frozen import Extractor
from ..traits import Trait
from .feature_set import read_vectors
from .linear_heads import probe_inputs


@runtime_checkable
class Classifier(Trait, Protocol):
    """What a fitted probe offers.

    Attributes:
        num_classes: Width of the scores.
        image_size: Side of the square images it was fitted on, pixels.
        resize: Short side before the centre was cut out.
    """

    num_classes: int
    image_size: int
    resize: int

    def __call__(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, S, S], uint8 or float in [0, 1], to scores [B, classes]."""
        ...


class LinearClassifier(nn.Module):
    """A frozen model with one linear layer on its features.

    Args:
        extractor: The model.
        weight: [classes, F], F = width of the input that `blocks` and `avgpool` describe.
        bias: [classes].
        image_size: Side of the square images it was fitted on, pixels.
        resize: Short side before the centre was cut out.
        blocks: How many last blocks' class tokens are the input; 0 = the model's `cls`.
        avgpool: Whether the mean patch follows them.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        extractor: Extractor,
        weight: Tensor,
        bias: Tensor,
        *,
        image_size: int,
        resize: int,
        blocks: int = 0,
        avgpool: bool = False,
    ) -> None:
        super().__init__()
        self.extractor, self.blocks, self.avgpool = extractor, blocks, avgpool
        self.image_size, self.resize, self.num_classes = image_size, resize, weight.shape[0]
        self.register_buffer("weight", weight.float().to(extractor.device))
        self.register_buffer("bias", bias.float().to(extractor.device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, S, S] to scores [B, classes], float32."""
        found = read_vectors(self.extractor, images, self.blocks)
        inputs = found["cls"]
        if self.blocks:
            inputs = probe_inputs(found["blocks"], found["patches"], self.blocks, self.avgpool)
        return F.linear(inputs, self.weight, self.bias)
