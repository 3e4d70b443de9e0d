"""Which sets a suite runs on: what the words after `--data` mean."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...data.decoding import open_image, read_file
from ...words import nearest
from ..dense.layouts import find_list
from ..sets.labelled import SPLITS, is_there
from ..sets.packs import Pack, is_pack, read_packs
from ..sets.paper_sets import NAMED_SETS

_logger = logging.getLogger(__name__)

Task = Literal["classification", "segmentation", "depth"]
_EVALUATED = ("fine-grained", "segmentation", "depth")  # roles of packs
_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class EvaluationSet:
    """One set.

    Attributes:
        name: In tables and keys.
        task: What is measured on it.
        source: For `open_labelled`, `open_segmentation` or `open_depth`.
        root: Folder of a named set; None for others.
        has_val: Whether it has a split `val` besides `train` and `test`.
        subset: Whether it is a part of a public set, so that published numbers are not comparable.
    """

    name: str
    task: Task
    source: str
    root: str | None = None
    has_val: bool = False
    subset: bool = False


def task_of(word: str) -> Task:
    """What a protocol needs sets of, and what a pack is for.

    Examples:
        >>> task_of("knn"), task_of("depth"), task_of("segmentation-finetune")
        ('classification', 'depth', 'segmentation')
    """
    tasks: dict[str, Task] = {"segmentation": "segmentation", "depth": "depth"}
    return tasks.get(word.removesuffix("-finetune"), "classification")


def find_sets(words: Sequence[str]) -> list[EvaluationSet]:
    """The sets that `--data` names.

    Args:
        words: Each is a folder of packs (all sets in it that are for evaluation), `FOLDER/NAME` of
            one pack, a folder with a folder for each split, or `NAME=PATH` of these. What exists
            is a path, whatever it is called. With a name of `NAMED_SETS`, `NAME=PATH` is
            torchvision's set in the folder `PATH`, unless `PATH` itself is split into `train` and
            `test`; which of the two was taken is logged.

    Raises:
        ValueError: If one is none of these, or two have one name.

    Examples:
        >>> find_sets(["gtsrb=downloads"])[0].root
        'downloads'
    """
    found: list[EvaluationSet] = []
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or is_there(word):  # a folder's own name may have a "="
            name, path = "", word
        found += _open(name, path)
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        raise ValueError(
            f"data: sets need names of their own. Got {', '.join(twice) or 'no set'} "
            f"in {' '.join(words)!r}; write NAME=PATH."
        )
    return found


def _open(name: str, path: str) -> list[EvaluationSet]:
    folder = Path(path)
    if (folder / "index.json").is_file() and not name:
        packs = read_packs(folder).values()
        return [_of_pack(pack, pack.name) for pack in packs if pack.role in _EVALUATED]
    if not folder.exists() and is_pack(folder):
        if (folder.parent / "index.json").is_file():
            pack = read_packs(folder.parent).get(folder.name)
            if pack is not None:
                return [_of_pack(pack, name or pack.name)]
        return [EvaluationSet(name or folder.name, "classification", path)]
    if name in NAMED_SETS and path and not _is_split(folder):
        return [EvaluationSet(name, "classification", name, path, has_val=NAMED_SETS[name].has_val)]
    if not path or not folder.is_dir():
        raise ValueError(
            f"data: no set there. Got {path!r}; expected a folder of packs, FOLDER/NAME of a pack, "
            f"a folder with train and test, or NAME=FOLDER with a name such as "
            f"{', '.join(list(NAMED_SETS)[:3])}. {_meant(name, folder)}"
        )
    called = name or folder.name or folder.resolve().name
    task = _task_of(folder)
    if task == "classification" and called in NAMED_SETS:
        _logger.warning(
            "data: %s is the folder %r, not torchvision's files of the paper's set; it is scored "
            "as the paper scores %s. Write NAME=PATH for another name.", called, path, called,
        )  # fmt: skip
    validation = any((folder / part).is_dir() for part in SPLITS["val"])
    has_val = validation and (folder / "test").is_dir()
    return [EvaluationSet(called, task, path, has_val=has_val)]


def _task_of(folder: Path) -> Task:
    maps = folder / "annotations"
    if maps.is_dir() and not _is_split(folder):
        return "depth" if _are_deep(maps) else "segmentation"
    if find_list(folder, "train") and find_list(folder, "test"):
        return "depth"
    return "classification"


def _meant(name: str, folder: Path) -> str:
    """Which set beside it, or which of the named ones, a user may have meant."""
    beside = read_packs(folder.parent) if (folder.parent / "index.json").is_file() else {}
    return nearest(folder.name, beside) or (nearest(name, NAMED_SETS) if name else "")


def _are_deep(maps: Path) -> bool:
    """Whether a map holds 16 bits: millimetres, not classes."""
    first = next(maps.rglob("*.png"), None)  # not sorted: ADE20K has 22,000
    if first is None:
        return False
    try:
        return open_image(read_file(first)).mode.startswith("I")
    except (OSError, ValueError) as error:
        raise ValueError(f"data: a map cannot be read. Got {str(first)!r}: {error}") from error


def _of_pack(pack: Pack, name: str) -> EvaluationSet:
    if not {"train", "test"} <= set(pack.splits):
        raise ValueError(
            f"data: a set without train and test cannot be evaluated. Got {pack.name!r} with "
            f"{', '.join(pack.splits)}; expected both."
        )
    has_val = "val" in pack.splits
    task = task_of(pack.task)
    return EvaluationSet(name, task, str(pack.path), has_val=has_val, subset=True)


def _is_split(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_dir() for name in _SPLIT_NAMES)
