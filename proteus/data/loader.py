"""From encoded images to an endless, seeded, resumable stream of uint8 batches.

What a sample looks like depends on (seed, epoch, index) alone: not on the number of workers, and
not on what was drawn before it.
"""

import io
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .sources import CorruptImageError, ImageSource

_logger = logging.getLogger(__name__)
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_CORRUPT_SHARE = 0.05
_Key: TypeAlias = tuple[int, int]  # (epoch, index)
_Faults: TypeAlias = list[tuple[str, str]]  # (name, reason)


def decode(data: bytes) -> Image.Image:
    """Decode to RGB, upright, the first frame of an animation.

    Args:
        data: An encoded image in any format Pillow reads.

    Raises:
        CorruptImageError: If it is damaged, truncated, or larger than Pillow's safety limit.
    """
    try:
        with warnings.catch_warnings():
            # Above the limit Pillow warns, above twice the limit it raises: refuse both.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # damaged EXIF does not matter here
            file = Image.open(io.BytesIO(data))
            file.load()
            image: Image.Image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bit: convert("RGB") would clip, not scale
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            return image.convert("RGB")
    except (*_BROKEN, Image.DecompressionBombWarning) as error:
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def random_resized_crop(
    image: Image.Image, size: int, rng: random.Random, scale: tuple[float, float] = (0.08, 1.0)
) -> Image.Image:
    """A random part of the image, resized to [size, size], bicubic.

    Args:
        image: RGB.
        size: Side of the result, pixels.
        rng: Source of randomness.
        scale: Range of the part's area, as a share of the image's.

    Source:
        torchvision `RandomResizedCrop.get_params`.
        *Same:* ten attempts with log-uniform aspect ratio 3/4 … 4/3, then the centre.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def center_resize(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, bicubic, then the centre: [size, size]."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


class _Samples(Dataset[tuple[Tensor, _Faults]]):
    """(epoch, index) -> one uint8 image [3, size, size] and the corrupt ones met on the way."""

    def __init__(
        self, source: ImageSource, size: int, seed: int, scale: tuple[float, float] | None
    ) -> None:
        self.source, self.size, self.seed, self.scale = source, size, seed, scale

    def __getitem__(self, key: _Key) -> tuple[Tensor, _Faults]:
        epoch, index = key
        faults: _Faults = []
        # A corrupt image is replaced by its neighbour, so that batches keep their size.
        for shift in range(len(self.source)):
            place = (index + shift) % len(self.source)
            try:
                image = decode(self.source.read(place))
            except CorruptImageError as error:
                faults.append((self.source.name(place), str(error)))
                if len(faults) > _CORRUPT_SHARE * len(self.source):
                    break  # the loader will raise; do not read the whole source first
                continue
            return self._finish(image, epoch, index), faults
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8), faults

    def _finish(self, image: Image.Image, epoch: int, index: int) -> Tensor:
        if self.scale is None:
            image = center_resize(image, self.size)
        else:
            rng = random.Random(f"{self.seed}/{epoch}/{index}")
            image = random_resized_crop(image, self.size, rng, self.scale)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Order(Sampler[list[_Key]]):
    """Batches of (epoch, index), from any batch on, without end or for a number of batches."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        start: int,
        stop: int | None,
    ) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[list[_Key]]:
        per_epoch = self.count // self.batch_size
        epoch, order, batch = -1, torch.empty(0), self.start
        while self.stop is None or batch < self.stop:
            if batch // per_epoch != epoch:
                epoch = batch // per_epoch
                # Hashed, because torch's generator looks at 32 bits only.
                seed = random.Random(f"{self.seed}/{epoch}").getrandbits(32)
                generator = torch.Generator().manual_seed(seed)
                order = torch.arange(self.count)
                if self.shuffle:
                    order = torch.randperm(self.count, generator=generator)
            first = batch % per_epoch * self.batch_size
            yield [(epoch, int(i)) for i in order[first : first + self.batch_size]]
            batch += 1


def _collate(samples: list[tuple[Tensor, _Faults]]) -> tuple[Tensor, _Faults]:
    return torch.stack([image for image, _ in samples]), [
        f for _, faults in samples for f in faults
    ]


class ImageLoader:
    """An endless, seeded, resumable stream of uint8 batches [B, 3, size, size].

    Every epoch is a new permutation of all images; the last, incomplete batch is left out. Corrupt
    images are replaced by their neighbour in the source, and noted in `skipped`.

    Args:
        source: The images, see `open_source`.
        batch_size: B.
        image_size: Pixels, square.
        seed: Of order, crops and flips.
        augment: True = random resized crop and flip, shuffled. False = centre crop, in order.
        scale: Range of the crops' area, as a share of the image's.
        workers: Processes that decode; None = one less than the cores, at most 8; 0 = this one.

    Attributes:
        skipped: Name -> reason, of the corrupt images met so far.

    Raises:
        ValueError: If there are fewer images than one batch needs.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from proteus.data import open_source
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for n in range(4):
        ...         Image.new("RGB", (48, 32)).save(f"{folder}/{n}.jpg")
        ...     loader = ImageLoader(open_source(folder), batch_size=2, image_size=16, workers=0)
        ...     [tuple(batch.shape) for batch in loader]
        [(2, 3, 16, 16), (2, 3, 16, 16)]
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        image_size: int,
        seed: int = 0,
        augment: bool = True,
        scale: tuple[float, float] = (0.08, 1.0),
        workers: int | None = None,
    ) -> None:
        if batch_size < 1 or len(source) < batch_size:
            raise ValueError(
                f"images: too few for one batch. Got {len(source)} images in "
                f"{source.description} and batch_size={batch_size}; expected at least one batch. "
                f"Use a batch size of at most {len(source)}."
            )
        self.source, self.batch_size, self.seed, self.shuffle = source, batch_size, seed, augment
        self.workers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
        self.skipped: dict[str, str] = {}
        self._samples = _Samples(source, image_size, seed, scale if augment else None)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.source) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """One epoch, the first."""
        return self._stream(0, len(self))

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Batch number `start`, `start` + 1, …, the same ones in every run, without end.

        Raises:
            CorruptImageError: When more than 5 % of the images have turned out to be corrupt.
        """
        return self._stream(start, None)

    def _stream(self, start: int, stop: int | None) -> Iterator[Tensor]:
        order = _Order(
            len(self.source),
            self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            start=start,
            stop=stop,
        )
        loader = DataLoader(
            self._samples,
            batch_sampler=order,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )
        for images, faults in loader:
            self._note(faults)
            yield images

    def _note(self, faults: _Faults) -> None:
        for name, reason in faults:
            if name not in self.skipped:
                _logger.warning("skipped a corrupt image: %s (%s)", name, reason)
            self.skipped[name] = reason
        if len(self.skipped) > _CORRUPT_SHARE * len(self.source):
            shown = "; ".join(f"{name} ({why})" for name, why in list(self.skipped.items())[:5])
            raise CorruptImageError(
                f"images: more than {_CORRUPT_SHARE:.0%} are corrupt. Got {len(self.skipped)} of "
                f"{len(self.source)} so far in {self.source.description}: {shown}. Check how the "
                f"files were copied."
            )
