"""`proteus plan`."""

import argparse
from typing import TYPE_CHECKING, Any

from .distill_command import add_recipe_options, recipes_of
from .parser import Commands, add_command

if TYPE_CHECKING:
    from ..recipes.estimates import Estimate
    from ..recipes.planning import Forecast


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    plan = add_command(
        commands,
        "plan",
        "Say what a run will cost before it starts: time, memory, disk, the batch to choose.",
        "proteus plan --teacher dinov2_vitb14 --student vit_small_patch14 --image-size 224 \\\n"
        "      --images 100000 --epochs 100 --batch-size 256 --precision bf16 --on this 8xH100",
    )
    add_recipe_options(
        plan,
        "how many images there are, where --data names none; without epochs or steps: images seen",
    )
    plan.add_argument("--on", nargs="+", default=["this"], metavar="MACHINE",
                      help="this (measured, about 20 s), 8xH100, A100, RTX4090, … "
                           "(default this)")  # fmt: skip
    plan.add_argument("--json", action="store_true", help="all numbers, for a program")
    plan.set_defaults(run=_run_plan)


def _run_plan(arguments: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from ..recipes import to_json
    from ..recipes.planning import plan

    recipe, set_size = _asked(arguments)
    found = plan(recipe, arguments.on, set_size=set_size, say=lambda text: None)
    if not arguments.json:
        _print(found)
        return
    plain = asdict(found) | {"recipe": to_json(found.recipe)}
    for name in ("count", "reading"):
        plain[name] = vars(found)[name]._asdict()
    plain["steps"] = [step._asdict() for step in found.steps]
    print(json.dumps(plain, indent=2))


def _asked(arguments: argparse.Namespace) -> tuple[Any, int | None]:
    """The recipe, and how many images there are where it names none."""
    from ..ranges import check_numbers
    from ..recipes.cost import IMAGENET

    given, counted = arguments.images, any((arguments.epochs, arguments.steps))
    check_numbers("plan", {"images": given})
    if counted or arguments.recipe or arguments.repeat:  # the length is told without it
        arguments.images = None
    recipes = recipes_of(arguments)
    if "" not in recipes:
        raise ValueError(
            f"plan: one student at a time. Got {', '.join(recipes)}; expected one --student."
        )
    recipe = recipes[""]
    data = recipe.science.data
    if not data.has_length:
        raise ValueError(
            "plan: no length. Got neither --epochs nor --steps nor --images; expected one of them."
        )
    set_size = given if arguments.images is None else None
    if data.paths and set_size is not None:
        raise ValueError(
            f"plan: --images would be ignored. Got --images {given} and {', '.join(data.paths)}, "
            f"whose images are counted. Give one of them."
        )
    if set_size is None and arguments.recipe and not data.paths:
        set_size = IMAGENET  # that of the paper's runs
    return recipe, set_size


def _print(found: "Forecast") -> None:
    from ..report.page import Table, text_table
    from ..text import size_text, time_text

    science = found.recipe.science
    model, batch = science.model, science.data.batch_size
    print(
        f"{model.student} <- {model.teacher} at {model.image_size} px, "
        f"{science.optimizer.precision}, {found.estimates[0].steps:,} steps of {batch} images\n"
        f"{found.count.flops / 1e9:.1f} GFLOP an image, counted (the teacher's: "
        f"{found.count.teacher_flops / 1e9:.1f}); "
        f"{found.count.trained_parameters / 1e6:.1f} M parameters are trained\n"
    )
    header = ["machine", "time", "a step", "memory", "images/s", "cores to load", "best batch", ""]
    rows = [
        [
            one.on,
            time_text(one.seconds),
            time_text(one.step_seconds),
            "unknown" if one.memory is None else size_text(one.memory),
            f"{one.images_per_second:,.0f}",
            f"{one.loading_cores:.1f}",
            "none" if one.best is None else f"{one.best:,}",
            f"[{number}]",
        ]
        for number, one in enumerate(found.estimates, 1)
    ]
    print(text_table(Table(header, rows)), "\n")
    for number, one in enumerate(found.estimates, 1):
        print(f"[{number}] {_basis(one)}")
    loading = f"{found.reading.cpu_seconds * 1e3:.1f} ms of a core here ({found.read_from})"
    if found.left_out:
        print(f"Not in these numbers: {', '.join(found.left_out)}.")
    print(f"Loading an image took {loading}.\n\nPrepared targets, on disk")
    print(text_table(_prepared(found)))


def _basis(one: "Estimate") -> str:
    from ..text import size_text, time_text

    if not one.measured:
        return (
            f"Time: {one.source}. Memory: counted, not measured. Exchange between cards and "
            f"waiting for images are not in it."
        )
    parts = ", ".join(f"{name} {time_text(value)}" for name, value in one.parts.items())
    tried = "; ".join(
        f"{b.images}: {b.images_per_second:.3g} images/s"
        + ("" if b.memory is None else f", {size_text(b.memory)}")
        + (", does not fit" if b.fits is False else "")
        for b in one.batches
    )
    return f"Measured here: {parts}. Batches tried: {tried}."


def _prepared(found: "Forecast") -> Any:
    from ..report.page import Table
    from ..text import size_text

    count = found.set_size or 1_000_000
    header = ["tokens/numbers", "an image", f"{count:,} images"]
    rows = [
        [name, size_text(size), size_text(size * count)]
        for name, size in found.target_bytes.items()
    ]
    return Table(header, rows)
