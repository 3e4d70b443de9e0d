"""From a recipe to a trained student."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..card import versions
from ..data import (
    ImageLoader,
    ImageSource,
    StreamLoader,
    make_loader,
    merge,
    open_source,
    single_image,
    sub_class,
    sub_data,
)
from ..data.proxy import digest_of
from ..distiller import Distiller, supported_weights
from ..features import IMAGENET
from ..inheritance import select_weights
from ..logits import LogitDistiller, load_linear_head
from ..losses import ProteusLoss
from ..masking import MaskGenerator
from ..student import Student
from ..teacher import Teacher
from ..training import EpochSchedule, History, World, fit, join
from ..training.folder import Resume, begin, claim, note_skipped
from .recipe import Logits, Masks, Recipe, Science, proxy_of, to_json

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
    going_on = False
    if folder is not None:  # first of all: a wrong folder must not cost a download
        going_on = claim(folder, world, resume, overwrite)
    data = open_data(recipe, world, say if world.first else lambda text: None)
    torch.manual_seed(science.seed)  # of the student's first weights, alike in all processes
    model = build(recipe)
    steps = count_steps(science, data)
    details = describe(recipe, data)
    watch = _watch(recipe)
    if folder is not None:  # nothing of an older run is removed before all of this was found to fit
        begin(folder, world, going_on)
    if folder is not None and world.first and not going_on:
        found = {
            "recipe": to_json(recipe),
            "images": details["images"],
            "versions": versions(),
            "system": platform.platform(),
        }
        text = json.dumps(found, indent=2, default=str) + "\n"
        (folder / RUN).write_text(text, encoding="utf-8")
    try:
        return fit(
            model,
            data,
            steps=steps,
            lr=_schedule(science, steps, data),
            warmup=science.optimizer.warmup,
            weight_decay=science.optimizer.weight_decay,
            undecayed=science.optimizer.undecayed,
            clip_grad=science.optimizer.clip_grad,
            ema=science.optimizer.ema,
            precision=science.optimizer.precision,
            seed=science.seed,
            accumulate=machine.accumulate,
            parallel=machine.parallel,
            compile=machine.compile,
            activation_checkpointing=machine.activation_checkpointing,
            device=world.device,
            out=folder,
            resume=going_on,
            save_every=machine.save_every,
            keep=machine.keep,
            watch=watch,
            trackers=_trackers(recipe, folder) if world.first else (),
            details=details,
            progress=progress,
        )
    finally:  # also of a run that was stopped
        if folder is not None and world.first:
            count = note_skipped(folder, data.skipped)
            if count:
                say(f"Skipped {count} corrupt images: {folder / 'skipped.tsv'}")


def describe(recipe: Recipe, data: ImageLoader | StreamLoader) -> dict[str, Any]:
    """What a run goes on with only, and its card tells: the science and the images."""
    images = {}
    if isinstance(data, ImageLoader):
        images = {"count": len(data.source), "digest": digest_of(data.source)}
    plain = to_json(recipe)
    return {
        "data": ", ".join(recipe.science.data.paths),
        "recipe": {key: plain[key] for key in ("name", "preset", "science")},
        "images": images,
    }


def build(recipe: Recipe) -> Distiller | LogitDistiller:
    """The `Distiller` (or `LogitDistiller`) of a recipe, on the CPU.

    The student's first weights come from torch's global generator.
    """
    science = recipe.science
    model = science.model
    if not model.teacher or not model.student:
        raise ValueError(
            "recipe: no models. Set science.model.teacher and science.model.student, or start from "
            "a recipe of `proteus recipes`."
        )
    normalize = IMAGENET if model.statistics == "imagenet" else True
    teacher = Teacher(
        model.teacher,
        checkpoint=model.teacher_checkpoint,
        image_size=model.image_size,
        normalize=normalize,
    )
    student = Student(
        model.student,
        pretrained=model.init == "pretrained",
        image_size=model.image_size,
        normalize=normalize,
        drop_path=model.drop_path,
    )
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
    masks = MaskGenerator(student.grid, **asdict(science.masks)) if loss.patch else None
    return Distiller(teacher, student, loss, masks)


def _logit_distiller(teacher: Teacher, student: Student, logits: Logits) -> LogitDistiller:
    settings = asdict(logits)
    head = load_linear_head(settings.pop("classifier"), teacher.embed_dim)
    return LogitDistiller(teacher, student, head, **settings)


def open_data(
    recipe: Recipe, world: World, say: Callable[[str], None]
) -> ImageLoader | StreamLoader:
    """The loader of this process.

    Raises:
        ValueError: If there are no images, or the batch cannot be shared evenly.
    """
    data = recipe.science.data
    if not data.paths:
        raise ValueError("recipe: no images. Set science.data.paths (--data).")
    if data.batch_size % (world.size * recipe.machine.accumulate):
        raise ValueError(
            f"recipe: the batch cannot be shared evenly. Got science.data.batch_size="
            f"{data.batch_size}, {world.size} processes and machine.accumulate="
            f"{recipe.machine.accumulate}; expected a multiple of "
            f"{world.size * recipe.machine.accumulate}."
        )
    logits = recipe.science.logits
    labels = {"labels": True} if logits is not None and logits.ce else {}
    return make_loader(
        _source(recipe, say),
        batch_size=data.batch_size // world.size,
        image_size=recipe.science.model.image_size,
        seed=recipe.science.seed,
        augment=data.augment,
        repeats=data.repeats,
        workers=recipe.machine.workers,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        **labels,
    )


def _source(recipe: Recipe, say: Callable[[str], None]) -> Any:
    data, seed = recipe.science.data, recipe.science.seed
    kind, number = proxy_of(data.proxy)
    if kind == "all":
        return open_source(list(data.paths))
    if kind == "single":
        if len(data.paths) != 1:
            raise ValueError(f"recipe: single:N goes with one image. Got {len(data.paths)} paths.")
        source, manifest = single_image(data.paths[0], int(number or 0), seed=seed)
    elif kind == "merge":
        source, manifest = merge([_images(path) for path in data.paths])
    else:
        build_part = sub_data if kind == "sub-data" else sub_class
        source, manifest = build_part(_images(list(data.paths)), number or 0.0, seed=seed)
    say(str(manifest))
    return source


def _images(paths: str | list[str]) -> ImageSource:
    """Images that can be asked for one by one."""
    source = open_source(paths)
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"recipe: a proxy set cannot be made of a stream. Got {paths!r}; expected images in "
            f"files, or science.data.proxy='all'."
        )
    return source


def count_steps(science: Science, data: ImageLoader | StreamLoader) -> int:
    """Optimizer steps of a recipe on these images."""
    length = science.data
    if length.steps is not None:
        return length.steps
    if length.images is not None:
        return max(1, round(length.images / length.batch_size))
    if length.epochs is None:
        raise ValueError(
            "recipe: no length. Set one of science.data.epochs, steps and images "
            "(--epochs, --steps, --images)."
        )
    return max(1, round(length.epochs * _batches_of_an_epoch(data)))


def _batches_of_an_epoch(data: ImageLoader | StreamLoader) -> int:
    if isinstance(data, StreamLoader):
        raise ValueError(
            "recipe: a stream has no length. Set science.data.steps or images in place of epochs, "
            "and science.optimizer.schedule='cosine'."
        )
    return len(data)


def _schedule(
    science: Science, steps: int, data: ImageLoader | StreamLoader
) -> float | EpochSchedule:
    chosen = science.optimizer
    if chosen.schedule == "cosine":
        return chosen.lr
    epoch = _batches_of_an_epoch(data)
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


def _watch(recipe: Recipe) -> Any:
    if not recipe.machine.watch:
        return None
    from ..watch import Watch

    return Watch.from_sources(
        list(recipe.machine.watch),
        image_size=recipe.science.model.image_size,
        labels=recipe.machine.watch_labels,
        every=recipe.machine.watch_every,
    )


def _trackers(recipe: Recipe, out: Path | None) -> list[Any]:
    if not recipe.machine.track:
        return []
    if out is None:
        raise ValueError("recipe: machine.track needs the folder of a run. Got out=None.")
    from ..trackers import open_tracker

    return [open_tracker(text, out, to_json(recipe)) for text in recipe.machine.track]
