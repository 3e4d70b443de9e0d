"""What the processes of a distributed run do together; nothing in a run of one process."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import distributed

Item = TypeVar("Item")


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes) of a distributed run; (0, 1) otherwise."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(mine: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionaries of all processes in one; itself in a run of one process."""
    _, world = rank_and_world()
    if world == 1:
        return mine
    everyone: list[Any] = [None] * world
    distributed.all_gather_object(everyone, mine)
    return {key: value for part in everyone for key, value in part.items()}


def together(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; where one process cannot get its own, all raise at the end.

    Without it the others would wait for the failed one, and take what it sends next for its share.
    """
    failure: Exception | None = None
    try:
        yield from items
    except (ValueError, OSError) as error:
        failure = error
    rank, world = rank_and_world()
    if world == 1 and failure is not None:
        raise failure
    failures = gather({} if failure is None else {rank: str(failure)})
    if failures:
        raise ValueError(failures[min(failures)]) from failure
