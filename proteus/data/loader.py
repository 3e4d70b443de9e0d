"""An endless, seeded, resumable stream of uint8 batches."""

import copy
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..ranges import check_numbers
from .decoding import CorruptImageError
from .delivery import made_batches, to_device
from .order import Repeated, Shuffled
from .places import ImageSource, number_labels
from .samples import CORRUPT_SHARE, Augmentation, Augmenter, Beside, Faults, Key, Samples

_logger = logging.getLogger(__name__)


class ImageLoader:
    """An endless, seeded, resumable stream of uint8 batches [B, 3, size, size].

    What a batch holds depends on (seed, batch number, rank) alone: not on the number of workers,
    and not on where the stream was started. Corrupt images are replaced by their neighbour in the
    source, and noted in `skipped`.

    Args:
        source: The images, see `open_source`.
        batch_size: B, of this process.
        image_size: Pixels, square.
        seed: Of order and augmentation.
        augment: "crop" = random resized crop and flip. "fast" = the recipe of the paper (crop,
            flip, RandAugment, erasing), the last three on `device`. "official" = the same through
            timm's own objects, several times slower. "none" = centre crop, in order.
        repeats: Samples of each image in a row (repeated augmentation, the authors use 3 in
            distributed runs); they share one decode where they are in one batch. An epoch is as
            many samples as there are images either way.
        scale: Range of the crops' area, as a share of the image's.
        workers: Processes that decode; None = one less than the cores, at most 8; 0 = this one.
        rank: Number of this process among `world_size`.
        world_size: Processes that share an epoch.
        device: Where batches go. With a GPU, the fast pipeline's last steps run there; on the CPU
            they run in the workers.
        labels: True = yield `(images, labels)`, int64 [B] on `device`: the place of the source's
            own label (`source.label`) among all of its labels, sorted, by value where all are whole
            numbers. A list of names = their order instead, for a part of the classes that must be
            numbered as the whole. A batch holds the same images as without.
        views: Views of each image that take turns: epoch e shows view e % `views`, pixel for pixel
            whatever the batch and the device, so that a teacher's features of them can be prepared
            (`proteus.prepared`). None = a new view in each epoch.

    Attributes:
        skipped: Name -> reason, of the corrupt images met so far.
        classes: Names of the classes in the order of their numbers; empty without `labels`.

    Raises:
        ValueError: If there are fewer images than one batch needs, a setting is out of range, or
            an image has no label where they are asked for.

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
        augment: Augmentation = "crop",
        repeats: int = 1,
        scale: tuple[float, float] = (0.08, 1.0),
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        labels: bool | Sequence[str] = False,
        views: int | None = None,
    ) -> None:
        check_rank(rank, world_size)
        check_numbers("images", {
            "batch_size": batch_size, "image_size": image_size, "seed": seed, "repeats": repeats,
            "workers": workers, "views": views,
        })  # fmt: skip
        self.device = torch.device(device)
        _check_views(views, augment, repeats)
        self.views = views
        self._beside: Prepared | None = None
        # Views that come again are done here: on a device they would hang on the batch.
        whole = self.device.type == "cpu" or views is not None
        augmenter = Augmenter(augment, size=image_size, seed=seed, scale=scale, whole=whole)
        if repeats > 1 and augment == "none":
            raise ValueError(
                f"images: got repeats={repeats} with augment={augment!r}; expected 1 where nothing "
                f"is random."
            )
        self.order = (
            Repeated(len(source), seed, repeats)
            if repeats > 1
            else Shuffled(len(source), seed, shuffle=augment != "none")
        )
        length = self.order.length(batch_size=batch_size, world_size=world_size)
        if length < batch_size:
            raise ValueError(
                f"images: too few for one batch. Got {len(source)} images in "
                f"{source.description}, batch_size={batch_size} and world_size={world_size}; "
                f"expected at least one batch. Use a batch size of at most "
                f"{len(source) // world_size}."
            )
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.workers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
        self.skipped: dict[str, str] = {}
        self._length = length // batch_size
        self.classes: list[str] = []
        numbers: Tensor | None = None
        if labels is not False:
            self.classes, numbers = number_labels(source, None if labels is True else labels)
        self.samples = Samples(source, augmenter, workers=self.workers, labels=numbers)

    def beside(self, prepared: "Prepared") -> "ImageLoader":
        """The same images in the same order, in views that were prepared, with what was.

        Batches are then `(images, *prepared)`. See `proteus.prepared.PreparedTargets`.
        """
        other = copy.copy(self)
        other.views, other._beside = prepared.views, prepared
        other.samples = Samples(
            self.source, prepared.augmenter(), workers=self.workers, beside=prepared
        )
        return other

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """One epoch, the first."""
        return self._stream(0, len(self))

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Batch number `start`, `start` + 1, …, the same ones in every run, without end.

        Images, or (images, labels).

        Raises:
            CorruptImageError: When more than 5 % of the images have turned out to be corrupt.
            ChildProcessError: When a process that decodes died.
        """
        return self._stream(start, None)

    def indices(self, epoch: int) -> Tensor:
        """Image numbers int64 of this process in an epoch, in order."""
        return self.order.indices(
            epoch, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size
        )

    def _stream(self, start: int, stop: int | None) -> Iterator[Any]:
        made = made_batches(
            self.samples,
            Keys(self, start, stop),
            workers=self.workers,
            device=self.device,
            at=self.place_of,
        )
        for batch in made:
            self.note(batch.faults)
            yield to_device(batch, self.device, self._beside)

    def note(self, faults: Faults) -> None:
        """Keep what was corrupt, and say it once.

        Raises:
            CorruptImageError: If it is too much.
        """
        for name, reason in faults:
            if name not in self.skipped:
                _logger.warning("skipped a corrupt image: %s (%s)", name, reason)
            self.skipped[name] = reason
        if len(self.skipped) > CORRUPT_SHARE * len(self.source):
            shown = "; ".join(f"{name} ({why})" for name, why in list(self.skipped.items())[:5])
            raise CorruptImageError(
                f"images: more than {CORRUPT_SHARE:.0%} are corrupt. Got {len(self.skipped)} of "
                f"{len(self.source)} so far in {self.source.description}: {shown}. Check how the "
                f"files were copied; `proteus data` with --check lists them all."
            )

    def place_of(self, pids: Collection[int]) -> str:
        """What to say about the files that dead processes were at."""
        names = ", ".join(self.source.name(place) for place in self.samples.readers.at(pids))
        return f" while it was at {names}" if names else ""


class Prepared(Beside, Protocol):
    """What `ImageLoader.beside` needs to know of what was prepared."""

    @property
    def views(self) -> int:
        """Views of each image."""

    def augmenter(self) -> Augmenter:
        """What made them."""


def _check_views(views: int | None, augment: Augmentation, repeats: int) -> None:
    if views is not None and repeats > 1:
        raise ValueError(
            f"images: views and repeats exclude each other. Got views={views} and "
            f"repeats={repeats}: repeated augmentation shows an image several times in an epoch, "
            f"each time anew; expected repeats=1."
        )
    if views is not None and views > 1 and augment == "none":
        raise ValueError(
            f"images: all views would be the same. Got views={views} with augment='none'; expected "
            f"views=1."
        )


def check_rank(rank: int, world_size: int) -> None:
    """Raise `ValueError` unless there is such a process."""
    if not 0 <= rank < world_size:
        raise ValueError(
            f"images: got rank={rank}, world_size={world_size}; expected a rank from 0 to "
            f"world_size - 1."
        )


class Keys(Sampler[list[Key]]):
    """Batches of keys, from any batch on, without end or for a number of batches."""

    def __init__(self, loader: ImageLoader, start: int, stop: int | None) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __iter__(self) -> Iterator[list[Key]]:
        loader = self.loader
        numbers: Sequence[int] = ()
        current, batch = -1, self.start
        while self.stop is None or batch < self.stop:
            epoch, place = divmod(batch, len(loader))
            if epoch != current:
                current, numbers = epoch, loader.indices(epoch).tolist()
            first = place * loader.batch_size
            view = epoch if loader.views is None else epoch % loader.views
            yield [
                Key(view, numbers[at], self._copy(at))
                for at in range(first, first + loader.batch_size)
            ]
            batch += 1

    def _copy(self, at: int) -> int:
        """Which copy of its image it is, among all processes: no two are augmented alike."""
        repeats = self.loader.order.repeats
        if repeats == 1:
            return 0
        position = at * self.loader.world_size + self.loader.rank
        rounds = position // (len(self.loader.source) * repeats)
        return position % repeats + repeats * rounds
