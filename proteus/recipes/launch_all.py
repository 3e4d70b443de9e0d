"""From recipes that differ in the student to trained students, by one teacher pass."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import flatten
from ..report.groups_of_runs import STUDENTS, note_runs, runs_in
from ..training import History, fit_all, join
from ..training.folder import Resume, begin, holding, note_skipped, refuse_run
from ..training.run import first_size_of
from ..training.several import refuse_sharding
from ..training.start import claim_all
from .by_path import read_recipe
from .launch import (
    describe,
    forwarded,
    objective_of,
    record,
    schedule_of,
    sized,
    sized_as,
    trackers_of,
)
from .open_images import count_steps, open_data, open_images
from .pair import check_models, open_several, told
from .recipe import Recipe, to_json
from .run_targets import check_targets, targets_of
from .watching import watch_of

# What may differ among them, and what `fit_all` takes for each run alone.
_OWN_SCIENCE = ("loss", "logits", "masks", "optimizer", "model")
_SHARED = (
    "science.model.teacher", "science.model.teacher_checkpoint", "science.model.teacher_layers",
    "science.model.image_size", "science.model.teacher_image_size", "science.model.grids",
    "science.model.statistics", "science.model.teacher_precision", "science.optimizer.precision",
)  # fmt: skip
_OWN_OPTIONS = (
    "weight_decay", "undecayed", "layer_decay", "frozen", "warmup", "first_scale", "first_share",
    "clip_grad", "ema",
)  # fmt: skip


def run_all(
    recipes: Mapping[str, Recipe],
    out: str | Path | None = None,
    *,
    resume: Resume = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, History]:
    """Run recipes of one teacher on the same images: several students from one teacher pass.

    Each leaves in `out/NAME` what `run` would leave there, numbers included.

    Args:
        recipes: Name of the run -> what to do. They may differ in the student, its first weights
            and drop path, and in loss, masks and optimizer, but for the precision.
        out: Folder of the runs' folders; also gets `students.json`, their names. None = write
            nothing.
        resume: See `proteus.training.fit_all`.
        overwrite: See `proteus.training.fit_all`.
        progress: Show a progress bar.
        say: Takes sentences for the user, see `run`.

    Returns:
        Name -> the log, see `proteus.training.fit`.

    Raises:
        ValueError: As `run`; if the recipes differ in what they must share.
    """
    folder = None if out is None else Path(out)
    _check_alike(recipes)
    first = next(iter(recipes.values()))
    refuse_sharding(first.machine.parallel)
    science = first.science
    folders = {name: None if folder is None else folder / name for name in recipes}
    kept = [path for path in folders.values() if path is not None]
    world = join(first.machine.device)
    with contextlib.ExitStack() as held:
        if folder is not None:
            refuse_run(folder, [*recipes])
        for path in kept:
            held.enter_context(holding(path, world))
        with world.as_one():
            going_on = bool(kept) and claim_all(kept, world, resume, overwrite)
            each = {name: _own_options(recipe, folders[name]) for name, recipe in recipes.items()}
            tell = say if world.first else lambda text: None
            source = open_images(first, world, tell)
            if going_on and science.model.image_size is None:
                begun = recipes
                recipes = world.once(
                    lambda: {n: sized_as(one, Path(out or "") / n) for n, one in begun.items()}
                )
            models = _build_all(recipes)
            for name, model in models.items():
                if not science.model.image_size or model.teacher.grid != model.student.grid:
                    tell(f"{name}: {told(model.teacher, model.student)}")
            recipes = {name: sized(recipe, models[name]) for name, recipe in recipes.items()}
            size = max(model.image_size[0] for model in models.values())
            data = open_data(_with_labels(recipes), world, tell, source, image_size=size)
            steps = count_steps(science, data)
            watch = watch_of(first, size, tell)
            for name, recipe in recipes.items():
                each[name] |= {
                    "details": describe(recipe, data),
                    "lr": schedule_of(recipe.science, steps, data),
                }
            check_targets(first, [*models.values()], data, folder)
            _check_sizes(models, recipes)
            for path in kept:  # older runs go only now that all of this was found to fit
                begin(path, world, going_on)
            if folder is not None and world.first and not going_on:
                note_runs(folder, recipes)
                for name, recipe in recipes.items():
                    record(folder / name, recipe, data, models[name], world)
            targets = targets_of(
                first, [*models.values()], data, folder, world,
                anew=overwrite and not going_on, progress=progress,
            )  # fmt: skip
        shared = {k: v for k, v in forwarded(first).items() if k not in _OWN_OPTIONS}
        try:
            return fit_all(
                models, data, each=each, steps=steps, seed=science.seed, device=world.device,
                out=folder, resume=going_on, watch=watch, targets=targets,
                progress=progress, **shared,
            )  # fmt: skip
        finally:  # also of runs that were stopped
            if world.first:
                counts = [note_skipped(path, data.skipped) for path in kept]
                if any(counts):
                    say(f"Skipped {max(counts)} corrupt images: {kept[0] / 'skipped.tsv'}")


def read_recipes(path: str | Path) -> dict[str, Recipe]:
    """Name -> recipe, of the runs that `run_all` began in a folder.

    Raises:
        ValueError: If it is no such folder.
    """
    names = runs_in(path)
    if not names:
        raise ValueError(f"recipe: no runs. Got {str(path)!r}, which holds no {STUDENTS}.")
    return {name: read_recipe(Path(path) / name) for name in names}


def _check_sizes(models: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> None:
    for name, model in models.items():
        first_size_of(model, recipes[name].science.optimizer)


def _build_all(recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """All with one teacher, and each student with the first weights that it would have alone."""
    torch.manual_seed(next(iter(recipes.values())).science.seed)
    teacher, students = open_several([recipe.science.model for recipe in recipes.values()])
    models = {}
    for (name, recipe), (student, state) in zip(recipes.items(), students, strict=True):
        torch.set_rng_state(state)
        models[name] = objective_of(recipe, teacher, student)
    return models


def _own_options(recipe: Recipe, folder: Path | None) -> dict[str, Any]:
    own = {name: value for name, value in forwarded(recipe).items() if name in _OWN_OPTIONS}
    return own | {"trackers": trackers_of(recipe, folder)}


def _with_labels(recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe that takes most from a batch."""
    logits = [recipe for recipe in recipes.values() if recipe.science.logits is not None]
    labels = [recipe for recipe in logits if recipe.science.logits and recipe.science.logits.ce]
    return [*labels, *recipes.values()][0]


def _check_alike(recipes: Mapping[str, Recipe]) -> None:
    (first, *others), names = recipes.values(), [*recipes]
    for recipe in recipes.values():
        check_models(recipe.science.model)
    for name, recipe in zip(names[1:], others, strict=True):
        ours, theirs = _shared(first), _shared(recipe)
        different = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        if different:
            lines = "; ".join(f"{k} is {ours.get(k)!r} and {theirs.get(k)!r}" for k in different)
            raise ValueError(
                f"recipe: {names[0]} and {name} cannot be trained together. Got {lines}; expected "
                f"one teacher, one seed, the same images and machine. Train them one by one."
            )


def _shared(recipe: Recipe) -> dict[str, Any]:
    """By path, what all recipes must have in common."""
    plain = flatten({key: to_json(recipe)[key] for key in ("science", "machine")})
    own = tuple(f"science.{name}." for name in _OWN_SCIENCE)
    return {
        path: value
        for path, value in plain.items()
        if path in _SHARED or not f"{path}.".startswith(own)
    }
