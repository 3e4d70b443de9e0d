"""Images with a map each: ADE20K's and NYU-Depth V2's layouts, tar packs, any dataset."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data import ImageSource, decode, open_source
from ..data.shards import read_shard
from ..data.sources import EXTENSIONS, Place
from ..features import ShapeError
from .datasets import file_stamp
from .dense_metrics import IGNORE, reduce_zero_label
from .depth_metrics import Crop, metres
from .packs import classes_of, is_pack, pack_shards

_Data = TypeVar("_Data", bound="DenseImages")
# What the layouts call our splits.
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_ADE20K_CLASSES = 150


class DenseImages(Dataset[tuple[Image.Image, Tensor]]):
    """Images and a map each; use `open_segmentation` or `open_depth`.

    Args:
        source: The images.
        read_map: Number of an image -> its map [H, W].
        description: For messages.
    """

    def __init__(
        self, source: ImageSource, read_map: Callable[[int], Tensor], description: str
    ) -> None:
        self.source, self.read_map, self.description = source, read_map, description

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        image, target = decode(self.source.read(index)), self.read_map(index)
        if tuple(target.shape) != (image.height, image.width):
            raise ShapeError(
                f"{self.description}: an image and its map differ in size. Got "
                f"{image.height}x{image.width} and {tuple(target.shape)} for "
                f"{self.source.name(index)!r}."
            )
        return image, target

    def first(self: _Data, count: int) -> _Data:
        """At most `count` images, spread evenly over the set (videos repeat themselves)."""
        if count >= len(self):
            return self
        numbers = [i * len(self) // count for i in range(count)]
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.source = self.source.select(numbers, self.description)
        part.read_map = _Selected(self.read_map, numbers)
        return part

    def stamp(self) -> str:
        """A hash of the files of the images and of the maps, and of how maps are read."""
        read, reading = self.read_map, type(self.read_map).__name__
        while isinstance(read, _Selected | _Reduced):
            read = read.read_map
            reading += f" {type(read).__name__}"
        maps = file_stamp(read.source) if isinstance(read, _Stored) else ""
        return f"{file_stamp(self.source)} {maps} {reading}"


class SegmentationImages(DenseImages):
    """Images and class maps, integer [H, W], 255 = ignored.

    Attributes:
        num_classes: Number of classes.
        classes: Their names; () where unknown.
    """

    num_classes: int
    classes: tuple[str, ...]

    def stamp(self) -> str:
        """As of all maps, with the number of classes."""
        return f"{super().stamp()} {self.num_classes}"

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        image, labels = super().__getitem__(index)
        counted = labels[labels != IGNORE]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < self.num_classes:
            raise ValueError(
                f"{self.description}: a label is no class. Got {int(counted.min())} to "
                f"{int(counted.max())} in {self.source.name(index)!r}; expected 0 to "
                f"{self.num_classes - 1}, or {IGNORE} (ignored). Say num_classes=… or "
                f"zero_is_ignored=True."
            )
        return image, labels


class DepthImages(DenseImages):
    """Images and depth maps, float32 [H, W], metres; 0 = no measurement.

    Attributes:
        crop: The part that is evaluated: "eigen" for NYU-Depth V2, else None.
    """

    crop: Crop

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
        num_classes: Number of classes; None = as the pack's index says, 150 in ADE20K's layout.
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
        source, read_map, name = _dataset(data, _to_labels)
        ignored = bool(zero_is_ignored)
    elif Path(data).is_dir():
        images, maps, name = _folders(Path(data), split)
        source, read_map = ImageSource(name, images), _Stored(maps, _read_labels)
        ignored = zero_is_ignored is not False
        num_classes = num_classes or (_ADE20K_CLASSES if ignored else None)
    else:
        images, maps, name = _packed(str(data), split, "seg.png")
        source, read_map = ImageSource(name, images), _Stored(maps, _read_labels)
        ignored, classes = bool(zero_is_ignored), classes_of(data)
        num_classes = num_classes or len(classes) or None
    if num_classes is None:
        raise ValueError(
            f"segmentation: the number of classes is not known. Got {name!r}; say num_classes=…."
        )
    result = SegmentationImages(source, _Reduced(read_map) if ignored else read_map, name)
    result.num_classes, result.classes = num_classes, classes
    return result


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
        source, read_map, name = _dataset(data, _to_metres)
    else:
        if Path(data).is_dir():
            lists = _split_lists(Path(data), split)
            images, maps, name = _listed(lists[0]) if lists else _folders(Path(data), split)
            crop = crop or ("eigen" if lists else None)
        else:
            images, maps, name = _packed(str(data), split, "depth.png")
        source, read_map = ImageSource(name, images), _Stored(maps, _read_metres)
    result = DepthImages(source, read_map, name)
    result.crop = crop
    return result


def _packed(text: str, split: str | None, ending: str) -> tuple[list[Place], list[Place], str]:
    """Images of shards and the maps of the same keys."""
    if not Path(text).exists() and is_pack(text):
        files = pack_shards(text, split or "train")
    else:
        files = sorted(Path(place) for place in {p.file for p in open_source(text).places})
    images, maps = [], []
    for file in files:
        members = {m.name: m for m in read_shard(str(file), EXTENSIONS)}
        for name, member in members.items():
            if member.reason is not None:
                continue
            key = name.rpartition("/")[0] + "/" * ("/" in name) + Path(name).name.partition(".")[0]
            target = members.get(f"{key}.{ending}")
            if target is None:
                raise ValueError(
                    f"dense data: an image has no map. Got {name!r} in {str(file)!r}; expected "
                    f"{key}.{ending} beside it."
                )
            images.append(Place(str(file), f"{file.name}:{name}", member.offset, member.size))
            maps.append(Place(str(file), f"{file.name}:{target.name}", target.offset, target.size))
    return images, maps, text


def _folders(root: Path, split: str | None) -> tuple[list[Place], list[Place], str]:
    """`images/SPLIT` and `annotations/SPLIT`; an image and its map have one stem."""
    names = _SPLITS.get(split or "train", (str(split),))
    found = [name for name in names if (root / "images" / name).is_dir()]
    if not found:
        raise ValueError(
            f"dense data: unknown layout. Got {str(root)!r} and split {split or 'train'!r}; "
            f"expected {root / 'images' / names[0]} with annotations/{names[0]} beside it."
        )
    pictures, targets = root / "images" / found[0], root / "annotations" / found[0]
    maps = {p.relative_to(targets).with_suffix(""): p for p in sorted(targets.rglob("*.png"))}
    images = [p for p in sorted(pictures.rglob("*")) if p.suffix.lower() in EXTENSIONS]
    keys = [path.relative_to(pictures).with_suffix("") for path in images]
    missing = [str(key) for key in keys if key not in maps]
    if missing or not images:
        raise ValueError(
            f"dense data: images without maps. Got {len(images)} images in {str(pictures)!r}, "
            f"{len(missing)} without a .png in {str(targets)!r}, such as {missing[:3]}."
        )
    places = [Place(str(path), str(key)) for path, key in zip(images, keys, strict=True)]
    return places, [Place(str(maps[key]), str(key)) for key in keys], f"{root} ({found[0]})"


def _split_lists(root: Path, split: str | None) -> list[Path]:
    names = _SPLITS.get(split or "train", (str(split),))
    return [path for name in names for path in sorted(root.glob(f"*{name}.txt"))]


def _listed(file: Path) -> tuple[list[Place], list[Place], str]:
    """The toolbox's list; a line whose depth is `None` is left out, as there."""
    images, maps = [], []
    for line in file.read_text(encoding="utf-8").splitlines():
        parts = line.split()
        if not parts or (len(parts) > 1 and parts[1] == "None"):
            continue
        paths = [file.parent / part.lstrip("/") for part in parts[:2]]
        if len(paths) < 2 or not all(path.is_file() for path in paths):
            raise ValueError(
                f"dense data: {str(file)!r} lists what is not there. Got {line!r}; expected "
                f"IMAGE DEPTH FOCAL with paths below {str(file.parent)!r}."
            )
        images.append(Place(str(paths[0]), parts[0]))
        maps.append(Place(str(paths[1]), parts[1]))
    if not images:
        raise ValueError(f"dense data: {str(file)!r} lists no images.")
    return images, maps, str(file)


def _dataset(
    data: Any, to_map: Callable[[Any], Tensor]
) -> tuple[ImageSource, Callable[[int], Tensor], str]:
    name = type(data).__name__
    source = open_source(data)
    if not isinstance(source, ImageSource):
        raise ValueError(f"dense data: only datasets with a length can be measured. Got {name}.")
    return source, _Given(data, to_map), name


class _Stored:
    """Maps that are files or pieces of shards."""

    def __init__(self, places: Sequence[Place], read: Callable[[bytes], Tensor]) -> None:
        self.source, self.read = ImageSource("maps", places), read

    def __call__(self, index: int) -> Tensor:
        content = self.source.read(index)
        assert isinstance(content, bytes)  # of files, always
        try:
            return self.read(content)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"dense data: a map cannot be read. Got {self.source.name(index)!r}: {error}"
            ) from error


class _Given:
    """Maps that a dataset hands out."""

    def __init__(self, data: Any, to_map: Callable[[Any], Tensor]) -> None:
        self.data, self.to_map = data, to_map

    def __call__(self, index: int) -> Tensor:
        item = self.data[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(
                f"dense data: item {index} has no map. Got {type(item).__name__}; expected "
                f"(image, map)."
            )
        return self.to_map(item[1])


class _Selected:
    """Maps of a part of a set."""

    def __init__(self, read_map: Callable[[int], Tensor], numbers: list[int]) -> None:
        self.read_map, self.numbers = read_map, numbers

    def __call__(self, index: int) -> Tensor:
        return self.read_map(self.numbers[index])


class _Reduced:
    """Maps coded as ADE20K's."""

    def __init__(self, read_map: Callable[[int], Tensor]) -> None:
        self.read_map = read_map

    def __call__(self, index: int) -> Tensor:
        labels = self.read_map(index)
        return reduce_zero_label(labels.clamp(max=IGNORE).to(torch.uint8))


def _read_labels(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as file:
        return _to_labels(file)


def _read_metres(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as file:
        if not file.mode.startswith("I"):
            raise ValueError(f"its mode is {file.mode}, expected 16 bits (millimetres)")
        return metres(torch.from_numpy(np.asarray(file).astype(np.int32)))


def _to_labels(value: Any) -> Tensor:
    if isinstance(value, Image.Image):
        if value.mode not in ("L", "P") and not value.mode.startswith("I"):
            raise ValueError(f"labels: mode {value.mode} has no class indices; expected L, P or I")
        # Bytes stay bytes: kept for training, they are an eighth of int64.
        value = np.array(value).astype(np.int32 if value.mode.startswith("I") else np.uint8)
    labels = torch.as_tensor(value).squeeze()
    if labels.is_floating_point() or labels.ndim != 2:
        raise ValueError(
            f"labels: expected a map of integers [H, W]. Got {labels.dtype} {tuple(labels.shape)}."
        )
    return labels


def _to_metres(value: Any) -> Tensor:
    depth = torch.as_tensor(value).squeeze()
    if not depth.is_floating_point() or depth.ndim != 2:
        raise ValueError(
            f"depth: expected a map of floats [H, W], metres. Got {depth.dtype} "
            f"{tuple(depth.shape)}; proteus.evaluation.metres(map) converts millimetres."
        )
    return depth.float()
