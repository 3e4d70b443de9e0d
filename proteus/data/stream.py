"""Batches from a dataset that can only be read from its beginning."""

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..ranges import check_numbers
from .datasets import StreamSource
from .decoding import CorruptImageError
from .loader import ImageLoader, check_rank
from .samples import CORRUPT_SHARE, Augmentation, Augmenter, Key
from .shard_loader import ShardLoader
from .shard_source import ShardSource

_logger = logging.getLogger(__name__)
_ENOUGH = 200  # images seen before a share of corrupt ones means anything


class StreamLoader:
    """An endless, seeded stream of uint8 batches [B, 3, size, size] from a `StreamSource`.

    The dataset's own buffer shuffles; threads decode. Corrupt images are left out and noted in
    `skipped`. A resumed stream reads and decodes what came before again (which of it is corrupt
    decides what follows), and then gives the same batches. Settings that are not described here are
    those of `ImageLoader`.

    Args:
        source: See `open_source`, `hfids/…`.
        augment: "crop", "fast" or "none". ("official" draws from the process's own generators,
            which threads must not touch.)
        workers: Threads that decode; None = the cores, at most 8.
        rank: Number of this process among `world_size`; item n goes to process n % world_size.
        buffer: Images among which the next one is drawn.
    """

    def __init__(
        self,
        source: StreamSource,
        *,
        batch_size: int,
        image_size: int,
        seed: int = 0,
        augment: Augmentation = "crop",
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        buffer: int = 1000,
        scale: tuple[float, float] = (0.08, 1.0),
    ) -> None:
        check_rank(rank, world_size)
        check_numbers("images", {
            "batch_size": batch_size, "image_size": image_size, "seed": seed, "workers": workers,
        })  # fmt: skip
        self._augmenter = Augmenter(augment, size=image_size, seed=seed, scale=scale, whole=True)
        if augment == "official":
            raise ValueError(
                f"images: a stream cannot do this. Got augment={augment!r}; expected 'crop', "
                f"'fast' or 'none'."
            )
        self.source, self.batch_size, self.seed, self.buffer = source, batch_size, seed, buffer
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.workers = min(8, os.cpu_count() or 1) if workers is None else max(1, workers)
        self.skipped: dict[str, str] = {}

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Batch number `start`, `start` + 1, …, the same ones in every run, without end.

        Raises:
            CorruptImageError: When more than 5 % of the images have turned out to be corrupt.
            ValueError: If the dataset gives nothing.
        """
        decoded = self._decoded(start * self.batch_size)
        while True:
            images = torch.stack(list(itertools.islice(decoded, self.batch_size)))
            yield images.to(self.device, non_blocking=True)

    def _items(self) -> Iterator[tuple[Key, Any]]:
        """Every item of this process with its key, pass after pass."""
        for epoch in itertools.count():
            number = -1
            for number, item in enumerate(self.source.items(epoch, self.seed, self.buffer)):
                if number % self.world_size == self.rank:
                    yield Key(epoch, number, 0), item
            if number < self.rank:
                raise ValueError(
                    f"images: the dataset gives nothing to process {self.rank}. Got "
                    f"{number + 1} images in {self.source.description} for {self.world_size} "
                    f"processes; expected at least one for each."
                )

    def _decoded(self, passed: int) -> Iterator[Tensor]:
        """Samples from number `passed` on."""
        waiting: deque[tuple[Key, Future[Any]]] = deque()
        seen = 0
        with ThreadPoolExecutor(self.workers) as pool:
            for key, item in self._items():
                waiting.append((key, pool.submit(self._sample, key, item)))
                if len(waiting) < 4 * self.workers:
                    continue
                first, future = waiting.popleft()
                seen += 1
                image = future.result()
                if isinstance(image, CorruptImageError):
                    self._note(first, image, seen)
                elif passed > 0:
                    passed -= 1
                else:
                    yield image

    def _sample(self, key: Key, item: Any) -> Tensor | CorruptImageError:
        try:
            return self._augmenter(self.source.picture(item), [key])[0][0]
        except CorruptImageError as error:
            return error

    def _note(self, key: Key, error: CorruptImageError, seen: int) -> None:
        name = f"{self.source.description}, item {key.image} of pass {key.epoch}"
        _logger.warning("skipped a corrupt image: %s (%s)", name, error)
        self.skipped[name] = str(error)
        if seen >= _ENOUGH and len(self.skipped) > CORRUPT_SHARE * seen:
            raise CorruptImageError(
                f"images: more than {CORRUPT_SHARE:.0%} are corrupt. Got {len(self.skipped)} of "
                f"{seen} so far in {self.source.description}, the last: {name} ({error})."
            )


def make_loader(source: Any, **options: Any) -> "ImageLoader | ShardLoader | StreamLoader":
    """The loader that fits a source: a `ShardLoader` or `StreamLoader` where it is streamed."""
    if isinstance(source, ShardSource | StreamSource):
        if options.pop("repeats", 1) != 1:
            raise ValueError("images: a stream has no repeated augmentation. Use repeats=1.")
        if options.pop("labels", False) is not False:
            raise ValueError(
                f"images: a stream has no labels. Got labels= with {source.description}; expected "
                f"a source whose images can be asked for one by one."
            )
        if isinstance(source, ShardSource):
            return ShardLoader(source, **options)
        return StreamLoader(source, **options)
    return ImageLoader(source, **options)
