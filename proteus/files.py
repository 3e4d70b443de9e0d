"""Files that are whole, or known not to be: one way to write them, one way to read them back."""

import errno
import hashlib
import json
import math
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_DEEPEST = 100  # levels; ours have ten at most, and what walks through them calls itself
_DIGEST = "digest"
_MOST_STEPS = 10**15
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def sync(path: Path) -> None:
    """Ask the system to put a file or folder on the disk before the rename that publishes it."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, length: int | None = None) -> str:
    """Hex digest of a file, or of its first bytes."""
    digest, left = hashlib.sha256(), math.inf if length is None else length
    with path.open("rb") as handle:
        while block := handle.read(int(min(1 << 20, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def write_whole(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file beside its place, put it on the disk, rename it: whole or not at all.

    What is not a file of its own under this name, such as a link, is replaced, never written into.

    Args:
        path: File; its folder must be there.
        content: Text (UTF-8; names of files may be in it), bytes, or what writes to a given path.

    Raises:
        OSError: If it cannot be written; what was there before stays.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "A folder is where a file is to go", str(path))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    os.close(handle)
    staging = Path(name)
    try:
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogateescape")
        if isinstance(content, bytes):
            staging.write_bytes(content)
        else:
            content(staging)
        sync(staging)
        _publish(staging, path)
        sync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def replace_files(staging: Path, folder: Path) -> None:
    """Move complete files into place: on disk first, then renamed, so that none is ever half."""
    files = sorted(staging.iterdir())
    for path in (*files, staging):
        sync(path)
    for file in files:
        _publish(file, folder / file.name)
    sync(folder)


def _publish(file: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
    file.replace(target)


def is_plain(path: Path) -> bool:
    """Whether it is a regular file of this folder: no link to elsewhere, no pipe, no device."""
    try:
        return not kind_of(path, links=False)
    except (OSError, ValueError):
        return False


def kind_of(path: str | Path, *, links: bool = True) -> str:
    """What stands there if it is no regular file, `a pipe`; "" for a file.

    Args:
        path: Place.
        links: Follow them; else they are no files.

    Raises:
        OSError: If there is nothing.
    """
    found = os.stat(path, follow_symlinks=links)  # noqa: PTH116 - a million paths
    mode = stat.S_IFMT(found.st_mode)
    return "" if mode == stat.S_IFREG else _KINDS.get(mode, "no file")


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file to read its bytes; whoever reads a pipe or a device may wait for ever.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    # Before it is opened: that alone may do something to a device.
    if kind := kind_of(path):
        raise OSError(f"it is {kind}, no file")
    return open(path, "rb", opener=_open_without_waiting)


def _open_without_waiting(path: str, flags: int) -> int:
    """It may have become a pipe by now."""
    return os.open(path, flags | vars(os).get("O_NONBLOCK", 0))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: With the reason alone, if it cannot be read, see `parse_json`.
    """
    try:
        if kind_of(path):
            raise ValueError("it is not a file")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError("it is not there") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it: no NaN, no number without end, no key twice, not too deep.

    Raises:
        ValueError: With the reason.

    Examples:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
    """
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            object_pairs_hook=_each_once, parse_constant=_finite, parse_float=_finite,
        )  # fmt: skip
    except RecursionError:
        value = None
    else:
        level = [value]
        for _ in range(_DEEPEST):
            inner = (v.values() if isinstance(v, dict) else v for v in level if _nests(v))
            level = [child for children in inner for child in children if _nests(child)]
            if not level:
                return value
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no number in JSON")
    return value


def seal(data: Mapping[str, Any]) -> str:
    """An object as JSON that holds a checksum of itself, which `unseal` looks at.

    Raises:
        ValueError: If a number in it is not finite.
    """
    plain = json.loads(json.dumps(dict(data), allow_nan=False))
    return json.dumps({**plain, _DIGEST: _digest_of(plain)}, indent=1) + "\n"


def is_sealed(data: Any) -> bool:
    """Whether what was read holds a checksum."""
    return isinstance(data, dict) and _DIGEST in data


def unseal(data: Any) -> dict[str, Any]:
    """What was sealed, after it was read.

    Raises:
        ValueError: If it is not what was written.
    """
    if not is_sealed(data):
        raise ValueError("it holds no checksum")
    plain = {key: value for key, value in data.items() if key != _DIGEST}
    if data[_DIGEST] != _digest_of(plain):
        raise ValueError("its checksum is not that of its content")
    return plain


def _digest_of(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Lines of a log, each with its row: an object with the number of a step; -1 = before all.

    Args:
        path: JSON Lines; what is no regular file, or is not there, has none.

    Yields:
        The line, and its row; None where it holds none (a run that is killed leaves half of one).
    """
    if is_plain(path):
        with path.open("rb") as file:
            for line in file:
                yield line, _row(line)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and -1 <= step < _MOST_STEPS else None


def newest(steps: Sequence[float]) -> list[int]:
    """Which rows of a log count: where steps start again, later rows replace the earlier ones.

    Examples:
        >>> newest([0, 1, 2, 1])
        [0, 3]
    """
    kept: list[int] = []
    for index, step in enumerate(steps):
        while kept and steps[kept[-1]] >= step:
            kept.pop()
        kept.append(index)
    return kept


def holes(steps: Sequence[int], end: int) -> str:
    """Which of the steps 0 ... `end - 1` are not among these rising ones, in words; "" if none.

    Examples:
        >>> holes([0, 1, 4, 6], end=7)
        'steps 2 to 3, 5'
    """
    gaps, last = [], -1
    for step in (*steps, end):
        if step > last + 1:
            gaps.append(f"{last + 1} to {step - 1}" if step > last + 2 else f"{last + 1}")
        last = step
    more = f" and {len(gaps) - 10} holes more" if len(gaps) > 10 else ""
    return f"steps {', '.join(gaps[:10])}{more}" if gaps else ""


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested data as path -> value.

    Examples:
        >>> flatten({"a": {"b": 1}, "c": 2})
        {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{path}.") if nested else {path: value}
    return flat
