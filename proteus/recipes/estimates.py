"""Time, memory and the best batch of a run, on a machine that was measured or is published."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..settings import Machine
from .accelerators import ACCELERATORS, Share
from .counting import Count
from .foretelling import taken
from .measuring import cores, free_memory
from .recipe import Recipe
from .reckoning import Line, Reading, Step, line_of, wall_of_a_step

_FREE = 0.9  # of the memory, for a batch that is advised
_GAIN = 1.05  # in images a second, for a batch twice as large
_FIRST_SAVE = 10


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
        cpu_seconds: Of all cores together; None where others compute.
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
    cpu_seconds: float | None
    memory: int | None
    batch_size: int
    best: int | None
    batches: tuple[Batch, ...]
    images_per_second: float
    loading_cores: float


@dataclass(frozen=True)
class Length:
    """What is to be done.

    Attributes:
        recipe: The run's, with its sizes.
        steps: Optimizer steps.
        workers: Processes that load.
        reading: What it takes to load an image.
    """

    recipe: Recipe
    steps: int
    workers: int
    reading: Reading

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.recipe.science.data.batch_size


class Fixed(NamedTuple):
    """Seconds of a run that do not grow with its steps.

    Attributes:
        start: Before the first step.
        saving: Of a checkpoint.
        end: Of the last one, the export and pictures.
    """

    start: float
    saving: float
    end: float


def here(length: Length, steps: Sequence[Step], device: torch.device, fixed: Fixed) -> Estimate:
    """On this machine, from steps of several sizes that were measured on it."""
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
    last = steps[-1]
    slower = max(0.0, last.first - last.seconds) * size / last.images
    parts = {
        "start": fixed.start + taken(length.steps, step) + slower,
        "steps": step * length.steps,
        "saving": fixed.saving * (saves(length.steps, machine) - 1),
        "end": fixed.end,
    }
    cpu = line_of(sizes, [step.cpu_seconds for step in steps]).at(size)
    cpu = length.steps * (cpu + size * length.reading.cpu_seconds)
    return Estimate(
        "this", "measured here", True, length.steps, step, sum(parts.values()), parts,
        cpu + sum(parts.values()) - parts["steps"],
        None if memory is None else round(memory.at(size)), size, best_of(tried), tuple(tried),
        size / step, length.reading.cpu_seconds * size / step,
    )  # fmt: skip


def there(
    length: Length, counted: Count, name: str, cards: tuple[int, str], share: Share
) -> Estimate:
    """On some cards, from the operations counted and the share of the peak that others reached."""
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
        {"steps": step * length.steps}, None, round(memory.at(size / number / parts)), size,
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
    """Checkpoints of a run; its end has one."""
    early = min(_FIRST_SAVE, machine.save_every)
    every = {*range(machine.save_every, steps + 1, machine.save_every), steps}
    return len(every | ({early} if early <= steps else set()))


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
