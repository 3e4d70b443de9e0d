"""Tar shards: where in a shard each image is, and shards on a server."""

import hashlib
import http.client
import os
import re
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..files import open_regular, write_whole

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TRIES = 3
_WAIT = 0.25  # seconds before the second try, twice as many before each later one
_AGAIN = (408, 425, 429)  # answers below 500 after which it may go better
_SILENCE = 60.0  # seconds that a server may say nothing
_BLOCK = 1 << 20


class DamagedShardError(ValueError):
    """A shard that can be read but is no whole tar, or has no image: it will not get better."""


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
        DamagedShardError: If it is no tar, is compressed, is damaged, or ends early.
        ValueError: If it cannot be opened.
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
        raise (ValueError if isinstance(error, OSError) else DamagedShardError)(
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


def is_remote(address: str) -> bool:
    """Whether it is an address and no path.

    Examples:
        >>> is_remote("https://host/a.tar"), is_remote("shards/a.tar")
        (True, False)
    """
    return "://" in address


def fetch_shard(url: str) -> str:
    """A shard on a server as a local file: downloaded once, whole or not at all.

    Raises:
        ValueError: If it cannot be fetched.
    """
    return fetch_into(cache_folder() / "shards", url, check=True)


def fetch_into(
    base: Path,
    url: str,
    *,
    tries: int = _TRIES,
    check: bool = False,
    over: threading.Event | None = None,
) -> str:
    """A shard on a server as a file below a folder: downloaded once, whole or not at all.

    Args:
        base: Folder; each address has one of its own in it.
        url: `http://`, `https://`, or what fsspec has a file system for, such as `s3://`.
        tries: How often it is asked for; each pause between is twice the one before.
        check: Whether what is no tar counts as a fault on the way.
        over: Ends the download once it is set.

    Raises:
        ValueError: If it cannot be fetched; the message names the address.
    """
    target = place_in(base, url)
    if target.is_file():
        return str(target)
    over = over or threading.Event()
    problem = ""
    for number in range(tries):
        if number and over.wait(_WAIT * 2 ** (number - 1)):
            break
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, lambda part: _download(url, part, check, over))
            return str(target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            code = error.code if isinstance(error, urllib.error.HTTPError) else 500
            if code < 500 and code not in _AGAIN:
                break
        except ImportError as error:  # fsspec names the package that its file system needs
            problem = str(error)
            break
    raise ValueError(
        f"images: a shard cannot be fetched. Got {problem} for {url!r}; expected an uncompressed "
        f".tar. Check the address and the connection."
    )


def place_in(base: Path, url: str) -> Path:
    """Where below a folder the shard of an address is kept."""
    name = url.partition("?")[0].rpartition("/")[2] or "shard.tar"
    return base / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _download(url: str, part: Path, check: bool, over: threading.Event) -> None:
    with part.open("wb") as file:
        for block in _blocks(url):
            file.write(block)
            if over.is_set():
                raise OSError("nobody waits for it any more")
    if check:
        list(read_shard(str(part), ()))  # a page of a proxy must not stay in the cache


def _blocks(url: str) -> Iterator[bytes]:
    """What is at an address, to its announced end."""
    if not url.startswith(("http://", "https://")):
        yield from _other_blocks(url)
        return
    with urllib.request.urlopen(url, timeout=_SILENCE) as answer:
        done = 0
        while block := answer.read(_BLOCK):
            yield block
            done += len(block)
        expected = answer.headers.get("Content-Length")
        if expected is not None and done != int(expected):
            raise OSError(f"it broke off after {done} of {expected} bytes")


def _other_blocks(url: str) -> Iterator[bytes]:
    """The same through fsspec, whose file systems have errors of their own."""
    import fsspec  # torch and huggingface_hub bring it along

    try:
        with fsspec.open(url, "rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
