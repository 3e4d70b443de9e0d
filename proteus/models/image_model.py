"""What `Teacher` and `Student` share: the way in, the plain model, the way out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..features import IMAGENET, Features
from ..grids import resize
from ..heads import Width, width_of
from ..weights.description import Statistics, choose_statistics
from ..weights.positions import FAILURES, refuse_size
from .fused import Layers, choose
from .probes import noise
from .read import ImageInput, Reader, probe, reader_for

OBJECTIVES = ("token", "feature", "patch")


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
        objectives: The loss terms it supports as a teacher.
        license: Of its weights, as timm or their package states it, "" where unknown.
        origin: Of its weights, where they come from a package; "" elsewhere.
        own_size: (height, width) it says it is made for; None where it does not say.
    """

    model: nn.Module
    name: str
    image_size: tuple[int, int]
    fixed_size: bool
    statistics: Statistics = IMAGENET
    architecture: str = ""
    arguments: dict[str, Any] | None = None
    objectives: tuple[str, ...] = OBJECTIVES
    license: str = ""
    origin: str = ""
    own_size: tuple[int, int] | None = None


class ImageModel(nn.Module):
    """What `Teacher` and `Student` share: the way in, the plain model, the way out.

    Args:
        loaded: The plain model.
        normalize: True = its own statistics; (mean, std) = these; False = none.
        layers: Where the patches come from; None = the output.
    """

    layers: tuple[int, ...] | None = None

    def __init__(
        self, loaded: Backbone, normalize: bool | Statistics, layers: Layers | None = None
    ) -> None:
        super().__init__()
        self.name, self.image_size = loaded.name, loaded.image_size
        self.backbone = loaded.model
        subject = type(self).__name__
        statistics = choose_statistics(normalize, loaded.statistics, subject)
        self.inputs = ImageInput(statistics, subject).like(self.backbone)
        self.reader: Reader = reader_for(self.backbone)
        try:
            sample = self._probe()
        except FAILURES as error:
            name, size = loaded.name, loaded.image_size
            refuse_size(error, subject, name, size, loaded.own_size, fits=self._takes)
            raise
        if layers is not None:
            image = noise(self.inputs, self.image_size)
            chosen = choose(
                self.backbone, layers, self.reader, image, subject=subject, name=self.name
            )
            self.reader, self.layers = chosen, chosen.numbers
            sample = self._probe()
        self.embed_dim: int = sample.cls.shape[-1]
        self.patch_dim: int = sample.patches.shape[-1]
        self.grid = sample.grid

    @property
    def width(self) -> Width:
        """What `ProteusLoss` takes: D, or (of the class token, of patches) where they differ."""
        return width_of(self.embed_dim, self.patch_dim)

    def fit(self, images: Tensor) -> Tensor:
        """Images as they arrive, at this model's own size: itself, or antialiased on their device.

        Args:
            images: RGB [B, 3, H, W], uint8 or float, of this size or of a larger one of its form.

        Raises:
            ShapeError: If they are smaller, or of another form.
        """
        if images.dtype == torch.uint8 and not self.inputs.normalizes:
            return images  # which the model refuses, and resizing would turn into floats
        return resize(images, self.image_size, type(self).__name__)

    def _probe(self) -> Features:
        """`Features` of one grey image."""
        return probe(self.reader, self.backbone, self.inputs, self.image_size)

    def _takes(self, size: tuple[int, int]) -> bool:
        """Whether the model can take images of a size."""
        try:
            probe(self.reader, self.backbone, self.inputs, size)
        except (*FAILURES, ValueError):
            return False
        return True

    def _features(self, images: Tensor) -> Features:
        """`Features` of normalised images."""
        try:
            return self.reader(self.backbone, images)
        except FAILURES as error:
            size = (images.shape[-2], images.shape[-1])
            refuse_size(error, type(self).__name__, self.name, size, self.image_size)
            raise

    def __repr__(self) -> str:
        # One line: the plain model, all its layers, prints as `.backbone`.
        kind = type(self).__name__
        return f"{kind}({self.name!r}, embed_dim={self.embed_dim}, grid={self.grid})"
