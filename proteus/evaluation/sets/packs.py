"""Sets as tar packs: `NAME-SPLIT-000.tar` beside an `index.json` that says what they are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.regular import read_file


@dataclass(frozen=True)
class Pack:
    """One set of a folder of packs.

    Attributes:
        name: Of the set.
        path: Folder and name, as `open_labelled` takes it.
        role: What the index says it is for: `fine-grained`, `segmentation`, `depth`, `proxy`, …
        task: `classification`, `segmentation` or `depth`.
        classes: Their names, in the order of the labels; empty for depth.
        splits: Name of a split -> its shards.
    """

    name: str
    path: Path
    role: str
    task: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]


def read_packs(folder: str | Path) -> dict[str, Pack]:
    """The sets of a folder of packs, by name.

    Raises:
        ValueError: If there is no readable `index.json`, or a shard it lists is missing.
    """
    packs = _read_index(Path(folder))
    for pack in packs:
        missing = [str(f) for shards in pack.splits.values() for f in shards if not f.is_file()]
        if missing:
            raise ValueError(f"packs: shards of {pack.name!r} are missing. Got no {missing}.")
    return {pack.name: pack for pack in packs}


def _read_index(folder: Path) -> list[Pack]:
    try:
        index = json.loads(read_file(folder / "index.json"))
        return [_pack(folder, entry) for entry in index["sets"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"packs: no readable index. Got {str(folder / 'index.json')!r} and "
            f"{type(error).__name__}: {error}; expected a folder of packs, or NAME=PATH."
        ) from error


def _pack(folder: Path, entry: dict[str, Any]) -> Pack:
    splits = {
        str(split["split"]): tuple(folder / str(shard["file"]) for shard in split["shards"])
        for split in entry["splits"]
    }
    return Pack(
        name=str(entry["name"]),
        path=folder / str(entry["name"]),
        role=str(entry["role"]),
        task=str(entry["task"]),
        classes=tuple(entry.get("classes") or ()),
        splits=splits,
    )


def pack_shards(path: str | Path, split: str) -> list[Path]:
    """The shards of one split of a set: `FOLDER/NAME` and `train` -> `FOLDER/NAME-train-*.tar`.

    Raises:
        ValueError: If there are none; the message names the splits there are.
    """
    path = Path(path)
    found = sorted(path.parent.glob(f"{path.name}-{split}-*.tar"))
    if not found:
        others = {
            file.stem.removeprefix(f"{path.name}-").rpartition("-")[0]
            for file in path.parent.glob(f"{path.name}-*-*.tar")
        }
        raise ValueError(
            f"packs: no shards of this split. Got {str(path)!r} and split {split!r}; expected "
            f"{path.name}-{split}-000.tar. Splits there: {', '.join(sorted(others)) or 'none'}."
        )
    return found


def is_pack(path: str | Path) -> bool:
    """Whether shards `NAME-SPLIT-NNN.tar` stand there."""
    path = Path(path)
    return any(path.parent.glob(f"{path.name}-*-*.tar")) if path.name else False


def classes_of(path: str | Path) -> tuple[str, ...]:
    """Names of a pack's classes, where an index beside it tells them; else none."""
    path = Path(path)
    if not (path.parent / "index.json").is_file():
        return ()
    # Shards of other sets may be elsewhere.
    packs = (pack for pack in _read_index(path.parent) if pack.name == path.name)
    return next((pack.classes for pack in packs), ())
