"""The command line. Nothing heavy is imported before a command needs it: `--help` is instant."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ..version import __version__
from . import data_command as data
from . import demo_command as demo
from . import distill_command as distill
from . import evaluate_command as evaluate
from . import export_command as export
from . import info_command as info
from . import plan_command as plan
from . import prepare_command as prepare
from . import recipes_command as recipes
from . import report_command as report
from . import visualize_command as visualize
from . import weights_command as weights
from .parser import Parser

_EPILOG = """\
example:
  proteus demo --out runs/demo
  proteus distill --teacher demo-teacher --student demo-student \\
      --data IMAGES --epochs 5 --batch-size 64 --out runs/first
  proteus evaluate runs/first --data SETS --out runs/eval
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words of the command line; None = those of the process.

    Returns:
        0 on success, 2 for what a user can mend, 130 when interrupted with Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name must not end a command half way
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        status: int | None = arguments.run(arguments)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nproteus: interrupted.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError) as error:
        if arguments.debug:
            raise
        print(f"proteus {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="proteus",
        description="Distil a vision foundation model into a smaller one, on unlabelled images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"proteus-distill {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands_by_use = (
        demo, distill, prepare, plan, recipes, report, evaluate, visualize, data, weights, export,
        info,
    )  # fmt: skip
    for module in commands_by_use:
        module.add(commands)
    return parser
