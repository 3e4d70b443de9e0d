"""A fitted probe as a module from images to scores, for robustness and for users."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.frozen import Extractor
from .feature_set import check_finite, read_vectors
from .linear_heads import probe_inputs
from .neighbours import votes_in_pieces


@runtime_checkable
class Classifier(Protocol):
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


class NeighbourClassifier(nn.Module):
    """A frozen model with the votes of the nearest training images.

    Args:
        extractor: The model.
        bank: Features of the training images, [n, D]; scaled to length one here.
        labels: long [n].
        k: Neighbours.
        temperature: Of the votes.
        image_size: Side of the square images, pixels.
        resize: Short side before the centre was cut out.
    """

    bank: Tensor
    labels: Tensor

    def __init__(
        self,
        extractor: Extractor,
        bank: Tensor,
        labels: Tensor,
        *,
        k: int,
        temperature: float,
        image_size: int,
        resize: int,
    ) -> None:
        super().__init__()
        self.extractor, self.k, self.temperature = extractor, k, temperature
        self.image_size, self.resize = image_size, resize
        self.num_classes = int(labels.max()) + 1
        ready = F.normalize(bank.float(), dim=1)
        self.register_buffer("bank", ready.to(extractor.device))
        self.register_buffer("labels", labels.to(extractor.device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, S, S] to votes [B, classes], float32."""
        queries = self.extractor(images).cls.float()
        check_finite(queries, "images")
        pieces = votes_in_pieces(
            self.bank, self.labels, queries, [self.k],
            temperature=self.temperature, classes=self.num_classes,
        )  # fmt: skip
        return torch.cat([votes[self.k] for votes in pieces])
