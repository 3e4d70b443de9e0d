"""What `Teacher` and `Student` share: the way in, the plain model, the way out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..features import IMAGENET, Features, ShapeError
from ..grids import check_fits, resize
from ..heads import Width, width_of
from ..weights.description import Statistics, choose_statistics
from ..weights.positions import FAILURES, refuse_size, to_pair
from .fused import Layers, choose
from .probes import noise
from .read import ImageInput, Reader, probe, reader_for
from .sizes import let_take_sizes

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
        self._grids = {self.image_size: self.grid}  # of the sizes it takes

    @property
    def width(self) -> Width:
        """What `ProteusLoss` takes: D, or (of the class token, of patches) where they differ."""
        return width_of(self.embed_dim, self.patch_dim)

    def fit(self, images: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """Images as they arrive, at this model's own size: itself, or antialiased on their device.

        Args:
            images: RGB [B, 3, H, W], uint8 or float, of this size or of a larger one of its form.
            image_size: (height, width) instead of its own, see `also_take`.

        Raises:
            ShapeError: If they are smaller, or of another form.
        """
        if images.dtype == torch.uint8 and not self.inputs.normalizes:
            return images  # which the model refuses, and resizing would turn into floats
        return resize(images, image_size or self.image_size, type(self).__name__)

    def also_take(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Take images of a smaller size, too, in the same weights; its grid there.

        For steps that cost less, see `fit(first_scale=)`. A transformer's positions
        are then resampled in each forward of that size; what it exports does not change.

        Args:
            image_size: Pixels, a number or (height, width), smaller than the model's own and of
                the same form.

        Raises:
            ShapeError: If the model cannot take it.

        Examples:
            >>> from proteus import Student
            >>> student = Student("vit_tiny_patch16_224", image_size=64)
            >>> student.also_take(32)
            (2, 2)
        """
        size = to_pair(image_size)
        if max(own / new for own, new in zip(self.image_size, size, strict=True)) <= 1:
            raise ShapeError(
                f"{type(self).__name__}: steps of a smaller size need a smaller size. Got "
                f"{size[0]}x{size[1]} for a model at {self.image_size[0]}x{self.image_size[1]}."
            )
        check_fits(type(self).__name__, self.image_size, size)
        if size not in self._grids:
            let_take_sizes(self.backbone)
            try:
                sample = probe(self.reader, self.backbone, self.inputs, size)
            except FAILURES as error:
                refuse_size(error, type(self).__name__, self.name, size, self.image_size)
                raise
            self._grids[size] = sample.grid
        return self._grids[size]

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return self._grids.get((images.shape[-2], images.shape[-1]), self.grid)

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
