"""`proteus start`: from a folder of photos to a model on a device."""

import argparse
from pathlib import Path
from typing import Any

from .choices import add_minutes, choose_aloud, first_process, new_folder, summarize
from .distill_command import until_stopped
from .export_command import export_int8
from .parser import Commands, add_command

_SETTINGS = {
    "teacher": "science.model.teacher",
    "student": "science.model.student",
    "image_size": "science.model.image_size",
    "seed": "science.seed",
    "device": "machine.device",
}


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    start = add_command(
        commands,
        "start",
        "From a folder of photos to a small model: chooses, trains, judges, writes int8 ONNX.",
        "proteus start PHOTOS",
    )
    add = start.add_argument
    add("photos", nargs="+", help="folder, .tar shards, pattern, list: no labels are needed")
    add("--teacher", help="default: by the device, see `proteus info`")
    add("--student", help="default: by the device")
    add("--image-size", type=int, help="pixels of the student's images")
    add("--seed", type=int, help="(default 0)")
    add("--device", help="auto, cpu, cuda, cuda:1, … (default auto)")
    add_minutes(start)
    add("--out", type=Path, help="folder; a run in it goes on (default: a new one in runs/)")
    start.set_defaults(run=_run_start)


def _run_start(arguments: argparse.Namespace) -> int:
    from ..ranges import check_numbers

    check_numbers("start", {"minutes": arguments.minutes})
    out: Path = arguments.out or new_folder(arguments.photos[0])

    def work() -> None:
        from ..recipes import run
        from ..report.run_page import write_run_report

        rows = run(_recipe(arguments, out), out, resume="auto", say=print)
        if not first_process():
            return
        summarize(rows, out)
        print(f"Page: {write_run_report(out)}")
        export_int8(out, out / "student-int8.onnx")

    return until_stopped("start", work)


def _recipe(arguments: argparse.Namespace, out: Path) -> Any:
    """What was chosen when the run began, or is now."""
    from ..recipes import Recipe, read_recipe, with_settings

    given = vars(arguments)
    settings = {path: given[name] for name, path in _SETTINGS.items() if given[name] is not None}
    settings["science.data.paths"] = arguments.photos
    if (out / "run.json").is_file():
        return with_settings(read_recipe(out), settings)
    return choose_aloud(with_settings(Recipe(), settings), out, arguments.minutes)
