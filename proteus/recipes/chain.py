"""A chain: a large teacher to a small student over students in between, each the next's teacher."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..features import ShapeError
from ..files import flatten, is_plain, read_json, seal, unseal, write_whole
from ..student import Student
from ..training import join
from ..training.checkpoint import CheckpointError
from ..training.folder import Resume, holding, holds_run, remove_run, started_again
from ..training.rows import LOG, WATCH, read_rows
from .launch import run
from .open_images import open_images
from .recipe import Recipe, to_json
from .stages import Stage, StageResult, naming, plan_chain

CHAIN = "chain.json"


def run_chain(
    recipe: Recipe,
    stages: Sequence[str | Stage],
    out: str | Path,
    *,
    resume: Resume = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[StageResult]:
    """Run a recipe once for each student: the first learns from its teacher, the next from it.

    Each stage is a run in `out/1-STUDENT`, `out/2-STUDENT`, …, like any other; its student in
    `export/` is the next one's teacher. A stage that is finished (`chain.json` says so) is not run
    again.

    Where the recipe leaves the weights of the terms open, all stages have those that the first
    teacher supports: a student of a teacher without patches has none to teach, either.

    Args:
        recipe: Of all stages; its student is not looked at.
        stages: The students in order, at least two.
        out: Folder of the chain.
        resume: Go on with the chain in `out`, in whichever stage it was stopped; `"auto"` = if
            there is one, else start.
        overwrite: Replace the chain in `out`.
        progress: Show a progress bar for each stage.
        say: Takes sentences for the user.

    Returns:
        What came of each stage.

    Raises:
        ValueError: If a stage does not fit, before any is run; if `out` holds a chain, or on
            resuming another one, naming what differs.

    Source:
        Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant (AAAI 2020).
        *Same:* a student is the next one's teacher; any number of stages.
        *Different:* features are compared and not logits, and each stage has heads of its own.
    """
    out = Path(out)
    named = [Stage(stage) if isinstance(stage, str) else stage for stage in stages]
    plan = plan_chain(recipe, named, out)
    described = _describe(recipe, named, plan)
    world = join(recipe.machine.device)
    tell = say if world.first else lambda text: None
    with holding(out, world):
        with world.as_one():
            going_on, finished = world.once(lambda: _claim(out, described, resume, overwrite))
            for folder, one in plan:
                if folder.name not in finished:
                    _check(folder, one)
            if overwrite:  # an older chain goes only now that all of this was found to fit
                open_images(plan[0][1], world, lambda text: None)
            world.once(lambda: _begin(out, described, finished, overwrite))
        try:
            for folder, one in plan:
                if folder.name in finished:
                    tell(f"Stage {folder.name} is finished.")
                    continue
                tell(f"Stage {folder.name}, from {one.science.model.teacher}.")
                run(
                    one, folder, resume="auto" if going_on else False, overwrite=overwrite,
                    progress=progress, say=say,
                )  # fmt: skip
                finished.append(folder.name)
                world.once(lambda: _note(out, described, finished))
        finally:
            if world.first and not any(holds_run(folder) for folder, _ in plan):
                (out / CHAIN).unlink(missing_ok=True)  # a chain that could not start leaves nothing
        return world.once(lambda: [_result(folder, one) for folder, one in plan])


def _check(folder: Path, recipe: Recipe) -> None:
    """Build a stage's student: a mistyped name must not wait for days to be found."""
    model = recipe.science.model
    # Without an image size it will be the teacher's, which may be what the student needs.
    unknown = contextlib.suppress(*([ShapeError] if model.image_size is None else []))
    with unknown, naming(folder):
        student = Student(
            model.student,
            pretrained=model.init == "pretrained",
            image_size=model.image_size,
            drop_path=model.drop_path,
        )
        student.freeze(recipe.science.optimizer.frozen or ())


def _describe(
    recipe: Recipe, stages: Sequence[Stage], plan: Sequence[tuple[Path, Recipe]]
) -> dict[str, Any]:
    """What a chain goes on with only."""
    science = to_json(recipe)["science"]
    science["model"] = {**science["model"], "student": None}
    described = {
        "recipe": {"science": science},
        "stages": {
            folder.name: {"student": stage.student, "settings": dict(stage.settings)}
            for (folder, _), stage in zip(plan, stages, strict=True)
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))  # as it is read again
    return plain


def _claim(
    out: Path, described: Mapping[str, Any], resume: Resume, overwrite: bool
) -> tuple[bool, list[str]]:
    """Whether there is a chain to go on with, and its finished stages."""
    if resume and overwrite:
        raise ValueError("chain: resume and overwrite exclude each other. Got both.")
    saved = _read(out)
    folders = [out / name for name in saved["chain"]["stages"]] if saved else []
    if resume is True and saved is None:
        raise CheckpointError(
            f"chain: nothing to resume. Got {str(out)!r}, which holds no chain; expected the "
            f"folder of one. Leave resume (--resume) out."
        )
    if saved is None or overwrite or not any(map(holds_run, folders)):
        return False, []
    if not (resume or any(map(started_again, folders))):
        raise ValueError(
            f"chain: {str(out)!r} already holds one. Pass resume (--resume) to go on with it, "
            f"overwrite (--overwrite) to replace it, or another folder."
        )
    before, now = flatten(saved["chain"]), flatten(described)
    changed = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if changed:
        lines = "; ".join(f"{p} was {before.get(p)!r}, is {now.get(p)!r}" for p in changed)
        raise CheckpointError(
            f"chain: {str(out)!r} was begun with other settings. Got {lines}. Resume with those of "
            f"the chain, or start a new one in another folder."
        )
    return True, saved["finished"]


def _read(out: Path) -> dict[str, Any] | None:
    path = out / CHAIN
    if not is_plain(path):
        return None
    try:
        return unseal(read_json(path))
    except ValueError as error:
        raise CheckpointError(
            f"chain: {path} is damaged. Got {error}. Its stages are whole runs: move them aside, "
            f"and go on from the last one's export/ as a teacher."
        ) from error


def _begin(
    out: Path, described: Mapping[str, Any], finished: Sequence[str], overwrite: bool
) -> None:
    saved = _read(out) if overwrite else None
    first = next(iter(described["stages"]))  # its run is replaced when the new one fits
    for name in saved["chain"]["stages"] if saved else []:
        if name != first and (out / name).is_dir():
            remove_run(out / name)
            with contextlib.suppress(OSError):  # it holds files of the user's
                (out / name).rmdir()
    _note(out, described, finished)


def _note(out: Path, described: Mapping[str, Any], finished: Sequence[str]) -> None:
    write_whole(out / CHAIN, seal({"chain": described, "finished": list(finished)}))


def _result(folder: Path, recipe: Recipe) -> StageResult:
    rows, watched = read_rows(folder / LOG), read_rows(folder / WATCH)
    if not rows:
        raise ValueError(f"chain: the log of a stage is gone. Got none in {str(folder)!r}.")
    return StageResult(folder, recipe, rows[0], rows[-1], watched[-1] if watched else {})
