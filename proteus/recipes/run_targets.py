"""What stands in for the teacher of a run: targets that were prepared, or are prepared first."""

from pathlib import Path
from typing import Any

from ..prepared import PreparedTargets, Tokens, prepare
from ..training import World
from .recipe import Recipe

FOLDER = "targets"


def targets_of(
    recipe: Recipe, model: Any, source: Any, folder: Path | None, world: World
) -> PreparedTargets | None:
    """Open or prepare the targets of a run; None = the teacher is asked in each step.

    Args:
        recipe: With `science.data.prepared`, `views`, or neither.
        model: What will be trained.
        source: Its images.
        folder: Of the run, in which what `views` asks for is prepared.
        world: The processes, which share the work.

    Raises:
        ValueError: As `prepare`; if there is no folder, or the objective asks in each step.
    """
    data = recipe.science.data
    if data.prepared is not None:
        return PreparedTargets(data.prepared)
    if data.views is None:
        return None
    if folder is None:
        raise ValueError(
            f"recipe: prepared targets need a folder. Got science.data.views={data.views} and no "
            f"out; expected the run's folder (--out), in which they are kept."
        )
    if not model.takes_target:
        raise ValueError(
            f"recipe: this objective asks its teacher in each step. Got science.data.views="
            f"{data.views} with a {type(model).__name__}; leave views out."
        )
    loss = model.heads
    tokens: Tokens = "all" if loss.feature or loss.patch else "cls"
    prepare(
        model.teacher, source, folder / FOLDER, views=data.views, tokens=tokens, dtype="int8",
        image_size=model.image_size[0], augment=data.augment, seed=recipe.science.seed,
        workers=recipe.machine.workers, device=world.device, part=(world.rank, world.size),
        overwrite=True, progress=world.first,
    )  # fmt: skip
    world.gather({world.rank: True})  # each has made its part
    return PreparedTargets(folder / FOLDER)
