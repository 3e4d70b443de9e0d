"""`proteus distill`."""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..settings import Machine, Optimizer
from .choices import add_minutes, complete, first_process, refuse_incomplete, summarize
from .parser import Commands, add_command, add_fields

# Options that are short names for settings of the recipe.
_SETTINGS = {
    "teacher": "science.model.teacher",
    "teacher_checkpoint": "science.model.teacher_checkpoint",
    "student": "science.model.student",
    "init": "science.model.init",
    "teacher_layers": "science.model.teacher_layers",
    "student_layers": "science.model.student_layers",
    "image_size": "science.model.image_size",
    "teacher_image_size": "science.model.teacher_image_size",
    "teacher_precision": "science.model.teacher_precision",
    "grids": "science.model.grids",
    "data": "science.data.paths",
    "augment": "science.data.augment",
    "repeats": "science.data.repeats",
    "prepared": "science.data.prepared",
    "views": "science.data.views",
    "hold_out": "science.data.hold_out",
    "batch_size": "science.data.batch_size",
    "token": "science.loss.token",
    "feature": "science.loss.feature",
    "patch": "science.loss.patch",
    "distance": "science.loss.distance",
    "token_distance": "science.loss.token_distance",
    "targets": "science.loss.targets",
    "head": "science.loss.head",
    "mask": "science.masks.strategy",
    "seed": "science.seed",
}
# Fields that are options by their own names.
_OPTIMIZER = (
    "lr", "weight_decay", "layer_decay", "frozen", "warmup", "first_scale", "first_share",
    "precision", "ema",
)  # fmt: skip
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
        "proteus distill --data PHOTOS\n"
        "  proteus distill --teacher dinov2_vitb14 --student vit_small_patch14 \\\n"
        "      --image-size 224 --data IMAGES --epochs 100 --batch-size 256 --out runs/first\n"
        "  torchrun --nproc-per-node 8 -m proteus distill --recipe s14-dinov2-b14 \\\n"
        "      --data IMAGENET --out runs/s14\n"
        "  proteus distill --teacher dinov2_vitb14 --student ti=vit_tiny_patch14 \\\n"
        "      --student s=vit_small_patch14 --data IMAGES --epochs 100 --out runs/both",
    )
    add_recipe_options(distill)
    add = distill.add_argument
    add("--chain", metavar="A,B,C",
        help="students of a chain in place of --student, each the next one's teacher")  # fmt: skip
    add("--set-stage", action="append", default=[], metavar="N:PATH=VALUE",
        help="a setting of the chain's Nth stage alone; repeatable")  # fmt: skip
    add_minutes(distill)
    add("--out", type=Path, help="folder for log, checkpoint, export, pictures (default: a new one "
        "in runs/, where no length is given)")  # fmt: skip
    add("--resume", nargs="?", const=True, choices=["auto"], default=False,
        help="go on with the run in --out; `--resume auto` = if there is one")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the run in --out")
    distill.set_defaults(run=_run_distill)


def add_recipe_options(command: argparse.ArgumentParser, set_size: str = "") -> None:
    """The options that describe what `recipes_of` reads; `set_size` = `--images` says this."""
    add = command.add_argument
    source = command.add_mutually_exclusive_group()
    source.add_argument("--recipe", metavar="NAME", help="a run of the paper: `proteus recipes`")
    source.add_argument("--from", dest="repeat", type=Path, metavar="RUN.JSON",
                        help="repeat a run: its folder or its run.json")  # fmt: skip
    add("--preset", choices=["paper", "official", "fast"],
        help="of --recipe (default paper); fast goes with any run: targets prepared")  # fmt: skip
    add("--set", action="append", default=[], metavar="[NAME:]PATH=VALUE",
        help="any setting of the recipe, such as science.loss.head=mlp; repeatable; with the NAME "
        "of one of several students, its own")  # fmt: skip
    add("--teacher", help="a published name, a timm name, hf-hub:…, local-dir:…, hf-transformers:…")
    add("--teacher-checkpoint", help="local .safetensors or .pth with its weights")
    add("--student", action="append", metavar="[NAME=]MODEL",
        help="vit_tiny|small|base|large_patch14, a timm name, …; repeatable: several students from "
        "one teacher pass, each a run in OUT/NAME (default NAME: the model's)")  # fmt: skip
    first = command.add_mutually_exclusive_group()
    first.add_argument("--init", choices=["random", "pretrained", "select"],
                       help="the student's first weights: published, or selected of the teacher's "
                            "(default random); local-dir:… brings its own")  # fmt: skip
    first.add_argument("--pretrained-student", action="store_true", help="--init pretrained")
    for model in ("teacher", "student"):
        add(f"--{model}-layers", nargs="+", type=int, metavar="N",
            help=f"layers of the {model} that its patches come from, such as -2 -1 (default: "
            f"its output)")  # fmt: skip
    add("--data", nargs="+", help="folder, .tar shards, pattern, list, hfds/…")
    add("--single", type=int, metavar="N", help="--data is one large image: N views of it")
    augment = ["crop", "fast", "official", "none"]
    add("--augment", choices=augment, help="see the docs on images (default crop)")
    add("--repeats", type=int, help="samples of an image in a row (default 1)")
    add("--prepared", metavar="FOLDER",
        help="targets of `proteus prepare`, in place of the teacher in each step")  # fmt: skip
    add("--views", type=int, metavar="K",
        help="prepare targets of K views of each image first, in OUT/targets")  # fmt: skip
    add("--hold-out", type=int, metavar="N",
        help="images that are not trained on, to measure the student on now and then")  # fmt: skip
    length = command.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, help="passes over the images")
    length.add_argument("--steps", type=int, help="optimizer steps")
    images = command if set_size else length
    seen = "images seen, whatever the set's size"
    images.add_argument("--images", type=int, help=set_size or seen)
    add("--batch-size", type=int, help="images a step, on all processes together (default 64)")
    add_fields(command, Optimizer, _OPTIMIZER)
    add(
        "--image-size",
        type=int,
        help="pixels of the student's images (default: the teacher's size, or where grids agree)",
    )
    add(
        "--teacher-image-size",
        type=int,
        help="pixels of the teacher's (default: where its grid is the student's, if near)",
    )
    add("--teacher-precision", choices=["bf16", "fp16"],
        help="the teacher alone computes in it (default: --precision)")  # fmt: skip
    add("--grids", choices=["agree", "average"],
        help="sizes where grids agree, or one size and finer tokens averaged (agree)")  # fmt: skip
    supported = "(default 1 if the teacher supports it, else 0)"
    add("--token", type=float, help=f"weight of the class-token term {supported}")
    add("--feature", type=float, help=f"weight of the all-tokens term {supported}")
    add("--patch", type=float, help=f"weight of the hidden-patches term {supported}")
    distances = ["mse", "smooth_l1", "cosine", "cosine_smooth_l1", "relation"]
    add("--distance", choices=distances, help="between tokens (default mse)")
    add("--token-distance", choices=[*distances, "queue"],
        help="of the class-token term alone (default --distance)")  # fmt: skip
    add("--targets", choices=["raw", "standardized", "phi_s", "angle"],
        help="maps of the teacher's tokens (default raw); angle: --head identity")  # fmt: skip
    heads = ["ln_linear", "linear_gelu", "gelu_linear", "linear", "mlp", "identity"]
    add(
        "--head",
        choices=heads,
        help="from the student's width to the teacher's (default ln_linear)",
    )
    add("--mask", choices=["random", "block"], help="(default random)")
    add("--seed", type=int, help="(default 0)")
    add_fields(command, Machine, _MACHINE)


def _run_distill(arguments: argparse.Namespace) -> int:
    from ..recipes import run, run_all

    recipes = recipes_of(arguments)
    if arguments.chain is not None:
        return _run_chain(arguments, recipes)
    if arguments.set_stage:
        raise ValueError("--set-stage would be ignored. It belongs to --chain A,B,C.")
    recipes, out = complete(arguments, recipes)
    options = {"resume": arguments.resume, "overwrite": arguments.overwrite, "say": print}

    def work() -> None:
        if "" in recipes:
            logs = {"": run(recipes[""], out, **options)}
        else:
            logs = run_all(recipes, out, **options)
        for name, rows in logs.items() if first_process() else ():
            if name:
                print(f"\n{name}")
            summarize(rows, out / name)

    return until_stopped("distill", work)


def _run_chain(arguments: argparse.Namespace, recipes: Mapping[str, Any]) -> int:
    from ..recipes import run_chain, stages_table, with_settings
    from ..report.page import text_table

    if arguments.student:
        raise ValueError(
            f"--student would be ignored. Got {', '.join(map(repr, arguments.student))} and "
            f"--chain; give one of them."
        )
    recipe = recipes[""]
    stages = _stages(arguments.chain, arguments.set_stage)
    students = with_settings(recipe, {"science.model.student": arguments.chain})
    refuse_incomplete(students, arguments.out)

    def work() -> None:
        results = run_chain(
            recipe, stages, arguments.out,
            resume=arguments.resume, overwrite=arguments.overwrite, say=print,
        )  # fmt: skip
        if first_process():
            print(f"\n{text_table(stages_table(results))}\n")
            print(f"Student: {results[-1].folder / 'export'}")

    return until_stopped("distill", work)


def _stages(students: str, lines: Sequence[str]) -> list[Any]:
    """The stages that the options describe."""
    from ..recipes import Stage, parse_setting

    stages = [Stage(student.strip()) for student in students.split(",") if student.strip()]
    own: dict[int, dict[str, Any]] = {number: {} for number in range(1, len(stages) + 1)}
    for line in lines:
        number, _, setting = line.partition(":")
        if not number.isdecimal() or int(number) not in own or "=" not in setting:
            raise ValueError(
                f"--set-stage: not a setting of a stage. Got {line!r}; expected N:PATH=VALUE with "
                f"N from 1 to {len(stages)}."
            )
        path, value = parse_setting(setting)
        if path in own[int(number)]:
            raise ValueError(f"--set-stage {line}: given twice. Give it once.")
        own[int(number)][path] = value
    return [Stage(one.student, own[number]) for number, one in enumerate(stages, 1)]


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
        if first_process():
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
    from ..recipes import Recipe, faster, parse_setting, read_recipe, recipe, with_settings

    given = {**vars(arguments), "student": student}
    if arguments.preset not in (None, "fast") and not arguments.recipe:
        raise ValueError("--preset would be ignored. It belongs to --recipe NAME.")
    if arguments.recipe:
        base = recipe(arguments.recipe, arguments.preset or "paper")
    elif base is None:
        base = read_recipe(arguments.repeat) if arguments.repeat else Recipe()
        base = faster(base) if arguments.preset else base
    settings: dict[str, Any] = {
        path: given[name] for name, path in _SETTINGS.items() if given[name] is not None
    }
    if arguments.prepared is not None and arguments.augment is None:
        from ..prepared import PreparedTargets

        targets = PreparedTargets(arguments.prepared).settings
        settings |= {"science.data.augment": targets.augment, "science.data.repeats": 1}
        settings["science.data.views"] = None
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
