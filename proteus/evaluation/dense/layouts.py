"""Where images and their maps lie: in folders, lists, tar packs and datasets; how maps are read.

Each `from_…` returns the images and what gives the map of each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data import ImageSource, open_source
from ...data.datasets import DatasetSource
from ...data.decoding import EXTENSIONS, open_image
from ...data.places import Place
from ...data.shards import read_shard
from ..sets.labelled import tell_passed_over
from ..sets.packs import is_pack, pack_shards
from ..sets.targets import LastItem
from .depth_scores import metres

Maps = Callable[[int], Tensor]  # number of an image -> its map [H, W]
Read = Callable[[Image.Image], Tensor]
# What the layouts call our splits.
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "val", "valid", "validation"),
}


def _names_of(split: str | None) -> tuple[str, ...]:
    return _SPLITS.get(split or "train", (str(split),))


class StoredMaps:
    """Maps that are files or pieces of shards."""

    def __init__(self, places: list[Place], read: Read) -> None:
        self.source, self.read = ImageSource("maps", places), read

    def __call__(self, index: int) -> Tensor:
        """The map of an image."""
        content = self.source.read(index)
        assert isinstance(content, bytes)  # of files, always
        try:
            return self.read(open_image(content))
        except ValueError as error:
            raise ValueError(
                f"dense data: a map cannot be read. Got {self.source.name(index)!r}: {error}"
            ) from error


class GivenMaps:
    """Maps that a dataset hands out."""

    def __init__(self, data: Any, to_map: Callable[[Any], Tensor]) -> None:
        self.data, self.to_map = data, to_map

    def __call__(self, index: int) -> Tensor:
        """The map of an item."""
        item = self.data[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(
                f"dense data: item {index} has no map. Got {type(item).__name__}; expected "
                f"(image, map)."
            )
        return self.to_map(item[1])


def from_dataset(data: Any, to_map: Callable[[Any], Tensor]) -> tuple[ImageSource, Maps]:
    """Items (image, map) of a dataset with a length."""
    source = open_source(data)
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"dense data: only datasets with a length can be measured. Got {type(data).__name__}."
        )
    items = LastItem(data)  # image and map of one item, also where a dataset draws at random
    if isinstance(source, DatasetSource):
        source.dataset = items
    return source, GivenMaps(items, to_map)


def from_packs(text: str, split: str | None, ending: str, read: Read) -> tuple[ImageSource, Maps]:
    """Images of shards and the maps of the same keys, `KEY.jpg` and `KEY.ending`."""
    if not Path(text).exists() and is_pack(text):
        files = pack_shards(text, split or "train")
        description = f"{text} ({split or 'train'})"
    else:
        files = sorted({Path(place.file) for place in open_source(text).places})
        description = text
    images, maps = [], []
    others: dict[str, str] = {}
    for file in files:
        members = {m.name: m for m in read_shard(str(file), EXTENSIONS)}
        for name, member in members.items():
            if member.reason is not None:
                if not name.endswith(ending):
                    others[f"{file.name}:{name}"] = member.reason
                continue
            folder, slash, base = name.rpartition("/")
            key = f"{folder}{slash}{base.partition('.')[0]}"
            target = members.get(f"{key}.{ending}")
            if target is None:
                raise ValueError(
                    f"dense data: an image has no map. Got {name!r} in {str(file)!r}; expected "
                    f"{key}.{ending} beside it."
                )
            images.append(Place(str(file), f"{file.name}:{name}", member.offset, member.size))
            maps.append(Place(str(file), f"{file.name}:{target.name}", target.offset, target.size))
    tell_passed_over(description, others)
    return ImageSource(description, images), StoredMaps(maps, read)


def from_folders(root: Path, split: str | None, read: Read) -> tuple[ImageSource, Maps]:
    """`images/SPLIT` and `annotations/SPLIT`; an image and its map have one stem."""
    names = _names_of(split)
    found = next((name for name in names if (root / "images" / name).is_dir()), None)
    if found is None:
        raise ValueError(
            f"dense data: unknown layout. Got {str(root)!r} and split {split or 'train'!r}; "
            f"expected {root / 'images' / names[0]} with annotations/{names[0]} beside it."
        )
    pictures, targets = root / "images" / found, root / "annotations" / found
    maps = {p.relative_to(targets).with_suffix(""): p for p in sorted(targets.rglob("*.png"))}
    source = open_source(pictures)
    images = sorted(Path(place.file) for place in source.places)
    keys = [path.relative_to(pictures).with_suffix("") for path in images]
    missing = [str(key) for key in keys if key not in maps]
    if missing:
        raise ValueError(
            f"dense data: images without maps. Got {len(images)} images in {str(pictures)!r}, "
            f"{len(missing)} without a .png in {str(targets)!r}, such as {missing[:3]}."
        )
    places = [Place(str(path), str(key)) for path, key in zip(images, keys, strict=True)]
    tell_passed_over(source.description, source.passed_over)
    targets_of = [Place(str(maps[key]), str(key)) for key in keys]
    return ImageSource(f"{root} ({found})", places), StoredMaps(targets_of, read)


def find_list(root: Path, split: str | None) -> Path | None:
    """The toolbox's list of a split, such as `nyu_train.txt`; None where there is none."""
    for name in _names_of(split):
        found = sorted(path for path in root.glob(f"*{name}.txt") if path.is_file())
        if len(found) > 1:
            raise ValueError(
                f"dense data: several lists of one split. Got {[path.name for path in found]} in "
                f"{str(root)!r}; expected one. Move the others away."
            )
        if found:
            return found[0]
    return None


def from_list(file: Path, read: Read) -> tuple[ImageSource, Maps]:
    """What the toolbox's list names; a line whose depth is `None` is left out, as there."""
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
    return ImageSource(str(file), images), StoredMaps(maps, read)


def read_metres(image: Image.Image) -> Tensor:
    """An image of 16-bit millimetres."""
    if not image.mode.startswith("I"):
        raise ValueError(f"its mode is {image.mode}, expected 16 bits (millimetres)")
    return metres(torch.from_numpy(np.asarray(image).astype(np.int32)))


def to_labels(value: Any) -> Tensor:
    """Class numbers of an image, an array or a tensor: long [H, W]."""
    if isinstance(value, Image.Image):
        if value.mode not in ("L", "P") and not value.mode.startswith("I"):
            raise ValueError(f"labels: mode {value.mode} has no class indices; expected L, P or I")
        value = np.array(value)
    labels = _without_channel(torch.as_tensor(value))
    if labels.is_floating_point() or labels.ndim != 2:
        raise ValueError(
            f"labels: expected a map of integers [H, W]. Got {labels.dtype} {tuple(labels.shape)}."
        )
    return labels.long()  # torch can do little with 16 bits


def to_metres(value: Any) -> Tensor:
    """Metres of an array or a tensor: float32 [H, W]."""
    depth = _without_channel(torch.as_tensor(value))
    if not depth.is_floating_point() or depth.ndim != 2:
        raise ValueError(
            f"depth: expected a map of floats [H, W], metres. Got {depth.dtype} "
            f"{tuple(depth.shape)}; proteus.evaluation.metres(map) converts millimetres."
        )
    return depth.float()


def _without_channel(value: Tensor) -> Tensor:
    """[1, H, W] and [H, W, 1] to [H, W]."""
    return value.squeeze(0).squeeze(-1) if value.ndim == 3 else value
