"""Where each image is, and what its place says of it."""

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..files import write_whole
from .decoding import CorruptImageError, read_file

_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True)  # there may be millions
class Place:
    """Bytes of one image: a whole file (`size` None) or a piece of a tar shard.

    Attributes:
        file: Path of the file.
        name: For people: path below the folder, or `shard.tar:member`.
        offset: First byte.
        size: Number of bytes; None = the whole file.
        label: Class, where the layout tells it: the folder's name, in a shard `KEY.cls` before it.
    """

    file: str
    name: str
    offset: int = 0
    size: int | None = None
    label: str | None = None


class ImageSource:
    """A list of encoded images that are read when asked for.

    Nothing is unpacked to the disk and no file stays open, so a source can be used from any number
    of processes.

    Args:
        description: What it is, for messages.
        places: Where each image is; use `open_source` to find them.
        passed_over: What was found and is no image: name -> reason.

    Examples:
        >>> source = ImageSource("nothing", [])
        >>> len(source)
        0
    """

    def __init__(
        self, description: str, places: Sequence[Place], passed_over: dict[str, str] | None = None
    ) -> None:
        self.description = description
        self.places = list(places)
        self.passed_over = passed_over or {}

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """Path below the folder, or `shard.tar:member`."""
        return self.places[index].name

    def label(self, index: int) -> str | None:
        """Class of an image where the layout tells it."""
        return self.places[index].label

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded bytes of one image (or the image, where a dataset holds it decoded).

        Raises:
            CorruptImageError: If the file cannot be read any more.
        """
        place = self.places[index]
        try:
            return read_file(place.file, place.offset, place.size)
        except OSError as error:
            raise CorruptImageError(f"{place.name}: cannot be read. Got {error}.") from error

    def select(self, indices: Sequence[int], description: str) -> "ImageSource":
        """A part of it, in the given order."""
        part = copy.copy(self)
        part.description = description
        part.places = [self.places[i] for i in indices]
        return part

    def save_list(self, path: str | Path) -> None:
        """Write the list of images, which `open_source` takes: `NAME.images.json`."""
        if type(self) is not ImageSource:
            raise ValueError(
                f"images: only files can be listed. Got {self.description}, whose images are made "
                f"when they are asked for."
            )
        target = Path(path)
        if target.suffix != ".json":
            raise ValueError(f"images: a list is a .json file. Got {str(path)!r}.")
        rows = [[os.path.abspath(p.file), *astuple(p)[1:]] for p in self.places]
        content = {"proteus_images": 1, "description": self.description, "places": rows}
        write_whole(target, json.dumps(content) + "\n")


def count_reasons(passed_over: Mapping[str, str]) -> str:
    """What was passed over, in a line for people; "" for nothing.

    Examples:
        >>> count_reasons({"a.txt": "not an image: .txt", "b.txt": "not an image: .txt"})
        '2 other files: 2 not an image: .txt'
    """
    if not passed_over:
        return ""
    reasons = Counter(passed_over.values()).most_common(5)
    return f"{len(passed_over)} other files: " + ", ".join(f"{n} {why}" for why, n in reasons)


def join(sources: Sequence[ImageSource], description: str | None = None) -> ImageSource:
    """Several sources one after the other; equal names get their source's before them."""
    description = description or ", ".join(source.description for source in sources)
    names = Counter(place.name for source in sources for place in source.places)
    places = [
        replace(place, name=f"{source.description}/{place.name}")
        if names[place.name] > 1
        else place
        for source in sources
        for place in source.places
    ]
    others: dict[str, str] = {}
    for source in sources:
        for name, why in source.passed_over.items():
            others[f"{source.description}/{name}" if name in others else name] = why
    if all(type(source) is ImageSource for source in sources):
        return ImageSource(description, places, others)
    return JoinedSource(description, sources, places, others)


class JoinedSource(ImageSource):
    """Sources of several kinds one after the other; each reads its own images."""

    def __init__(
        self,
        description: str,
        sources: Sequence[ImageSource],
        places: Sequence[Place],
        passed_over: dict[str, str],
    ) -> None:
        numbered = [replace(place, offset=number) for number, place in enumerate(places)]
        super().__init__(description, numbered, passed_over)
        self.owners = [(source, index) for source in sources for index in range(len(source))]

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded bytes of one image, or the image."""
        source, number = self.owners[self.places[index].offset]
        return source.read(number)


def number_labels(
    source: ImageSource, classes: Sequence[str] | None = None
) -> tuple[list[str], Tensor]:
    """The classes of a source in order, and the class of each image.

    Args:
        source: The images; their labels are `source.label(i)`.
        classes: The order of the classes; None = the source's own, see `class_numbers`.

    Returns:
        Names, and int64 [images].

    Raises:
        ValueError: If an image has no label, or one that is not among the classes.
    """
    labels = [source.label(index) for index in range(len(source))]
    if None in labels:
        raise ValueError(
            f"images: labels are asked for and not known. Got "
            f"{source.name(labels.index(None))} of {source.description} without one; expected a "
            f"folder for each class, or shards with KEY.cls."
        )
    words = [str(label) for label in labels]
    if classes is None:
        names, numbers = class_numbers(words, numbered=in_shards(source))
        return names, torch.tensor(numbers)
    order = {name: number for number, name in enumerate(classes)}
    if len(order) != len(classes) or not set(words) <= set(order):
        others = sorted(set(words) - set(order))
        raise ValueError(
            f"images: the classes do not fit the source's labels. Got {len(classes)} names "
            f"({len(order)} different ones) without {others[:5]} of {source.description}; "
            f"expected each label once."
        )
    return list(classes), torch.tensor([order[word] for word in words])


def in_shards(source: ImageSource) -> bool:
    """Whether all images are pieces of shards, whose `KEY.cls` may be the class's number."""
    return all(place.size is not None for place in source.places)


def class_numbers(
    labels: Sequence[str], classes: Sequence[str] = (), *, numbered: bool = False
) -> tuple[list[str], list[int]]:
    """The classes in the order of their numbers, and the number of each label.

    The one rule, of training and evaluation alike: sorted, and by value where all are whole
    numbers, so that "10" comes after "9". Mixed ones are sorted as text. Names are compared letter
    by letter: "1" and "01" are two classes.

    Args:
        labels: Of each image.
        classes: Their order, as training has it; () = by the rule.
        numbered: Whole numbers are the classes' numbers themselves, as in `KEY.cls`, also where
            some classes have no image.

    Raises:
        ValueError: If a label is not among the classes, or a number is no class's: below 0, or a
            million and above.

    Examples:
        >>> class_numbers(["10", "9", "1"])
        (['1', '9', '10'], [2, 1, 0])
        >>> class_numbers(["3", "1"], numbered=True)
        (['0', '1', '2', '3'], [3, 1])
    """
    known = set(labels)
    whole = all(re.fullmatch("[0-9]+", label) for label in known)
    if numbered and whole and known:
        numbers = {label: int(label.lstrip("0")[:9] or 0) for label in known}
        if max(numbers.values()) < _MOST_CLASSES:
            names = [str(number) for number in range(max(numbers.values()) + 1)]
            return list(classes) or names, [numbers[label] for label in labels]
    if numbered and (strange := [label for label in known if re.fullmatch("[+-]?[0-9]+", label)]):
        raise ValueError(
            f"images: labels that are no class numbers. Got {sorted(known)[:5]}; expected numbers "
            f"from 0 to {_MOST_CLASSES - 1} in KEY.cls, or names only."
        )
    names = list(classes) or sorted(known, key=lambda n: (int(n), n) if whole else (0, n))
    if strange := sorted(known - set(names)):
        raise ValueError(
            f"images: classes that are not among those of training. Got {strange[:3]}; expected "
            f"{', '.join(names[:5])}, …"
        )
    order = {name: number for number, name in enumerate(names)}
    return names, [order[label] for label in labels]
