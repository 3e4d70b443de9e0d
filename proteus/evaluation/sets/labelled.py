"""Labelled images: any dataset of `(image, target)`, a folder a class, tar packs, named sets.

`proteus.data` has the unlabelled images of distillation; the places where images can be are found
by the same code.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data import ImageSource, decode, open_source
from ...data.datasets import DatasetSource
from ...data.places import class_numbers, count_reasons, in_shards
from ..metrics import Metric
from ..processes import rank_and_world
from .named import NAMED_SETS, open_named
from .packs import classes_of, is_pack, pack_shards
from .targets import ItemTargets, LastItem, Selected, Target

_logger = logging.getLogger(__name__)

SPLITS = {"val": ("val", "valid", "validation"), "test": ("test", "val", "valid", "validation")}


class LabelledImages(Dataset[tuple[Image.Image, Target]]):
    """Images and their targets; what every protocol of classification takes.

    Args:
        source: Where the images are.
        target: Number of an image -> its class, or for several labels a 0/1 tensor [classes].
        description: For messages.
        classes: Names, in the order of the labels; () where unknown.
        stamp: A cheap string that changes whenever the content may have changed, under which the
            hash of the content is remembered; None = it is computed each time.
        metric: How the paper scores this set; None where nothing is known.

    Examples:
        >>> data = open_labelled([(Image.new("RGB", (8, 8)), 3)])
        >>> len(data), data[0][1]
        (1, 3)
    """

    def __init__(
        self,
        source: ImageSource,
        target: Callable[[int], Target],
        description: str,
        classes: Sequence[str] = (),
        stamp: str | None = None,
        *,
        metric: Metric | None = None,
    ) -> None:
        self.source, self.target, self.description = source, target, description
        self.classes, self.stamp, self.metric = tuple(classes), stamp, metric

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, Target]:
        return self.image(index), self.target(index)

    def image(self, index: int) -> Image.Image:
        """One image, RGB.

        Raises:
            CorruptImageError: If it cannot be decoded.
        """
        return self.source.decode(index)

    def name(self, index: int) -> str:
        """What an image is called."""
        return self.source.name(index)

    def first(self, count: int) -> "LabelledImages":
        """At most `count` images, spread evenly over the set, so that all classes are met."""
        if count >= len(self):
            return self
        return self.select([i * len(self) // count for i in range(count)])

    def select(self, indices: Sequence[int]) -> "LabelledImages":
        """A part of it, in the given order."""
        numbers = list(indices)
        return LabelledImages(
            self.source.select(numbers, self.description),
            Selected(self.target, numbers),
            self.description,
            self.classes,
            None if self.stamp is None else f"{self.stamp}{numbers}",
            metric=self.metric,
        )

    def content_hash(self) -> str:
        """sha256 over every image and target. Reads everything; the cache remembers the result."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            data = self.source.read(index)
            raw = data if isinstance(data, bytes) else decode(data).tobytes()
            target = self.target(index)
            label = target.tolist() if isinstance(target, Tensor) else int(target)
            digest.update(hashlib.sha256(raw).digest() + repr(label).encode())
        return digest.hexdigest()


def open_labelled(
    data: Any,
    *,
    split: str | None = None,
    classes: Sequence[str] = (),
    root: str | Path | None = None,
    download: bool = False,
    labels: bool = True,
) -> LabelledImages:
    """Open labelled images.

    Args:
        data: One of these:

            - a torch dataset of (PIL image, encoded bytes or RGB tensor; class number or, for
              several labels, a 0/1 tensor), or a `LabelledImages`;
            - a folder with a folder for each class, or with one folder for each split;
            - `FOLDER/NAME` of tar packs, whose shards are `NAME-SPLIT-000.tar` with `KEY.jpg` and
              `KEY.cls`; a `.tar`, or a pattern;
            - `hfds/OWNER/NAME`, with a column `label` (extra `data`);
            - a name of `NAMED_SETS`: `flowers`, `voc2007`, `gtsrb`, …
        split: `train`, `val` or `test`; None = the folder or dataset as it stands. Where a layout
            has no `test`, its `val` folder is taken, as in ImageNet.
        classes: Names in the order of the labels, for folders: a test folder that lacks a class
            must not shift the others. () = the folder's own, sorted, whole numbers by value.
        root: Folder of a named set.
        download: Let torchvision download a named set into `root`.
        labels: False = for images alone: every target of files and datasets is 0.

    Raises:
        ValueError: If it does not exist, or labels are missing.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         Path(folder, name).mkdir()
        ...         Image.new("RGB", (8, 8)).save(f"{folder}/{name}/a.png")
        ...     data = open_labelled(folder)
        >>> data.classes, [data.target(i) for i in range(2)]
        (('cat', 'dog'), [0, 1])
    """
    if isinstance(data, LabelledImages):
        return data
    if not labels:
        return _open_unlabelled(data, split)
    if not isinstance(data, str | Path):
        return _items(data, type(data).__name__)
    text = str(data)
    if text in NAMED_SETS:
        return _named(text, split or "train", root, download)
    if root is not None or download:
        raise ValueError(
            f"evaluation: root= and download= belong to a named set. Got {text!r}; expected one "
            f"of {', '.join(NAMED_SETS)}."
        )
    if text.startswith("hfds/"):
        where = text if ":" in text or split is None else f"{text}:{split}"
        return _labelled_hub(open_source(where), text)
    return _open_path(text, split, classes)


def open_splits(train: Any, test: Any, val: Any = None) -> list[LabelledImages]:
    """The opened sets, in this order; a `val` of None is left out.

    Paths are opened with the split of this name. A test folder that lacks a class must not shift
    the numbers of the others, so the classes of training hold for all.
    """
    first = open_labelled(train, split="train")
    others = [(test, "test")] if val is None else [(test, "test"), (val, "val")]
    return [first] + [
        open_labelled(data, split=split, classes=first.classes) for data, split in others
    ]


def _locate(text: str, split: str | None) -> list[Path] | str:
    """The shards of a pack, or the folder of a split; the path itself where it has no such part."""
    if not Path(text).exists() and is_pack(text):
        return pack_shards(text, split or "train")
    wanted = SPLITS.get(split, (split,)) if split else ()
    return next((str(Path(text, name)) for name in wanted if Path(text, name).is_dir()), text)


def _open_path(text: str, split: str | None, classes: Sequence[str]) -> LabelledImages:
    where = _locate(text, split)
    if isinstance(where, list):
        description = f"{text} ({split or 'train'})"
        source = _with_length(open_source(where))
        return _files(source, description, classes or classes_of(text))
    if where == text and split is not None and Path(text).is_dir():
        wanted = SPLITS.get(split, (split,))
        raise ValueError(
            f"evaluation: no folder for the split. Got {text!r} and {split!r}; expected "
            f"{' or '.join(str(Path(text, name)) for name in wanted)}, with a folder a class."
        )
    return _files(_with_length(open_source(where)), text, classes)


def _open_unlabelled(data: Any, split: str | None) -> LabelledImages:
    source = open_source(_locate(str(data), split) if isinstance(data, str | Path) else data)
    source = _with_length(source)
    stamp = file_stamp(source) if all(place.file for place in source.places) else None
    targets = [0] * len(source)
    return LabelledImages(source, targets.__getitem__, source.description, stamp=stamp)


def _with_length(source: Any) -> ImageSource:
    """A source that can be measured; what was found beside its images is told."""
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"evaluation: only datasets with a length can be measured. Got {source.description}, "
            f"a stream."
        )
    tell_passed_over(source.description, source.passed_over)
    return source


def tell_passed_over(description: str, passed_over: Mapping[str, str]) -> None:
    """Say what was found and is not measured."""
    if (others := count_reasons(passed_over)) and rank_and_world()[0] == 0:
        _logger.warning("evaluation: %s: passed over %s", description, others)


def _files(source: ImageSource, description: str, classes: Sequence[str]) -> LabelledImages:
    """Images in files, whose layout tells the class."""
    labels = [source.label(index) for index in range(len(source))]
    missing = [source.name(i) for i, label in enumerate(labels) if label is None]
    if missing:
        raise ValueError(
            f"evaluation: images without a label. Got {len(missing)} of {len(labels)} in "
            f"{description}, such as {missing[0]!r}; expected a folder for each class, or KEY.cls "
            f"beside KEY.jpg in a shard."
        )
    words = [str(label) for label in labels]
    names, numbers = class_numbers(words, classes, numbered=in_shards(source))
    return LabelledImages(
        source, numbers.__getitem__, description, names, file_stamp(source, numbers)
    )


def file_stamp(source: ImageSource, labels: Sequence[int] = ()) -> str:
    """A hash of paths, sizes and times of the files, and of which pieces of them are meant."""
    digest = hashlib.sha256()
    for file in sorted({place.file for place in source.places if place.file}):
        status = Path(file).stat()
        digest.update(f"{Path(file).resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    digest.update(repr([(place.file, place.offset) for place in source.places]).encode())
    digest.update(repr(list(labels)).encode())
    return digest.hexdigest()


def _items(dataset: Any, description: str) -> LabelledImages:
    source = _with_length(open_source(dataset))
    if type(dataset).__module__.startswith("datasets."):
        return _labelled_hub(source, description)
    items = LastItem(dataset)
    if isinstance(source, DatasetSource):
        source.dataset = items
    return LabelledImages(source, ItemTargets(items), description)


def _named(name: str, split: str, root: str | Path | None, download: bool) -> LabelledImages:
    items = open_named(name, split, root=root, download=download)
    opened = _items(items.dataset, f"{name} ({split})")
    opened.classes, opened.stamp = items.classes, items.stamp
    opened.metric = NAMED_SETS[name].metric
    return opened


def _labelled_hub(source: ImageSource, description: str) -> LabelledImages:
    """A Hugging Face dataset; its labels are its column `label`."""
    assert isinstance(source, DatasetSource)
    columns = source.dataset.column_names
    if "label" not in columns:
        raise ValueError(
            f"evaluation: the dataset has no column 'label'. Got {columns} in {description!r}; "
            f"rename one with rename_column."
        )
    labels = list(source.dataset["label"])
    # A truth value is an int to Python, and numbers 0 and 1 are classes.
    strange = next((i for i, label in enumerate(labels) if not isinstance(label, int)), None)
    if strange is not None:
        raise ValueError(
            f"evaluation: a label is no class number. Got {labels[strange]!r} in row {strange} of "
            f"{description!r}; expected integers in the column 'label'. Turn them into numbers "
            f"with class_encode_column('label')."
        )
    names: Sequence[str] = vars(source.dataset.features["label"]).get("names") or ()
    return LabelledImages(source, labels.__getitem__, description, names)
