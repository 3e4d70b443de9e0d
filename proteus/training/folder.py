"""The folder of a run: whose it is, going on with it, saving into it."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from ..files import is_plain, write_whole
from ..world import World
from . import checkpoint
from .engine import Engine
from .lock import FolderLock
from .log import RunLog
from .rows import LOG, NOTES, TIMING, WATCH, covered

_logger = logging.getLogger(__name__)

Resume = bool | Literal["auto"]
_LAUNCH = ".launch"  # which torchrun the run belongs to
_SKIPPED = "skipped.tsv"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_NAMES = {"encoding": "utf-8", "errors": "surrogateescape"}  # names are bytes to the system
_FOLDERS = ("checkpoint", "export", "export-ema", "trackers")
_FILES = (
    LOG, TIMING, WATCH, NOTES, _LAUNCH, "run.json", _SKIPPED, "curves.png", "pca.png",
    "masks.png", "report.html", "report.json", "demo.json",
)  # fmt: skip


@contextlib.contextmanager
def holding(folder: Path | None, world: World) -> Iterator[None]:
    """Keep other runs out of a folder, made if missing; a run that did not start leaves nothing.

    Raises:
        ValueError: If another run is at work there, or nothing can be written.
    """
    if folder is None:
        yield
        return
    locks: list[FolderLock] = []  # of the first process alone, as the next two
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    fresh = False

    def take() -> None:
        nonlocal fresh
        _try_to_write(folder)
        fresh = not any(folder.iterdir())
        locks.append(FolderLock(folder))

    try:
        world.once(take)
        yield
    finally:
        if locks and fresh and not holds_run(folder):
            remove_run(folder)
        for lock in locks:
            lock.release()
        with contextlib.suppress(OSError):  # up to the first that is not empty
            for path in missing if world.first else []:
                path.rmdir()


def claim(folder: Path, world: World, resume: Resume, overwrite: bool) -> bool:
    """Make sure that a run may start here, before any work is done; nothing is removed yet.

    Where torchrun has started all processes again after one of them died, a run of the same launch
    goes on.

    Args:
        folder: The run's, see `holding`.
        world: The processes.
        resume: The run that it holds goes on, or starts again if it was never saved: it holds
            nothing but a log, and everything in it comes again. `"auto"` = if there is one.
        overwrite: `begin` removes the run that it holds.

    Returns:
        Whether there is a run to go on with.

    Raises:
        ValueError: If the folder holds a run and neither is set, or holds none and `resume` is.
    """
    if resume and overwrite:
        raise ValueError("run folder: resume and overwrite exclude each other. Got both.")

    def look() -> bool:
        saved = checkpoint.newest(folder) is not None
        maybe = resume == "auto" or started_again(folder)
        begun = holds_run(folder)
        if begun and not (resume or overwrite or maybe):
            goes = "go on with it" if saved else "start it again (it ended before it was saved)"
            raise ValueError(
                f"run folder: {str(folder)!r} already holds a run. Pass resume (--resume) to "
                f"{goes}, overwrite (--overwrite) to replace it, or another folder."
            )
        if resume is True and not begun:
            raise checkpoint.CheckpointError(
                f"run folder: nothing to resume. Got {str(folder)!r}, which holds no run; expected "
                f"the folder of one. Leave resume (--resume) out."
            )
        if resume and begun and not saved:
            _logger.warning(
                "The run in %s ended before its first checkpoint: it starts again.", folder
            )
        return saved and (resume is True or maybe)

    return world.once(look)


def begin(folder: Path, world: World, going_on: bool) -> None:
    """Take a claimed folder: what another run wrote there is removed. Other files stay."""

    def take() -> None:
        if not going_on and holds_run(folder):
            remove_run(folder)
        launch = _launch()
        if launch is not None:
            write_whole(folder / _LAUNCH, launch)

    world.once(take)


def refuse_run(folder: Path, names: Iterable[str]) -> None:
    """Make sure that a folder can hold the folders of several runs.

    Raises:
        ValueError: If it holds a run itself, or a name is none of a folder.
    """
    for name in names:
        if not _NAME.fullmatch(name) or name in (*_FOLDERS, *_FILES):
            raise ValueError(
                f"run folder: no name of a run. Got {name!r}; expected letters, digits, '_', '-' "
                f"and '.', no '.' first, and none of a file or folder that a run writes."
            )
    if holds_run(folder):
        raise ValueError(
            f"run folder: {str(folder)!r} holds a run itself. Got it as the folder of several; "
            f"expected another one."
        )


def holds_run(folder: Path) -> bool:
    """Whether a run got as far as its first row."""
    log = folder / LOG
    return (log.exists() and log.stat().st_size > 0) or (folder / "checkpoint").exists()


def remove_run(folder: Path) -> None:
    """Remove what a run wrote into its folder; other files stay."""
    for name in _FOLDERS:
        if (folder / name).is_symlink():  # to another disk; `rmtree` would leave it
            (folder / name).unlink()
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _try_to_write(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run folder: not a folder. Got {str(folder)!r}, which is a file.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tmp-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"run folder: nothing can be written there. Got {str(folder)!r} and {error}. Choose "
            f"another folder, or mend its rights. What it holds was not touched."
        ) from error


def started_again(folder: Path) -> bool:
    """Whether torchrun has started the processes of the folder's run once more."""
    mark = folder / _LAUNCH
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return restarted and mark.exists() and mark.read_text() == _launch()


def _launch() -> str | None:
    """Which torchrun started this process; its own process stays the same over its restarts."""
    if not dist.is_torchelastic_launched():
        return None
    return f"{os.environ['TORCHELASTIC_RUN_ID']}/{os.getppid()}"


def save_run(
    folder: Path,
    step: int,
    engine: Engine,
    log: RunLog,
    skipped: Mapping[str, str],
    *,
    settings: Mapping[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint after `step` steps, and list the images that any process skipped.

    All processes must call it together.

    Raises:
        NonFiniteLossError: If a loss was not finite: then nothing is saved.
        OSError: If it cannot be written; what was saved before stays.
    """
    log.flush(durable=True)
    state = engine.state()
    everyone = engine.world.gather(dict(skipped))

    def save() -> None:
        try:
            for images in everyone:
                note_skipped(folder, images)
            facts = {**state.facts, "logs": covered(folder)}
            checkpoint.save(folder, step, state.tensors, settings=settings, facts=facts, keep=keep)
        except OSError as error:
            raise OSError(
                f"checkpoint: it could not be written after step {step - 1}. Got {error}. Kept: "
                f"{checkpoint.newest(folder) or 'none so far'}. Make room, then resume (--resume)."
            ) from error

    engine.world.once(save)


def note_skipped(folder: Path, skipped: Mapping[str, str]) -> int:
    """Add images that could not be read to the run's `skipped.tsv`; how many it then lists."""
    file = folder / _SKIPPED
    text = file.read_text(**_NAMES) if is_plain(file) else ""
    lines = (line.partition("\t") for line in text.split("\n") if line)
    listed = {name: reason for name, _, reason in lines}
    listed |= {name: " ".join(reason.split()) for name, reason in skipped.items()}
    if listed:
        text = "".join(f"{name}\t{reason}\n" for name, reason in listed.items())
        write_whole(file, text)
    return len(listed)
