"""prepare: let a teacher look at every view of every image once, and keep what it gave."""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Sampler

from ..data.delivery import made_batches
from ..data.loader import ImageLoader
from ..data.places import ImageSource
from ..data.proxy import digest_of
from ..data.samples import Augmentation, Key
from ..features import Features
from ..files import is_plain, read_json, seal, sha256_of, unseal, write_whole
from ..ranges import check_numbers
from ..teacher import Teacher
from ..world import choose_device
from .codec import Dtype, Tokens, check_dtype, decode, encode
from .store import (
    DONE,
    SETTINGS,
    SHARDS,
    PreparedTargets,
    Settings,
    checksum,
    describe_teacher,
    differences,
)

_SPARE = 0.02  # of a disk, left free


def prepare(
    teacher: Teacher,
    source: ImageSource,
    folder: str | Path,
    *,
    views: int = 1,
    tokens: Tokens = "all",
    dtype: Dtype = "fp16",
    image_size: int | None = None,
    augment: Augmentation = "crop",
    scale: tuple[float, float] = (0.08, 1.0),
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device = "auto",
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: bool = False,
) -> PreparedTargets | None:
    """Write a teacher's features of every image, for runs that then do without the teacher.

    Killed and called again, it makes what is missing. Several processes or machines can share the
    work on one folder: each takes a `part`, and whoever makes the last shard finishes it.

    Args:
        teacher: With its weights.
        source: The images, see `open_source`; no stream.
        folder: Where to; made if it is missing.
        views: Views of each image: epoch e of a run shows view e % `views`.
        tokens: `all`, or `cls` = class tokens alone, for a loss of the token term alone.
        dtype: Of the numbers: `fp32`, `fp16`, or `int8` with a scale for each token.
        image_size: Pixels of the images of a run (`Distiller.image_size`); None = the teacher's.
        augment: See `ImageLoader`, as the next two.
        scale: Range of the crops.
        seed: Of the augmentation; a run's own seed decides order and masks.
        batch_size: Images that go through the teacher together.
        workers: Processes that decode, see `ImageLoader`.
        device: `auto` = the accelerator if there is one, else the CPU.
        part: (n, of): only every `of`-th shard, from the n-th on.
        overwrite: Replace what was prepared there; for one process alone, without `part`.
        progress: Show a bar.

    Returns:
        The targets; None while other parts are missing.

    Raises:
        ValueError: If a setting is out of range, the disk has no room (with what would fit), the
            folder holds targets of other settings, or fp16 cannot hold a value.

    Source:
        *Different:* the authors run the teacher in every step. Targets of k views are those of the
        live run with `ImageLoader(views=k)`, to rounding in fp32.
    """
    check_dtype(tokens, dtype)
    check_numbers("prepare", {"batch_size": batch_size, "views": views, "seed": seed})
    number, parts = part
    if not 0 <= number < parts:
        raise ValueError(f"prepare: no such part. Got {part}; expected (n, of), n from 0 on.")
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"prepare: a stream's images cannot be asked for one by one. Got "
            f"{type(source).__name__}; expected files, shards or a list."
        )
    if overwrite and parts > 1:
        raise ValueError(
            f"prepare: parts would replace what others of them made. Got overwrite with part={part}"
            f"; delete the folder first, or use another one."
        )
    if 0 in teacher.grid:
        tokens = "cls"
    folder, chosen = Path(folder), choose_device(device)
    loader = ImageLoader(  # which checks the rest
        source, batch_size=1, image_size=image_size or teacher.image_size[0], seed=seed,
        augment=augment, scale=scale, views=views, workers=workers,
    )  # fmt: skip
    settings = Settings(
        describe_teacher(teacher), {"count": len(source), "digest": digest_of(source)},
        loader.samples.augmenter.size, augment, seed, scale, views, tokens, dtype,
    )  # fmt: skip
    if not overwrite:
        _check_same(folder, settings)
    lacking = [n for n in range(settings.shards) if overwrite or not _made(folder, n)]
    _check_room(folder, settings, len(lacking), freed=_held(folder) if overwrite else 0)
    if overwrite:
        clear(folder)
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, seal(settings.plain()))
    if part == (0, 1):  # alone: what a killed process left half written
        for path in (folder / SHARDS).glob(".tmp-*"):
            path.unlink(missing_ok=True)
    missing = [n for n in lacking if n % parts == number]
    loader.samples.labels = torch.arange(len(source))  # a batch then says which images it shows
    work = _features(teacher.to(chosen), loader, settings, missing, batch_size)
    with _bar(settings, missing, progress) as bar:
        for shard, found in work:
            _write(folder, shard, *found, settings)
            bar.update(len(found[1]))
    return _finish(folder, settings)


def _check_same(folder: Path, settings: Settings) -> None:
    """Refuse a folder that holds targets of other settings, or something else."""
    file = folder / SETTINGS
    if not file.exists():
        return
    try:
        found = unseal(read_json(file))
    except ValueError as error:
        raise ValueError(
            f"prepare: {file} is not what was written: {error}. Use another folder, or replace "
            f"what is there with overwrite (--overwrite)."
        ) from error
    if wrong := differences(found, settings.plain()):
        raise ValueError(
            f"prepare: {folder} holds targets of other settings: {'; '.join(wrong)}. Use "
            f"another folder, or replace them with overwrite (--overwrite)."
        )


def clear(folder: Path) -> None:
    """Remove prepared targets, and nothing else that is there."""
    for path in (folder / DONE, folder / SETTINGS, *_own_files(folder)):
        path.unlink(missing_ok=True)


def _own_files(folder: Path) -> list[Path]:
    own = re.compile(r"\d{5,}\.(safetensors|json)|\.tmp-.*")
    files = (folder / SHARDS).iterdir() if (folder / SHARDS).is_dir() else ()
    return [path for path in files if own.fullmatch(path.name) and is_plain(path)]


def _held(folder: Path) -> int:
    return sum(path.stat().st_size for path in _own_files(folder))


def _made(folder: Path, number: int) -> bool:
    return _facts(folder, number) is not None


def _facts(folder: Path, number: int) -> dict[str, Any] | None:
    """What is known of a shard that is whole."""
    path = folder / SHARDS / f"{number:05d}.safetensors"
    note = path.with_suffix(".json")
    if not is_plain(path) or not is_plain(note):
        return None
    try:
        found = unseal(read_json(note))
    except ValueError:
        return None
    return found if found["bytes"] == path.stat().st_size else None


def _check_room(folder: Path, settings: Settings, shards: int, *, freed: int) -> None:
    needed = min(shards * settings.shard_rows, settings.rows) * settings.row_bytes
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    free = usage.free + freed - int(_SPARE * usage.total)
    if needed <= free:
        return
    fitting = [
        f"{other.tokens} tokens in {other.dtype}, {_size(other.rows * other.row_bytes)}"
        for other in _alternatives(settings)
        if other.rows * other.row_bytes <= free
    ]
    raise ValueError(
        f"prepare: the disk has no room. Got {settings.views} views of "
        f"{settings.images['count']} images, {settings.tokens} tokens in {settings.dtype}: "
        f"{_size(needed)}; expected at most {_size(max(free, 0))} in {folder}. "
        + (f"What fits: {'; '.join(fitting)}." if fitting else "Nothing fits; free some space.")
    )


def _alternatives(settings: Settings) -> Iterator[Settings]:
    every: tuple[Tokens, ...] = ("all", "cls") if settings.tokens == "all" else ("cls",)
    dtypes: tuple[Dtype, ...] = ("fp16", "int8")
    for views in sorted({settings.views, 1}, reverse=True):
        for tokens in every:
            for dtype in dtypes:
                yield replace(settings, views=views, tokens=tokens, dtype=dtype)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class _Keys(Sampler[list[Key]]):
    """Batches of keys, shard by shard."""

    def __init__(self, settings: Settings, shards: Sequence[int], batch_size: int) -> None:
        self.settings, self.shards, self.batch_size = settings, shards, batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        count = int(self.settings.images["count"])
        for shard in self.shards:
            rows = _rows(self.settings, shard)
            for first in range(rows.start, rows.stop, self.batch_size):
                last = min(first + self.batch_size, rows.stop)
                yield [Key(*divmod(row, count), 0) for row in range(first, last)]


def _rows(settings: Settings, shard: int) -> range:
    first = shard * settings.shard_rows
    return range(first, min(first + settings.shard_rows, settings.rows))


def _features(
    teacher: Teacher,
    loader: ImageLoader,
    settings: Settings,
    shards: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[int, tuple[Features, Tensor]]]:
    """Shard by shard, what the teacher makes of its views, and of which images, on the CPU."""
    device = teacher.inputs.mean.device
    batches = made_batches(
        loader.samples, _Keys(settings, shards, batch_size),
        workers=loader.workers, device=device, at=loader.place_of,
    )  # fmt: skip
    for shard in shards:
        found: list[Features] = []
        shown: list[Tensor] = []
        for _ in range(-(-len(_rows(settings, shard)) // batch_size)):
            batch = next(batches)
            loader.note(batch.faults)
            seen = teacher(teacher.fit(batch.images.to(device, non_blocking=True)))
            assert batch.labels is not None
            shown.append(batch.labels)
            patches = seen.patches if settings.tokens == "all" else seen.patches[:, :0]
            found.append(Features(seen.cls.float().cpu(), patches.float().cpu(), seen.grid))
        cls, patches = torch.cat([f.cls for f in found]), torch.cat([f.patches for f in found])
        yield shard, (Features(cls, patches, found[0].grid), torch.cat(shown))


def _write(folder: Path, shard: int, found: Features, shown: Tensor, settings: Settings) -> None:
    """A shard, then what is known of it."""
    parts = {"cls": found.cls}
    if settings.tokens == "all":
        parts["patches"] = found.patches
    tensors: dict[str, Tensor] = {"shown": shown}
    lost: dict[str, list[float]] = {}
    for name, values in parts.items():
        stored = encode(name, values, settings.dtype)
        apart = decode(name, stored).double() - values.double()
        lost[name] = [float(apart.square().sum()), float(values.double().square().sum())]
        tensors |= stored
    tensors["checksum"] = torch.tensor([
        checksum([tensors[name][at : at + 1] for name in (*settings.names, "shown")])
        for at in range(len(found.cls))
    ])  # fmt: skip
    path = folder / SHARDS / f"{shard:05d}.safetensors"
    digest: list[str] = []

    def write(staging: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging)
        digest.append(sha256_of(staging))

    write_whole(path, write)
    facts = {"bytes": path.stat().st_size, "sha256": digest[0], "lost": lost}
    write_whole(path.with_suffix(".json"), seal(facts))


def _finish(folder: Path, settings: Settings) -> PreparedTargets | None:
    """Say that all is there, if it is."""
    facts = [_facts(folder, number) for number in range(settings.shards)]
    whole = [fact for fact in facts if fact is not None]
    if len(whole) < len(facts):
        return None
    error = {}
    for name in whole[0]["lost"]:
        lost, all_of_it = (sum(fact["lost"][name][place] for fact in whole) for place in (0, 1))
        error[name] = (lost / (all_of_it or 1.0)) ** 0.5
    shards = [{"bytes": fact["bytes"], "sha256": fact["sha256"]} for fact in whole]
    write_whole(folder / DONE, seal({**settings.plain(), "error": error, "shards": shards}))
    return PreparedTargets(folder)


def _bar(settings: Settings, shards: Iterable[int], shown: bool) -> Any:
    from tqdm import tqdm

    total = sum(len(_rows(settings, shard)) for shard in shards)
    return tqdm(total=total, unit="image", desc="prepare", disable=not shown)
