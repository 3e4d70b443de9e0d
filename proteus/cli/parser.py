"""What all commands share."""

import argparse
import inspect
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from ..words import nearest

_LARGEST = 2**63 - 1  # what a generator of random numbers takes


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated options: `--student-size` must not be taken for `--student`.

    What it refuses it says in one paragraph, with the nearest word it knows.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def parse_known_args(  # type: ignore[override]  # one of three overloads; all end here
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Unknown options first: of a mistyped one, argparse only says that the right one lacks."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words[: words.index("--")] if "--" in words else words:
            if self._subparsers is not None and not word.startswith("-"):
                break  # the command, which has options of its own
            option = word.partition("=")[0]
            if re.fullmatch(r"--\S+", option) and option not in self._option_string_actions:
                self.error(
                    f"unknown option {option}. {nearest(option, self._option_string_actions)}"
                )
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Without the usage, which is a page for some commands."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            message += (
                f". {nearest(choice[1], re.findall(r'[^ ,]+', choice[2].replace(chr(39), '')))}"
            )
        message = f"{message.rstrip('. ')}." if not message.endswith("?") else message
        self.exit(2, f"{self.prog}: error: {message} See `{self.prog} --help`.\n")


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


def add_json(command: argparse.ArgumentParser) -> None:
    """`--json`: what the command lists, for a program."""
    command.add_argument("--json", action="store_true", help="print JSON and nothing else")


def print_json(value: Any) -> None:
    """The one thing on standard output under `--json`."""
    import json

    print(json.dumps(value, indent=2, allow_nan=False))


def add_fields(command: argparse.ArgumentParser, kind: type, names: Sequence[str]) -> None:
    """Options for fields of a dataclass, None where not given; their help is its doc lines."""
    hints = typing.get_type_hints(kind)
    doc = inspect.getdoc(kind) or ""  # there is none under -OO
    lines = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", doc, re.MULTILINE))
    for name in names:
        hint, default = hints[name], kind.__dict__[name]
        if type(None) in typing.get_args(hint):  # that of an option that is not given
            hint = typing.get_args(hint)[0]
        taken = typing.get_args(hint)
        text = " ".join(re.split(r"\.(?:\s|$)", lines.get(name, ""))[0].replace("`", "").split())
        text = re.sub("; None = (.*)", r" (default \1)", text[:1].lower() + text[1:])
        options: dict[str, Any] = {"type": taken[0] if taken else hint}
        if hint is bool:
            options = {"action": "store_true", "default": None}
        elif typing.get_origin(hint) is typing.Literal:
            options = {"choices": taken}
        elif typing.get_origin(hint) is tuple:
            options = {"nargs": "+"}
        said = f" (default {default})" if default else ""
        command.add_argument(f"--{name.replace('_', '-')}", help=text + said, **options)


def whole(text: str) -> int:
    """The type of an option that is a whole number."""
    return int(text)


whole.__name__ = "whole number"  # what argparse calls it where `int` refuses


def check_whole(
    arguments: argparse.Namespace, least: Mapping[str, int], most: Mapping[str, int] | None = None
) -> None:
    """Refuse whole numbers below the least or above the most of their options."""
    for name, low in least.items():
        value, high = vars(arguments)[name], (most or {}).get(name, _LARGEST)
        if value is None or low <= value <= high:
            continue
        option = f"--{name.replace('_', '-')}"
        if value < low and high == _LARGEST:
            raise ValueError(f"{option}: must be at least {low}. Got {value}.")
        raise ValueError(f"{option}: out of range. Got {value}; expected {low} to {high}.")
