"""Batches of a run, from any step on."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from ..ranges import check_numbers
from ..traits import Trait
from ..world import World
from .engine import seed_everything


@runtime_checkable
class Resumable(Trait, Protocol):
    """Data that can start at any batch, such as `proteus.data.ImageLoader`."""

    def batches(self, start: int) -> Iterator[Any]:
        """Batch number `start`, `start` + 1, … without end."""


@runtime_checkable
class _Shared(Trait, Protocol):
    """Data that knows how many processes share it, such as `proteus.data.ImageLoader`."""

    rank: int
    world_size: int


@runtime_checkable
class _Skips(Trait, Protocol):
    """Data that leave out what they cannot read, such as `proteus.data.ImageLoader`."""

    skipped: Mapping[str, str]


def count_steps(data: Iterable[Any] | Resumable, steps: int | None, epochs: float | None) -> int:
    """Steps of the run; exactly one of the two is given."""
    if (steps is None) == (epochs is None):
        raise ValueError(
            f"fit: exactly one of steps and epochs is needed. Got steps={steps}, epochs={epochs}."
        )
    if steps is None:
        if not isinstance(data, Sized):
            raise ValueError("fit: epochs needs data with a length. Got none; pass steps=.")
        assert epochs is not None
        steps = round(epochs * len(data))
        check_numbers(f"fit: {epochs} epochs of {len(data)} batches", {"steps": steps})
    return steps


def check_data(data: Any, world: World, steps: int, accumulate: int) -> None:
    """Refuse, before any work is done, data that would go wrong.

    Raises:
        ValueError: If the data were built for another number of processes, if a plain `DataLoader`
            would give every process the same images, or if its last batch cannot be divided.
    """
    if isinstance(data, _Shared) and (data.rank, data.world_size) != (world.rank, world.size):
        raise ValueError(
            f"fit: the data are shared among other processes than there are. Got rank={data.rank}, "
            f"world_size={data.world_size}; expected rank={world.rank}, world_size={world.size}. "
            f"Build the loader with those."
        )
    if not isinstance(data, DataLoader) or type(data.batch_sampler) is not BatchSampler:
        return
    if isinstance(data.dataset, IterableDataset):
        return
    if world.size > 1 and isinstance(data.sampler, RandomSampler | SequentialSampler):
        raise ValueError(
            f"fit: all {world.size} processes would see the same images. Got a DataLoader with a "
            f"{type(data.sampler).__name__}; expected one with a DistributedSampler, or an "
            f"ImageLoader with rank and world_size."
        )
    images = len(data.sampler) if isinstance(data.sampler, Sized) else 0
    last = 0 if data.drop_last else images % data.batch_sampler.batch_size
    if accumulate > 1 and last % accumulate and steps >= len(data):
        raise ValueError(
            f"accumulate: the last batch of a pass cannot be divided. Got {last} images and "
            f"accumulate={accumulate}; expected a multiple. Build the DataLoader with "
            f"drop_last=True."
        )


def batches(
    data: Iterable[Any] | Resumable, start: int, stop: int, *, inputs: int, seed: int
) -> Generator[tuple[Tensor, ...], None, None]:
    """Batch `start` … `stop` - 1, going round as often as needed.

    Data that cannot start anywhere are read from the beginning. The global generators are seeded
    before each pass and before each batch with the number of it alone, so that what shuffles and
    augments with them gives the same batches after a resume.

    Args:
        data: See `fit`.
        start: First batch.
        stop: One more than the last.
        inputs: How many tensors the model takes from a batch.
        seed: Of the generators.
    """
    if isinstance(data, Resumable):
        stream = itertools.islice(data.batches(start), stop - start)
    else:
        stream = itertools.islice(_rounds(data, seed), start, stop)
    for batch in stream:
        items = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
        if len(items) < inputs or not all(isinstance(item, Tensor) for item in items[:inputs]):
            raise ValueError(
                f"fit: data must give batches of "
                f"{'images' if inputs == 1 else 'images and labels'}. Got "
                f"{', '.join(type(item).__name__ for item in items)}; expected a tensor "
                f"[B, 3, H, W], or a tuple that starts with one"
                f"{'' if inputs == 1 else ', then labels [B]'}."
            )
        yield items[:inputs]


def _rounds(data: Iterable[Any], seed: int) -> Iterator[Any]:
    for number in itertools.count():
        seed_everything(seed, "pass", number)
        if isinstance(data, DataLoader) and isinstance(data.sampler, DistributedSampler):
            data.sampler.set_epoch(number)  # or each pass would have the order of the first
        items = iter(data)
        for count in itertools.count():
            seed_everything(seed, "batch", number, count)
            try:
                batch = next(items)
            except StopIteration:
                break
            yield batch
        if count == 0:
            raise ValueError("fit: data ran out. Got an iterable that gives nothing (any more).")


def skipped_by(data: Any) -> Mapping[str, str]:
    """Name -> reason, of the images that could not be read so far."""
    return data.skipped if isinstance(data, _Skips) else {}
