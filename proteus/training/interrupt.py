"""SIGTERM, as schedulers send it before they take a machine away: finish the step, save, stop."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While active, notes SIGTERM instead of dying of it.

    Schedulers send it to all processes of a job, those that load data included; if one of these
    died, so would the run, before it could save. So the signal is blocked besides: processes that
    are started meanwhile inherit that, and end when the run ends.

    Only the main thread can take signals; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None
        self._mask: Any = None

    @property
    def requested(self) -> bool:
        """Whether SIGTERM came."""
        return self._noted or (self._mask is not None and signal.SIGTERM in signal.sigpending())

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            # Another thread, which does not block it, may be the one that gets it.
            self._before = signal.signal(signal.SIGTERM, self._note)
            if sys.platform != "win32":
                self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        return self

    def __exit__(self, *exception: object) -> None:
        # What is still pending comes now, while our handler is there to take it. Not by sigwait: a
        # thread that does not block the signal may get it first, and the wait would never end.
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True


class RunStopped(Exception):  # noqa: N818 - no error: the run did what it was told
    """A run ended early because SIGTERM came; the message says where it stands and how to go on."""
