"""Features of a labelled set, what protocols ask of them, and how they are made of images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..features import ShapeError
from ..models.frozen import Extractor
from .sets.labelled import LabelledImages
from .sets.targets import Target, check_labels

_WORTH_WORKERS = 2000  # images


@dataclass(frozen=True)
class FeatureSet:
    """Features and labels of n images, on the CPU.

    Attributes:
        cls: Class tokens (or pooled vectors), float32 [n, D].
        patches: Mean of the patch tokens, float32 [n, D]; zeros for a model without patches.
        labels: long [n], or 0/1 [n, classes] where an image has several.
        blocks: Normed class tokens of the last L blocks in block order, float32 [n, L, D], or None.
        classes: Names of the classes, () where unknown.
        names: Of the images.
        description: Of the set, for messages.

    Examples:
        >>> FeatureSet(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 4])).num_classes
        5
    """

    cls: Tensor
    patches: Tensor
    labels: Tensor
    blocks: Tensor | None = None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    description: str = "features"

    def __post_init__(self) -> None:
        parts = [self.cls, self.patches, self.labels]
        parts += [] if self.blocks is None else [self.blocks]
        if len({len(part) for part in parts}) > 1:
            raise ShapeError(
                f"{self.description}: one row of features and one label for each image. Got "
                f"{', '.join(str(tuple(part.shape)) for part in parts)}; expected [n, D], [n, D], "
                f"labels [n] and blocks [n, L, D]."
            )

    def __len__(self) -> int:
        return self.cls.shape[0]

    @property
    def num_classes(self) -> int:
        """The largest label + 1, or the width of several labels."""
        if self.labels.ndim == 2:
            return self.labels.shape[1]
        return int(self.labels.max()) + 1 if len(self) else 0

    def select(self, indices: Tensor) -> "FeatureSet":
        """A part of it, in the given order."""
        blocks = None if self.blocks is None else self.blocks[indices]
        names = tuple(self.names[i] for i in indices.tolist()) if self.names else ()
        return replace(
            self,
            cls=self.cls[indices],
            patches=self.patches[indices],
            labels=self.labels[indices],
            blocks=blocks,
            names=names,
        )


class Resized(Dataset[tuple[Tensor, Target]]):
    """Labelled images at one size: short side to `resize`, bicubic, then the centre.

    Args:
        data: The images.
        image_size: Side of the square that is cut out, pixels.
        resize: Short side before that; None = `image_size`.

    Source:
        Proteus, evaluation transforms (official-code 2.8): torchvision's `Resize` and `CenterCrop`
        on PIL images. *Same:* pixels.
    """

    def __init__(self, data: LabelledImages, image_size: int, resize: int | None = None) -> None:
        self.data, self.transform = data, eval_transform(image_size, resize)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.data[index]
        return self.transform(image), target


def eval_transform(image_size: int, resize: int | None = None) -> Any:
    """PIL image -> uint8 [3, S, S]: short side to `resize`, bicubic, then the centre.

    Examples:
        >>> from PIL import Image
        >>> eval_transform(32, 36)(Image.new("RGB", (50, 40))).shape
        torch.Size([3, 32, 32])
    """
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(resize or image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.PILToTensor(),
        ]
    )


def probe_resize(image_size: int) -> int:
    """The short side before the crop for k-NN and the linear probe: 256 for 224."""
    return round(image_size * 256 / 224)


def check_sets(train: FeatureSet, *others: FeatureSet, several: bool = False) -> None:
    """What every protocol asks of features, before it spends time on them.

    Raises:
        ShapeError: If sets differ in width.
        ValueError: If a set is empty, features are not finite, an image has no label, or several
            where only one is allowed, or all training images are of one class.
    """
    for features in (train, *others):
        check_not_empty(features)
        check_set(features)
        if features.labels.ndim != 1 and not several:
            raise ValueError(
                f"evaluation: one label an image is needed. Got {tuple(features.labels.shape)} "
                f"labels in {features.description}; use logistic_regression for several labels."
            )
        if features.cls.shape[1] != train.cls.shape[1]:
            raise ShapeError(
                f"evaluation: features of different models. Got {tuple(train.cls.shape)} in "
                f"{train.description} and {tuple(features.cls.shape)} in {features.description}; "
                f"expected one width."
            )
    present = sorted(set(train.labels.flatten().tolist()))
    if train.labels.ndim == 1 and len(present) < 2:
        raise ValueError(
            f"evaluation: one class only. Got {len(train)} training images of class "
            f"{present} in {train.description}; expected at least two."
        )


def check_not_empty(data: LabelledImages | FeatureSet) -> None:
    """Raise `ValueError` for a set without images."""
    if len(data) == 0:
        raise ValueError(f"evaluation: no images. Got an empty set, {data.description}.")


def check_set(features: FeatureSet) -> None:
    """Raise `ValueError` for labels below 0, and features that are not finite."""
    check_labels(features.labels, features.description)
    for part in (features.cls, features.patches):
        check_finite(part, f"images of {features.description}", features.names)


def check_finite(features: Tensor, what: str, names: Sequence[str] = ()) -> None:
    """Raise `ValueError` for NaN or infinity in features [n, D], naming the first."""
    bad = ~features.isfinite().all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"evaluation: features are not finite. Got NaN or infinity in {int(bad.sum())} of "
            f"{len(features)} {what}, first in {repr(names[first]) if names else f'number {first}'}"
            f". Check the model's weights, and whether its precision is enough."
        )


def read_vectors(extractor: Extractor, images: Tensor, blocks: int) -> dict[str, Tensor]:
    """What a `FeatureSet` keeps of a batch: `cls`, `patches` and, unless 0, `blocks`; float32.

    Raises:
        ShapeError: If the blocks differ in width.
    """
    with torch.no_grad():
        layers = extractor.layers(images, blocks) if blocks else [extractor(images)]
    last = layers[-1]
    # The mean of no patches would be NaN.
    mean = last.patches.float().mean(1) if last.patches.shape[1] else torch.zeros_like(last.cls)
    found = {"cls": last.cls, "patches": mean}
    if blocks:
        widths = {layer.cls.shape[-1] for layer in layers}
        if len(widths) > 1:
            raise ShapeError(
                f"evaluation: the last {blocks} layers differ in width. Got {sorted(widths)}; "
                f"expected a transformer. Use blocks=1 for this model."
            )
        found["blocks"] = torch.stack([layer.cls for layer in layers], 1)
    return {name: tensor.float() for name, tensor in found.items()}


def default_workers(workers: int | None, count: int) -> int:
    """The number asked for, or all cores but one for a large set and none for a small one."""
    if workers is not None:
        return workers
    return min(8, (os.cpu_count() or 1) - 1) if count >= _WORTH_WORKERS else 0


def square_size(extractor: Extractor, image_size: int | None) -> int:
    """The size asked for, or the model's own.

    Raises:
        ValueError: If that is not a square.
    """
    height, width = extractor.image_size
    if image_size is None and height != width:
        raise ValueError(
            f"evaluation: a square image size is needed. Got a model for {height}x{width} images; "
            f"pass image_size=."
        )
    return image_size or height
