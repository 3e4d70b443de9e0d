"""Batches from very many tar shards, which are opened one after the other."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..ranges import check_numbers
from .decoding import CorruptImageError, read_file
from .delivery import made_batches, to_device
from .loader import check_rank
from .order import InLanes
from .samples import (
    CORRUPT_SHARE,
    Augmentation,
    Augmenter,
    Batch,
    Faults,
    Readers,
    Sample,
    to_batch,
)
from .shard_cache import ShardCache
from .shard_index import name_at, read_index
from .shard_plan import ShardPlan, Want, shard_and_place
from .shard_source import ShardSource
from .shards import is_remote, place_in

_logger = logging.getLogger(__name__)
_ENOUGH = 200  # images seen before a share of corrupt ones means anything
_LANES = 16


class ShardLoader:
    """An endless, seeded, resumable stream of uint8 batches [B, 3, size, size] from shards.

    Opening it reads nothing, and what it needs of memory and disk does not grow with the number of
    images. Each batch is drawn from `lanes` shards at a time, in a new order of shards and of the
    images in each shard in each epoch. What a batch holds depends on (seed, batch number, rank,
    lanes) alone: not on the number of workers, not on where the stream was started, and the batches
    of all processes together hold the same images whatever their number. Every image comes once in
    each epoch; as shards are not equally long, one lane may begin an epoch before another ends it.

    A corrupt image is replaced by its neighbour in the shard, a damaged shard is left out; both are
    noted in `skipped`. A stream that starts later needs the number of images of the shards before:
    it is known of those that were read on this machine before (`PROTEUS_CACHE/index`); the headers
    of the others are read, and those on a server fetched for it.

    Args:
        source: See `open_source`, `wds/…`.
        batch_size: B, of this process.
        image_size: Pixels, square.
        seed: Of order and augmentation.
        augment: See `ImageLoader`; with "none", shards and images come in order.
        scale: Range of the crops' area, as a share of the image's.
        workers: Processes that decode; None = one less than the cores, at most 8; 0 = this one.
        rank: Number of this process among `world_size`.
        world_size: Processes that share the shards: each reads its own.
        device: See `ImageLoader`.
        lanes: Shards read side by side by all processes together, a multiple of `world_size`.
            None = 16, or what is nearest and fits; as many as processes with `augment="none"`.

    Attributes:
        skipped: Name -> reason, of the corrupt images and damaged shards met so far.
        lanes: See above.

    Raises:
        ValueError: If there are fewer shards than processes, or a setting is out of range.

    Examples:
        >>> import io, tarfile, tempfile
        >>> from PIL import Image
        >>> from proteus.data import open_source
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image = io.BytesIO()
        ...     Image.new("RGB", (48, 32)).save(image, "JPEG")
        ...     for name in ("a", "b"):
        ...         with tarfile.open(f"{folder}/{name}.tar", "w") as shard:
        ...             member = tarfile.TarInfo("0.jpg")
        ...             member.size = image.tell()
        ...             shard.addfile(member, io.BytesIO(image.getvalue()))
        ...     source = open_source(f"wds/{folder}")
        ...     loader = ShardLoader(source, batch_size=4, image_size=16, workers=0)
        ...     next(loader.batches()).shape
        torch.Size([4, 3, 16, 16])
    """

    def __init__(
        self,
        source: ShardSource,
        *,
        batch_size: int,
        image_size: int,
        seed: int = 0,
        augment: Augmentation = "crop",
        scale: tuple[float, float] = (0.08, 1.0),
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        lanes: int | None = None,
    ) -> None:
        check_rank(rank, world_size)
        check_numbers("images", {
            "batch_size": batch_size, "image_size": image_size, "seed": seed, "workers": workers,
            "lanes": lanes,
        })  # fmt: skip
        self.device = torch.device(device)
        augmenter = Augmenter(
            augment, size=image_size, seed=seed, scale=scale, whole=self.device.type == "cpu"
        )
        shuffle = augment != "none"
        self.lanes = choose_lanes(
            len(source.addresses), world_size, lanes, wanted=_LANES if shuffle else world_size
        )
        self.order = InLanes(len(source.addresses), self.lanes, seed, shuffle)
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.workers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
        self.skipped: dict[str, str] = {}
        self._damaged: set[str] = set()
        self._seen = 0
        self.samples = ShardSamples(source, augmenter, workers=self.workers)

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Batch number `start`, `start` + 1, …, the same ones in every run, without end.

        Raises:
            CorruptImageError: When more than 5 % of the images have turned out to be corrupt.
            ChildProcessError: When a process that decodes died.
            ValueError: If a shard cannot be fetched or opened, or more than 5 % are damaged.
        """
        plan = ShardPlan(
            self.source,
            self.order,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            start=start,
            on_damage=self._leave_out,
        )
        with contextlib.closing(plan):
            made = made_batches(
                self.samples, plan, workers=self.workers, device=self.device, at=self._place_of
            )
            for number, batch in enumerate(made, start):
                plan.delivered(number)
                self._note(batch.faults)
                yield to_device(batch, self.device)

    def _note(self, faults: Faults) -> None:
        self._seen += self.batch_size
        for name, reason in faults:
            if name not in self.skipped:
                _logger.warning("skipped a corrupt image: %s (%s)", name, reason)
            self.skipped[name] = reason
        if faults and self._seen >= _ENOUGH and len(self.skipped) > CORRUPT_SHARE * self._seen:
            raise CorruptImageError(
                f"images: more than {CORRUPT_SHARE:.0%} are corrupt. Got {len(self.skipped)} of "
                f"{self._seen} so far in {self.source.description}, the last: {faults[-1][0]} "
                f"({faults[-1][1]}). Check how the shards were copied."
            )

    def _leave_out(self, address: str, reason: str) -> None:
        """A damaged shard; called by the threads that fetch."""
        self._damaged.add(address)
        total = len(self.source.addresses)
        if len(self._damaged) > CORRUPT_SHARE * total:
            raise ValueError(
                f"images: more than {CORRUPT_SHARE:.0%} of the shards are damaged. Got "
                f"{len(self._damaged)} of {total}, the last {address!r}: {reason}"
            )
        _logger.warning("left out a damaged shard: %s (%s)", address, reason)
        self.skipped[address] = reason

    def _place_of(self, pids: Collection[int]) -> str:
        """What to say about the files that dead processes were at."""
        names = ", ".join(self.samples.name(number) for number in self.samples.readers.at(pids))
        return f" while it was at {names}" if names else ""


def choose_lanes(shards: int, world_size: int, lanes: int | None, *, wanted: int) -> int:
    """How many shards are read side by side.

    Args:
        shards: How many there are.
        world_size: Processes that share them.
        lanes: What was asked for; None = nothing.
        wanted: What is best if nothing was asked for.

    Raises:
        ValueError: If there is no such number of lanes.

    Examples:
        >>> [choose_lanes(1000, world, None, wanted=16) for world in (1, 8, 6, 32)]
        [16, 16, 18, 32]
        >>> [choose_lanes(7, world, None, wanted=16) for world in (1, 2, 3)]
        [4, 4, 6]
    """
    if shards < world_size:
        raise ValueError(
            f"images: fewer shards than processes. Got {shards} shards and "
            f"world_size={world_size}; expected at least one for each. Open them without 'wds/'."
        )
    if lanes is not None:
        if not world_size <= lanes <= shards or lanes % world_size:
            raise ValueError(
                f"images: no such number of lanes. Got lanes={lanes}, world_size={world_size} and "
                f"{shards} shards; expected a multiple of world_size that is at most the number "
                f"of shards."
            )
        return lanes
    while wanted > shards:  # halved, so that most numbers of processes still divide it
        wanted //= 2
    above = -(-max(wanted, 1) // world_size) * world_size
    return above if above <= shards else shards // world_size * world_size


class ShardSamples(Dataset[Batch]):
    """The images of a batch, by their places in shards -> the batch.

    Args:
        source: The shards.
        augmenter: What is done to the images.
        workers: Number of processes, for the record of who reads what.
    """

    def __init__(self, source: ShardSource, augmenter: Augmenter, *, workers: int) -> None:
        self.source, self.augmenter = source, augmenter
        self.readers = Readers(workers)

    def __getitem__(self, wants: Sequence[Want]) -> Batch:
        faults: Faults = []
        samples = [self._sample(want, faults) for want in wants]
        return to_batch(self.augmenter, wants[0].key, samples, faults)

    def name(self, number: int) -> str:
        """`shard.tar:member` of an image."""
        shard, place = shard_and_place(number)
        address = self.source.addresses[shard]
        try:
            file = self._file(address)
            return _name(address, file, int(read_index(file, address).offsets[place]))
        except (ValueError, IndexError):
            return f"{address}, image {place}"

    def _file(self, address: str) -> str:
        return str(place_in(ShardCache().folder, address)) if is_remote(address) else address

    def _sample(self, want: Want, faults: Faults) -> Sample:
        """An image; a corrupt one is replaced by its neighbour in the shard."""
        self.readers.note(want.key.image)
        try:
            return self._read(want)
        except CorruptImageError as error:
            shard, place = shard_and_place(want.key.image)
            address = self.source.addresses[shard]
            faults.append((_name(address, want.file, want.offset), str(error)))
        index = read_index(want.file, address)
        for shift in range(1, index.count):
            other = (place + shift) % index.count
            offset, size = int(index.offsets[other]), int(index.sizes[other])
            try:
                return self._read(want._replace(offset=offset, size=size))
            except CorruptImageError as error:
                faults.append((_name(address, want.file, offset), str(error)))
        raise CorruptImageError(
            f"images: no image of a shard can be decoded. Got {index.count} in {address}, the "
            f"last: {faults[-1][0]} ({faults[-1][1]}). Check how it was written."
        )

    def _read(self, want: Want) -> Sample:
        try:
            data = read_file(want.file, want.offset, want.size)
        except OSError as error:
            raise CorruptImageError(f"{want.file}: cannot be read. Got {error}.") from error
        return self.augmenter(data, [want.key])[0]


def _name(address: str, file: str, offset: int) -> str:
    shard = address.partition("?")[0] if is_remote(address) else address
    return f"{Path(shard).name}:{name_at(file, offset)}"
