"""Where images are. Labels are neither needed nor read for distillation."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import kind_of
from .decoding import EXTENSIONS
from .lists import open_list, open_saved
from .places import ImageSource, Place, join
from .shard_source import PREFIX, open_shards
from .shards import expand_urls, fetch_shard, is_remote, read_shard


def open_source(path: Any) -> Any:
    """Find the images in a folder tree, tar shards, a list, a dataset, or several of these.

    Args:
        path: One of these, or a list of the first five:

            - a folder of images, searched through, sorted; links are followed, once;
            - a folder of `.tar` shards, one shard, or a pattern such as `data/train-*.tar`. Shards
              are uncompressed and named as in WebDataset: `KEY.jpg` is an image, `KEY.seg.png` or
              `KEY.cls` belong to it and are no images;
            - `https://host/train-{000..009}.tar`, shards on a server, fetched once into a cache
              (`PROTEUS_CACHE`, default `~/.cache/proteus`);
            - `FILE.txt`, a path on each line, relative to the list's folder;
            - `FILE.json` of `ImageSource.save_list`;
            - `hfds/OWNER/NAME` or `hfds/OWNER/NAME:SPLIT`, a dataset of the Hugging Face Hub (extra
              `data`); `hfids/…` streams it without storing it;
            - `wds/data/train-{00000..09999}.tar`, `wds/https://host/train-{00000..09999}.tar`,
              `wds/FOLDER`: very many shards, opened one after the other while they are read, see
              `open_shards`;
            - a torch dataset, of images or of (image, anything); a `datasets.Dataset`.

    Returns:
        An `ImageSource`; a `ShardSource` for `wds/…`; a `StreamSource` for `hfids/…` and iterable
        datasets.

    Raises:
        ValueError: If a path does not exist, cannot be read, or holds no images.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8)).save(f"{folder}/a.png")
        ...     source = open_source(folder)
        >>> len(source), source.name(0)
        (1, 'a.png')
    """
    if isinstance(path, str | Path):
        text = str(path)
        if text.startswith(("hfds/", "hfids/")):
            from .datasets import open_hub_dataset

            return open_hub_dataset(text)
        return open_shards([text]) if text.startswith(PREFIX) else _open_path(text)
    if isinstance(path, list | tuple) and all(isinstance(part, str | Path) for part in path):
        if not path:
            raise ValueError("images: no path given. Got an empty list.")
        if len(path) == 1:
            return open_source(path[0])
        if any(str(part).startswith(PREFIX) for part in path):
            return open_shards([str(part) for part in path])
        return join([_open_path(str(part)) for part in path])
    from .datasets import open_dataset

    return open_dataset(path)


def _open_path(text: str) -> ImageSource:
    if is_remote(text):
        files = [fetch_shard(url) for url in expand_urls(text)]
        return join([_shard(file) for file in files], text)
    if os.path.isdir(text):
        return _folder(text)
    if os.path.isfile(text):
        if text.endswith(".txt"):
            return open_list(text)
        if text.endswith(".json"):
            return open_saved(text)
        if os.path.splitext(text)[1].lower() in EXTENSIONS:
            raise ValueError(
                f"images: one image is no source. Got {text!r}; expected its folder, or a list of "
                f"files, FILE.txt."
            )
        return _shard(text)
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise ValueError(
            f"images: no such folder or file. Got {text!r}; expected a folder of images, a .tar "
            f"shard, or a pattern such as 'data/train-*.tar'."
        )
    if matches == [text]:
        raise ValueError(
            f"images: neither folder nor file. Got {text!r}, {_kind(text) or 'a link to nothing'}; "
            f"expected a folder of images, a .tar shard, or a list."
        )
    return join([_open_path(match) for match in matches], text)


def _folder(root: str) -> ImageSource:
    images: list[str] = []
    shards: list[str] = []
    others: dict[str, str] = {}
    for file, kind in _walk(root):
        extension = os.path.splitext(file)[1].lower()
        if os.path.basename(file).startswith("._"):
            others[os.path.relpath(file, root)] = "not an image: metadata of macOS"
        elif extension not in EXTENSIONS and extension != ".tar":
            others[os.path.relpath(file, root)] = f"not an image: {extension or 'no extension'}"
        elif kind:
            others[os.path.relpath(file, root)] = f"not an image: {kind}"
        elif extension == ".tar":
            shards.append(file)
        else:
            images.append(file)
    if images and shards:
        raise ValueError(
            f"images: {root!r} holds both images and shards. Got {len(images)} images and "
            f"{len(shards)} .tar files; name the ones you mean, for example '{root}/*.tar'."
        )
    if shards:
        return join([_shard(shard) for shard in shards], root)
    if not images:
        kinds = Counter(why.rpartition(": ")[2] for why in others.values()).most_common(5)
        found = ", ".join(f"{n} {kind}" for kind, n in kinds) or "nothing"
        raise ValueError(
            f"images: none found. Got {root!r}, which holds {found}; expected files such as "
            f"{', '.join(sorted(EXTENSIONS)[:4])}, or .tar shards."
        )
    places = []
    for file in images:
        name = os.path.relpath(file, root)
        places.append(Place(file, name, label=os.path.dirname(name) or None))
    return ImageSource(root, places, others)


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Files of a tree in sorted order, and what each is if it is none.

    Every real folder once, so loops of links end. Links to nothing count as files: images that are
    lost must not be passed over.
    """
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"images: a folder cannot be read. Got {error}.") from error
        folders = {entry.path: entry for entry in found if _is(entry.is_dir)}
        waiting += reversed(folders)
        if not found and os.path.splitext(folder)[1].lower() in EXTENSIONS:
            yield folder, "an empty folder"
        for entry in found:
            # What kind a file is stands in its folder; only others, and links, are looked at.
            if _is(entry.is_file):
                yield entry.path, ""
            elif entry.path not in folders:
                yield entry.path, _kind(entry.path)


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry of a folder is of a kind; links that lead in circles are of none."""
    try:
        return kind()
    except OSError:
        return False


def _kind(path: str) -> str:
    try:
        return kind_of(path)
    except OSError:
        return ""


def _shard(file: str) -> ImageSource:
    places, others = [], {}
    base = os.path.basename(file)
    for member in read_shard(file, EXTENSIONS):
        name = f"{base}:{member.name}"
        if member.reason:
            others[name] = member.reason
        else:
            places.append(Place(file, name, member.offset, member.size, member.label))
    if not places:
        raise ValueError(f"images: none found in the shard {file!r}. Expected KEY.jpg members.")
    return ImageSource(file, places, others)
