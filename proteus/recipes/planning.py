"""What a run will cost, known beforehand: from operations counted and constants measured."""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data import ImageSource
from ..distiller import Distiller
from ..logits import LogitDistiller
from ..prepared.codec import Dtype, Tokens, bytes_of_an_image
from ..training import World, choose_device
from .accelerators import AUTHORS, OURS, parse_machine
from .counting import Count, count
from .estimates import Estimate, Fixed, Length, here, there
from .launch import objective_of, sized
from .measuring import Probe, measure, measure_ending, measure_loader, measure_saving
from .open_images import count_steps, open_data, open_images
from .pair import check_models, open_pair
from .recipe import Recipe
from .reckoning import Reading, Step
from .sample_images import write_samples

KEPT: tuple[tuple[Tokens, Dtype], ...] = (("all", "fp16"), ("all", "int8"), ("cls", "fp16"))
_LONG = 5.0  # seconds of a checkpoint
_UNWATCHED: dict[str, Any] = {"watch": (), "watch_labels": False, "watch_every": 1000}
_MORE_THAN_A_NAME = ("local-dir:", "hf-hub:", "hf-transformers:")


@dataclass(frozen=True)
class Forecast:
    """Everything that `proteus plan` says.

    Attributes:
        recipe: With the sizes chosen.
        count: Operations of a step.
        images: Seen by the run.
        set_size: Different images; None = not told.
        reading: What it takes to load one, measured here.
        read_from: Which images those were.
        estimates: One a machine and source.
        target_bytes: `tokens/dtype` -> bytes of an image's prepared targets, of one view.
        steps: What was measured here.
        left_out: Settings of the recipe whose cost is in no estimate.
    """

    recipe: Recipe
    count: Count
    images: int
    set_size: int | None
    reading: Reading
    read_from: str
    estimates: tuple[Estimate, ...]
    target_bytes: dict[str, int]
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]


def plan(
    recipe: Recipe,
    on: Sequence[str] = ("this",),
    *,
    set_size: int | None = None,
    seconds: float = 20.0,
    say: Callable[[str], None] = lambda text: None,
) -> Forecast:
    """What a recipe would cost, without running it or reading any weights of its teacher.

    Args:
        recipe: With models and a length. Without images (`science.data.paths`), what loading takes
            is measured on JPEGs made for it, and a length in epochs needs `set_size`.
        on: Machines: `this`, or such as `8xH100` (see `proteus.recipes.accelerators`).
        set_size: How many images there are, where the recipe names none.
        seconds: For measurements on this machine, about.
        say: Takes what is found among the images.

    Returns:
        A `Forecast`.

    Raises:
        ValueError: If a machine is unknown, something of the recipe lacks, or it does not fit.
    """
    machines = {name: None if name == "this" else parse_machine(name) for name in on}
    check_models(recipe.science.model)
    measuring = "this" in machines
    device = choose_device(recipe.machine.device) if measuring else torch.device("cpu")
    begun = time.perf_counter()  # images first: a wrong folder must not cost two models
    source = open_images(recipe, World(device), say) if recipe.science.data.paths else None
    if source is not None and not isinstance(source, ImageSource):
        raise ValueError(
            f"plan: a stream is not read beforehand. Got {', '.join(recipe.science.data.paths)}; "
            f"expected images in files, or their number (--images)."
        )
    objective = _objective(recipe, light=not measuring)
    # That of Python and of the imports, too, which nothing was waited for in.
    starting = max(time.perf_counter() - begun, time.process_time())
    recipe = sized(recipe, objective)
    counted = count(objective)
    # As for a card: the last steps of loading are its own.
    loads_on = device if measuring else torch.device("meta")
    with _loader(recipe, source, loads_on, objective.image_size[0]) as (loader, read_from):
        known = set_size if source is None else len(source)
        steps = _steps(recipe, loader, known)
        reading = measure_loader(loader, min(2.0, seconds / 10))
        workers = loader.workers
    found: list[Estimate] = []
    measured: list[Step] = []
    length = Length(recipe, steps, workers, reading)
    for name, cards in machines.items():
        if cards is None:
            probe = Probe(objective, recipe.science.optimizer, recipe.machine, device)
            measured = measure(probe, _sizes(recipe), seconds)
            found.append(here(length, measured, device, _fixed(starting, probe, measured)))
        else:
            found += [there(length, counted, name, cards, share) for share in (AUTHORS, OURS)]
    return Forecast(
        recipe, counted, steps * recipe.science.data.batch_size, known, reading, read_from,
        tuple(found), _prepared(objective), tuple(measured), _left_out(recipe, machines),
    )  # fmt: skip


def _objective(recipe: Recipe, *, light: bool) -> Distiller | LogitDistiller:
    """What the run would train, with random weights; light = without any."""
    model = replace(recipe.science.model, init="random", teacher_checkpoint=None)
    named = not any(name.startswith(_MORE_THAN_A_NAME) for name in (model.teacher, model.student))
    recipe = replace(recipe, science=replace(recipe.science, model=model))
    with torch.device("meta") if light and named else contextlib.nullcontext():
        return objective_of(recipe, *open_pair(model, weights=False))


@contextlib.contextmanager
def _loader(
    recipe: Recipe, source: Any, device: torch.device, size: int
) -> Iterator[tuple[Any, str]]:
    """The run's loader, or one of images made for it, and what it reads."""
    data = recipe.science.data
    world = World(device)
    if source is not None:
        yield open_data(recipe, world, print, source, image_size=size), source.description
        return
    with tempfile.TemporaryDirectory() as folder:
        said = write_samples(Path(folder))
        data = replace(data, paths=(folder,), proxy="all", batch_size=8, hold_out=None)
        science = replace(recipe.science, data=data, logits=None)
        machine = replace(recipe.machine, accumulate=1, **_UNWATCHED)
        made = replace(recipe, science=science, machine=machine)
        yield open_data(made, world, print, image_size=size), said


def _steps(recipe: Recipe, loader: Any, set_size: int | None) -> int:
    data = recipe.science.data
    if data.epochs is None or data.paths:
        return count_steps(recipe.science, loader)
    if set_size is None:
        raise ValueError(
            f"plan: how many images are there? Got {data.epochs:g} epochs and neither --data nor "
            f"--images; expected one of them."
        )
    if set_size < data.batch_size:
        raise ValueError(
            f"plan: too few images for one batch. Got {set_size} and a batch of "
            f"{data.batch_size}; expected at least one batch."
        )
    return max(1, round(data.epochs * (set_size // data.batch_size)))


def _sizes(recipe: Recipe) -> list[int]:
    """Batches to try: powers of two, and the recipe's own; whole parts of accumulated steps."""
    parts = recipe.machine.accumulate
    return sorted({recipe.science.data.batch_size, *(parts * 2**n for n in range(2, 11))})


def _fixed(start: float, probe: Probe, steps: Sequence[Step]) -> Fixed:
    saving = measure_saving(probe.engine)
    if saving > _LONG:  # it would fill a disk, and pictures are little beside it
        return Fixed(start, saving, 2 * saving)
    return Fixed(start, saving, measure_ending(probe, steps[0].seconds))


def _left_out(recipe: Recipe, machines: Mapping[str, object]) -> tuple[str, ...]:
    machine = recipe.machine
    cards = any(one is not None for one in machines.values())
    asked = {
        "watch": bool(machine.watch or recipe.science.data.hold_out),
        "track": bool(machine.track),
        "compile": machine.compile,
        "parallel=fsdp": machine.parallel == "fsdp",
        "activation_checkpointing on cards": machine.activation_checkpointing and cards,
    }
    return tuple(name for name, value in asked.items() if value)


def _prepared(objective: Distiller | LogitDistiller) -> dict[str, int]:
    teacher = objective.teacher
    return {
        f"{tokens}/{dtype}": bytes_of_an_image(
            teacher.embed_dim,
            teacher.patch_dim,
            math.prod(teacher.grid),
            tokens=tokens,
            dtype=dtype,
        )
        for tokens, dtype in KEPT
    }
