"""Lists of images: a path on each line, or a source that was saved."""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import kind_of, open_regular
from .places import ImageSource, Place


def open_list(file: str) -> ImageSource:
    """A path on each line, relative to the list's folder; `#` begins a comment.

    Raises:
        ValueError: If it lists nothing, or what is no file.
    """
    base = os.path.dirname(os.path.abspath(file))
    # Names are bytes to the system, and a Windows editor puts a mark before the first one.
    with io.TextIOWrapper(open_regular(file), "utf-8-sig", "surrogateescape") as handle:
        names = [line.strip() for line in handle]
    names = [name for name in names if name and not name.startswith("#")]
    places = [Place(os.path.join(base, name), name) for name in names]
    missing = [name for place in places for name in _missing(place.file, place.name)]
    if missing or not places:
        raise ValueError(
            f"images: {file!r} lists files that are not there. Got {len(missing)} of "
            f"{len(places)}, such as {missing[:3]}; expected paths relative to {base!r}, one on "
            f"each line."
        )
    return ImageSource(file, places)


def open_saved(file: str) -> ImageSource:
    """What `ImageSource.save_list` wrote.

    Raises:
        ValueError: If it is anything else, or lists what is not there.
    """
    try:
        content = json.loads(Path(file).read_bytes())
        description, rows = content["description"], content["places"]
        places = [_place(row) for row in rows]
        if not isinstance(description, str):
            raise TypeError(f"description {_short(description)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"images: {file!r} is no list of images. Got {type(error).__name__}: {error}; expected "
            f"a file of ImageSource.save_list or `proteus data --out`."
        ) from error
    ends: dict[str, int] = {}
    for place in places:
        ends[place.file] = max(ends.get(place.file, 0), place.offset + (place.size or 0))
    missing = [name for path, end in sorted(ends.items()) for name in _missing(path, path, end)]
    if missing or not places:
        raise ValueError(
            f"images: {file!r} lists what is not there. Got {len(places)} images, {len(missing)} "
            f"files missing, such as {missing[:3]}; make the list again where the images are now."
        )
    return ImageSource(f"{description} ({file})", places)


def _place(row: Any) -> Place:
    """A row of a list, whose types JSON does not keep."""
    if not isinstance(row, list):
        raise TypeError(f"row {_short(row)}")
    place = Place(*row)
    counts = [place.offset, 0 if place.size is None else place.size]
    words = [place.file, place.name, "" if place.label is None else place.label]
    if not (
        all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(word, str) for word in words)
    ):
        raise TypeError(f"row {_short(row)}")
    return place


def _missing(path: str, name: str, end: int = 0) -> Iterable[str]:
    """The name, if there is no file of so many bytes."""
    try:
        kind = kind_of(path) or ("cut off" if os.path.getsize(path) < end else "")
    except (OSError, ValueError):
        yield _short(name)
        return
    if kind:
        yield f"{_short(name)} ({kind})"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
