"""`proteus info`."""

import argparse
from typing import Any

from .data_command import describe, facts
from .parser import Commands, add_command, add_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    info = add_command(
        commands,
        "info",
        "List the published names; say what a bug report needs, or how many images a path holds.",
        "proteus info --system\n  proteus info --data IMAGES",
    )
    what = info.add_mutually_exclusive_group()
    what.add_argument(
        "--system",
        action="store_true",
        help="versions, devices, extras and caches, for a bug report; nothing private",
    )
    what.add_argument("--data", nargs="+", help="folder of images, .tar shards, or a pattern")
    add_json(info)
    info.set_defaults(run=_run_info)


def _run_info(arguments: argparse.Namespace) -> None:
    if arguments.data:
        from ..data import open_source

        source = open_source(arguments.data)
        if arguments.json:
            print_json({"source": facts(source)})
        else:
            describe(source)
    elif arguments.system:
        from .system_facts import print_system, system_facts

        found = system_facts()
        if arguments.json:
            print_json(found)
        else:
            print_system(found)
    elif arguments.json:
        print_json(_names())
    else:
        _print(_names())


def _names() -> dict[str, dict[str, Any]]:
    """Every name that a command takes, JSON-able."""
    from ..hub.pretrained import PRETRAINED
    from ..models.names import STUDENTS, TEACHERS

    return {
        "teachers": {
            name: {
                "architecture": entry.architecture,
                "terms": list(entry.objectives),
                "package": entry.package.name if entry.package else None,
            }
            for name, entry in TEACHERS.items()
        },
        "students": {
            name: {"architecture": entry.architecture, "arguments": dict(entry.arguments)}
            for name, entry in STUDENTS.items()
        },
        "released students": {
            one.name: {"teacher": one.teacher, "repo": one.repo if one.revision else None}
            for one in PRETRAINED.values()
        },
    }


def _print(names: dict[str, dict[str, Any]]) -> None:
    print("teachers:")
    for name, entry in names["teachers"].items():
        package = f" (package {entry['package']})" if entry["package"] else ""
        print(f"  {name:20} {'+'.join(entry['terms']):20} {entry['architecture']}{package}")
    print("students:")
    for name, entry in names["students"].items():
        print(f"  {name:20} {entry['architecture']} {entry['arguments']}")
    print("released students (load_pretrained):")
    for name, entry in names["released students"].items():
        state = entry["repo"] or "not published yet"
        print(f"  {name:24} from {entry['teacher']:16} {state}")
    print("versions, devices, extras and caches: proteus info --system")
