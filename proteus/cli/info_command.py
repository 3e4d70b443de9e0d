"""`proteus info`."""

import argparse

from .data_command import describe
from .parser import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    info = add_command(
        commands,
        "info",
        "List the published names, or say how many images a path holds.",
        "proteus info --data IMAGES",
    )
    info.add_argument("--data", nargs="+", help="folder of images, .tar shards, or a pattern")
    info.set_defaults(run=_run_info)


def _run_info(arguments: argparse.Namespace) -> None:
    if arguments.data:
        from ..data import open_source

        describe(open_source(arguments.data))
        return
    from ..hub.pretrained import PRETRAINED
    from ..models.names import STUDENTS, TEACHERS

    print("teachers:")
    for name, entry in TEACHERS.items():
        terms = "+".join(entry.objectives)
        package = f" (package {entry.package.name})" if entry.package else ""
        print(f"  {name:20} {terms:20} {entry.architecture}{package}")
    print("students:")
    for name, entry in STUDENTS.items():
        print(f"  {name:20} {entry.architecture} {dict(entry.arguments)}")
    print("released students (load_pretrained):")
    for released in PRETRAINED.values():
        state = released.repo if released.revision else "not published yet"
        print(f"  {released.name:24} from {released.teacher:16} {state}")
