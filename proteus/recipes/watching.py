"""The watch of a recipe: on images that it names, or on some of its own that it keeps out."""

from collections.abc import Callable
from typing import Any

from .open_images import open_held_out
from .recipe import Recipe


def watch_of(recipe: Recipe, image_size: int, say: Callable[[str], None]) -> Any:
    """The recipe's watch, or None."""
    machine, held_out = recipe.machine, recipe.science.data.hold_out
    if not machine.watch and not held_out:
        return None
    from ..training.watch import Watch, margin_of

    images: Any = list(machine.watch)
    options: dict[str, Any] = {}
    if held_out:
        images, trained_on = open_held_out(recipe)
        options = {"count": held_out, "bank": trained_on if machine.watch_labels else None}
    watch = Watch.from_sources(
        images,
        image_size=image_size,
        labels=machine.watch_labels,
        every=machine.watch_every,
        **options,
    )
    if watch.scored:
        say(
            f"Watch: its k-NN is scored on {watch.scored} images; 0.5 of so few means 0.5 ± "
            f"{margin_of(0.5, watch.scored):.2g} (95 %). `proteus evaluate` scores all of a set."
        )
    return watch
