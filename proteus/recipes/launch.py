"""From a recipe to a trained student."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ..distiller import Distiller, TeacherAndStudent, supported_weights
from ..files import write_whole
from ..grids import common_grid
from ..hub.card import sizes_and_device, versions
from ..inheritance import select_weights
from ..logits import LogitDistiller, load_linear_head
from ..losses import ProteusLoss
from ..masking import MaskGenerator
from ..student import Student
from ..teacher import Teacher
from ..training import EpochSchedule, History, checkpoint, fit, join
from ..training.folder import Resume, begin, claim, holding, note_skipped
from ..training.run import first_size_of
from ..world import World
from .by_path import read_recipe
from .foretelling import foretell
from .open_images import (
    Loader,
    batches_of_an_epoch,
    count_steps,
    facts_of,
    open_data,
    open_images,
    passed_over_by,
)
from .pair import open_pair, told, with_sizes
from .recipe import Logits, Masks, Recipe, Science, layers_ignored, to_json
from .run_targets import check_targets, targets_of
from .watching import watch_of

RUN = "run.json"
# Fields that came later: told only where they are set.
_LATER = {
    "loss": ("token_distance", "queue_size", "temperature", "targets"),
    "data": ("prepared", "views", "hold_out"),
    "model": ("grids", "teacher_precision"),
    "optimizer": ("first_scale", "first_share"),
}


def run(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: Resume = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> History:
    """Run a recipe; under torchrun, together with the other processes.

    Args:
        recipe: What to do.
        out: Folder of the run; also gets `run.json`, from which `read_recipe` repeats it. None =
            write nothing.
        resume: See `proteus.training.fit`.
        overwrite: See `proteus.training.fit`.
        progress: Show a progress bar.
        say: Takes sentences for the user: what a proxy set holds, which images were skipped.

    Returns:
        The log, see `proteus.training.fit`.

    Raises:
        ValueError: If the recipe does not fit the machine, the models or the images; on resuming,
            if it or the images are not those of the run.
    """
    science, machine = recipe.science, recipe.machine
    folder = None if out is None else Path(out)
    world = join(machine.device)
    with holding(folder, world):
        with world.as_one():
            going_on = False
            if folder is not None:  # first of all: a wrong folder must not cost a download
                going_on = claim(folder, world, resume, overwrite)
            trackers = trackers_of(recipe, folder)
            tell = say if world.first else lambda text: None
            source = open_images(recipe, world, tell)
            if going_on and folder is not None and science.model.image_size is None:
                recipe = world.once(lambda: sized_as(recipe, folder))
            torch.manual_seed(science.seed)  # of the student's first weights, alike everywhere
            model = build(recipe)
            if not science.model.image_size or model.teacher.grid != model.student.grid:
                tell(told(model.teacher, model.student))
            recipe = sized(recipe, model)
            data = open_data(recipe, world, tell, source, image_size=model.image_size[0])
            steps = count_steps(science, data)
            details = describe(recipe, data)
            watch = watch_of(recipe, model.image_size[0], tell)
            check_targets(recipe, [model], data, folder)
            first_size_of(model, science.optimizer)
            if folder is not None:  # an older run goes only now that all of this was found to fit
                begin(folder, world, going_on)
            if folder is not None and world.first and not going_on:
                record(folder, recipe, data, model, world)
            targets = targets_of(
                recipe, [model], data, folder, world,
                anew=overwrite and not going_on, progress=progress,
            )  # fmt: skip
            kept = checkpoint.common_steps([folder]) if folder is not None and going_on else ()
            left = steps - max(kept, default=0)
            if world.first and (about := foretell(model, recipe, data, left, world)):
                say(about)
        try:
            return fit(
                model,
                data,
                steps=steps,
                lr=schedule_of(science, steps, data),
                seed=science.seed,
                device=world.device,
                out=folder,
                resume=going_on,
                watch=watch,
                trackers=trackers,
                details=details,
                targets=targets,
                progress=progress,
                **forwarded(recipe),
            )
        finally:  # also of a run that was stopped
            if folder is not None and world.first:
                count = note_skipped(folder, data.skipped)
                if count:
                    say(f"Skipped {count} corrupt images: {folder / 'skipped.tsv'}")


def record(
    folder: Path, recipe: Recipe, data: Loader, model: TeacherAndStudent, world: World
) -> None:
    """Write `run.json`."""
    found = {
        "recipe": to_json(recipe),
        "steps": count_steps(recipe.science, data),
        **sizes_and_device(model.teacher, model.student, world.device),
        "processes": world.size,
        "images": facts_of(data),
        "passed_over": passed_over_by(data),
        "versions": versions(),
        "system": platform.platform(),
    }
    write_whole(folder / RUN, json.dumps(found, indent=2, default=str) + "\n")


def describe(recipe: Recipe, data: Loader) -> dict[str, Any]:
    """What a run goes on with only, and its card tells: the science and the images."""
    plain, untouched = to_json(recipe), asdict(Science())
    for part, names in _LATER.items():
        for name in names:
            if plain["science"][part][name] == untouched[part][name]:
                del plain["science"][part][name]  # the checkpoints of before do not know it
    return {
        "data": ", ".join(recipe.science.data.paths),
        "recipe": {key: plain[key] for key in ("name", "preset", "science")},
        "images": facts_of(data),
    }


def build(recipe: Recipe) -> Distiller | LogitDistiller:
    """The `Distiller` (or `LogitDistiller`) of a recipe, on the CPU.

    The student's first weights come from torch's global generator.
    """
    return objective_of(recipe, *open_pair(recipe.science.model))


def objective_of(recipe: Recipe, teacher: Teacher, student: Student) -> Distiller | LogitDistiller:
    """The objective of a recipe, of its models as `open_pair` gave them."""
    science = recipe.science
    if not student.architecture:
        raise ValueError(
            f"recipe: what is trained could not leave. Got the student {student.name!r}; expected "
            f"a model of timm, which a run exports. Train a model of transformers in a loop of "
            f"your own, and save it with student.backbone.save_pretrained(FOLDER)."
        )
    if science.model.init == "select":
        select_weights(student.backbone, teacher.backbone)
    if science.optimizer.frozen:  # the engine would, but what cannot be must be found before
        student.freeze(science.optimizer.frozen)
    if science.logits is not None:
        return _logit_distiller(teacher, student, science.logits)
    settings = asdict(science.loss)
    settings |= supported_weights(
        teacher, **{t: settings[t] for t in ("token", "feature", "patch")}
    )
    loss = ProteusLoss(student.width, teacher.width, **settings)
    if not (loss.feature or loss.patch) and (
        science.model.teacher_layers or science.model.student_layers
    ):
        raise layers_ignored(f"{teacher.name} supports the token term alone")
    if not loss.patch and science.masks != Masks():
        raise ValueError(
            f"recipe: science.masks would be ignored, because {teacher.name} supports no patch "
            f"term. Set it to its default: --set science.masks={{}}"
        )
    grid = common_grid(student.grid, teacher.grid)
    masked = loss.patch and all(grid)  # Distiller refuses a model without patches
    masks = MaskGenerator(grid, **asdict(science.masks)) if masked else None
    return Distiller(teacher, student, loss, masks)


def sized(recipe: Recipe, model: TeacherAndStudent) -> Recipe:
    """With the sizes that its models have: a repetition must not depend on a default."""
    sizes = with_sizes(recipe.science.model, model.teacher, model.student)
    return replace(recipe, science=replace(recipe.science, model=sizes))


def sized_as(recipe: Recipe, folder: Path) -> Recipe:
    """With the sizes that a run was started with, when the default may have been another."""
    path = folder / RUN
    if not path.is_file():
        return recipe
    begun = read_recipe(path).science.model
    model = replace(
        recipe.science.model,
        image_size=begun.image_size,
        teacher_image_size=begun.teacher_image_size,
    )
    return replace(recipe, science=replace(recipe.science, model=model))


def _logit_distiller(teacher: Teacher, student: Student, logits: Logits) -> LogitDistiller:
    settings = asdict(logits)
    file = settings.pop("classifier")
    head = load_linear_head(file, teacher.embed_dim) if file else None
    return LogitDistiller(teacher, student, head, **settings)


def forwarded(recipe: Recipe) -> dict[str, Any]:
    """Settings that `fit` takes as they are; the rest is made into objects first."""
    settings = vars(recipe.science.optimizer) | vars(recipe.machine)
    names = set(signature(fit).parameters) - {"lr", "device", "watch"}
    return {name: value for name, value in settings.items() if name in names}


def schedule_of(science: Science, steps: int, data: Loader) -> float | EpochSchedule:
    """The learning rate, as `fit` takes it."""
    chosen = science.optimizer
    if chosen.schedule == "cosine":
        return chosen.lr
    epoch = batches_of_an_epoch(data)
    given = {
        "warmup_epochs": chosen.warmup_epochs,
        "warmup_rate": chosen.warmup_lr,
        "min_rate": chosen.min_lr,
    }
    return EpochSchedule(
        chosen.lr,
        epochs=steps / epoch,
        steps_per_epoch=epoch,
        update="epoch_late" if chosen.schedule == "official" else "step",
        **{name: value for name, value in given.items() if value is not None},
    )


def trackers_of(recipe: Recipe, out: Path | None) -> list[Any]:
    """The recipe's trackers of the run in a folder."""
    if not recipe.machine.track:
        return []
    if out is None:
        raise ValueError("recipe: machine.track needs the folder of a run. Got out=None.")
    from ..training.trackers import open_tracker

    return [open_tracker(text, out, to_json(recipe)) for text in recipe.machine.track]
