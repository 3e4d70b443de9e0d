"""A lock on a folder that dies with its process, however that ends."""

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
from pathlib import Path

_logger = logging.getLogger(__name__)
_NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_held: dict[Path, tuple[int, int]] = {}  # file -> the process and thread that hold it


class FolderLock:
    """Keeps other runs out of a folder, on other machines that share it too, until `release`.

    A record lock of the system: it ends with its process, and is not inherited by those that load
    images, which may outlive a killed run for seconds. The thread that holds one may take it again.
    Where a file system has no locks, a warning says so.

    Args:
        folder: An existing one.

    Raises:
        ValueError: If another run holds it; the message says who.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / _NAME
        self._file: int | None = None
        me = (os.getpid(), threading.get_ident())
        holder = _held.get(self.path, (0, 0))
        if holder == me:
            return
        if holder[0] == me[0]:  # a record lock keeps out processes only
            raise _refusal(folder, f"process {me[0]}, in another thread")
        self._file = _opened_and_locked(self.path)
        os.truncate(self._file, 0)
        os.write(self._file, f"process {me[0]} on {socket.gethostname()}\n".encode())
        _held[self.path] = me

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            del _held[self.path]
            with contextlib.suppress(OSError):  # Windows removes no open file, and some are gone
                self.path.unlink()
            os.close(self._file)


def _opened_and_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _TAKEN:
                who = os.read(file, 500).decode(errors="replace").strip()
                os.close(file)
                raise _refusal(path.parent, who or "another process") from None
            _logger.warning(
                "run folder: %s cannot be locked (%s). Start no second run in it.",
                path.parent, error,
            )  # fmt: skip
            return file
        with contextlib.suppress(OSError):  # its last holder may just have removed it
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 1 << 30, os.SEEK_SET)  # not the text: what is locked cannot be read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _refusal(folder: Path, who: str) -> ValueError:
    return ValueError(
        f"run folder: in use. Got {str(folder)!r}, where a run of {who} goes on; expected a folder "
        f"of its own for each run. Wait until it ends, or choose another folder (--out)."
    )
