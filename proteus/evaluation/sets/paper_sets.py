"""The paper's sets by name: who reads them, their splits, and how each is scored."""

import csv
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.decoding import read_file
from ...words import install
from ..metrics import Metric

_SEED = 0
_CALTECH_TRAIN = 30

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class Items(NamedTuple):
    """An opened set: items (image, target), names of the classes, a stamp of the files."""

    dataset: Any
    classes: tuple[str, ...]
    stamp: str


@dataclass(frozen=True)
class NamedSet:
    """One set of the paper.

    Attributes:
        title: As the paper writes it.
        read: (root, split, download) -> dataset of (image, target).
        metric: `accuracy`, `mean_class` (accuracy averaged over classes) or `map_11` (11-point mean
            average precision, several labels an image).
        has_val: Whether it brings a validation split; else a fifth of train is drawn.
    """

    title: str
    read: Callable[[str, str, bool], Any]
    metric: Metric = "accuracy"
    has_val: bool = False


def _split(name: str, splits: Mapping[str, str]) -> Callable[[str, str, bool], Any]:
    """A torchvision class with `split=`, and what it calls our splits."""

    def read(root: str, split: str, download: bool) -> Any:
        from torchvision import datasets

        return vars(datasets)[name](root, split=splits[split], download=download)

    return read


def _cifar(name: str) -> Callable[[str, str, bool], Any]:
    def read(root: str, split: str, download: bool) -> Any:
        from torchvision import datasets

        return vars(datasets)[name](root, train=split == "train", download=download)

    return read


_PLAIN = {"train": "train", "test": "test"}
_THREE = {"train": "train", "val": "val", "test": "test"}


def _caltech101(root: str, split: str, download: bool) -> Any:
    from torch.utils.data import Subset
    from torchvision.datasets import Caltech101

    dataset = Caltech101(root, target_type="category", download=download)
    labels = np.array(dataset.y)
    random = np.random.RandomState(_SEED)
    train = np.concatenate(
        [
            random.permutation(np.flatnonzero(labels == n))[:_CALTECH_TRAIN]
            for n in np.unique(labels)
        ]
    )
    chosen = np.sort(train) if split == "train" else np.setdiff1d(np.arange(len(labels)), train)
    return Subset(dataset, chosen.tolist())


class _Files(torch.utils.data.Dataset[tuple[bytes, int]]):
    """(path, label) pairs as a dataset of encoded images."""

    def __init__(self, rows: list[tuple[Path, int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        path, label = self.rows[index]
        return read_file(path), label


def _sun397(root: str, split: str, download: bool) -> Any:
    """The first of the ten published partitions, which torchvision's class does not know."""
    if download:
        from torchvision.datasets import SUN397

        SUN397(root, download=True)
    folder = Path(root) / "SUN397"
    names = [line.strip() for line in (folder / "ClassName.txt").read_text().splitlines()]
    number = {name: i for i, name in enumerate(name for name in names if name)}
    listed = next(
        (p for p in (folder, Path(root)) if (p / "Training_01.txt").is_file()), folder
    ) / ("Training_01.txt" if split == "train" else "Testing_01.txt")
    lines = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    return _Files([(folder / line[1:], number[str(Path(line).parent)]) for line in lines])


def _cub(root: str, split: str, download: bool) -> Any:
    if download:
        raise ValueError("evaluation: cub cannot be downloaded here. Unpack CUB_200_2011 in root.")
    folder = Path(root) / "CUB_200_2011"
    table = {
        name: dict(csv.reader((folder / f"{name}.txt").read_text().splitlines(), delimiter=" "))
        for name in ("images", "image_class_labels", "train_test_split")
    }
    wanted = "1" if split == "train" else "0"
    return _Files(
        [
            (folder / "images" / path, int(table["image_class_labels"][key]) - 1)
            for key, path in table["images"].items()
            if table["train_test_split"][key] == wanted
        ]
    )


def voc_target(annotation: Mapping[str, Any]) -> torch.Tensor:
    """0/1 [20] from the annotation of a VOC image; objects marked difficult do not count."""
    target = torch.zeros(len(VOC_CLASSES), dtype=torch.long)
    for thing in annotation["annotation"]["object"]:
        if thing.get("difficult", "0") != "1":
            target[VOC_CLASSES.index(thing["name"])] = 1
    return target


def _voc2007(root: str, split: str, download: bool) -> Any:
    from torchvision.datasets import VOCDetection

    return VOCDetection(
        root, year="2007", image_set=split, download=download, target_transform=voc_target
    )


NAMED_SETS: Mapping[str, NamedSet] = MappingProxyType(
    {
        "aircraft": NamedSet("Aircraft", _split("FGVCAircraft", _THREE), "mean_class", True),
        "caltech101": NamedSet("Cal101", _caltech101, "mean_class"),
        "cars": NamedSet("Cars", _split("StanfordCars", _PLAIN)),
        "cifar10": NamedSet("C10", _cifar("CIFAR10")),
        "cifar100": NamedSet("C100", _cifar("CIFAR100")),
        "dtd": NamedSet("DTD", _split("DTD", _THREE), has_val=True),
        "flowers": NamedSet("Flowers", _split("Flowers102", _THREE), "mean_class", True),
        "food": NamedSet("Food", _split("Food101", _PLAIN)),
        "pets": NamedSet(
            "Pets", _split("OxfordIIITPet", {"train": "trainval", "test": "test"}), "mean_class"
        ),
        "sun397": NamedSet("SUN", _sun397),
        "voc2007": NamedSet("VOC", _voc2007, "map_11", True),
        "cub": NamedSet("CUB", _cub),
        "gtsrb": NamedSet("GTSRB", _split("GTSRB", _PLAIN)),
        "country211": NamedSet(
            "Country211",
            _split("Country211", {"train": "train", "val": "valid", "test": "test"}),
            has_val=True,
        ),
    }
)


def set_of(name: str) -> NamedSet | None:
    """The paper's set that a set's name speaks of: `flowers5` and `flowers` -> Flowers.

    Examples:
        >>> set_of("caltech101").metric, set_of("flowers5").metric, set_of("butterflies75")
        ('mean_class', 'mean_class', None)
    """
    return NAMED_SETS.get(name) or NAMED_SETS.get(name.rstrip("0123456789"))


def metric_of(name: str) -> Metric:
    """How the paper scores a set; plain accuracy for sets it does not have."""
    known = set_of(name)
    return known.metric if known else "accuracy"


def open_named(
    name: str, split: str, *, root: str | Path | None = None, download: bool = False
) -> Items:
    """Open a split of a named set.

    Raises:
        ValueError: If it has no such split, or its files are not in `root`.

    Source:
        Proteus `eval/fine_grained/main_downstream_linear_dinov2.py`.
        *Same:* sets, metrics, official splits; VOC objects marked difficult do not count.
        *Different:* Caltech-101 trains on 30 images a class drawn without replacement (seed 0),
        the authors draw with it.
    """
    entry = NAMED_SETS[name]
    splits = ("train", "val", "test") if entry.has_val else ("train", "test")
    if split not in splits:
        raise ValueError(
            f"evaluation: {name} has no such split. Got {split!r}; expected {' or '.join(splits)}."
        )
    if root is None:
        raise ValueError(
            f"evaluation: where {name} is must be said. Got no folder; open it yourself with "
            f"open_labelled({name!r}, split={split!r}, root='FOLDER') and pass what it returns; "
            f"download=True lets torchvision fetch it there."
        )
    try:
        dataset = entry.read(str(root), split, download)
    except ModuleNotFoundError as error:  # scipy, for the lists of Flowers and Cars
        raise ValueError(
            f"evaluation: {name} needs a package that is not installed. Got {error}. "
            f"{install('scipy')}"
        ) from error
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"evaluation: {name} cannot be read from {str(root)!r}. Got {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}. Pass download=True, or put its files there."
        ) from error
    classes = VOC_CLASSES if entry.metric == "map_11" else ()
    return Items(dataset, classes, _tree_stamp(Path(root), f"{name} {split} {len(dataset)}"))


def _tree_stamp(root: Path, what: str) -> str:
    """Names, sizes and times of all files below a folder."""
    digest = hashlib.sha256(what.encode())
    for path in sorted(root.rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(os.fsencode(path))
            digest.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
