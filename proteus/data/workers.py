"""The processes that load images: they end with the stream they serve, whatever ends it."""

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader


def start_workers(loader: DataLoader[Any]) -> tuple[Iterator[Any], set[BaseProcess]]:
    """The loader's batches, and the processes that make them.

    torch would raise from a signal handler, wherever the program just is, when one of them dies.
    Without it the death shows, within five seconds, where the next batch is asked for.
    """
    others = set(multiprocessing.active_children())
    with _child_signals():
        stream = iter(loader)
    return stream, set(multiprocessing.active_children()) - others


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
