"""Shards of a stream on this machine: fetched when needed, removed when the cache is full."""

import contextlib
import logging
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..files import open_regular
from .shard_index import ShardIndex, read_index
from .shards import cache_folder, fetch_into, is_remote, place_in

_logger = logging.getLogger(__name__)
_TRIES = 7  # half a minute in which a server may be away
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_ABANDONED = 86400.0  # seconds after which a half download is nobody's


@dataclass
class HeldShard:
    """A shard that stays on this machine until it is released.

    Attributes:
        file: Path.
        index: Where its images are.
        lock: Keeps it from being removed; None = it is no copy of ours.
    """

    file: str
    index: ShardIndex
    lock: IO[bytes] | None = None


def stated_limit() -> int | None:
    """Bytes that shards of streams may fill: `PROTEUS_CACHE_SIZE`; None = not said.

    Raises:
        ValueError: If the setting is no size.
    """
    text = os.environ.get("PROTEUS_CACHE_SIZE", "").strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(
            f"images: no size of a cache. Got PROTEUS_CACHE_SIZE={text!r}; expected bytes, or a "
            f"number with K, M, G or T, such as 200G."
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


class ShardCache:
    """The shards that this process reads; any number of processes share the folder.

    A shard in use is locked, so that no process removes what another one reads. The one unused for
    the longest goes first. Together they fill `PROTEUS_CACHE_SIZE`, or half of what the disk has
    left for them.

    Raises:
        ValueError: If that is no size.
    """

    def __init__(self) -> None:
        self.folder = cache_folder() / "streams"
        self.over = threading.Event()
        self._limit = stated_limit()
        self._turn = threading.Lock()
        self._held: set[IO[bytes]] = set()
        self._coming = 0  # shards that are being fetched
        self._told = False

    def hold(self, address: str, *, needed: bool = True) -> HeldShard | None:
        """A shard, fetched if it is not here.

        Args:
            address: Path or address.
            needed: Whether to fetch it although the cache is full of shards in use.

        Returns:
            The shard; None if it is not needed yet and there is no room.

        Raises:
            DamagedShardError: If it is damaged, or holds no image.
            ValueError: If it cannot be fetched or opened.
        """
        if not is_remote(address):
            return HeldShard(address, read_index(address, address))
        while not self.over.is_set():
            file = self._fetch(address, needed)
            if file is None:
                return None
            try:
                lock = open_regular(file)
            except FileNotFoundError:
                continue  # another process removed it just now
            if _lock(lock, shared=True) and _is_there(file, lock):
                return self._read(file, address, lock)
            lock.close()
        raise ValueError(f"images: {address!r} was not fetched, because its stream ended.")

    def _fetch(self, address: str, needed: bool) -> str | None:
        """A shard as a file of the cache; None if it is not needed yet and there is no room."""
        here = place_in(self.folder, address)
        if here.is_file():
            return str(here)
        with self._turn:
            if not self._make_room() and not needed:
                return None
            self._coming += 1
        try:
            return fetch_into(self.folder, address, tries=_TRIES, over=self.over)
        finally:
            with self._turn:
                self._coming -= 1

    def release(self, shard: HeldShard) -> None:
        """Let a shard be removed when room is needed."""
        if shard.lock is not None:
            self._held.discard(shard.lock)
            shard.lock.close()

    def close(self) -> None:
        """Fetch nothing more, and let go of all shards."""
        with self._turn:
            self.over.set()
            for lock in self._held:
                lock.close()

    def _read(self, file: str, address: str, lock: IO[bytes]) -> HeldShard:
        now = time.time()
        try:
            index = read_index(file, address)
            # When it was used; when it changed is what its index is known by.
            os.utime(file, ns=(int(now * 1e9), os.fstat(lock.fileno()).st_mtime_ns))
        except (ValueError, OSError):
            lock.close()
            with contextlib.suppress(OSError):
                Path(file).unlink()  # what is no shard must not stay
            raise
        with self._turn:
            self._held.add(lock)
            if self.over.is_set():
                lock.close()
        return HeldShard(file, index, lock)

    def _make_room(self) -> bool:
        """Remove unused shards until one more fits; whether it does."""
        files = sorted(_files(self.folder))
        total = sum(size for _, size, _ in files)
        limit = self._limit
        if limit is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            limit = (shutil.disk_usage(self.folder).free + total) // 2
        room = max((size for _, size, _ in files), default=0) * (1 + self._coming)
        for used, size, path in files:
            if total + room <= limit:
                break
            half = path.name.startswith(".tmp-") and time.time() - used < _ABANDONED
            if not half and _remove(path):
                total -= size
        if total + room <= limit:
            return True
        if not self._told:
            self._told = True
            _logger.warning(
                "images: the cache of shards is full of shards in use. It holds %.2f GB in %s and "
                "may hold %.2f; raise PROTEUS_CACHE_SIZE, or shards are not fetched ahead.",
                total / 1e9, self.folder, limit / 1e9,
            )  # fmt: skip
        return False


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """When each was used last, its bytes, and where it is."""
    found = []
    for one in _inside(folder):
        for path in _inside(one):
            with contextlib.suppress(OSError):
                now = path.stat()
                found.append((max(now.st_atime, now.st_mtime), now.st_size, path))
    return found


def _inside(folder: Path) -> list[Path]:
    """What is in a folder; another process may be removing it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> bool:
    """Remove a shard that nobody holds."""
    try:
        with open_regular(path) as file:
            if not _lock(file, shared=False):
                return False
            path.unlink()
    except OSError:
        return False
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    return True


def _is_there(path: str, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except OSError:
        return False


if sys.platform == "win32":

    def _lock(file: IO[bytes], *, shared: bool) -> bool:
        """Windows removes no open file: that is lock enough."""
        return True

else:
    import fcntl

    def _lock(file: IO[bytes], *, shared: bool) -> bool:
        """Lock an open file until it is closed, if no other lock is in the way."""
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: nothing is removed, all is read
            return shared
        return True
