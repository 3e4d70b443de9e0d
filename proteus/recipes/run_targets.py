"""What stands in for the teacher of a run: targets that were prepared, or are prepared first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import ImageLoader
from ..prepared import PreparedTargets, Tokens, prepare
from ..prepared.prepare import clear
from ..training import World
from .recipe import Recipe

FOLDER = "targets"


def check_targets(recipe: Recipe, models: Sequence[Any], data: Any, folder: Path | None) -> None:
    """Refuse, before anything is replaced, what `targets_of` or the run would refuse.

    Raises:
        ValueError: If there is no folder, an objective asks its teacher in each step, or targets
            were prepared for something else.
    """
    asked = recipe.science.data
    if asked.prepared is None and asked.views is None:
        return
    for model in models:
        if not model.takes_target:
            raise ValueError(
                f"recipe: this objective asks its teacher in each step. Got a "
                f"{type(model).__name__} with science.data.views or prepared; leave them out."
            )
    if asked.prepared is not None:
        PreparedTargets(asked.prepared).check_fits(models[0].teacher, data)
    elif folder is None:
        raise ValueError(
            f"recipe: prepared targets need a folder. Got science.data.views={asked.views} and no "
            f"out; expected the run's folder (--out), in which they are kept."
        )
    elif not isinstance(data, ImageLoader):
        raise ValueError(
            f"recipe: a stream's images cannot be prepared. Got science.data.views={asked.views} "
            f"with a {type(data).__name__}; leave views out."
        )


def targets_of(
    recipe: Recipe, models: Sequence[Any], data: Any, folder: Path | None, world: World,
    *, anew: bool, progress: bool,
) -> PreparedTargets | None:  # fmt: skip
    """Open or prepare the targets of a run; None = the teacher is asked in each step.

    Args:
        recipe: With `science.data.prepared`, `views`, or neither.
        models: What will be trained, of one teacher.
        data: The loader of the images.
        folder: Of the run, in which what `views` asks for is prepared.
        world: The processes, which share the work.
        anew: Replace targets that are there.
        progress: Show a bar.

    Raises:
        ValueError: As `prepare`.
    """
    asked = recipe.science.data
    if asked.prepared is not None:
        return PreparedTargets(asked.prepared)
    if asked.views is None or folder is None:
        return None
    own = folder / FOLDER
    if anew:
        world.once(lambda: clear(own))
    every = any(model.heads.feature or model.heads.patch for model in models)
    tokens: Tokens = "all" if every else "cls"
    prepare(
        models[0].teacher, data.source, own, views=asked.views, tokens=tokens, dtype="int8",
        image_size=data.samples.augmenter.size, augment=asked.augment, seed=recipe.science.seed,
        workers=recipe.machine.workers, device=world.device, part=(world.rank, world.size),
        progress=progress and world.first,
    )  # fmt: skip
    world.gather({world.rank: True})  # each has made its part
    return PreparedTargets(own)
