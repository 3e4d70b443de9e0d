"""Prepared targets on disk: what is in the folder, and rows of it out again."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.loader import ImageLoader
from ..data.proxy import digest_of
from ..data.samples import Augmentation, Augmenter, Key
from ..features import Features
from ..files import flatten, is_plain, read_json, sha256_of, unseal
from ..teacher import Teacher
from .codec import Dtype, Tokens, bytes_of_an_image, decode

SETTINGS, DONE, SHARDS = "settings.json", "prepared.json", "shards"
_VERSION = 1  # raise it when the same settings would give other rows
_SHARD_BYTES = 64 * 2**20
_SAMPLE, _APART = 8, 0.1  # views that are compared, and how far apart is another picture


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a row holds.

    Attributes:
        teacher: Its name, digest, widths, grid, image size, layers and precision.
        images: How many, and the digest of their names.
        image_size: Pixels of the views, square.
        augment: See `ImageLoader`, as the next two.
        seed: Of the augmentation.
        scale: Range of the crops.
        views: Views of each image.
        tokens: `all`, or `cls`.
        dtype: Of the numbers.
        version: Of the format.
    """

    teacher: Mapping[str, Any]
    images: Mapping[str, Any]
    image_size: int
    augment: Augmentation
    seed: int
    scale: tuple[float, float]
    views: int
    tokens: Tokens
    dtype: Dtype
    version: int = _VERSION

    @property
    def rows(self) -> int:
        """Views of all images."""
        return int(self.images["count"]) * self.views

    @property
    def patches(self) -> int:
        """Patches of an image."""
        rows, columns = self.teacher["grid"]
        return int(rows * columns)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        cls_dim, patch_dim = self.teacher["widths"]
        return bytes_of_an_image(
            cls_dim, patch_dim, self.patches, tokens=self.tokens, dtype=self.dtype
        )

    @property
    def shard_rows(self) -> int:
        """Rows of a shard."""
        rows = max(1, _SHARD_BYTES // self.row_bytes)
        return rows // 64 * 64 or rows

    @property
    def shards(self) -> int:
        """Files."""
        return -(-self.rows // self.shard_rows)

    @property
    def names(self) -> list[str]:
        """Tensors of a shard, but for the checksums."""
        parts = ("cls",) if self.tokens == "cls" else ("cls", "patches")
        ends = ("", "_scale") if self.dtype == "int8" else ("",)
        return [part + end for part in parts for end in ends]

    def augmenter(self) -> Augmenter:
        """What makes the views."""
        return Augmenter(
            self.augment, size=self.image_size, seed=self.seed, scale=self.scale, whole=True
        )

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "scale": list(self.scale)}


def settings_of(data: Mapping[str, Any]) -> Settings:
    """What `Settings.plain` gave.

    Raises:
        ValueError: If it is of another version.
    """
    if data.get("version") != _VERSION:
        raise ValueError(f"its format is {data.get('version')}; expected {_VERSION}")
    names = Settings.__dataclass_fields__
    return Settings(**{**{k: v for k, v in data.items() if k in names}, "scale": (*data["scale"],)})


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """What must be the same where its features are used."""
    mean, std = teacher.inputs.mean.flatten().tolist(), teacher.inputs.std.flatten().tolist()
    return {
        "name": teacher.name,
        "digest": teacher.digest(),
        "widths": [teacher.embed_dim, teacher.patch_dim],
        "grid": list(teacher.grid),
        "image_size": list(teacher.image_size),
        "layers": None if teacher.layers is None else list(teacher.layers),
        "statistics": [[round(x, 6) for x in mean], [round(x, 6) for x in std]],
        "precision": teacher.precision,
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`name was A, is B`, of nested data."""
    one, other = flatten(ours), flatten(theirs)
    return [
        f"{name} was {one.get(name)!r}, is {other.get(name)!r}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def checksum(rows: Sequence[Tensor]) -> int:
    """Of what a row holds, tensor by tensor."""
    found = 0
    for row in rows:
        found = zlib.crc32(row.contiguous().view(torch.uint8).numpy().data, found)
    return found


class PreparedTargets:
    """A teacher's features of every view of every image, read from a folder that `prepare` wrote.

    Rows are read from memory-mapped files, by the processes that decode the images; each has a
    checksum, which is looked at whenever it is read.

    Args:
        folder: The folder.

    Attributes:
        settings: What decides what a row holds.
        error: `cls` and `patches` -> root mean square of what storing lost, as a share of that of
            the values.

    Raises:
        ValueError: If it holds no prepared targets, or some are not made yet, missing or cut off.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from proteus import Teacher
        >>> from proteus.data import open_source
        >>> from proteus.prepared import prepare
        >>> teacher = Teacher("test_vit", pretrained=False, image_size=32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for n in range(4):
        ...         Image.new("RGB", (48, 32)).save(f"{folder}/{n}.jpg")
        ...     targets = prepare(teacher, open_source(folder), f"{folder}/targets", workers=0)
        ...     targets.settings.rows, targets.settings.dtype
        (4, 'fp16')
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        found = _read(self.folder)
        try:
            self.settings = settings_of(found)
        except ValueError as error:
            raise ValueError(f"targets: {self.folder} cannot be used: {error}.") from error
        self.error: dict[str, float] = found["error"]
        self._sizes: list[int] = [shard["bytes"] for shard in found["shards"]]
        self._sums: list[str] = [shard["sha256"] for shard in found["shards"]]
        self._open: dict[int, Any] = {}
        for number, size in enumerate(self._sizes):
            path = self.path(number)
            if not is_plain(path) or path.stat().st_size != size:
                raise self._broken(number, "is missing or cut off")

    @property
    def views(self) -> int:
        """Views of each image."""
        return self.settings.views

    def augmenter(self) -> Augmenter:
        """What made the views."""
        return self.settings.augmenter()

    @property
    def parts(self) -> list[str]:
        """What a batch holds behind the images: `cls`, and `patches` where they were kept."""
        return [name for name in self.settings.names if not name.endswith("_scale")]

    def path(self, number: int) -> Path:
        """Of a shard."""
        return self.folder / SHARDS / f"{number:05d}.safetensors"

    def check(self) -> None:
        """Read everything and compare it with its checksums.

        Raises:
            ValueError: Naming the first shard that is not what was written.
        """
        for number, expected in enumerate(self._sums):
            if sha256_of(self.path(number)) != expected:
                raise self._broken(number, "is not what was written")

    def stored(self, keys: Sequence[Key], places: Sequence[int]) -> tuple[Tensor, ...]:
        """Rows of a batch, as they are stored: one tensor [B, …] for each of `settings.names`.

        Raises:
            ValueError: If a row is damaged, or of another image than the one shown.
        """
        names = self.settings.names
        count, rows = int(self.settings.images["count"]), []
        for key, place in zip(keys, places, strict=True):
            number, at = divmod(key.epoch * count + key.image, self.settings.shard_rows)
            try:
                shard = self._shard(number)
                row = [shard.get_slice(name)[at : at + 1] for name in (*names, "shown")]
                expected = int(shard.get_slice("checksum")[at : at + 1])
            except (SafetensorError, OSError) as error:
                raise self._broken(number, f"cannot be read ({error})") from error
            if checksum(row) != expected:
                raise self._broken(number, "is damaged")
            if int(row.pop()) != place:
                raise ValueError(
                    f"targets: image {key.image} could be read when the targets were prepared and "
                    f"cannot be now, or the other way round. Got image {place} in its place; mend "
                    f"the file, or prepare the targets again (--overwrite)."
                )
            rows.append(row)
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    def ready(self, stored: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Float32 tokens, class tokens [B, D] and patches [B, N, D], of what `stored` gave."""
        found = dict(zip(self.settings.names, stored, strict=True))
        return tuple(decode(name, found) for name in self.parts)

    def features(self, parts: Sequence[Tensor]) -> Features:
        """What a batch of `ImageLoader.beside` holds behind the images, as the teacher's own."""
        if self.settings.tokens == "all":
            rows, columns = self.settings.teacher["grid"]
            return Features(parts[0], parts[1], (rows, columns))
        (cls,) = parts
        return Features(cls, cls.new_zeros(cls.shape[0], 0, cls.shape[1]), (0, 0))

    def describe(self) -> dict[str, Any]:
        """JSON-able: what a run that uses them goes on with only."""
        names = ("views", "tokens", "dtype", "seed")
        plain = json.dumps(self.settings.plain(), sort_keys=True)
        digest = hashlib.sha256(plain.encode()).hexdigest()[:16]
        return {"digest": digest} | {name: vars(self.settings)[name] for name in names}

    def check_fits(self, teacher: Teacher, data: Any) -> ImageLoader:
        """The loader, if teacher and images are those that the targets were prepared of.

        Raises:
            ValueError: Naming each difference.
        """
        if not isinstance(data, ImageLoader):
            raise ValueError(
                f"targets: prepared targets need to know which image is where in a batch. Got "
                f"{type(data).__name__}; expected a proteus.data.ImageLoader."
            )
        if data.order.repeats > 1 or data.classes:
            raise ValueError(
                "targets: prepared targets go with plain images. Got a loader with repeats or "
                "labels; expected neither."
            )
        own, augmenter = self.settings, data.samples.augmenter
        found = {
            "teacher": describe_teacher(teacher),
            "images": {"count": len(data.source), "digest": digest_of(data.source)},
            "image_size": augmenter.size,
            "augment": augmenter.augment,
            "scale": list(augmenter.scale),
        }
        ours = {name: own.plain()[name] for name in found}
        wrong = differences(ours, found)
        if data.views not in (None, own.views):
            wrong.append(f"views was {own.views}, is {data.views}")
        if wrong:
            raise ValueError(
                f"targets: {self.folder} was prepared for something else: {'; '.join(wrong)}. Use "
                f"the settings it was prepared with, or prepare targets for these."
            )
        return data

    @torch.no_grad()
    def check_sample(self, teacher: Teacher, data: ImageLoader) -> None:
        """Ask the teacher about a few views, and compare: names do not tell what a picture shows.

        Raises:
            ValueError: If what it says now is not what was prepared.
        """
        count = int(self.settings.images["count"])
        some = min(_SAMPLE, count)
        keys = [Key(n % self.views, n * count // some, 0) for n in range(some)]
        batch = data.beside(self).samples[keys]
        seen = teacher(teacher.fit(batch.images.to(teacher.inputs.mean.device)))
        stored = self.ready(batch.beside)
        for name, ours in zip(self.parts, stored, strict=True):
            theirs = seen._asdict()[name].float().cpu()
            if not theirs[0].numel():
                continue
            apart = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
            if not bool((apart < _APART).all()):
                worst = int(apart.nan_to_num(torch.inf).argmax())
                raise ValueError(
                    f"targets: what was prepared is not what the teacher says now. Got a relative "
                    f"difference of {float(apart[worst]):.2g} for view {keys[worst].epoch} of "
                    f"{data.source.name(keys[worst].image)}; expected less than {_APART}. The "
                    f"images or what decodes them changed: prepare the targets again (--overwrite)."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a process that decodes opens them for itself

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(self.path(number), framework="pt")
        return self._open[number]

    def _broken(self, number: int, what: str) -> ValueError:
        return ValueError(
            f"targets: {self.path(number)} {what}. Delete it and run `proteus prepare` again with "
            f"the same settings: it makes what is missing."
        )


def open_targets(folder: str | Path) -> PreparedTargets:
    """`PreparedTargets`, for symmetry with `open_source`."""
    return PreparedTargets(folder)


def _read(folder: Path) -> dict[str, Any]:
    done = folder / DONE
    if not done.is_file():
        if not (folder / SETTINGS).is_file():
            raise ValueError(
                f"targets: no prepared targets. Got {str(folder)!r}; expected a folder that "
                f"`proteus prepare` wrote."
            )
        settings = settings_of(unseal(read_json(folder / SETTINGS)))
        made = len([*(folder / SHARDS).glob("*.json")])
        raise ValueError(
            f"targets: they are not all made. Got {made} of {settings.shards} shards in {folder}; "
            f"run `proteus prepare` again with the same settings (or its other parts): it makes "
            f"what is missing."
        )
    try:
        return unseal(read_json(done))
    except ValueError as error:
        raise ValueError(
            f"targets: {done} is not what was written: {error}. Delete it and run `proteus "
            f"prepare` again with the same settings."
        ) from error
