"""SIGTERM, as schedulers send it before they take a machine away: finish the step, save, stop."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While active, notes SIGTERM instead of dying of it.

    Only the main thread can take signals; elsewhere it does nothing.

    Attributes:
        requested: Whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class RunStopped(Exception):  # noqa: N818 - no error: the run did what it was told
    """A run ended early because SIGTERM came; the message says where it stands and how to go on."""
