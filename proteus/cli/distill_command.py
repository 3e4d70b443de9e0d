"""`proteus distill`."""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..settings import Machine, Optimizer
from .parser import Commands, add_command, add_fields

# Options that are short names for settings of the recipe.
_SETTINGS = {
    "teacher": "science.model.teacher",
    "teacher_checkpoint": "science.model.teacher_checkpoint",
    "student": "science.model.student",
    "image_size": "science.model.image_size",
    "data": "science.data.paths",
    "augment": "science.data.augment",
    "repeats": "science.data.repeats",
    "batch_size": "science.data.batch_size",
    "token": "science.loss.token",
    "feature": "science.loss.feature",
    "patch": "science.loss.patch",
    "mask": "science.masks.strategy",
    "seed": "science.seed",
}
# Fields that are options by their own names.
_OPTIMIZER = ("lr", "weight_decay", "warmup", "precision", "ema")
_MACHINE = (
    "device", "workers", "accumulate", "parallel", "compile", "save_every",
    "watch", "watch_labels", "watch_every", "track",
)  # fmt: skip
_SETTINGS |= {name: f"science.optimizer.{name}" for name in _OPTIMIZER}
_SETTINGS |= {name: f"machine.{name}" for name in _MACHINE}
_NAMED = re.compile(r"[A-Za-z0-9._-]+=")
_LENGTHS = ("epochs", "steps", "images")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    distill = add_command(
        commands,
        "distill",
        "Distil a teacher into a student on a folder of images or tar shards.",
        "proteus distill --teacher dinov2_vitb14 --student vit_small_patch14 \\\n"
        "      --image-size 224 --data IMAGES --epochs 100 --batch-size 256 --out runs/first\n"
        "  torchrun --nproc-per-node 8 -m proteus distill --recipe s14-dinov2-b14 \\\n"
        "      --data IMAGENET --out runs/s14\n"
        "  proteus distill --teacher dinov2_vitb14 --student ti=vit_tiny_patch14 \\\n"
        "      --student s=vit_small_patch14 --data IMAGES --epochs 100 --out runs/both",
    )
    add = distill.add_argument
    source = distill.add_mutually_exclusive_group()
    source.add_argument("--recipe", metavar="NAME", help="a run of the paper: `proteus recipes`")
    source.add_argument("--from", dest="repeat", type=Path, metavar="RUN.JSON",
                        help="repeat a run: its folder or its run.json")  # fmt: skip
    add("--preset", choices=["paper", "official"], help="of --recipe (default paper)")
    add("--set", action="append", default=[], metavar="[NAME:]PATH=VALUE",
        help="any setting of the recipe, such as science.loss.head=mlp; repeatable; with the NAME "
        "of one of several students, its own")  # fmt: skip
    add("--teacher", help="a published name, a timm name, hf-hub:…, local-dir:…")
    add("--teacher-checkpoint", help="local .safetensors or .pth with its weights")
    add("--student", action="append", metavar="[NAME=]MODEL",
        help="vit_tiny|small|base|large_patch14, a timm name, …; repeatable: several students from "
        "one teacher pass, each a run in OUT/NAME (default NAME: the model's)")  # fmt: skip
    add("--pretrained-student", action="store_true", help="start from its published weights")
    add("--data", nargs="+", help="folder, .tar shards, pattern, list, hfds/…")
    add("--single", type=int, metavar="N", help="--data is one large image: N views of it")
    augment = ["crop", "fast", "official", "none"]
    add("--augment", choices=augment, help="see the docs on images (default crop)")
    add("--repeats", type=int, help="samples of an image in a row (default 1)")
    length = distill.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, help="passes over the images")
    length.add_argument("--steps", type=int, help="optimizer steps")
    length.add_argument("--images", type=int, help="images seen, whatever the set's size")
    add("--batch-size", type=int, help="images a step, on all processes together (default 64)")
    add_fields(distill, Optimizer, _OPTIMIZER)
    add("--image-size", type=int, help="pixels (default: the teacher's own)")
    supported = "(default 1 if the teacher supports it, else 0)"
    add("--token", type=float, help=f"weight of the class-token term {supported}")
    add("--feature", type=float, help=f"weight of the all-tokens term {supported}")
    add("--patch", type=float, help=f"weight of the hidden-patches term {supported}")
    add("--mask", choices=["random", "block"], help="(default random)")
    add("--out", type=Path, help="folder for log, checkpoint, export, pictures")
    add("--seed", type=int, help="(default 0)")
    add_fields(distill, Machine, _MACHINE)
    add("--resume", nargs="?", const=True, choices=["auto"], default=False,
        help="go on with the run in --out; `--resume auto` = if there is one")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the run in --out")
    distill.set_defaults(run=_run_distill)


def _run_distill(arguments: argparse.Namespace) -> int:
    from ..recipes import run, run_all

    recipes = recipes_of(arguments)
    for recipe in recipes.values():
        _refuse_incomplete(recipe, arguments.out)
    out: Path = arguments.out
    options = {"resume": arguments.resume, "overwrite": arguments.overwrite, "say": print}

    def work() -> None:
        if "" in recipes:
            logs = {"": run(recipes[""], out, **options)}
        else:
            logs = run_all(recipes, out, **options)
        for name, rows in logs.items() if _first_process() else ():
            if name:
                print(f"\n{name}")
            _summarize(rows, out / name)

    return until_stopped("distill", work)


def until_stopped(command: str, work: Callable[[], object]) -> int:
    """Train; the exit status.

    Returns:
        0, also where a scheduler ended the run; 130 where Ctrl-C did, so that a shell's loop or
        script ends, too.
    """
    from ..training import RunStopped, leave

    status = 0
    try:
        work()
    except RunStopped as stopped:
        if _first_process():
            print(f"proteus {command}: {stopped}", file=sys.stderr)
        status = 130 if stopped.by is signal.SIGINT else 0
    leave()  # not after an error: with a process missing, parting could wait for it
    return status


def recipes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name -> the recipe that the options describe, of each student; "" = there is one alone."""
    from ..recipes import read_recipes
    from ..report.groups_of_runs import runs_in

    students: dict[str, str | None] = {}
    for text in arguments.student or ():
        name, _, model = text.partition("=") if _NAMED.match(text) else ("", "", text)
        name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", model).lstrip(".")
        if name in students:
            raise ValueError(
                f"--student: two students by one name. Got {name!r} twice; expected a name for "
                f"each of them, such as --student a={model}."
            )
        students[name] = model
    bases: Mapping[str, Any] = {}
    if arguments.repeat and runs_in(arguments.repeat):
        bases = read_recipes(arguments.repeat)
        if students:
            raise ValueError(
                f"--student would be ignored. {arguments.repeat} has its own: {', '.join(bases)}."
            )
        students = dict.fromkeys(bases)
    if len(students) <= 1:
        if students and _NAMED.match(arguments.student[0]):
            raise ValueError(
                f"--student: the name would be ignored. Got {arguments.student[0]!r} alone; "
                f"expected {next(iter(students.values()))!r}, whose run is in --out itself."
            )
        return {"": _recipe_of(arguments, next(iter(students.values()), None), arguments.set)}
    lines = _settings_of_each([*students], arguments.set)
    return {
        name: _recipe_of(arguments, model, lines[name], bases.get(name))
        for name, model in students.items()
    }


def _settings_of_each(names: list[str], lines: list[str]) -> dict[str, list[str]]:
    """The `--set` of all and of each, whose path starts with its name."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for line in lines:
        path, _, value = line.partition("=")
        name, colon, own = path.partition(":")
        if colon and name not in found:
            raise ValueError(
                f"--set: no such student. Got {line!r}; expected one of {', '.join(names)}."
            )
        for each in [name] if colon else names:
            found[each].append(f"{own}={value}" if colon else line)
    return found


def _recipe_of(
    arguments: argparse.Namespace, student: str | None, lines: list[str], base: Any = None
) -> Any:
    """The recipe of one student; `base` = of a run that is repeated."""
    from ..recipes import Recipe, parse_setting, read_recipe, recipe, with_settings

    given = {**vars(arguments), "student": student}
    if arguments.preset and not arguments.recipe:
        raise ValueError("--preset would be ignored. It belongs to --recipe NAME.")
    if arguments.recipe:
        base = recipe(arguments.recipe, arguments.preset or "paper")
    elif base is None:
        base = read_recipe(arguments.repeat) if arguments.repeat else Recipe()
    settings: dict[str, Any] = {
        path: given[name] for name, path in _SETTINGS.items() if given[name] is not None
    }
    if any(given[name] is not None for name in _LENGTHS):
        settings |= {f"science.data.{name}": given[name] for name in _LENGTHS}
    if arguments.pretrained_student:
        settings["science.model.init"] = "pretrained"
    if arguments.single is not None:
        settings["science.data.proxy"] = f"single:{arguments.single}"
    for line in lines:
        path, value = parse_setting(line)
        if path in settings:
            raise ValueError(f"--set {line} contradicts an option. Got {path} twice; give it once.")
        settings[path] = value
    masks = any(path.startswith("science.masks") for path in settings)
    if settings.get("science.loss.patch") == 0 and not masks:
        settings["science.masks"] = {}  # the recipe's own masks go with the term they belong to
    return with_settings(base, settings)


def _refuse_incomplete(recipe: Any, out: Path | None) -> None:
    """Say at once all that a run lacks."""
    model, data = recipe.science.model, recipe.science.data
    needed = {
        "--teacher NAME": model.teacher,
        "--student NAME": model.student,
        "--data IMAGES": data.paths,
        "--epochs N (or --steps, --images)": any(
            length is not None for length in (data.epochs, data.steps, data.images)
        ),
        "--out FOLDER": out,
    }
    missing = [option for option, value in needed.items() if not value]
    if missing:
        raise ValueError(
            f"missing {', '.join(missing)}.\n`proteus info` lists models, `proteus recipes` the "
            f"paper's runs (--recipe NAME), `proteus distill --help` all options."
        )


def _first_process() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _summarize(rows: list[dict[str, Any]], out: Path) -> None:
    from ..report.curves import NO_TERMS
    from ..report.page import Table, text_table

    terms = [name for name in rows[0] if name not in NO_TERMS]
    table = Table(
        ["loss", *terms],
        [
            [label, *(f"{row[term]:.4f}" for term in terms)]
            for label, row in (("first step", rows[0]), ("last step", rows[-1]))
        ],
    )
    print(f"\n{text_table(table)}\n")
    pictures = [str(out / name) for name in ("pca.png", "curves.png") if (out / name).exists()]
    print(f"Student: {out / 'export'}    Pictures: {', '.join(pictures)}")
