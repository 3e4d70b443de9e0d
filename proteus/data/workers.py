"""The processes that load images: they end with the stream they serve, whatever ends it."""

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader


def load(
    loader: DataLoader[Any], at: Callable[[Collection[int]], str] = lambda pids: ""
) -> Iterator[Any]:
    """The loader's batches; its processes end with this iterator.

    torch would raise from a signal handler, wherever the program just is, when one of them dies.
    Without it the death shows, within five seconds, where the next batch is asked for.

    Args:
        loader: One whose processes do not persist.
        at: What the dead processes were at, for the message.

    Raises:
        ChildProcessError: If a process died.
    """
    others = set(multiprocessing.active_children())
    with _child_signals():
        stream = iter(loader)
    workers = set(multiprocessing.active_children()) - others
    try:
        while True:
            try:
                batch = next(stream)
            except StopIteration:
                return
            # A process that dies while it hands a batch over breaks a pipe: an OSError.
            except (RuntimeError, EOFError, OSError):
                dead = _dead(workers)
                if not dead:
                    raise
                raise ChildProcessError(
                    f"images: a worker process died{at(dead.keys())}. Got "
                    f"{' and '.join(sorted(set(dead.values())))}. It was probably killed for its "
                    f"memory, or a library crashed on that file; look at the file, or use fewer "
                    f"workers."
                ) from None
            yield batch
    finally:
        stop_workers(workers)


def _dead(workers: Collection[BaseProcess]) -> dict[int, str]:
    """Process number -> how it ended, of those that did."""
    dead: dict[int, str] = {}
    for _ in range(10 if workers else 0):
        dead = {w.pid or 0: _how_it_ended(w.exitcode) for w in workers if not w.is_alive()}
        if dead:
            break
        time.sleep(0.05)  # the pipe may close before the process is gone
    return dead


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"exit status {code}"


def stop_workers(workers: Iterable[BaseProcess]) -> None:
    """End them at once: they have nothing to save, and may hang in a library or a file system."""
    workers = list(workers)
    with _child_signals(signal.SIG_DFL):
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(timeout=1)


def ignore_interrupt(worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal; what becomes of the run is for its own to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _child_signals(handler: Any = None) -> Iterator[None]:
    """Put the handler of dying children back afterwards; until then another one may be set."""
    main = threading.current_thread() is threading.main_thread()
    if not main or sys.platform == "win32":
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
