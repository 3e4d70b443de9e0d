"""What a run was not told, chosen; and what is said at its end."""

import argparse
import os
import re
import textwrap
from pathlib import Path
from typing import Any


def add_minutes(command: argparse.ArgumentParser) -> None:
    """The option that stands for a length."""
    command.add_argument("--minutes", type=float, metavar="M",
        help="how long to train, where no length is given (default 8)")  # fmt: skip


def complete(arguments: argparse.Namespace, recipes: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """The recipes and the folder, with what was not told chosen and said.

    One student is completed; of several, all must be told.
    """
    recipe = recipes.get("")
    if recipe is None or not recipe.science.data.paths or not _lacks(recipe):
        if arguments.minutes is not None:
            raise ValueError(
                f"--minutes would be ignored. Got {arguments.minutes:g} with all that a run needs; "
                f"it stands for a length that is not given (--epochs, --steps, --images)."
            )
        for one in recipes.values():
            refuse_incomplete(one, arguments.out)
        return recipes, arguments.out
    from ..ranges import check_numbers
    from ..recipes import read_recipe

    check_numbers("distill", {"minutes": arguments.minutes})
    if arguments.out is None and (arguments.resume or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise ValueError("missing --out FOLDER: a run that goes on, or of many processes, has one.")
    out = arguments.out or new_folder(recipe.science.data.paths[0])
    if arguments.resume and (out / "run.json").is_file():
        return {"": read_recipe(out)}, out  # what was chosen then
    return {"": choose_aloud(recipe, out, arguments.minutes, arguments.batch_size)}, out


def choose_aloud(
    recipe: Any, out: Path, minutes: float | None, batch_size: int | None = None
) -> Any:
    """The recipe with everything that a run needs, each choice said by the first process."""
    from ..recipes.choosing import MINUTES, choose

    say = print if first_process() else lambda text: None
    chosen = choose(recipe, minutes=minutes or MINUTES, batch_size=batch_size, say=say)
    say(f"Folder: {out} (--out).")
    return chosen


def _lacks(recipe: Any) -> bool:
    """Whether models or a length are to be chosen."""
    model, data = recipe.science.model, recipe.science.data
    return not (model.teacher and model.student and data.has_length)


def new_folder(images: str) -> Path:
    """In `runs/`, by the name of the images; the first that is not there."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(images).stem).strip("-.") or "run"
    folder, number = Path("runs", name), 1
    while folder.exists():
        number += 1
        folder = Path("runs", f"{name}-{number}")
    return folder


def refuse_incomplete(recipe: Any, out: Path | None) -> None:
    """Say at once all that a run lacks."""
    model, data = recipe.science.model, recipe.science.data
    needed = {
        "--teacher NAME": model.teacher,
        "--student NAME": model.student,
        "--data IMAGES": data.paths,
        "--epochs N (or --steps, --images)": data.has_length,
        "--out FOLDER": out,
    }
    missing = [option for option, value in needed.items() if not value]
    if missing:
        raise ValueError(
            f"missing {', '.join(missing)}.\nWith --data alone, the rest is chosen. `proteus info` "
            f"lists models, `proteus recipes` the paper's runs (--recipe NAME), `proteus distill "
            f"--help` all options."
        )


def first_process() -> bool:
    """Whether this one speaks."""
    return os.environ.get("RANK", "0") == "0"


def summarize(rows: list[dict[str, Any]], out: Path) -> None:
    """What is said of a run that is done."""
    from ..report.curves import NO_TERMS
    from ..report.measured import judge_run
    from ..report.page import Table, text_table

    terms = [name for name in rows[0] if name not in NO_TERMS]
    table = Table(
        ["loss", *terms],
        [
            [label, *(f"{row[term]:.4f}" for term in terms)]
            for label, row in (("first step", rows[0]), ("last step", rows[-1]))
        ],
    )
    print(f"\n{text_table(table)}\n\n{textwrap.fill(str(judge_run(out)), 100)}\n")
    pictures = [str(out / name) for name in ("pca.png", "curves.png") if (out / name).exists()]
    print(f"Student: {out / 'export'}    Pictures: {', '.join(pictures)}")
