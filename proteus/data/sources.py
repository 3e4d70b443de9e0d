"""Where images are. Labels are neither needed nor read for distillation."""

import copy
import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_whole
from .decoding import CorruptImageError
from .shards import expand_urls, fetch_shard, read_shard

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True, slots=True)  # there may be millions
class Place:
    """Bytes of one image: a whole file (`size` None) or a piece of a tar shard.

    Attributes:
        file: Path of the file.
        name: For people: path below the folder, or `shard.tar:member`.
        offset: First byte.
        size: Number of bytes; None = the whole file.
        label: Class, where the layout tells it: the folder's name or the shard's `KEY.cls`. Used
            only to draw subsets (`proteus.data.proxy`).
    """

    file: str
    name: str
    offset: int = 0
    size: int | None = None
    label: str | None = None


class ImageSource:
    """A list of encoded images that are read when asked for.

    Nothing is unpacked to the disk and no file stays open, so a source can be used from any number
    of processes.

    Args:
        description: What it is, for messages.
        places: Where each image is; use `open_source` to find them.
        passed_over: What was found and is no image: name -> reason.

    Examples:
        >>> source = ImageSource("nothing", [])
        >>> len(source)
        0
    """

    def __init__(
        self, description: str, places: Sequence[Place], passed_over: dict[str, str] | None = None
    ) -> None:
        self.description = description
        self.places = list(places)
        self.passed_over = passed_over or {}

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """Path below the folder, or `shard.tar:member`."""
        return self.places[index].name

    def label(self, index: int) -> str | None:
        """Class of an image where the layout tells it."""
        return self.places[index].label

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded bytes of one image (or the image, where a dataset holds it decoded).

        Raises:
            CorruptImageError: If the file cannot be read any more.
        """
        place = self.places[index]
        try:
            with open(place.file, "rb") as file:
                file.seek(place.offset)
                return file.read() if place.size is None else file.read(place.size)
        except OSError as error:
            raise CorruptImageError(f"{place.name}: cannot be read. Got {error}.") from error

    def select(self, indices: Sequence[int], description: str) -> "ImageSource":
        """A part of it, in the given order."""
        part = copy.copy(self)
        part.description, part.passed_over = description, {}
        part.places = [self.places[i] for i in indices]
        return part

    def save_list(self, path: str | Path) -> None:
        """Write the list of images, which `open_source` takes: `NAME.images.json`."""
        if type(self) is not ImageSource:
            raise ValueError(
                f"images: only files can be listed. Got {self.description}, whose images are made "
                f"when they are asked for."
            )
        target = Path(path)
        if target.suffix != ".json":
            raise ValueError(f"images: a list is a .json file. Got {str(path)!r}.")
        rows = [[os.path.abspath(p.file), *astuple(p)[1:]] for p in self.places]
        content = {"proteus_images": 1, "description": self.description, "places": rows}
        write_whole(target, json.dumps(content) + "\n")


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
            - a torch dataset, of images or of (image, anything); a `datasets.Dataset`.

    Returns:
        An `ImageSource`, or a `StreamSource` for `hfids/…` and iterable datasets.

    Raises:
        ValueError: If a path does not exist, cannot be read, or holds no images.

    Examples:
        >>> import tempfile
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
        return _open_path(text)
    if isinstance(path, list | tuple) and all(isinstance(part, str | Path) for part in path):
        if not path:
            raise ValueError("images: no path given. Got an empty list.")
        if len(path) == 1:
            return open_source(path[0])
        return join([_open_path(str(part)) for part in path])
    from .datasets import open_dataset

    return open_dataset(path)


def join(sources: Sequence[ImageSource], description: str | None = None) -> ImageSource:
    """Several sources one after the other; equal names get their source's before them."""
    description = description or ", ".join(source.description for source in sources)
    names = Counter(place.name for source in sources for place in source.places)
    places = [
        replace(place, name=f"{source.description}/{place.name}")
        if names[place.name] > 1
        else place
        for source in sources
        for place in source.places
    ]
    others = {name: why for source in sources for name, why in source.passed_over.items()}
    if all(type(source) is ImageSource for source in sources):
        return ImageSource(description, places, others)
    return JoinedSource(description, sources, places, others)


class JoinedSource(ImageSource):
    """Sources of several kinds one after the other; each reads its own images."""

    def __init__(
        self,
        description: str,
        sources: Sequence[ImageSource],
        places: Sequence[Place],
        passed_over: dict[str, str],
    ) -> None:
        numbered = [replace(place, offset=number) for number, place in enumerate(places)]
        super().__init__(description, numbered, passed_over)
        self.owners = [(source, index) for source in sources for index in range(len(source))]

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded bytes of one image, or the image."""
        source, number = self.owners[self.places[index].offset]
        return source.read(number)


def _open_path(text: str) -> ImageSource:
    if text.startswith(("http://", "https://")):
        files = [fetch_shard(url) for url in expand_urls(text)]
        return join([_shard(file) for file in files], text)
    if os.path.isdir(text):
        return _folder(text)
    if os.path.isfile(text):
        if text.endswith(".txt"):
            return _list(text)
        if text.endswith(".json"):
            return _saved(text)
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
    return join([_open_path(match) for match in matches], text)


def _folder(root: str) -> ImageSource:
    images: list[str] = []
    shards: list[str] = []
    others: dict[str, str] = {}
    for file in _walk(root):
        extension = os.path.splitext(file)[1].lower()
        if os.path.basename(file).startswith("._"):
            others[os.path.relpath(file, root)] = "not an image: metadata of macOS"
        elif extension in EXTENSIONS:
            images.append(file)
        elif extension == ".tar":
            shards.append(file)
        else:
            others[os.path.relpath(file, root)] = f"not an image: {extension or 'no extension'}"
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


def _list(file: str) -> ImageSource:
    base = os.path.dirname(os.path.abspath(file))
    # Names are bytes to the system, and a Windows editor puts a mark before the first one.
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as handle:
        names = [line.strip() for line in handle]
    names = [name for name in names if name and not name.startswith("#")]
    places = [Place(os.path.join(base, name), name) for name in names]
    missing = [place.name for place in places if not os.path.isfile(place.file)]
    if missing or not places:
        raise ValueError(
            f"images: {file!r} lists files that are not there. Got {len(missing)} of "
            f"{len(places)}, such as {missing[:3]}; expected paths relative to {base!r}, one on "
            f"each line."
        )
    return ImageSource(file, places)


def _saved(file: str) -> ImageSource:
    try:
        content = json.loads(Path(file).read_text())
        description, places = content["description"], [Place(*row) for row in content["places"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"images: {file!r} is no list of images. Got {type(error).__name__}: {error}; expected "
            f"a file of ImageSource.save_list or `proteus data --out`."
        ) from error
    missing = [
        name for name in sorted({place.file for place in places}) if not os.path.isfile(name)
    ]
    if missing or not places:
        raise ValueError(
            f"images: {file!r} lists what is not there. Got {len(places)} images, {len(missing)} "
            f"files missing, such as {missing[:3]}; make the list again where the images are now."
        )
    return ImageSource(f"{description} ({file})", places)
