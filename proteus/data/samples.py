"""From keys to a batch: read, decode, crop. What is random depends on (seed, key) alone."""

import itertools
import os
import random
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from .decoding import CorruptImageError, Pixels, decode, decode_plain_jpeg, plain_jpeg_size
from .on_device import apply
from .places import ImageSource
from .transforms import (
    MEAN,
    STD,
    Crop,
    Draw,
    crop_and_resize,
    draw,
    draw_crop,
    official,
    pack,
)

Augmentation: TypeAlias = Literal["none", "crop", "fast", "official"]
Sample: TypeAlias = tuple[Tensor, Draw | None]
Faults: TypeAlias = list[tuple[str, str]]  # (name, reason)
CORRUPT_SHARE = 0.05


class Key(NamedTuple):
    """Which sample: the copy counts how often the image has come in this epoch."""

    epoch: int  # or the view, where they come again
    image: int
    copy: int


class Batch(NamedTuple):
    """Samples of one batch.

    Attributes:
        images: uint8 [B, 3, size, size].
        draws: [B, 9], what is left to do, for the fast pipeline.
        seed: Of what is left to do.
        faults: Corrupt images met on the way.
        labels: int64 [B], where they were asked for.
        beside: What was prepared of these samples, as it is stored; see `Beside`.
    """

    images: Tensor
    draws: Tensor | None
    seed: int
    faults: Faults
    labels: Tensor | None = None
    beside: tuple[Tensor, ...] = ()


class Beside(Protocol):
    """What was prepared of each sample and comes with it, see `proteus.prepared`."""

    def stored(self, keys: Sequence[Key], places: Sequence[int]) -> tuple[Tensor, ...]:
        """Of a batch, as it lies on the disk; called where images are decoded.

        Places are those of the images shown: of a corrupt one, its neighbour's.
        """

    def ready(self, stored: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same as float32; called on the device of the batch."""


def random_resized_crop(
    image: Image.Image, size: int, rng: random.Random, scale: tuple[float, float] = (0.08, 1.0)
) -> Image.Image:
    """A random part of the image, resized to [size, size], bicubic.

    Args:
        image: RGB.
        size: Side of the result, pixels.
        rng: Source of randomness.
        scale: Range of the part's area, as a share of the image's.
    """
    top, left, height, width = draw_crop(image.height, image.width, rng, scale)
    box = (left, top, left + width, top + height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def center_resize(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, bicubic, then the centre: [size, size]."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


class Augmenter:
    """An image -> samples of it. What is random depends on (seed, key) alone.

    Args:
        augment: See `ImageLoader`.
        size: Pixels, square.
        seed: Of everything random.
        scale: Range of the crops' area.
        whole: Whether the fast pipeline does all of its steps here, or leaves the last ones to the
            device.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        augment: Augmentation,
        *,
        size: int,
        seed: int,
        scale: tuple[float, float],
        whole: bool,
    ) -> None:
        if augment not in ("none", "crop", "fast", "official"):
            raise ValueError(
                f"images: unknown augmentation. Got {augment!r}; expected 'none', 'crop', 'fast' "
                f"or 'official'."
            )
        if size < 1 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"images: got image_size={size}, scale={scale}; expected at least one pixel and "
                f"a range of areas within (0, 1]."
            )
        self.augment, self.size, self.seed, self.scale = augment, size, seed, scale
        self.whole = whole
        self._official = official(size) if augment == "official" else None

    @property
    def leaves_draws(self) -> bool:
        """Whether flip, RandAugment and erasing are left to the device."""
        return self.augment == "fast" and not self.whole

    def __call__(self, data: bytes | Image.Image, keys: Sequence[Key]) -> list[Sample]:
        """One sample of an image for each key.

        Raises:
            CorruptImageError: If it cannot be decoded.
        """
        if self.augment == "fast":
            return self._fast(data, keys)
        image = decode(data)
        return [(self._finish(image, key), None) for key in keys]

    def _rng(self, key: Key) -> random.Random:
        copy = f"/{key.copy}" if key.copy else ""
        return random.Random(f"{self.seed}/{key.epoch}/{key.image}{copy}")

    def _finish(self, image: Image.Image, key: Key) -> Tensor:
        if self._official is not None:
            return self._official_sample(image, key)
        if self.augment == "none":
            image = center_resize(image, self.size)
        else:
            rng = self._rng(key)
            image = random_resized_crop(image, self.size, rng, self.scale)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _official_sample(self, image: Image.Image, key: Key) -> Tensor:
        """Through timm's objects, which draw from the global generators: those are put back."""
        seed = self._rng(key).getrandbits(32)
        state, numpy_state, torch_state = (
            random.getstate(), np.random.get_state(), torch.get_rng_state(),
        )  # fmt: skip
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            assert self._official is not None
            normalised: Tensor = self._official(image)
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
            torch.set_rng_state(torch_state)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        return ((normalised * std + mean) * 255).round().clamp(0, 255).byte()

    def _fast(self, data: bytes | Image.Image, keys: Sequence[Key]) -> list[Sample]:
        rngs = [self._rng(key) for key in keys]
        if isinstance(data, bytes) and (plain := plain_jpeg_size(data)) is not None:
            size = plain
            crops = [draw_crop(*size, rng, self.scale) for rng in rngs]
            pixels = decode_plain_jpeg(data, self._least(size, crops))
        else:
            pixels = np.array(decode(data))
            size = pixels.shape[:2]
            crops = [draw_crop(*size, rng, self.scale) for rng in rngs]
        scaled = [_scale(crop, size, pixels) for crop in crops]
        samples: list[Sample] = []
        for crop, rng in zip(scaled, rngs, strict=True):
            image, drawn = crop_and_resize(pixels, crop, self.size), draw(rng, self.size)
            samples.append((apply(image, drawn, rng) if self.whole else image, drawn))
        return samples

    def _least(self, size: tuple[int, int], crops: Sequence[Crop]) -> tuple[int, int] | None:
        """The smallest size to decode at where every crop still has all the pixels it needs."""
        need = max(self.size / min(crop.height, crop.width) for crop in crops)
        if need > 0.5:
            return None
        return int(size[0] * need) + 1, int(size[1] * need) + 1


def _scale(crop: Crop, size: tuple[int, int], pixels: Pixels) -> Crop:
    """A crop of the full image in an image decoded at a smaller size."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return crop
    y, x = height / size[0], width / size[1]
    h, w = max(1, round(crop.height * y)), max(1, round(crop.width * x))
    top, left = min(round(crop.top * y), height - h), min(round(crop.left * x), width - w)
    return Crop(top, left, h, w)


def to_batch(
    augmenter: Augmenter,
    first: Key,
    samples: Sequence[Sample],
    faults: Faults,
    labels: Tensor | None = None,
) -> Batch:
    """Samples as one batch, which is known by the key of its first."""
    packed = None
    if augmenter.leaves_draws:
        packed = pack([drawn for _, drawn in samples if drawn is not None])
    noise = random.Random(f"{augmenter.seed}/{first}/noise").getrandbits(32)
    return Batch(torch.stack([image for image, _ in samples]), packed, noise, faults, labels)


class Readers:
    """Which image each process is at, in shared memory: a dead one cannot say any more."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((max(1, workers), 2), -1, dtype=torch.long)  # (pid, image)
        self.rows.share_memory_()  # type: ignore[no-untyped-call]

    def note(self, image: int) -> None:
        """This process is at an image."""
        worker = get_worker_info()
        row = worker.id if worker is not None else 0
        self.rows[row, 0], self.rows[row, 1] = os.getpid(), image

    def at(self, pids: Collection[int]) -> list[int]:
        """The images that some processes were at."""
        last = {int(pid): int(image) for pid, image in self.rows}
        return [last[pid] for pid in pids if pid in last]


class Samples(Dataset[Batch]):
    """Keys of a batch -> the batch. Copies of an image that stand together are decoded once.

    Args:
        source: The images.
        augmenter: What is done to them.
        workers: Number of processes, for the record of who reads what.
        labels: int64, the class of each image of the source; None = not asked for.
        beside: What comes with each sample.
    """

    def __init__(
        self,
        source: ImageSource,
        augmenter: Augmenter,
        *,
        workers: int,
        labels: Tensor | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.source, self.augmenter, self.labels = source, augmenter, labels
        self.beside = beside
        self.readers = Readers(workers)

    def __getitem__(self, keys: Sequence[Key]) -> Batch:
        samples: list[Sample] = []
        places: list[int] = []
        faults: Faults = []
        for _, group in itertools.groupby(keys, key=lambda key: key.image):
            copies, place = self._copies(list(group), faults)
            samples += copies
            places += [place] * len(copies)
        labels = None if self.labels is None else self.labels[places]
        batch = to_batch(self.augmenter, keys[0], samples, faults, labels)
        if self.beside is None:
            return batch
        return batch._replace(beside=self.beside.stored(keys, places))

    def _copies(self, keys: Sequence[Key], faults: Faults) -> tuple[list[Sample], int]:
        """All copies of one image, and which it is: a corrupt one is replaced by its neighbour."""
        for shift in range(len(self.source)):
            place = (keys[0].image + shift) % len(self.source)
            self.readers.note(place)
            try:
                return self.augmenter(self.source.read(place), keys), place
            except CorruptImageError as error:
                faults.append((self.source.name(place), str(error)))
                if len(faults) > CORRUPT_SHARE * len(self.source):
                    break  # the loader will raise; do not read the whole source first
        size = self.augmenter.size
        blank = torch.zeros(3, size, size, dtype=torch.uint8)
        return [(blank, draw(random.Random(0), size)) for _ in keys], keys[0].image
