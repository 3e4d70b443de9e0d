"""Tar shards: where in a shard each image is, and shards on a server."""

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..files import open_regular, write_whole

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TRIES = 3


class Member(NamedTuple):
    """One image of a shard; `reason` says why one is passed over."""

    name: str
    offset: int
    size: int
    label: str | None
    reason: str | None = None


def read_shard(file: str, extensions: Collection[str]) -> Iterator[Member]:
    """The images of one uncompressed tar, by their position in it. Nothing is extracted.

    Behind them, with a reason: keys of which no member is an image.

    Args:
        file: Path.
        extensions: Of images, lower case, after the key: `.jpg` matches `KEY.jpg`, not
            `KEY.seg.jpg`.

    Raises:
        ValueError: If it is no tar, is compressed, is damaged, or ends early.
    """
    images: list[Member] = []
    labels: dict[str, str] = {}
    others: dict[str, str] = {}  # an ending that is no image's, of each key
    try:
        # "r:" and not "r": a compressed tar has no positions to read from.
        with open_regular(file) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            length = os.fstat(handle.fileno()).st_size
            for member in tar:
                if member.size < 0 or member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends inside {member.name!r}")
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = folder + slash + stem
                if stem and ending == "cls" and member.isreg():
                    content = tar.extractfile(member)
                    text = content.read(256) if content else b""
                    labels[key] = text.decode("utf-8", "replace").strip()
                last = f".{ending.rpartition('.')[2].lower()}"
                if not stem or last not in extensions:
                    if stem and ending and member.isreg():
                        others.setdefault(key, last)
                    continue
                reason = None if f".{ending.lower()}" in extensions else "belongs to another key"
                if not member.isreg():
                    reason = "not a regular file"
                elif ".." in Path(member.name).parts or member.name.startswith("/"):
                    reason = "its name leads out of the archive"
                images.append(Member(member.name, member.offset_data, member.size, key, reason))
            handle.seek(tar.offset)
            # tarfile takes a damaged header for the end, which is a block of zeros.
            end = handle.read(tarfile.BLOCKSIZE)
            if any(end):
                raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset}")
            if not end:  # so it is where the writer was not closed, and where a member is cut off
                images.append(Member("(end)", tar.offset, 0, None, "no end mark: it may be cut"))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"images: {file!r} is not a readable tar shard. Got {error}; expected an uncompressed "
            f".tar. Unpack compressed ones, and fetch damaged ones again."
        ) from error
    for image in images:
        key = image.label or ""
        others.pop(key, None)
        folder = str(PurePosixPath(image.name).parent)
        label = labels.get(key) or (folder if folder != "." else None)
        yield image._replace(label=label)
    for key, last in others.items():
        yield Member(f"{key}{last}", 0, 0, None, f"not an image: {last}")


def expand_urls(pattern: str) -> list[str]:
    """`…-{000..002}.tar` -> three addresses; the digits keep their width."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    numbers = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    if not numbers:
        raise ValueError(f"images: an empty range. Got {match[0]!r} in {pattern!r}.")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [url for n in numbers for url in expand_urls(head + n + tail)]


def cache_folder() -> Path:
    """Where fetched shards are kept: `PROTEUS_CACHE`, or `~/.cache/proteus`."""
    return Path(os.environ.get("PROTEUS_CACHE") or Path.home() / ".cache" / "proteus")


def fetch_shard(url: str) -> str:
    """A shard on a server as a local file: downloaded once, whole or not at all.

    Raises:
        ValueError: If it cannot be fetched.
    """
    folder = cache_folder() / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16]
    target = folder / (url.partition("?")[0].rpartition("/")[2] or "shard.tar")
    if target.is_file():
        return str(target)
    folder.mkdir(parents=True, exist_ok=True)
    problem = ""
    for _ in range(_TRIES):
        try:
            write_whole(target, lambda part: _download(url, part))
            return str(target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                break
    raise ValueError(
        f"images: a shard cannot be fetched. Got {problem} for {url!r}; expected an uncompressed "
        f".tar. Check the address and the connection."
    )


def _download(url: str, part: Path) -> None:
    with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
        expected = answer.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"it broke off after {file.tell()} of {expected} bytes")
    list(read_shard(str(part), ()))  # a page of a proxy must not stay in the cache
