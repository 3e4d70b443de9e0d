"""What all commands share."""

import argparse
from typing import TypeAlias


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated options: `--student-size` must not be taken for `--student`."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # the only name argparse has for it


def add_command(
    commands: Commands, name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """A command with a summary, an example in its help, and `--debug`."""
    command = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command
