"""SIGTERM and Ctrl-C: finish the step, agree with the other processes, save, stop."""

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import weakref
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from ..data.workers import stop_workers

_BOUNCE = 1.0  # seconds in which a launcher may hand on the Ctrl-C that its terminal sent us, too


class Interrupt:
    """While active, notes SIGTERM and Ctrl-C instead of dying of them; a second Ctrl-C ends all.

    Schedulers send SIGTERM to all processes of a job, those that load data included; if one of
    these died, so would the run, before it could save. So the signal is blocked besides: processes
    that are started meanwhile inherit that. Python would wait for ever for those that are left when
    it ends, because it ends them with this signal: they are killed before.

    Only the main thread can take signals; elsewhere it does nothing.

    Args:
        say: Tell who pressed Ctrl-C that the step is finished first.
    """

    def __init__(self, *, say: bool = False) -> None:
        self._say = say
        self._terminated = False
        self._interrupted: float | None = None
        self._before: dict[int, Any] = {}
        self._mask: Any = None
        self._process = os.getpid()
        self._others: set[BaseProcess] = set()

    @property
    def requested(self) -> signal.Signals | None:
        """The signal that came, or None; Ctrl-C where both did."""
        if self._interrupted is not None:
            return signal.SIGINT
        pending = self._mask is not None and signal.SIGTERM in signal.sigpending()
        return signal.SIGTERM if self._terminated or pending else None

    def __enter__(self) -> "Interrupt":
        self._others = set(multiprocessing.active_children())
        if threading.current_thread() is threading.main_thread():
            # Another thread, which does not block it, may be the one that gets it.
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            if sys.platform != "win32":
                self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        return self

    def __exit__(self, *exception: object) -> None:
        left = weakref.WeakSet(set(multiprocessing.active_children()) - self._others)
        if left:  # with a priority: before Python joins them
            multiprocessing.util.Finalize(None, stop_workers, args=(left,), exitpriority=0)
        # What is still pending comes now, while our handler is there to take it. Not by sigwait: a
        # thread that does not block the signal may get it first, and the wait would never end.
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked meanwhile, and inherited this
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            if self._say:  # not print: the main thread may be in the middle of one
                os.write(2, b"\nStopping after this step. Ctrl-C once more leaves at once.\n")
        elif now - self._interrupted > _BOUNCE:
            raise KeyboardInterrupt


def votes(asked: signal.Signals | None) -> tuple[bool, bool]:
    """What a process says to the others of its signal, with the losses that they sum."""
    return asked is signal.SIGTERM, asked is signal.SIGINT


def decided(terminated: float, interrupted: float) -> signal.Signals | None:
    """Why all of them stop, from the sum of their votes; None = none does.

    Examples:
        >>> decided(2, 1), decided(0, 0)
        (<Signals.SIGINT: 2>, None)
    """
    if interrupted > 0:
        return signal.SIGINT
    return signal.SIGTERM if terminated > 0 else None


class RunStopped(Exception):  # noqa: N818 - no error: the run did what it was told
    """A run ended early because a signal came; the message says where it stands and how to go on.

    Attributes:
        by: The signal: SIGTERM, or SIGINT for Ctrl-C.
    """

    def __init__(self, message: str, by: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(message)
        self.by = by
