"""Where the images of a shard are, kept beside the cache so that its headers are read once."""

import hashlib
import logging
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import open_regular, write_whole
from .decoding import EXTENSIONS
from .shards import DamagedShardError, cache_folder, is_remote, read_shard

_logger = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard, in its order.

    Attributes:
        offsets: First byte of each, int64 [images].
        sizes: Bytes of each, int64 [images].
    """

    offsets: Tensor
    sizes: Tensor

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.offsets)


def read_index(file: str, address: str) -> ShardIndex:
    """The index of a shard: from the cache (`PROTEUS_CACHE/index`), or from the shard's headers.

    Args:
        file: The shard on this machine.
        address: Where it came from, the same path or an address: what its index is kept under.

    Raises:
        DamagedShardError: If it is damaged, or holds no image.
        ValueError: If it cannot be opened.
    """
    try:
        place, now = _place(address), os.stat(file)
    except OSError as error:
        raise ValueError(f"images: a shard cannot be opened. Got {error}.") from error
    if (stored := _stored(place, now)) is not None:
        return stored
    members = [m for m in read_shard(file, EXTENSIONS) if m.reason is None]
    if not members:
        raise DamagedShardError(
            f"images: none found in the shard {file!r}. Expected KEY.jpg members."
        )
    index = ShardIndex(
        torch.tensor([m.offset for m in members]), torch.tensor([m.size for m in members])
    )
    facts = {"count": str(index.count), "bytes": str(now.st_size), "changed": str(now.st_mtime_ns)}
    tensors = {"offsets": index.offsets, "sizes": index.sizes}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, lambda part: save_file(tensors, part, facts))
    except OSError as error:
        if (reason := str(cache_folder())) not in _told:
            _told.add(reason)
            _logger.warning(
                "images: indexes of shards cannot be kept (%s); every process reads the headers "
                "of its shards again. Set PROTEUS_CACHE to a folder that can be written.", error,
            )  # fmt: skip
    return index


def known_count(address: str) -> int | None:
    """Images of a shard that was indexed before, though it may not be here; None = not known."""
    facts = _facts(_place(address))
    if facts is None:
        return None
    if not is_remote(address):
        try:
            now = os.stat(address)
        except OSError:
            return None
        if (facts["bytes"], facts["changed"]) != (str(now.st_size), str(now.st_mtime_ns)):
            return None
    return int(facts["count"])


def name_at(file: str, offset: int) -> str:
    """Name of the member whose bytes begin there: it stands in the header before them."""
    try:
        with open_regular(file) as handle:
            handle.seek(offset - tarfile.BLOCKSIZE)
            header = handle.read(tarfile.BLOCKSIZE)
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
    except (OSError, tarfile.TarError):
        return f"(byte {offset})"


def _place(address: str) -> Path:
    name = address if is_remote(address) else os.path.realpath(address)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return cache_folder() / "index" / digest[:2] / f"{digest[2:32]}.safetensors"


def _facts(place: Path) -> dict[str, str] | None:
    try:
        with safe_open(place, "pt") as file:
            facts: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    whole = all(facts.get(name, "").isdecimal() for name in ("count", "bytes", "changed"))
    return facts if whole else None


def _stored(place: Path, now: os.stat_result) -> ShardIndex | None:
    """What was kept, if it is of this very file and whole."""
    facts = _facts(place)
    if facts is None or (facts["bytes"], facts["changed"]) != (
        str(now.st_size),
        str(now.st_mtime_ns),
    ):
        return None
    try:
        with safe_open(place, "pt") as file:
            index = ShardIndex(file.get_tensor("offsets"), file.get_tensor("sizes"))
    except (OSError, SafetensorError):
        return None
    numbers = (index.offsets, index.sizes)
    if any(t.dtype != torch.int64 or t.shape != (int(facts["count"]),) for t in numbers):
        return None
    inside = (index.offsets >= 0) & (index.sizes >= 0)
    inside &= index.offsets + index.sizes <= now.st_size
    return index if bool(inside.all()) and index.count else None
