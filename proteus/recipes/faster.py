"""What makes a run cost half: prepared targets, and smaller images first."""

from dataclasses import replace

from .recipe import Recipe

VIEWS, SCALE, SHARE = 2, 0.5, 0.75


def faster(recipe: Recipe) -> Recipe:
    """The recipe as preset `fast`: what it costs and keeps is in docs/speed.md.

    Targets of a few views are prepared first, in the run's folder; most of the steps see half the
    side. Logits, which ask the teacher in each step, keep their teacher.

    Examples:
        >>> from proteus.recipes import Recipe
        >>> found = faster(Recipe()).science
        >>> found.data.views, found.optimizer.first_scale, found.optimizer.first_share
        (2, 0.5, 0.75)
    """
    science = recipe.science
    optimizer = replace(science.optimizer, first_scale=SCALE, first_share=SHARE)
    data = science.data
    if science.logits is None:
        data = replace(data, views=VIEWS, repeats=1)
    return replace(
        recipe, preset="fast", scores={}, science=replace(science, data=data, optimizer=optimizer)
    )
