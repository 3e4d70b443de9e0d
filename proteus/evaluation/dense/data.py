"""Images with a map each: ADE20K's and NYU-Depth V2's layouts, tar packs, any dataset."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data import ImageSource
from ...features import ShapeError
from ..sets.labelled import file_stamp
from ..sets.packs import classes_of
from .depth_metrics import Crop
from .layouts import (
    Maps,
    StoredMaps,
    find_list,
    from_dataset,
    from_folders,
    from_list,
    from_packs,
    read_metres,
    to_labels,
    to_metres,
)
from .metrics import IGNORE, reduce_zero_label

_Data = TypeVar("_Data", bound="DenseImages")
_ADE20K_CLASSES = 150


class DenseImages(Dataset[tuple[Image.Image, Tensor]]):
    """Images and a map each; use `open_segmentation` or `open_depth`.

    Args:
        source: The images.
        maps: Number of an image -> its map [H, W].
    """

    def __init__(self, source: ImageSource, maps: Maps) -> None:
        self.source, self.description = source, source.description
        self._maps: Maps = maps
        self._numbers: Sequence[int] = range(len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        image, target = self.source.decode(index), self.read_map(index)
        if tuple(target.shape) != (image.height, image.width):
            raise ShapeError(
                f"{self.description}: an image and its map differ in size. Got "
                f"{image.height}x{image.width} and {tuple(target.shape)} for "
                f"{self.source.name(index)!r}."
            )
        return image, target

    def read_map(self, index: int) -> Tensor:
        """The map of an image alone."""
        return self._maps(self._numbers[index])

    def any_pixel(self, counts: Callable[[Tensor], Tensor]) -> bool:
        """Whether there is a pixel that counts in any map; stops at the first.

        Args:
            counts: Map [H, W] -> bool [H, W].
        """
        return any(bool(counts(self.read_map(i)).any()) for i in range(len(self)))

    def first(self: _Data, count: int) -> _Data:
        """At most `count` images, spread evenly over the set (videos repeat themselves)."""
        if count >= len(self):
            return self
        numbers = [i * len(self) // count for i in range(count)]
        part = copy.copy(self)
        part.source = self.source.select(numbers, self.description)
        part._numbers = [self._numbers[i] for i in numbers]
        return part

    def stamp(self) -> str:
        """A hash of the files of the images and of the maps."""
        maps = file_stamp(self._maps.source) if isinstance(self._maps, StoredMaps) else ""
        return f"{file_stamp(self.source)} {maps}"


class SegmentationImages(DenseImages):
    """Images and class maps, uint8 [H, W], 255 = ignored.

    Attributes:
        num_classes: Number of classes.
        classes: Their names; () where unknown.
        zero_is_ignored: Maps are coded as ADE20K's, 0 = no class, n = class n - 1.
    """

    def __init__(
        self,
        source: ImageSource,
        maps: Maps,
        num_classes: int,
        classes: tuple[str, ...] = (),
        *,
        zero_is_ignored: bool = False,
    ) -> None:
        super().__init__(source, maps)
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(
                f"segmentation: num_classes must be in 1 … {IGNORE}. Got {num_classes}; the label "
                f"{IGNORE} stands for what is ignored."
            )
        self.num_classes, self.classes = num_classes, classes
        self.zero_is_ignored = zero_is_ignored

    def read_map(self, index: int) -> Tensor:
        """The map of an image alone.

        Raises:
            ValueError: If a label is no class.
        """
        labels = super().read_map(index)
        highest = self.num_classes - 1 + self.zero_is_ignored
        counted = labels[labels != IGNORE]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) <= highest:
            raise ValueError(
                f"{self.description}: a label is no class. Got {int(counted.min())} to "
                f"{int(counted.max())} in {self.source.name(index)!r}; expected 0 to {highest}, "
                f"or {IGNORE} (ignored). Say num_classes=… or zero_is_ignored=True."
            )
        labels = labels.to(torch.uint8)  # kept for training, an eighth of int64
        return reduce_zero_label(labels) if self.zero_is_ignored else labels

    def stamp(self) -> str:
        """As of all maps, with the number of classes and how they are coded."""
        return f"{super().stamp()} {self.num_classes} {self.zero_is_ignored}"


class DepthImages(DenseImages):
    """Images and depth maps, float32 [H, W], metres; 0 = no measurement.

    Attributes:
        crop: The part that is evaluated: "eigen" for NYU-Depth V2, else None.
    """

    def __init__(self, source: ImageSource, maps: Maps, crop: Crop = None) -> None:
        super().__init__(source, maps)
        self.crop = crop

    def stamp(self) -> str:
        """As of all maps, with the part that is evaluated."""
        return f"{super().stamp()} {self.crop}"


def open_segmentation(
    data: Any,
    *,
    split: str | None = None,
    num_classes: int | None = None,
    zero_is_ignored: bool | None = None,
) -> SegmentationImages:
    """Open a segmentation set.

    Args:
        data: One of these:

            - a folder in ADE20K's layout: `images/training`, `annotations/training` and
              `validation`, an image and its map having one name (.jpg, .png);
            - `FOLDER/NAME` of tar packs, a `.tar`, or a pattern: `KEY.jpg` with `KEY.seg.png`;
            - a dataset of (image, map), the map a PIL image, an array or a tensor of integers.
        split: `train`, `val` or `test`; a set without `test` gives its `val`, as ADE20K.
        num_classes: Number of classes, at most 255; None = as the pack's index says, 150 in
            ADE20K's layout.
        zero_is_ignored: The maps are coded as ADE20K's, 0 = no class, n = class n - 1; None = in
            ADE20K's layout only.

    Raises:
        ValueError: If nothing is found, maps are missing, or the number of classes is unknown.

    Examples:
        >>> image = Image.new("RGB", (8, 6))
        >>> data = open_segmentation([(image, torch.zeros(6, 8).long())], num_classes=2)
        >>> len(data), data[0][1].shape
        (1, torch.Size([6, 8]))
    """
    if isinstance(data, SegmentationImages):
        return data
    classes: tuple[str, ...] = ()
    if not isinstance(data, str | Path):
        source, maps = from_dataset(data, to_labels)
    elif Path(data).is_dir():
        source, maps = from_folders(Path(data), split, to_labels)
        zero_is_ignored = zero_is_ignored is not False
        if num_classes is None and zero_is_ignored:
            num_classes = _ADE20K_CLASSES
    else:
        source, maps = from_packs(str(data), split, "seg.png", to_labels)
        classes = classes_of(data)
        if num_classes is None:
            num_classes = len(classes) or None
    if num_classes is None:
        raise ValueError(
            f"segmentation: the number of classes is not known. Got {source.description!r}; say "
            f"num_classes=…."
        )
    return SegmentationImages(
        source, maps, num_classes, classes, zero_is_ignored=bool(zero_is_ignored)
    )


def open_depth(data: Any, *, split: str | None = None, crop: Crop = None) -> DepthImages:
    """Open a depth set.

    Args:
        data: One of these:

            - a folder in the toolbox's layout of NYU-Depth V2: `nyu_train.txt`, `nyu_test.txt`
              with a line `IMAGE DEPTH FOCAL` for each image, and the files below the folder; or in
              mmseg's, `images/train` and `annotations/train`. Maps are 16-bit PNG, millimetres;
            - `FOLDER/NAME` of tar packs, a `.tar`, or a pattern: `KEY.jpg` with `KEY.depth.png`;
            - a dataset of (image, map), the map a tensor or array of floats, metres.
        split: `train`, `val` or `test`.
        crop: The part that is evaluated; None = "eigen" in the toolbox's layout, else everything.

    Raises:
        ValueError: If nothing is found or maps are missing.

    Examples:
        >>> data = open_depth([(Image.new("RGB", (8, 6)), torch.full((6, 8), 1.5))])
        >>> float(data[0][1].max())
        1.5
    """
    if isinstance(data, DepthImages):
        return data
    if not isinstance(data, str | Path):
        source, maps = from_dataset(data, to_metres)
    elif not Path(data).is_dir():
        source, maps = from_packs(str(data), split, "depth.png", read_metres)
    elif (file := find_list(Path(data), split)) is not None:
        source, maps = from_list(file, read_metres)
        crop = crop or "eigen"
    else:
        source, maps = from_folders(Path(data), split, read_metres)
    return DepthImages(source, maps, crop)


def open_both(open_set: Callable[..., _Data], train: Any, test: Any) -> tuple[_Data, _Data]:
    """The training and the test set; without `test` both are splits of one path."""
    train_set = open_set(train, split="train")
    test_set = open_set(train if test is None else test, split="test")
    if test is None and test_set.source.places == train_set.source.places:
        raise ValueError(
            f"dense evaluation: no test set. Got test=None and {train_set.description}, which has "
            f"no splits, so that the head would be scored on what it was trained on. Pass test=…."
        )
    return train_set, test_set
