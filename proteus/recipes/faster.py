"""What makes a run cost less and keeps what it gives: targets that are prepared."""

from dataclasses import replace

from .recipe import Recipe

VIEWS = 2


def faster(recipe: Recipe) -> Recipe:
    """The recipe as preset `fast`: what it costs and keeps is in docs/speed.md.

    Targets of a few views are prepared first, in the run's folder.

    Raises:
        ValueError: If the recipe compares logits, which ask the teacher in each step.

    Examples:
        >>> from proteus.recipes import Recipe
        >>> faster(Recipe()).science.data.views
        2
    """
    science = recipe.science
    if science.logits is not None:
        raise ValueError(
            f"recipe: preset 'fast' prepares the teacher's features. Got {recipe.name!r}, which "
            f"compares logits; expected a recipe of features. Use --first-scale 0.5 for cheaper "
            f"steps."
        )
    data = replace(science.data, views=VIEWS, repeats=1)
    return replace(recipe, preset="fast", scores={}, science=replace(science, data=data))
