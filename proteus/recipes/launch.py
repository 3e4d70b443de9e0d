"""From a recipe to a trained student."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ..distiller import Distiller, supported_weights
from ..features import IMAGENET, ShapeError
from ..files import write_whole
from ..hub.card import versions
from ..inheritance import select_weights
from ..logits import LogitDistiller, load_linear_head
from ..losses import ProteusLoss
from ..masking import MaskGenerator
from ..student import Student
from ..teacher import Teacher
from ..training import EpochSchedule, History, fit, join
from ..training.folder import Resume, begin, claim, holding, note_skipped
from .by_path import read_recipe
from .open_images import (
    Loader,
    batches_of_an_epoch,
    count_steps,
    facts_of,
    open_data,
    open_images,
    passed_over_by,
)
from .recipe import Logits, Masks, Recipe, Science, to_json

RUN = "run.json"


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
                recipe = sized(recipe, world.once(lambda: size_of_run(folder)))
            torch.manual_seed(science.seed)  # of the student's first weights, alike everywhere
            model = build(recipe)
            if recipe.science.model.image_size is None:
                recipe = sized(recipe, model.student.image_size[0])
                tell(
                    f"Image size: {model.student.image_size[0]}, the teacher's own (--image-size)."
                )
            data = open_data(recipe, world, tell, source)
            steps = count_steps(science, data)
            details = describe(recipe, data)
            watch = watch_of(recipe, tell)
            if folder is not None:  # an older run goes only now that all of this was found to fit
                begin(folder, world, going_on)
            if folder is not None and world.first and not going_on:
                record(folder, recipe, data)
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
                progress=progress,
                **forwarded(recipe),
            )
        finally:  # also of a run that was stopped
            if folder is not None and world.first:
                count = note_skipped(folder, data.skipped)
                if count:
                    say(f"Skipped {count} corrupt images: {folder / 'skipped.tsv'}")


def record(folder: Path, recipe: Recipe, data: Loader) -> None:
    """Write `run.json`."""
    found = {
        "recipe": to_json(recipe),
        "images": facts_of(data),
        "passed_over": passed_over_by(data),
        "versions": versions(),
        "system": platform.platform(),
    }
    write_whole(folder / RUN, json.dumps(found, indent=2, default=str) + "\n")


def describe(recipe: Recipe, data: Loader) -> dict[str, Any]:
    """What a run goes on with only, and its card tells: the science and the images."""
    plain = to_json(recipe)
    return {
        "data": ", ".join(recipe.science.data.paths),
        "recipe": {key: plain[key] for key in ("name", "preset", "science")},
        "images": facts_of(data),
    }


def build(recipe: Recipe, teacher: Teacher | None = None) -> Distiller | LogitDistiller:
    """The `Distiller` (or `LogitDistiller`) of a recipe, on the CPU.

    Without an image size, both models get the teacher's own.

    The student's first weights come from torch's global generator.

    Args:
        recipe: What is trained.
        teacher: What `build_teacher` gave for it; None = build it.
    """
    science = recipe.science
    model = science.model
    check_models(recipe)
    normalize = IMAGENET if model.statistics == "imagenet" else True
    teacher = teacher or build_teacher(recipe)
    try:
        student = Student(
            model.student,
            pretrained=model.init == "pretrained",
            image_size=teacher.image_size[0],
            normalize=normalize,
            drop_path=model.drop_path,
        )
    except ShapeError as error:
        raise ShapeError(f"{error}{_whose_size(recipe)}") from error
    if model.init == "select":
        select_weights(student.backbone, teacher.backbone)
    if science.logits is not None:
        return _logit_distiller(teacher, student, science.logits)
    settings = asdict(science.loss)
    settings |= supported_weights(
        teacher, **{t: settings[t] for t in ("token", "feature", "patch")}
    )
    loss = ProteusLoss(student.embed_dim, teacher.embed_dim, **settings)
    if not loss.patch and science.masks != Masks():
        raise ValueError(
            f"recipe: science.masks would be ignored, because {teacher.name} supports no patch "
            f"term. Set it to its default: --set science.masks={{}}"
        )
    masked = loss.patch and all(student.grid)  # Distiller refuses a student without patches
    masks = MaskGenerator(student.grid, **asdict(science.masks)) if masked else None
    return Distiller(teacher, student, loss, masks)


def check_models(recipe: Recipe) -> None:
    """Refuse a recipe that lacks one of its models."""
    if not recipe.science.model.teacher or not recipe.science.model.student:
        raise ValueError(
            "recipe: no models. Set science.model.teacher and science.model.student, or start from "
            "a recipe of `proteus recipes`."
        )


def build_teacher(recipe: Recipe) -> Teacher:
    """The teacher of a recipe, on the CPU; for several recipes at once."""
    model = recipe.science.model
    teacher = Teacher(
        model.teacher,
        checkpoint=model.teacher_checkpoint,
        image_size=model.image_size,
        normalize=IMAGENET if model.statistics == "imagenet" else True,
    )
    height, width = teacher.image_size
    if height != width:
        raise ValueError(
            f"recipe: images are square. Got a teacher of {height}x{width}.{_whose_size(recipe)}"
        )
    return teacher


def _whose_size(recipe: Recipe) -> str:
    if recipe.science.model.image_size:
        return ""
    return " The size is the teacher's own; --image-size sets another."


def sized(recipe: Recipe, image_size: int | None) -> Recipe:
    """The recipe with the size that its runs have: a repetition must not depend on a default."""
    model = replace(recipe.science.model, image_size=image_size)
    return replace(recipe, science=replace(recipe.science, model=model))


def size_of_run(folder: Path) -> int | None:
    """What a run was started with, when the default may have been another."""
    path = folder / RUN
    return read_recipe(path).science.model.image_size if path.is_file() else None


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


def watch_of(recipe: Recipe, say: Callable[[str], None]) -> Any:
    """The recipe's watch, or None."""
    if not recipe.machine.watch:
        return None
    from ..training.watch import Watch, margin_of

    assert recipe.science.model.image_size is not None
    watch = Watch.from_sources(
        list(recipe.machine.watch),
        image_size=recipe.science.model.image_size,
        labels=recipe.machine.watch_labels,
        every=recipe.machine.watch_every,
    )
    if watch.scored:
        say(
            f"Watch: its k-NN is scored on {watch.scored} images; 0.5 of so few means 0.5 ± "
            f"{margin_of(0.5, watch.scored):.2g} (95 %). `proteus evaluate` scores all of a set."
        )
    return watch


def trackers_of(recipe: Recipe, out: Path | None) -> list[Any]:
    """The recipe's trackers of the run in a folder."""
    if not recipe.machine.track:
        return []
    if out is None:
        raise ValueError("recipe: machine.track needs the folder of a run. Got out=None.")
    from ..training.trackers import open_tracker

    return [open_tracker(text, out, to_json(recipe)) for text in recipe.machine.track]
