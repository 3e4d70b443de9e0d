"""Where images are: a folder tree or tar shards. Labels are neither needed nor read."""

import glob
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class CorruptImageError(ValueError):
    """An image cannot be decoded, or too many of a source cannot."""


@dataclass(frozen=True)
class _Place:
    """Bytes of one image: a whole file (`size` None) or a piece of a tar shard."""

    file: str
    name: str
    offset: int = 0
    size: int | None = None


class ImageSource:
    """A list of encoded images that are read when asked for.

    Nothing is unpacked to the disk and no file stays open, so a source can be used from any number
    of processes.

    Args:
        description: What it is, for messages.
        places: Where each image is; use `open_source` to find them.

    Examples:
        >>> source = ImageSource("nothing", [])
        >>> len(source)
        0
    """

    def __init__(self, description: str, places: Sequence[_Place]) -> None:
        self.description = description
        self._places = list(places)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """Path below the folder, or `shard.tar:member`."""
        return self._places[index].name

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image.

        Raises:
            CorruptImageError: If the file cannot be read any more.
        """
        place = self._places[index]
        try:
            with open(place.file, "rb") as file:
                file.seek(place.offset)
                return file.read() if place.size is None else file.read(place.size)
        except OSError as error:
            raise CorruptImageError(f"{place.name}: cannot be read. Got {error}.") from error


def open_source(path: str | Path | Sequence[str | Path]) -> ImageSource:
    """Find the images in a folder tree, in tar shards, or in several of these.

    Args:
        path: A folder of images (searched through, sorted; links are followed, once), a folder of
            `.tar` shards, one shard, a pattern such as `data/train-*.tar`, or a list of these.
            Shards are uncompressed and named as in WebDataset: `KEY.jpg` is an image,
            `KEY.seg.png` or `KEY.cls` belong to it and are passed over.

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
    if not isinstance(path, str | Path):
        if not path:
            raise ValueError("images: no path given. Got an empty list.")
        parts = [open_source(part) for part in path]
        joined = [place for part in parts for place in part._places]
        return ImageSource(", ".join(part.description for part in parts), joined)
    text = str(path)
    if os.path.isdir(text):
        return ImageSource(text, _folder(text))
    if os.path.isfile(text):
        return ImageSource(text, list(_shard(text)))
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise ValueError(
            f"images: no such folder or file. Got {text!r}; expected a folder of images, a .tar "
            f"shard, or a pattern such as 'data/train-*.tar'."
        )
    return ImageSource(text, open_source(list(matches))._places)


def _folder(root: str) -> list[_Place]:
    images: list[str] = []
    shards: list[str] = []
    others: Counter[str] = Counter()
    for file in _walk(root):
        extension = os.path.splitext(file)[1].lower()
        if extension in EXTENSIONS:
            images.append(file)
        elif extension == ".tar":
            shards.append(file)
        else:
            others[extension or "(none)"] += 1
    if images and shards:
        raise ValueError(
            f"images: {root!r} holds both images and shards. Got {len(images)} images and "
            f"{len(shards)} .tar files; name the ones you mean, for example '{root}/*.tar'."
        )
    if shards:
        return [place for shard in shards for place in _shard(shard)]
    if not images:
        found = ", ".join(f"{n} {kind}" for kind, n in others.most_common(5)) or "nothing"
        raise ValueError(
            f"images: none found. Got {root!r}, which holds {found}; expected files such as "
            f"{', '.join(sorted(EXTENSIONS)[:4])}, or .tar shards."
        )
    return [_Place(file, os.path.relpath(file, root)) for file in images]


def _walk(root: str) -> Iterator[str]:
    """Files of a tree in sorted order; every real folder once, so loops of links end."""

    def fail(error: OSError) -> None:
        raise ValueError(f"images: a folder cannot be read. Got {error}.") from error

    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        yield from (os.path.join(folder, file) for file in sorted(files))


def _shard(file: str) -> Iterator[_Place]:
    """The images of one uncompressed tar, by their position in it."""
    base, count, length = os.path.basename(file), 0, os.path.getsize(file)
    try:
        # "r:" and not "r": a compressed tar has no positions to read from.
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > length:
                    # tarfile takes a missing end for the end.
                    raise tarfile.ReadError(f"it ends inside {member.name!r}")
                name = os.path.basename(member.name)
                key_end = name.find(".", 1)
                if member.isreg() and key_end > 0 and name[key_end:].lower() in EXTENSIONS:
                    count += 1
                    yield _Place(file, f"{base}:{member.name}", member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"images: {file!r} is not a readable tar shard. Got {error}; expected an uncompressed "
            f".tar. Unpack compressed ones, and fetch truncated ones again."
        ) from error
    if not count:
        raise ValueError(f"images: none found in the shard {file!r}. Expected KEY.jpg members.")
