"""`proteus completion`: what lets a shell complete the command, by shtab."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..words import install
from .parser import Commands, add_command

_SHELLS = ("bash", "zsh", "fish")
# Of options that take a path or a name.
_PLACES = ("data", "paths", "model", "watch", "prepared", "checkpoint", "teacher_checkpoint")


def add(commands: Commands, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `whole` makes a parser with all commands."""
    completion = add_command(
        commands,
        "completion",
        "Print what a shell needs to complete commands, options and their choices.",
        "proteus completion bash > ~/.local/share/bash-completion/completions/proteus\n"
        "  proteus completion zsh > ~/.zfunc/_proteus\n"
        "  proteus completion fish > ~/.config/fish/completions/proteus.fish",
    )
    completion.add_argument("shell", choices=_SHELLS)
    completion.set_defaults(run=lambda arguments: _run_completion(arguments.shell, whole()))


def _run_completion(shell: str, parser: argparse.ArgumentParser) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ValueError(f"shtab is not installed. Got {error}. {install('shtab')}") from error
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(
            f"this shtab does not know {shell}. Got shtab {shtab.__version__}. "
            f"{install('-U', 'shtab')}"
        )
    _mark_paths(parser, shtab.FILE)
    print(shtab.complete(parser, shell=shell))


def _mark_paths(parser: argparse.ArgumentParser, how: object) -> None:
    """Let options that take a path be completed by the names of files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_paths(command, how)
        elif action.type is Path or action.dest in _PLACES:
            vars(action)["complete"] = how  # where shtab looks for it
