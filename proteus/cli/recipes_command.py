"""`proteus recipes`."""

import argparse
from typing import TYPE_CHECKING

from .parser import Commands, add_command, add_json, print_json

if TYPE_CHECKING:
    from ..recipes import Preset
    from ..recipes.cost import Cost


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    recipes = add_command(
        commands,
        "recipes",
        "List the paper's training runs with their cost, or show all settings of one.",
        "proteus recipes s14-dinov2-b14 --preset official",
    )
    recipes.add_argument("name", nargs="?", help="a run; leave it out for the list")
    recipes.add_argument(
        "--preset",
        choices=["paper", "official", "fast"],
        help="the paper's words, what the authors' code does, or the words for half the compute "
        "(default paper)",
    )
    add_json(recipes)
    recipes.set_defaults(run=_run_recipes)


def _run_recipes(arguments: argparse.Namespace) -> None:
    from ..recipes import recipe, to_json

    preset: Preset = arguments.preset or "paper"
    if arguments.name:  # JSON either way
        print_json(to_json(recipe(arguments.name, preset)))
    elif arguments.json:
        print_json(
            [
                {"name": name, "about": about, "preset": preset, **estimate._asdict()}
                for name, (about, estimate) in _costs(preset).items()
            ]
        )
    else:
        _list(preset)


def _costs(preset: "Preset") -> "dict[str, tuple[str, Cost]]":
    """What each run of the paper is, and its cost."""
    from ..recipes import RUNS, cost, recipe

    costs = {}
    for name in RUNS:
        found = recipe(name, preset)
        estimate = cost(found)
        assert estimate is not None  # every run of the paper has a cost
        costs[name] = (found.about, estimate)
    return costs


def _list(preset: "Preset") -> None:
    from ..report.page import Table, text_table

    rows, what = [], []
    for name, (about, estimate) in _costs(preset).items():
        rows.append(
            [
                name,
                f"{estimate.images / 1e6:.0f} M",
                f"{estimate.steps:,}",
                f"{estimate.gmac:.0f}",
                f"{estimate.a100_hours:,.0f}",
            ]
        )
        what.append(about)
    header = ["run", "images", "steps", "GMAC/image", "A100-hours"]
    lines = text_table(Table(header, rows)).splitlines()
    for line, about in zip(lines, ["what", *what], strict=True):
        print(f"{line}  {about}")
    print(
        f"\nPreset {preset}. A100-hours are an estimate: multiply-adds at the 53 TFLOP/s that the "
        f"paper's\n30 h on 8 A100 come to. Run one: proteus distill --recipe NAME --data IMAGES "
        f"--out FOLDER"
    )
