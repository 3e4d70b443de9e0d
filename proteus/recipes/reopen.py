"""The models of a run, finished or still training."""

from dataclasses import replace
from pathlib import Path

from ..distiller import Distiller
from ..logits import LogitDistiller
from ..training import checkpoint
from .by_path import read_recipe
from .launch import build


def reopen(folder: str | Path) -> Distiller | LogitDistiller:
    """Teacher, student and heads of a run with the weights of its newest whole checkpoint.

    Nothing in the folder is changed, so the run may still be training.

    Args:
        folder: Of a run of a recipe, as `proteus distill` and `run` make it.

    Returns:
        What was trained, on the CPU.

    Raises:
        ValueError: If it is no such run, nothing was saved yet, or its models cannot be built.
    """
    folder = Path(folder)
    found = checkpoint.load(folder)
    recipe = read_recipe(folder)
    # The student's first weights are replaced, so nothing has to be fetched for them.
    science = replace(recipe.science, model=replace(recipe.science.model, init="random"))
    model = build(replace(recipe, science=science))
    try:
        model.load_state_dict(found.tensors["weights"])
    except RuntimeError as error:
        raise ValueError(
            f"run: {found.path} does not fit its recipe. Got {str(error).splitlines()[-1].strip()}"
        ) from error
    return model
