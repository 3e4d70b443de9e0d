"""What a run will cost, known beforehand: from operations counted and constants measured."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..distiller import Distiller
from ..logits import LogitDistiller
from ..settings import Machine
from ..target_size import target_bytes
from ..training import World, choose_device
from .accelerators import ACCELERATORS, AUTHORS, OURS, Share, parse_machine
from .counting import Count, count
from .launch import objective_of, sized
from .measuring import (
    Probe,
    cores,
    free_memory,
    measure,
    measure_loader,
    measure_saving,
)
from .open_images import count_steps, open_data, open_images
from .pair import check_models, open_pair
from .recipe import Recipe
from .reckoning import Line, Reading, Step, line_of, wall_of_a_step
from .sample_images import write_samples

KEPT = (("all", "fp16"), ("all", "int8"), ("cls", "fp16"))
_FREE = 0.9  # of the memory, for a batch that is advised
_GAIN = 1.05  # in images a second, for a batch twice as large
_FIRST_SAVE = 10
_NO_PREFIX = ("local-dir:", "hf-hub:", "hf-transformers:")  # these are more than a name


@dataclass(frozen=True)
class Batch:
    """A size that was looked at.

    Attributes:
        images: A step, of all processes.
        images_per_second: Loading included.
        memory: Bytes at the most, of one process or card; None = unknown.
        fits: Within nine tenths of what is free; None = unknown.
    """

    images: int
    images_per_second: float
    memory: int | None
    fits: bool | None


@dataclass(frozen=True)
class Estimate:
    """What a run costs on some machine.

    Attributes:
        on: The machine.
        source: Where its speed is from.
        measured: Whether it was measured on it, here and now.
        steps: Optimizer steps.
        step_seconds: Of one.
        seconds: Of the whole run.
        parts: What the seconds are made of.
        memory: Bytes at the most, of one process or card; None = unknown.
        batch_size: The recipe's.
        best: The batch to choose; None = none that was tried fits.
        batches: All that were tried.
        images_per_second: That the run sees, and its loader must deliver.
        loading_cores: Cores that deliver them, at what an image took here.
    """

    on: str
    source: str
    measured: bool
    steps: int
    step_seconds: float
    seconds: float
    parts: dict[str, float]
    memory: int | None
    batch_size: int
    best: int | None
    batches: tuple[Batch, ...]
    images_per_second: float
    loading_cores: float


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
    begun = time.perf_counter()
    here = "this" in machines
    device = choose_device(recipe.machine.device) if here else torch.device("cpu")
    objective = _objective(recipe, light=not here)
    starting = time.perf_counter() - begun
    recipe = sized(recipe, objective)
    counted = count(objective)
    loads_on = device if here else torch.device("meta")  # as for a card: the last steps are its
    with _loader(recipe, loads_on, objective.image_size[0], say) as (loader, read_from):
        known = len(loader.source) if recipe.science.data.paths else set_size
        steps = _steps(recipe, loader, known)
        reading = measure_loader(loader, min(2.0, seconds / 10))
        workers = loader.workers
    found: list[Estimate] = []
    measured: list[Step] = []
    length = _Length(recipe, steps, workers, reading)
    for name, cards in machines.items():
        if cards is None:
            probe = Probe(objective, recipe.science.optimizer, recipe.machine, device)
            measured = measure(probe, _sizes(recipe), seconds)
            found.append(_here(length, measured, device, starting, measure_saving(probe.engine)))
        else:
            found += [_there(length, counted, name, cards, share) for share in (AUTHORS, OURS)]
    return Forecast(
        recipe, counted, steps * recipe.science.data.batch_size, known, reading, read_from,
        tuple(found), _prepared(objective), tuple(measured),
    )  # fmt: skip


@dataclass(frozen=True)
class _Length:
    recipe: Recipe
    steps: int
    workers: int
    reading: Reading

    @property
    def batch_size(self) -> int:
        return self.recipe.science.data.batch_size


def _objective(recipe: Recipe, *, light: bool) -> Distiller | LogitDistiller:
    """What the run would train, with random weights; light = without any."""
    model = replace(recipe.science.model, init="random", teacher_checkpoint=None)
    named = not any(name.startswith(_NO_PREFIX) for name in (model.teacher, model.student))
    recipe = replace(recipe, science=replace(recipe.science, model=model))
    with torch.device("meta") if light and named else contextlib.nullcontext():
        return objective_of(recipe, *open_pair(model, weights=False))


@contextlib.contextmanager
def _loader(
    recipe: Recipe, device: torch.device, size: int, say: Callable[[str], None]
) -> Iterator[tuple[Any, str]]:
    """The run's loader, or one of images made for it, and what it reads."""
    data = recipe.science.data
    world = World(device)
    if data.paths:
        source = open_images(recipe, world, say)
        loader = open_data(recipe, world, say, source, image_size=size)
        yield loader, source.description
        return
    with tempfile.TemporaryDirectory() as folder:
        said = write_samples(Path(folder))
        data = replace(data, paths=(folder,), proxy="all", batch_size=8)
        science = replace(recipe.science, data=data, logits=None)
        machine = replace(recipe.machine, accumulate=1)
        made = replace(recipe, science=science, machine=machine)
        yield open_data(made, world, lambda text: None, image_size=size), said


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


def _here(
    length: _Length, steps: Sequence[Step], device: torch.device, starting: float, saving: float
) -> Estimate:
    sizes = [step.images for step in steps]
    speed = line_of(sizes, [step.seconds for step in steps])
    known = [step.memory for step in steps if step.memory is not None]
    memory = line_of(sizes, known) if len(known) == len(steps) else None
    free, machine = free_memory(device), length.recipe.machine

    def wall(images: int) -> float:
        seconds = next((s.seconds for s in steps if s.images == images), speed.at(images))
        return wall_of_a_step(
            seconds, length.reading, images, workers=length.workers,
            threads=None if device.type != "cpu" else torch.get_num_threads(), cores=cores(),
        )  # fmt: skip

    tried = []
    for images in sizes:
        needs = None if memory is None else round(memory.at(images))
        fits = None if needs is None or free is None else needs <= _FREE * free
        tried.append(Batch(images, images / wall(images), needs, fits))
    size, step = length.batch_size, wall(length.batch_size)
    parts = {
        "start": starting,
        "steps": step * length.steps,
        "saving": saving * saves(length.steps, machine),
    }
    return Estimate(
        "this", "measured here", True, length.steps, step, sum(parts.values()), parts,
        None if memory is None else round(memory.at(size)), size, best_of(tried), tuple(tried),
        size / step, length.reading.cpu_seconds * size / step,
    )  # fmt: skip


def _there(
    length: _Length, counted: Count, name: str, cards: tuple[int, str], share: Share
) -> Estimate:
    number, kind = cards
    card, size = ACCELERATORS[kind], length.batch_size
    science = length.recipe.science
    half = science.optimizer.precision != "fp32"
    rate = (card.half if half else card.single) * share.of_peak * number
    step = counted.flops * size / rate
    parts = length.recipe.machine.accumulate
    memory = card_memory(counted, half=half)
    tried = []
    for images in (2**n for n in range(3, 13)):
        needs = round(memory.at(images))
        fits = needs <= _FREE * card.memory
        tried.append(Batch(images * number * parts, rate / counted.flops, needs, fits))
    kind_of = f"measured on {share.card}" if share.card == kind else "assumed"
    source = f"{share.of_peak:.1%} of the peak, {kind_of}: {share.source}"
    fitting = [batch.images for batch in tried if batch.fits]
    return Estimate(
        name, source, False, length.steps, step, step * length.steps,
        {"steps": step * length.steps}, round(memory.at(size / number / parts)), size,
        max(fitting, default=None), tuple(tried), size / step,
        length.reading.cpu_seconds * size / step,
    )  # fmt: skip


def card_memory(counted: Count, *, half: bool) -> Line:
    """Bytes of a card by the images of a forward pass: an estimate, of what is kept.

    Weights of all models, gradients and two moments of the trained ones in fp32, and what the
    backward pass needs; with half precision half of the latter, which is an assumption.
    """
    fixed = 4 * counted.teacher_parameters + 16 * counted.trained_parameters
    return Line(fixed, counted.kept_bytes / (2 if half else 1))


def saves(steps: int, machine: Machine) -> int:
    """Checkpoints of a run, the export at the end counted as one more."""
    early = min(_FIRST_SAVE, machine.save_every)
    every = {*range(machine.save_every, steps + 1, machine.save_every), steps}
    return len(every | ({early} if early <= steps else set())) + 1


def best_of(batches: Sequence[Batch]) -> int | None:
    """The largest that fits, as long as each one brings a twentieth more images a second.

    Examples:
        >>> rates = {8: 100.0, 16: 120.0, 32: 122.0}
        >>> best_of([Batch(n, rate, None, None) for n, rate in rates.items()])
        16
    """
    best: Batch | None = None
    for batch in batches:
        if batch.fits is False:
            continue
        if best is None or batch.images_per_second > _GAIN * best.images_per_second:
            best = batch
    return None if best is None else best.images


def _prepared(objective: Distiller | LogitDistiller) -> dict[str, int]:
    teacher = objective.teacher
    return {
        f"{tokens}/{dtype}": target_bytes(
            teacher.grid, teacher.embed_dim, teacher.patch_dim, tokens=tokens, dtype=dtype
        )
        for tokens, dtype in KEPT
    }
