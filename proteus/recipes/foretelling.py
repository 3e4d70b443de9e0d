"""One line before a run begins: how long it will take."""

import torch

from ..data import ImageLoader
from ..distiller import Distiller
from ..logits import LogitDistiller
from ..text import size_text, time_text
from ..training import World
from .measuring import Probe, copy_of, cores, measure, measure_loader, reset_peak
from .open_images import Loader
from .recipe import Recipe
from .reckoning import line_of, wall_of_a_step

_FEWEST = 20  # steps: shorter runs are over as soon as said
_SECONDS, _SHARE = 3.0, 0.03  # at the most, and of the run


def foretell(
    model: Distiller | LogitDistiller, recipe: Recipe, data: Loader, steps: int, world: World
) -> str:
    """How long the steps will take, from a few of noise; "" where that is not known cheaply.

    A copy is trained, so that nothing of the run changes: no weight, no statistics, no generator.
    The exchange between processes and what comes after the last step are not in it.

    Args:
        model: What will be trained; moved to the run's device.
        recipe: The run's.
        data: Its loader.
        steps: That are left.
        world: The processes.
    """
    machine, size = recipe.machine, recipe.science.data.batch_size // world.size
    if steps < _FEWEST or machine.parallel == "fsdp" or not isinstance(data, ImageLoader):
        return ""
    device, parts = world.device, machine.accumulate
    growing = [parts * 2 * 3**n for n in range(7)] if device.type == "cpu" else []
    sizes = [n for n in growing if n < size] + [size]
    try:
        probe = Probe(copy_of(model.to(device)), recipe.science.optimizer, machine, device)
        first = probe.step(sizes[0]).seconds * size / sizes[0]
        found = measure(probe, sizes, taken(steps, first), briefly=True)
    except torch.OutOfMemoryError:
        return ""  # the run will say so itself, with what to do
    images = [step.images for step in found]
    seconds = line_of(images, [step.seconds for step in found]).at(size)
    reading = measure_loader(data, min(0.3, taken(steps, seconds)))
    step = wall_of_a_step(
        seconds, reading, size, workers=data.workers,
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        cores=max(1, cores() // world.size),
    )  # fmt: skip
    known = [one.memory for one in found if one.memory is not None]
    said = f"{time_text(step)} a step of {recipe.science.data.batch_size} images"
    if len(known) == len(found) > 1 or images == [size]:
        copied = sum(p.nbytes for p in model.parameters())
        said += f", {size_text(line_of(images, known).at(size) - copied)}"
    del probe
    reset_peak(device)
    # A small batch is slower for its size, so that one alone gives too much.
    science = recipe.science
    cheaper = science.optimizer.first_scale or science.data.prepared or science.data.views
    exact = not cheaper and (len(found) > 1 or images == [size])
    about = "About" if exact else "At most about"
    return f"{about} {time_text(step * steps)} on this machine ({said})."


def taken(steps: int, seconds: float) -> float:
    """Seconds that `foretell` takes, about, before a run of so many steps of so many seconds."""
    return 0.0 if steps < _FEWEST else min(_SECONDS, _SHARE * steps * seconds)
