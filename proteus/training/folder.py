"""The folder of a run: whose it is, going on with it, saving into it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from .. import checkpoint
from .engine import Engine
from .log import RunLog
from .parallel import World
from .state import EngineState

Resume = bool | Literal["auto"]
_LAUNCH = ".launch"  # which torchrun the run belongs to


def claim(folder: Path, world: World, resume: Resume, overwrite: bool) -> bool:
    """Take a run's folder, before any work is done.

    Where torchrun has started all processes again after one of them died, a run of the same launch
    goes on.

    Returns:
        Whether there is a run to go on with.

    Raises:
        ValueError: See `proteus.checkpoint.claim_folder`.
    """
    if resume == "auto" and overwrite:
        raise ValueError("run folder: resume and overwrite exclude each other. Got both.")
    launch = _launch()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def take() -> bool:
        mark = folder / _LAUNCH
        again = restarted and mark.exists() and mark.read_text() == launch
        maybe = resume == "auto" or again
        going_on = resume is True or (maybe and checkpoint.newest(folder) is not None)
        # With nothing there, a second claim by the same run leaves alone what it wrote since.
        anew = not going_on and (overwrite or (maybe and checkpoint.holds_run(folder)))
        checkpoint.claim_folder(
            folder, resume=going_on, overwrite=anew or (overwrite and not again)
        )
        if launch is not None:
            mark.write_text(launch)
        return going_on

    return world.once(take)


def _launch() -> str | None:
    """Which torchrun started this process; its own process stays the same over its restarts."""
    if not dist.is_torchelastic_launched():
        return None
    return f"{os.environ['TORCHELASTIC_RUN_ID']}/{os.getppid()}"


def resume_run(folder: Path, engine: Engine, settings: Mapping[str, Any]) -> int:
    """Restore the newest whole checkpoint.

    Returns:
        Steps done.

    Raises:
        CheckpointError: If none is whole, or it was made with other settings or another model.
    """
    found = checkpoint.load(folder)
    checkpoint.check_settings(found, settings)
    try:
        engine.load_state(EngineState(found.tensors, found.facts))
    except ValueError as error:
        raise checkpoint.CheckpointError(
            f"checkpoint: {found.path} does not fit: {error}"
        ) from error
    engine.world.once(lambda: checkpoint.set_aside_after(folder, found.step))
    return found.step


def save_run(
    folder: Path,
    step: int,
    engine: Engine,
    log: RunLog,
    *,
    settings: Mapping[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint after `step` steps; all processes must call it together.

    Raises:
        NonFiniteLossError: If a loss was not finite: then nothing is saved.
        OSError: If it cannot be written; what was saved before stays.
    """
    log.flush(durable=True)
    state = engine.state()

    def save() -> None:
        try:
            checkpoint.save(
                folder, step, state.tensors, settings=settings, facts=state.facts, keep=keep
            )
        except OSError as error:
            raise OSError(
                f"checkpoint: it could not be written after step {step - 1}. Got {error}. Kept: "
                f"{checkpoint.newest(folder) or 'none so far'}. Make room, then resume (--resume)."
            ) from error

    engine.world.once(save)
