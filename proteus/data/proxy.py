"""The paper's proxy sets (sections 3.5, A.11) from whatever images there are, with a manifest."""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .decoding import CorruptImageError, decode, read_file
from .places import ImageSource, Place, join


@dataclass(frozen=True)
class Manifest:
    """What a proxy set was made of; `print` shows it as JSON.

    Attributes:
        kind: "merge", "single", "sub-data" or "sub-class".
        images: How many it holds.
        seed: Of what was drawn; None where nothing is.
        parts: Source or class -> images taken from it.
        settings: The builder's arguments.
        digest: sha256 of the names in order: equal digests are equal sets.
        dropped: Left out, and why: name -> reason.
    """

    kind: str
    images: int
    seed: int | None
    parts: Mapping[str, int]
    settings: Mapping[str, Any]
    digest: str
    dropped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return json.dumps({**self.to_dict(), "dropped": len(self.dropped)}, indent=2)


def merge(sources: Sequence[ImageSource]) -> tuple[ImageSource, Manifest]:
    """ImageNet-Merge: all images of several sources, exact duplicates once.

    Two images are the same if their files are, byte for byte; the first one stays.

    Args:
        sources: At least one.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         Image.new("RGB", (8, 8)).save(f"{folder}/{name}.png")
        ...     merged, manifest = merge(
        ...         [
        ...             ImageSource(
        ...                 folder, [Place(f"{folder}/{name}.png", name) for name in ("a", "b")]
        ...             )
        ...         ]
        ...     )
        >>> len(merged), dict(manifest.dropped)
        (1, {'b': 'the same file as a'})
    """
    if not sources:
        raise ValueError("merge: no source given. Got an empty list.")
    seen: dict[bytes, str] = {}
    kept: list[ImageSource] = []
    parts: dict[str, int] = {}
    dropped: dict[str, str] = {}
    whole = iter(join(sources).places)  # which gives each image a name of its own
    for source in sources:
        chosen = []
        for index in range(len(source)):
            name = next(whole).name
            digest = hashlib.sha256(_bytes(source, index)).digest()
            if digest in seen:
                dropped[name] = f"the same file as {seen[digest]}"
                continue
            seen[digest] = name
            chosen.append(index)
        kept.append(source.select(chosen, source.description))
        parts[source.description] = parts.get(source.description, 0) + len(chosen)
    merged = join(kept, "merge of " + ", ".join(parts))
    return merged, replace(_manifest("merge", merged, None, parts, {}), dropped=dropped)


def _bytes(source: ImageSource, index: int) -> bytes:
    data = source.read(index)
    if isinstance(data, bytes):
        return data
    return f"{data.mode} {data.size}".encode() + data.tobytes()


def sub_data(
    source: ImageSource,
    fraction: float,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> tuple[ImageSource, Manifest]:
    """ImageNet-sub-data: a fraction of the images of each class, at least one.

    Args:
        source: The images.
        fraction: In (0, 1].
        seed: Of the draw.
        labels: Class of each image; None = what the layout says (folders, `KEY.cls`).

    Raises:
        ValueError: If the fraction is out of range or an image's class is not known.
    """
    classes = _classes(source, fraction, labels, "sub_data")
    rng = random.Random(f"sub-data/{seed}")
    taken = {
        name: rng.sample(classes[name], max(1, round(fraction * len(classes[name]))))
        for name in sorted(classes)
    }
    return _part("sub-data", source, taken, fraction=fraction, seed=seed)


def sub_class(
    source: ImageSource,
    fraction: float,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> tuple[ImageSource, Manifest]:
    """ImageNet-sub-class: all images of a fraction of the classes, at least one.

    Everything else is as in `sub_data`.
    """
    classes = _classes(source, fraction, labels, "sub_class")
    rng = random.Random(f"sub-class/{seed}")
    names = sorted(rng.sample(sorted(classes), max(1, round(fraction * len(classes)))))
    taken = {name: classes[name] for name in names}
    return _part("sub-class", source, taken, fraction=fraction, seed=seed)


def _classes(
    source: ImageSource, fraction: float, labels: Sequence[str] | None, subject: str
) -> dict[str, list[int]]:
    if not 0 < fraction <= 1:
        raise ValueError(
            f"{subject}: fraction out of range. Got {fraction}; expected more than 0, at most 1."
        )
    if labels is not None and len(labels) != len(source):
        raise ValueError(
            f"{subject}: one label for each image is needed. Got {len(labels)} labels for "
            f"{len(source)} images."
        )
    classes: dict[str, list[int]] = {}
    for index in range(len(source)):
        label = source.label(index) if labels is None else str(labels[index])
        if label is None:
            raise ValueError(
                f"{subject}: the classes are not known. Got {source.name(index)} without one; "
                f"expected a folder for each class, shards with KEY.cls, or labels=."
            )
        classes.setdefault(label, []).append(index)
    return classes


def _part(
    kind: str, source: ImageSource, taken: dict[str, list[int]], *, fraction: float, seed: int
) -> tuple[ImageSource, Manifest]:
    """What was taken of each class as a source, in the order of the whole one."""
    chosen = sorted(index for indices in taken.values() for index in indices)
    part = source.select(chosen, f"{kind} {fraction:g} of {source.description}")
    parts = {name: len(indices) for name, indices in taken.items()}
    return part, _manifest(
        kind, part, seed, parts, {"fraction": fraction, "of": source.description}
    )


def single_image(
    path: str | Path, count: int, *, seed: int = 0, size: int = 256
) -> tuple[ImageSource, Manifest]:
    """ImageNet-Single: many views of one large image, made when they are asked for.

    Args:
        path: A large image, thousands of pixels a side.
        count: How many views the set has; the paper's has 1.2 million.
        seed: View n depends on (seed, n) alone.
        size: Pixels, square.

    Raises:
        ValueError: If the image cannot be read or is smaller than `size`, or there would be no
            view.

    Source:
        Asano and Saeed, "The augmented image prior", section 3; their `make_single_img_dataset.py`.
        *Same:* a crop of half the shorter side, a random resized crop (area 1 … 100 %), rotation
        and shear up to 30 degrees, the centre of it, colour jitter for half of the views.
        *Different:* made in memory, not written as 1.2 million files.
    """
    try:
        image = decode(read_file(path))
    except (OSError, CorruptImageError) as error:
        raise ValueError(
            f"single_image: {str(path)!r} cannot be read. Got {error}; expected one large image."
        ) from error
    if min(image.size) < size or count < 1:
        raise ValueError(
            f"single_image: got an image of {image.width}x{image.height} and count={count}; "
            f"expected at least {size}x{size} and one view."
        )
    source = _Views(str(path), image, count, seed, size)
    settings = {"size": size, "image": f"{image.width}x{image.height}"}
    parts = {str(path): count}
    return source, _manifest("single", source, seed, parts, settings)


class _Views(ImageSource):
    """Views of one image, each a function of (seed, number)."""

    def __init__(self, name: str, image: Image.Image, count: int, seed: int, size: int) -> None:
        places = [Place(name, f"{Path(name).name}#{n}", n) for n in range(count)]
        super().__init__(f"{count} views of {name}", places)
        self.image, self.seed, self.size = image, seed, size

    def save_list(self, path: str | Path) -> None:
        raise ValueError(
            "single_image: views are no files to list. Give --single with its seed again instead."
        )

    def read(self, index: int) -> Image.Image:
        from torchvision.transforms import InterpolationMode, v2

        size = self.size
        around = math.ceil(size * math.sqrt(2))  # so that no rotation shows a corner
        transform = v2.Compose(
            [
                v2.RandomCrop(min(self.image.size) // 2),
                v2.RandomResizedCrop(around, (0.01, 1.0), interpolation=InterpolationMode.BICUBIC),
                v2.RandomAffine(30, shear=30, interpolation=InterpolationMode.BILINEAR),
                v2.CenterCrop(size),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.5),
            ]
        )
        number = self.places[index].offset
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(f"single/{self.seed}/{number}").getrandbits(32))
            view: Image.Image = transform(self.image)
        return view


def _manifest(
    kind: str,
    source: ImageSource,
    seed: int | None,
    parts: Mapping[str, int],
    settings: Mapping[str, Any],
) -> Manifest:
    return Manifest(kind, len(source), seed, parts, settings, digest_of(source))


def digest_of(source: ImageSource) -> str:
    """sha256 of the names in order: equal digests are equal sets."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
