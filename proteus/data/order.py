"""Which image comes when: the order of an epoch, for any number of processes.

An order depends on (seed, epoch) alone, so a run can resume at any batch of any epoch.
"""

import functools
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor


def generator_for(seed: int, *more: int) -> torch.Generator:
    """A generator of its own for each (seed, epoch), and for each shard of an epoch."""
    # Hashed, because torch's generator looks at 32 bits only.
    words = "/".join(map(str, (seed, *more)))
    return torch.Generator().manual_seed(random.Random(words).getrandbits(32))


@dataclass(frozen=True)
class Shuffled:
    """Every image once an epoch, in a new order each time; the last, incomplete batch left out.

    Global batch b is the same whatever the number of processes: they take turns image by image, so
    that the first images of the processes together are the first images of the batch (which is
    where `MaskGenerator` hides patches).

    Args:
        count: Number of images.
        seed: Of the order.
        shuffle: False = 0, 1, 2, …

    Examples:
        >>> Shuffled(5, shuffle=False).indices(0, batch_size=2).tolist()
        [0, 1, 2, 3]
        >>> Shuffled(8, shuffle=False).indices(0, batch_size=2, rank=1, world_size=2).tolist()
        [1, 3, 5, 7]
    """

    count: int
    seed: int = 0
    shuffle: bool = True
    repeats: int = 1

    def length(self, *, batch_size: int, world_size: int = 1) -> int:
        """Images each process sees in an epoch."""
        return self.count // (batch_size * world_size) * batch_size

    def indices(self, epoch: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Image numbers of this process, int64 [M]."""
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=generator_for(self.seed, epoch))
        whole = self.length(batch_size=batch_size, world_size=world_size) * world_size
        return order[rank:whole:world_size]


@dataclass(frozen=True)
class Repeated:
    """Repeated augmentation: each image several times in a row, dealt out process by process.

    An epoch is as many samples as there are images, so it meets only one in `repeats` of them.

    Args:
        count: Number of images.
        seed: Of the order; 0 gives the authors' sequences.
        repeats: How often in a row.

    Examples:
        >>> Repeated(300).indices(0, batch_size=4)[:6].tolist()
        [44, 44, 44, 120, 120, 120]

    Source:
        Proteus `pretrain/samplers.py` (`RASampler`, from DeiT).
        *Same:* the sequences for seed 0, for any number of processes.
        *Different:* the seed counts (theirs never does), and fewer than 256 images give an epoch
        of that many samples (theirs is empty).
    """

    count: int
    seed: int = 0
    repeats: int = 3

    def length(self, *, batch_size: int, world_size: int = 1) -> int:
        """Samples of each process in an epoch."""
        return (self.count // 256 * 256 or self.count) // world_size

    def indices(self, epoch: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Image numbers of this process, int64 [M]."""
        generator = torch.Generator().manual_seed(epoch)
        if self.seed:
            generator = generator_for(self.seed, epoch)
        order = torch.randperm(self.count, generator=generator).repeat_interleave(self.repeats)
        total = math.ceil(self.count * self.repeats / world_size) * world_size
        order = torch.cat([order, order[: total - len(order)]])
        length = self.length(batch_size=batch_size, world_size=world_size)
        return order[rank:total:world_size][:length]


@dataclass(frozen=True)
class InLanes:
    """Shards dealt to lanes that are read side by side; nothing in it needs the images' number.

    All epochs make one endless sequence of shards, each in an order of its own. Lane n reads
    number n, n + lanes, n + 2 * lanes, … of it, and the images of a shard in an order of their own.
    Sample t of the run is the next image of lane t % lanes. So lanes end their shards when they do,
    and yet every image comes once in each epoch, and sample t is the same for any batch size and
    any number of processes that divides the lanes: process r has the samples t % processes == r.

    Args:
        shards: How many there are.
        lanes: How many are read side by side, at most `shards`.
        seed: Of the orders.
        shuffle: False = shards and images as they are.

    Examples:
        >>> order = InLanes(5, 2, shuffle=False)
        >>> [order.shard(place) for place in range(1, 9, 2)]  # what the second lane reads
        [(0, 1), (0, 3), (1, 0), (1, 2)]
    """

    shards: int
    lanes: int
    seed: int = 0
    shuffle: bool = True

    def shard(self, place: int) -> tuple[int, int]:
        """Epoch and number of the shard at a place of the sequence."""
        epoch, at = divmod(place, self.shards)
        return epoch, _shuffled(self.shards, self.seed, epoch)[at] if self.shuffle else at

    def images(self, epoch: int, shard: int, count: int) -> Tensor:
        """Order of the images of a shard in an epoch, int64 [count]."""
        if not self.shuffle:
            return torch.arange(count)
        return torch.randperm(count, generator=generator_for(self.seed, epoch, shard))

    def given(self, lane: int, sample: int) -> int:
        """Images that a lane has given before a sample.

        Examples:
            >>> [InLanes(9, 4).given(lane, 6) for lane in range(4)]
            [2, 2, 1, 1]
        """
        return max(0, -(-(sample - lane) // self.lanes))


@functools.lru_cache(maxsize=4)  # lanes may be in two epochs at once
def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator_for(seed, epoch)).tolist()
    return order
