"""Which image of which shard is in which batch, planned while the shards are read."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from torch.utils.data import Sampler

from .order import InLanes
from .samples import Key
from .shard_cache import HeldShard, ShardCache
from .shard_index import known_count
from .shard_source import ShardSource
from .shards import DamagedShardError

_THREADS = 8  # shards that are fetched at a time
_IN_SHARD = 32  # bits of an image's number for its place in the shard, below the shard's
Ahead: TypeAlias = "Future[tuple[int, HeldShard | None]]"


class Want(NamedTuple):
    """An image that is to be read.

    Attributes:
        key: What its augmentation depends on.
        file: The shard, on this machine.
        offset: First byte.
        size: Bytes.
    """

    key: Key
    file: str
    offset: int
    size: int


def number_of(shard: int, place: int) -> int:
    """One number for an image of a shard, as `Key` has it."""
    return shard << _IN_SHARD | place


def shard_and_place(number: int) -> tuple[int, int]:
    """What `number_of` was given.

    Examples:
        >>> shard_and_place(number_of(9999, 17))
        (9999, 17)
    """
    return number >> _IN_SHARD, number & ((1 << _IN_SHARD) - 1)


class ShardPlan(Sampler[list[Want]]):
    """The images of each batch of one process, from any batch on, without end. To be closed.

    In memory are the indexes of the shards that are open and no image. While a shard is read, the
    next one of its lane is fetched by a thread. A shard is given up once `delivered` says that the
    last batch with an image of it has arrived.

    Args:
        source: The shards.
        order: What comes when.
        batch_size: Of this process.
        rank: Its number.
        world_size: How many share the order; divides the lanes.
        start: First batch.
        on_damage: Takes the address of a damaged shard and the reason; may raise.
    """

    def __init__(
        self,
        source: ShardSource,
        order: InLanes,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        start: int,
        on_damage: Callable[[str, str], None],
    ) -> None:
        self.source, self.order, self.batch_size, self.start = source, order, batch_size, start
        self.lanes = range(rank, order.lanes, world_size)
        self.first = start * batch_size * world_size
        self.cache = ShardCache()
        self.on_damage = on_damage
        self.batch = start  # the one that is being planned
        self._pool: ThreadPoolExecutor | None = None
        self._held: deque[tuple[int, HeldShard]] = deque()  # left behind in this batch
        self._counts: dict[int, int] = {}

    def __iter__(self) -> Iterator[list[Want]]:
        # Only now, and not when the plan is made: by now the processes that decode were forked.
        self._pool = ThreadPoolExecutor(min(_THREADS, len(self.lanes)), "shards")
        begun = [self._pool.submit(self._begin, lane) for lane in self.lanes]
        lanes = [self._lane(*place.result()) for place in begun]
        at = self.start * self.batch_size
        while True:
            yield [next(lanes[number % len(lanes)]) for number in range(at, at + self.batch_size)]
            at += self.batch_size
            self.batch += 1

    def delivered(self, batch: int) -> None:
        """A batch has arrived: shards that were left before its end may go."""
        while self._held and self._held[0][0] <= batch:
            self.cache.release(self._held.popleft()[1])

    def close(self) -> None:
        """End what is being fetched."""
        self.cache.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _lane(self, skip: int, ahead: Ahead) -> Iterator[Want]:
        """The images of a lane, from a shard that is being opened, without its first ones."""
        assert self._pool is not None
        while True:
            place, held = ahead.result()
            if held is None:  # there was no room to fetch it ahead
                place, held = self._open(place, needed=True)
            assert held is not None
            ahead = self._pool.submit(self._open, place + self.order.lanes, needed=False)
            epoch, shard = self.order.shard(place)
            numbers = self.order.images(epoch, shard, held.index.count)[skip:]
            offsets, sizes = held.index.offsets[numbers], held.index.sizes[numbers]
            rows = zip(numbers.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
            for number, offset, size in rows:
                yield Want(Key(epoch, number_of(shard, number), 0), held.file, offset, size)
            self._held.append((self.batch, held))
            skip = 0

    def _begin(self, lane: int) -> tuple[int, Ahead]:
        """How many images of the first open shard are past, and that shard."""
        place, skip = lane, self.order.given(lane, self.first)
        while skip and skip >= (count := self._count(self.order.shard(place)[1])):
            place, skip = place + self.order.lanes, skip - count
        opened: Ahead = Future()
        opened.set_result(self._open(place, needed=True))
        return skip, opened

    def _count(self, shard: int) -> int:
        """Images of a shard; it is read for that only if it never was before."""
        if shard not in self._counts:
            count = known_count(self.source.addresses[shard])
            if count is None:
                held = self._hold(shard, needed=True)
                count = held.index.count if held is not None else 0
                if held is not None:
                    self.cache.release(held)
            self._counts[shard] = count
        return self._counts[shard]

    def _open(self, place: int, *, needed: bool) -> tuple[int, HeldShard | None]:
        """The shard at a place, or the next one of its lane that is whole."""
        while True:
            shard = self.order.shard(place)[1]
            held = self._hold(shard, needed=needed)
            if held is not None or self._counts.get(shard) != 0:
                return place, held
            place += self.order.lanes

    def _hold(self, shard: int, *, needed: bool) -> HeldShard | None:
        """A shard; None if it is damaged, or not needed and there is no room."""
        if self._counts.get(shard) == 0:
            return None
        address = self.source.addresses[shard]
        try:
            return self.cache.hold(address, needed=needed)
        except DamagedShardError as error:
            self._counts[shard] = 0
            self.on_damage(address, str(error))
            return None
