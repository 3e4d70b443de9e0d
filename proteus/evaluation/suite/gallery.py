"""Pictures for the page of a suite: what the features look like, and the scores as bars."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...features import ShapeError
from ...report.page import Heading, Part, Picture
from ...world import rank_and_world
from ..charts import save_bars
from ..pictures import save_neighbours, save_side_by_side
from .find_sets import EvaluationSet
from .protocols import OpenSet
from .results_page import TITLES, value_of
from .runner import SuiteRun
from .shown_images import mistaken, neighbours

_logger = logging.getLogger(__name__)
_SHOWN = 6  # images
_NEIGHBOURS = 5
_PAPER_SIZE = 518  # pixels, of the paper's feature maps


def suite_pictures(
    run: SuiteRun, sets: Sequence[EvaluationSet], results: Mapping[str, Mapping[str, Any]]
) -> list[Part]:
    """Draw what there is to draw, into the run's folder and for its page.

    Args:
        run: A finished run.
        sets: Its sets.
        results: What it returned.

    Returns:
        What k-NN mistook and nearest neighbours, both where it ran in one process; PCA maps of
        the model, beside the teacher's where there is one, and bars of the classification scores.
    """
    pictures: list[Part] = []
    failed = {key.partition("/")[2] for key, one in results.items() if "error" in one}
    readable = [
        one
        for one in sets
        if one.task == "classification" and one.root is None and one.name not in failed
    ]
    if rank_and_world()[1] == 1:  # the others would have to help where the cache was deleted
        found = [one for one in readable if f"knn/{one.name}" in results]
        if found:
            pictures += _images(run, found[0], results[f"knn/{found[0].name}"])
    if readable and 0 not in run.model.patch_size:
        try:
            pictures += [Heading("Patch features"), _maps(run, readable[0])]
        except ValueError as error:  # a model may fail at this size alone
            _logger.warning("suite: no picture of the features. %s", error)
    scores = {
        title: {
            key.partition("/")[2]: score
            for key, one in results.items()
            if key.startswith(f"{protocol}/") and (score := value_of(one)) is not None
        }
        for protocol, title in TITLES.items()
    }
    scores = {title: row for title, row in scores.items() if row}
    if scores:
        save_bars(scores, run.out / "scores.png", title=run.name, label="per cent")
        pictures += [
            Heading("Scores"), Picture(run.out / "scores.png", "Classification, per cent.")
        ]  # fmt: skip
    return pictures


def _maps(run: SuiteRun, one: EvaluationSet) -> Picture:
    data = OpenSet(run.tools, one).split("test").first(_SHOWN)
    images = [data.image(n) for n in range(len(data))]
    models = {"teacher": run.teacher, run.name: run.model} if run.teacher else {run.name: run.model}
    native = run.settings.image_size
    size = max(native, min(4 * native, _PAPER_SIZE))
    try:
        save_side_by_side(models, images, run.out / "pca.png", image_size=size)
    except ShapeError:  # a model of windows, which takes few sizes
        size = native
        save_side_by_side(models, images, run.out / "pca.png", image_size=size)
    caption = (
        f"Patch features on test images of {one.name} at {size} px: the first three principal "
        f"components as colours."
    )
    return Picture(run.out / "pca.png", caption)


def _images(run: SuiteRun, one: EvaluationSet, result: Mapping[str, Any]) -> list[Part]:
    """Mistakes and neighbours on one set; the neighbours also as a file."""
    opened = OpenSet(run.tools, one)
    train, test = (opened.features(split, probe=True) for split in ("train", "test"))
    save_neighbours(
        test, train, opened.split("test"), opened.split("train"), run.out / "neighbours.png",
        count=min(_SHOWN, len(test)), neighbours=min(_NEIGHBOURS, len(train)),
    )  # fmt: skip
    wrong = mistaken(opened, result)
    parts: list[Part] = [Heading(f"Mistaken by k-NN on {one.name}"), *wrong] if wrong else []
    parts += [
        Heading(f"Nearest training images on {one.name}"),
        "Test images and what lies nearest by the cosine of class tokens, with its class; a green "
        "frame is the same class.",
        *neighbours(opened, run.teacher),
    ]
    return parts
