"""Runs begun, or gone on with: all of them at the same step."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..world import World
from . import checkpoint
from .engine import Engine
from .folder import Resume, begin, claim, holds_run
from .rows import go_back
from .run import Plan
from .state import EngineState

_logger = logging.getLogger(__name__)

Begun = tuple[Engine, dict[str, Any]]


def start_runs(
    plans: Sequence[Plan], world: World, resume: Resume, overwrite: bool
) -> tuple[int, list[Begun]]:
    """Claim the folders, build the engines, take over what was saved.

    Returns:
        Steps done, and the engine and settings of each run.

    Raises:
        ValueError: If a folder is taken, or what it holds does not fit.
    """
    settings = [plan.settings(world) for plan in plans]
    folders = [plan.folder for plan in plans if plan.folder is not None]
    going_on = bool(folders) and claim_all(folders, world, resume, overwrite)
    engines = [
        Engine(
            plan.distiller, world, plan.optimizer, plan.machine, seed=plan.seed, lr=plan.schedule(0)
        )
        for plan in plans
    ]
    start = 0
    if going_on:
        start = _resume_runs(list(zip(folders, engines, settings, strict=True)))
    for folder in folders:
        begin(folder, world, going_on)
    return start, list(zip(engines, settings, strict=True))


def claim_all(folders: Sequence[Path], world: World, resume: Resume, overwrite: bool) -> bool:
    """`claim` the folders of several runs that go on together, from a step that all have saved.

    A run may have been killed between the first checkpoint of one and that of the next: they start
    again, as one run does that ended before its first. Otherwise what was saved is not thrown away.

    Returns:
        Whether there are runs to go on with.

    Raises:
        ValueError: As `claim`; if some hold a run and others none, or no step was saved by all.
    """
    begun = world.once(lambda: [folder for folder in folders if holds_run(folder)])
    held = ", ".join(map(str, begun))
    fresh = [str(folder) for folder in folders if folder not in begun]
    each: Resume = "auto" if resume is True and begun else resume
    going_on = [claim(folder, world, each, overwrite) for folder in folders]
    steps = world.once(lambda: [checkpoint.common_steps([folder]) for folder in folders])
    if not any(going_on) or set.intersection(*steps):
        return any(going_on)
    if fresh:
        raise checkpoint.CheckpointError(
            f"run folder: some runs are new. Got {', '.join(fresh)} without a run beside "
            f"{held} with one; expected all or none of them. Resume those that were begun "
            f"together, and train the others in another folder."
        )
    if all(going_on) or max(map(len, steps)) > 1:
        raise checkpoint.CheckpointError(
            f"checkpoint: no step that all runs have saved. Got {held}, of which some went on "
            f"alone or lost their checkpoints. Resume each of them alone, or start all again with "
            f"overwrite (--overwrite)."
        )
    _logger.warning("The runs in %s ended before all were saved: they start again.", held)
    return False


def _resume_runs(runs: Sequence[tuple[Path, Engine, Mapping[str, Any]]]) -> int:
    """Restore the newest whole checkpoint; of several runs, that of the same step.

    Args:
        runs: Folder, engine and settings of each.

    Returns:
        Steps done.

    Raises:
        CheckpointError: If none is whole, or it was made with other settings or another model.
    """
    saved = checkpoint.load_all([folder for folder, _, _ in runs])
    for found, (_, engine, settings) in zip(saved, runs, strict=True):
        checkpoint.check_settings(found, settings)
        try:
            engine.load_state(EngineState(found.tensors, found.facts))
        except ValueError as error:
            raise checkpoint.CheckpointError(
                f"checkpoint: {found.path} does not fit: {error}"
            ) from error

    def mend() -> None:
        for found, (folder, _, _) in zip(saved, runs, strict=True):
            if len(runs) > 1:  # whole, but the others have none: it comes again with theirs
                checkpoint.drop_after(folder, found.step)
            checkpoint.set_aside_after(folder, found.step)
            go_back(folder, found.step, found.facts.get("logs"))

    runs[0][1].world.once(mend)
    return saved[0].step


def trim(folders: Sequence[Path], world: World, keep: int) -> None:
    """Drop all but the newest few checkpoints of several runs, now that all have saved a step."""

    def drop() -> None:
        for folder in folders:
            checkpoint.keep_newest(folder, keep)

    world.once(drop)
