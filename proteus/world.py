"""The processes of a run: joining them, doing things once, and failing together."""

import contextlib
import datetime
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_GRACE = 4.0  # seconds that a process has to fail on its own when another one did
_ANSWER = 4.0  # seconds that the store has to answer before the run goes on without


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        device: Where it computes.
        rank: Its number, 0 … size - 1.
        size: How many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, mine: Result) -> list[Result]:
        """What each process has, in the order of their ranks; all must call it together."""
        everyone = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(everyone, mine)
        return everyone

    @torch.no_grad()
    def share(self, *modules: nn.Module) -> None:
        """Give everyone the first process's weights, in place."""
        for module in modules if self.size > 1 else ():
            for tensor in (*module.parameters(), *module.buffers()):
                copy = tensor.contiguous()
                dist.broadcast(copy, src=0)
                tensor.copy_(copy)

    def once(self, work: Callable[[], Result]) -> Result:
        """Do something on the first process; its result, or its error, is everyone's."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None]
        if self.first:
            try:
                outcome = [(work(), None)]
            except (ValueError, OSError, ArithmeticError) as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome, src=0)
        result, failure = outcome[0]
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def as_one(self, *, unless: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        """Fail together: where another process failed first, its reason is this one's, too.

        Without it a process learns only that a connection was closed, or waits for ever for one
        that is gone. All processes must enter it the same number of times.

        Args:
            unless: Exceptions that are no failure, and come in all processes at once.

        Raises:
            OtherProcessError: With the reason of the process that failed first.
        """
        if self.size == 1:
            yield
            return
        board = _Board()
        over = threading.Event()
        watcher = threading.Thread(target=board.watch, args=(self.rank, over), daemon=True)
        watcher.start()
        try:
            yield
        except unless:
            raise
        except BaseException as error:
            told = board.tell(self.rank, error)
            if isinstance(error, RuntimeError) and told is not None:
                raise OtherProcessError(told) from None
            if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST):
                raise OtherProcessError(
                    f"Another process failed first, and gave no reason. Got {error}. It was killed "
                    f"(for its memory?), or its reason is above."
                ) from None
            raise
        finally:
            over.set()
            watcher.join(_ANSWER)  # Python that ends while a thread asks the store is aborted


class OtherProcessError(ChildProcessError):
    """Another process of the run failed first; the message says why."""


class _Board:
    """Where the process that fails first leaves its reason for the others to read."""

    store: Any = None  # of the group that `join` made
    number = 0

    def __init__(self) -> None:
        type(self).number += 1
        self.key = f"failure-{self.number}"

    def tell(self, rank: int, error: BaseException) -> str | None:
        """Note a failure; what another process noted before, if one did."""
        plain = isinstance(error, ValueError | OSError | ArithmeticError)  # in words of its own
        mine = f"{rank} {error if plain else f'{type(error).__name__}: {error}'}"
        if self.store is None:
            return None
        try:
            first = self.store.compare_set(self.key, "", mine).decode()
        except RuntimeError:  # the process that held the store is gone
            return None
        return None if first.split(" ")[0] == str(rank) else _said(first)

    def watch(self, rank: int, over: threading.Event) -> None:
        """End this process if another one failed and it still waits, for what will never come."""
        while self.store is not None and not over.wait(1.0):
            try:
                if not self.store.check([self.key]):
                    continue
                first = self.store.get(self.key).decode()
            except RuntimeError:
                return
            if first.split(" ")[0] != str(rank) and not over.wait(_GRACE):
                sys.stderr.write(f"proteus: error: {_said(first)}\n")
                sys.stderr.flush()
                os._exit(1)
            return


def _said(first: str) -> str:
    rank, _, reason = first.partition(" ")
    return f"Process {rank} failed first: {reason}"


def choose_device(device: str | torch.device) -> torch.device:
    """`auto` = the accelerator if there is one, else the CPU. Under torchrun, this process's own.

    Raises:
        ValueError: If this machine has no such device.

    Examples:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    count, best = {"cpu": 1}, torch.device("cpu")
    if torch.accelerator.is_available():
        best = torch.accelerator.current_accelerator() or best
        count[best.type] = torch.accelerator.device_count()
    try:
        chosen = best if device == "auto" else torch.device(device)
    except (RuntimeError, TypeError):  # torch knows no device by this name
        raise _no_device(device, count) from None
    if chosen.type != "cpu" and chosen.index is None and dist.is_torchelastic_launched():
        chosen = torch.device(chosen.type, dist.get_node_local_rank())
    if (chosen.index or 0) >= count.get(chosen.type, 0):
        raise _no_device(chosen, count)
    return chosen


def _no_device(device: str | torch.device, count: dict[str, int]) -> ValueError:
    names = [
        f"'{kind}'" if n == 1 else f"'{kind}:0' to '{kind}:{n - 1}'" for kind, n in count.items()
    ]
    return ValueError(
        f"device: this machine has none by this name. Got {str(device)!r}; expected 'auto', or "
        f"{', '.join(names)}."
    )


def join(
    device: str | torch.device = "auto", *, patience: datetime.timedelta | None = None
) -> World:
    """The world of this process; under torchrun, joins the others if that was not done yet.

    Args:
        device: See `choose_device`.
        patience: How long a process waits for another one; None = torch's half an hour (ten minutes
            on GPUs).

    Returns:
        The world; of size 1 outside torchrun, unless a process group is there already.

    Examples:
        >>> join("cpu")
        World(device=device(type='cpu'), rank=0, size=1)
    """
    chosen = choose_device(device)
    if dist.is_available() and not dist.is_initialized() and dist.is_torchelastic_launched():
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        store, rank, size = next(rendezvous("env://"))
        if patience is not None:
            store.set_timeout(patience)
        # torchrun may keep its store when it starts the processes anew, with the addresses of the
        # dead ones in it: each start gets names of its own.
        own = PrefixStore(_agree_on_name(store, rank, size), store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=patience)
        _Board.store = own
    if not (dist.is_available() and dist.is_initialized()):
        return World(chosen)
    return World(chosen, dist.get_rank(), dist.get_world_size())


def _agree_on_name(store: Any, rank: int, size: int) -> str:
    """A name of this start of the processes, which no earlier start had.

    How often a process was started would not do: each node counts for itself, and one that came
    later counts from zero. So the first process makes a name up, and tells it to each of the others
    by the name that this one made up for itself; what the dead ones left in the store answers to
    nobody.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"process-{rank}", mine)
        name: str = store.get(f"start-for-{mine}").decode()  # waits
        store.set(f"{name}-{rank}", "heard")
        return name
    told: set[str] = set()
    missing = set(range(1, size))
    patience = time.monotonic() + store.timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if not store.check([f"process-{other}"]):
                continue
            theirs = store.get(f"process-{other}").decode()
            if theirs not in told:
                store.set(f"start-for-{theirs}", mine)
                told.add(theirs)
            if store.check([f"{mine}-{other}"]):
                missing.discard(other)
        if missing and time.monotonic() > patience:
            raise dist.DistStoreError(f"processes {sorted(missing)[:5]} of {size} did not come")
        if missing:
            time.sleep(0.02)
    return mine


def leave() -> None:
    """Part from the others, so that the process can end without a complaint."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _Board.store = None


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes) of a distributed run; (0, 1) otherwise."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def add_up(mine: Tensor) -> Tensor:
    """The sum of what all processes have; itself in a run of one. Nothing flows back through it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(mine)
    return mine


def join_rows(mine: Tensor) -> Tensor:
    """The rows of all processes, equally many each, in the order of their ranks."""
    size = rank_and_world()[1]
    if size == 1:
        return mine
    everyone = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(everyone, mine.contiguous())
    return torch.cat(everyone)


def gather(mine: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionaries of all processes in one; itself in a run of one process."""
    rank, size = rank_and_world()
    everyone = World(torch.device("cpu"), rank, size).gather(mine)
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
