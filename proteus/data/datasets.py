"""Datasets of other libraries as sources: torch's and Hugging Face's, also streamed."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..words import install
from .decoding import CorruptImageError, read_file
from .places import ImageSource, Place

_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")


class DatasetSource(ImageSource):
    """A dataset that can be asked for item n.

    Args:
        description: What it is, for messages.
        dataset: Has `len()` and `[n]`.
        picture: An item -> its encoded bytes or its image.
    """

    def __init__(
        self, description: str, dataset: Any, picture: Callable[[Any], bytes | Image.Image]
    ) -> None:
        places = [Place("", f"{description}[{n}]", n) for n in range(len(dataset))]
        super().__init__(description, places)
        self.dataset, self.picture = dataset, picture

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded bytes or the image of an item."""
        try:
            item = self.dataset[self.places[index].offset]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise CorruptImageError(f"{self.name(index)}: cannot be read. Got {error}.") from error
        return self.picture(item)


class StreamSource:
    """A dataset that can only be read from its beginning, such as one that streams from a server.

    Args:
        description: What it is, for messages.
        dataset: A `datasets.IterableDataset` (shuffled by its own buffer), or any iterable that
            starts anew each time it is iterated.
        picture: An item -> its encoded bytes or its image.
    """

    def __init__(
        self, description: str, dataset: Any, picture: Callable[[Any], bytes | Image.Image]
    ) -> None:
        self.description, self.dataset, self.picture = description, dataset, picture

    def items(self, epoch: int, seed: int, buffer: int) -> Iterator[Any]:
        """One pass over the dataset's items, shuffled through a buffer where the dataset can."""
        dataset = self.dataset
        if type(dataset).__module__.startswith("datasets."):
            dataset = dataset.shuffle(seed=seed, buffer_size=buffer)
            dataset.set_epoch(epoch)
        return iter(dataset)


def open_dataset(dataset: Any) -> ImageSource | StreamSource:
    """A torch or Hugging Face dataset as a source.

    Raises:
        ValueError: If it is neither, or its items hold no image.
    """
    name = type(dataset).__name__
    if type(dataset).__module__.startswith("datasets."):
        column = _column(dataset)
        import datasets

        raw = dataset.cast_column(column, datasets.Image(decode=False))
        if isinstance(dataset, datasets.IterableDataset):
            return StreamSource(name, raw, _Cell(column))
        return DatasetSource(name, raw, _Cell(column))
    if isinstance(dataset, Iterator) and not isinstance(dataset, Dataset):
        raise ValueError(
            f"images: an iterator can be read only once, and a run reads its images in passes. Got "
            f"a {name}; expected an object that starts anew each time it is iterated."
        )
    if isinstance(dataset, IterableDataset) or (
        isinstance(dataset, Iterable) and not isinstance(dataset, Sized)
    ):
        return StreamSource(name, dataset, _picture)
    if isinstance(dataset, Dataset | list | tuple) and isinstance(dataset, Sized):
        if len(dataset) == 0:
            raise ValueError(f"images: the dataset is empty. Got a {name} of length 0.")
        return DatasetSource(name, dataset, _picture)
    raise ValueError(
        f"images: not a source. Got a {name}; expected a path, a torch dataset or a "
        f"datasets.Dataset."
    )


def open_hub_dataset(text: str) -> ImageSource | StreamSource:
    """`hfds/OWNER/NAME:SPLIT`, or `hfids/…` to stream it, as timm writes them.

    Raises:
        ValueError: If the extra is missing or the dataset cannot be loaded.
    """
    kind, _, rest = text.partition("/")
    name, _, split = rest.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"images: {text!r} needs the package datasets. {install('datasets')}"
        ) from error
    try:
        loaded = datasets.load_dataset(name, split=split or "train", streaming=kind == "hfids")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"images: the dataset {name!r} cannot be loaded. Got {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}."
        ) from error
    return open_dataset(loaded)


def _column(dataset: Any) -> str:
    """The column with the images."""
    import datasets

    features = dataset.features or {}
    for name, kind in features.items():
        if isinstance(kind, datasets.Image):
            return str(name)
    for name in _COLUMNS:
        if name in features:
            return name
    raise ValueError(
        f"images: the dataset has no column of images. Got {list(features)}; expected one of type "
        f"datasets.Image."
    )


class _Cell:
    """Row -> encoded bytes; a class and not a closure, so that it travels to workers."""

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, row: Any) -> bytes | Image.Image:
        cell = row[self.column]
        if isinstance(cell, dict):
            content, path = cell.get("bytes"), cell.get("path")
            if isinstance(content, bytes):
                return content
            if not isinstance(path, str):
                raise CorruptImageError(f"the row has no image in its column {self.column!r}")
            try:
                return read_file(path)
            except OSError as error:
                raise CorruptImageError(f"{path}: cannot be read. Got {error}.") from error
        if cell is None:
            raise CorruptImageError(f"the row has no image in its column {self.column!r}")
        return _picture(cell)


def _picture(item: Any) -> bytes | Image.Image:
    """The image of an item: itself, or the first of a tuple."""
    if isinstance(item, list | tuple) and item:
        item = item[0]
    if isinstance(item, bytes | Image.Image):
        return item
    if isinstance(item, Tensor) and item.ndim == 3 and item.shape[0] == 3:
        if item.is_floating_point():
            if not (item.min() >= 0 and item.max() <= 1):
                raise ValueError(
                    f"images: the dataset's float images are not in [0, 1]. Got values from "
                    f"{float(item.min()):.3g} to {float(item.max()):.3g}; drop Normalize from its "
                    f"transform."
                )
            item = (item * 255).round()
        elif item.dtype != torch.uint8:
            raise ValueError(
                f"images: the dataset's tensors are neither uint8 nor float. Got {item.dtype}."
            )
        return Image.fromarray(item.to(torch.uint8).permute(1, 2, 0).numpy())
    shape = tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__
    raise ValueError(
        f"images: the dataset's items are no images. Got {shape}; expected a PIL image, encoded "
        f"bytes, or an RGB tensor [3, H, W], alone or first in a tuple."
    )
