"""Very many tar shards as one source that is not read through: `wds/…`."""

import glob
import hashlib
import io
import os
from collections.abc import Iterator, Sequence

from ..files import open_regular
from .shards import expand_urls, is_remote

PREFIX = "wds/"


class ShardSource:
    """Tar shards by their addresses alone; what is in them shows when they are read.

    Args:
        description: What it is, for messages.
        addresses: Paths, `https://…`, or what fsspec can open.

    Raises:
        ValueError: If there are none, or one stands there twice.

    Examples:
        >>> source = ShardSource("two shards", ["a.tar", "b.tar"])
        >>> len(source.addresses)
        2
    """

    def __init__(self, description: str, addresses: Sequence[str]) -> None:
        self.description, self.addresses = description, tuple(addresses)
        if not self.addresses:
            raise ValueError(f"images: no shards. Got {description}; expected .tar files.")
        if len(set(self.addresses)) < len(self.addresses):
            twice = next(one for one in self.addresses if self.addresses.count(one) > 1)
            raise ValueError(
                f"images: a shard is there twice. Got {twice!r} in {description}; expected each "
                f"once, or its images come twice in each epoch."
            )

    @property
    def digest(self) -> str:
        """sha256 of the shards' names in order (of addresses, without what follows `?`)."""
        digest = hashlib.sha256()
        for address in self.addresses:
            name = address.partition("?")[0] if is_remote(address) else address
            name = name.rpartition("/")[2] if is_remote(address) else os.path.basename(name)
            digest.update(os.fsencode(name) + b"\0")
        return digest.hexdigest()


def open_shards(texts: Sequence[str]) -> ShardSource:
    """The shards that paths with the prefix `wds/` name. No shard is opened.

    Args:
        texts: Each one of these, behind the prefix:

            - `data/train-{00000..09999}.tar`, all of which must be there;
            - `https://host/train-{00000..09999}.tar`, `s3://…` and other addresses of fsspec, which
              are not asked for before they are needed;
            - a pattern, `data/train-*.tar`; a folder, searched through for `.tar`; one shard;
            - `FILE.txt`, one of these on each line, relative to the list's folder.

    Raises:
        ValueError: If there are none, or a path is not there.
    """
    found: list[str] = []
    for text in texts:
        rest = text.removeprefix(PREFIX)
        if not text.startswith(PREFIX):
            raise ValueError(
                f"images: shards that are streamed go with nothing else. Got {text!r} beside "
                f"{next(t for t in texts if t.startswith(PREFIX))!r}; expected 'wds/…' for all."
            )
        if os.path.exists(text):
            raise ValueError(
                f"images: {text!r} could be two things. Got a path that is there, with the prefix "
                f"of streamed shards; write './{text}' for it, or '{PREFIX}./{rest}'."
            )
        found += _addresses(rest, "")
    return ShardSource(", ".join(texts), found)


def _addresses(text: str, base: str) -> Iterator[str]:
    if is_remote(text):
        yield from expand_urls(text)
        return
    path = os.path.join(base, text)
    if os.path.isdir(path):
        yield from _tars_below(path)
    elif path.endswith(".txt") and not base:
        yield from _listed(path)
    else:
        for name in expand_urls(path):
            matches = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
            if not matches:
                raise ValueError(
                    f"images: no such shard. Got {name!r}; expected a .tar file, a pattern such as "
                    f"'wds/data/train-{{000..009}}.tar', a folder of shards, or a list, FILE.txt."
                )
            yield from matches


def _listed(path: str) -> Iterator[str]:
    try:
        with io.TextIOWrapper(open_regular(path), "utf-8-sig", "surrogateescape") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise ValueError(f"images: a list of shards cannot be read. Got {error}.") from error
    base = os.path.dirname(os.path.abspath(path))
    for line in lines:
        if line and not line.startswith("#"):
            yield from _addresses(line, base)


def _tars_below(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".tar") and not name.startswith("._"):
                yield os.path.join(root, name)
