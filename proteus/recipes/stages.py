"""The stages of a chain: which run each is, and what came of it."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..features import ShapeError
from ..models.names import objectives_of
from ..report.curves import NO_TERMS
from ..report.page import Table
from ..training.rows import Row
from .by_path import with_settings
from .recipe import Recipe

_OWN = re.compile(r"machine|science$|science\.model(\.teacher|\.student|\.teacher_checkpoint)?$")

_UNFIT = re.compile(r"[^\w.]+")  # for the name of a folder


@dataclass(frozen=True)
class Stage:
    """One student of a chain.

    Attributes:
        student: See `Student`.
        settings: What differs from the chain's recipe, path -> value, such as
            `{"science.data.epochs": 100}`.
    """

    student: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    """What came of a stage.

    Attributes:
        folder: Of the run.
        recipe: What it did.
        first: The log's first row.
        last: The log's last row.
        watched: The last measurement on held-out images, {} without `machine.watch`.
    """

    folder: Path
    recipe: Recipe
    first: Row
    last: Row
    watched: Row


def plan_chain(recipe: Recipe, stages: Sequence[Stage], out: Path) -> list[tuple[Path, Recipe]]:
    """The folder and the recipe of each stage.

    Raises:
        ValueError: If the stages are too few, or their settings do not fit.

    Examples:
        >>> chain = with_settings(Recipe(), {"science.model.teacher": "dinov2_vitb14"})
        >>> stages = [Stage("vit_small_patch14"), Stage("vit_tiny_patch14")]
        >>> [one.science.model.teacher for _, one in plan_chain(chain, stages, Path("out"))]
        ['dinov2_vitb14', 'local-dir:out/1-vit_small_patch14/export']
    """
    if len(stages) < 2:
        raise ValueError(
            f"chain: too few students. Got {[stage.student for stage in stages]}; expected at "
            f"least two. For one, set science.model.student (--student)."
        )
    if recipe.science.logits is not None:
        raise ValueError(
            "chain: students have no class logits to teach with. Got science.logits; expected a "
            "recipe that compares features."
        )
    if recipe.science.data.prepared is not None:
        raise ValueError(
            f"chain: targets of one teacher do not suit the next. Got science.data.prepared="
            f"{recipe.science.data.prepared!r}; expected none, or science.data.views (--views), "
            f"with which each stage prepares its own."
        )
    base = replace(recipe, name="custom", preset=None, scores={})
    supported = objectives_of(recipe.science.model.teacher)
    weights = {
        f"science.loss.{term}": float(term in supported)
        for term in ("token", "feature", "patch")
        if vars(recipe.science.loss)[term] is None
    }
    plan: list[tuple[Path, Recipe]] = []
    for number, stage in enumerate(stages, 1):
        folder = out / f"{number}-{_UNFIT.sub('-', stage.student)[-80:]}"
        settings: dict[str, Any] = {"science.model.student": stage.student}
        if plan:
            settings |= weights | {
                "science.model.teacher": f"local-dir:{plan[-1][0] / 'export'}",
                "science.model.teacher_checkpoint": None,
            }
        for path in stage.settings:
            if _OWN.match(path):
                raise ValueError(
                    f"chain: {path} is not a stage's own. Got it for {stage.student!r}; expected "
                    f"settings of `science`, teacher and student apart. Set it for the chain."
                )
        about = f"Stage {number} of a chain of {len(stages)}."
        with naming(folder):
            changed = with_settings(base, settings | dict(stage.settings))
        plan.append((folder, replace(changed, about=about)))
    return plan


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Say of which stage an error is."""
    try:
        yield
    except ValueError as error:
        kind = ShapeError if isinstance(error, ShapeError) else ValueError
        raise kind(f"chain: stage {folder.name}: {error}") from error


def stages_table(results: Sequence[StageResult]) -> Table:
    """The stages, their losses, and how well each agrees with its teacher."""
    terms = [name for name in results[0].first if name not in NO_TERMS]
    seen = [name for name in ("cls_cosine", "patch_cosine") if name in results[0].watched]
    header = ["stage", "steps", "first total", *terms, *(f"watch {name}" for name in seen)]
    rows = [
        [
            one.folder.name,
            str(one.last["step"] + 1),
            f"{one.first['total']:.4f}",
            *(f"{one.last[name]:.4f}" if name in one.last else "" for name in terms),
            *(f"{one.watched[name]:.4f}" if name in one.watched else "" for name in seen),
        ]
        for one in results
    ]
    return Table(header, rows)
