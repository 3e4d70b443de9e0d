"""`proteus report`: the page of a run."""

import argparse
from pathlib import Path

from .parser import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    report = add_command(
        commands,
        "report",
        "Write one self-contained HTML page for a run, finished, running or dead.",
        "proteus report runs/first",
    )
    report.add_argument(
        "folder", metavar="RUN", type=Path, help="folder of the run, --out of `proteus distill`"
    )
    report.add_argument("--out", type=Path, help="HTML file (default: report.html in the folder)")
    report.set_defaults(run=_run_report)


def _run_report(arguments: argparse.Namespace) -> None:
    from ..report.run_page import write_run_report

    print(write_run_report(arguments.folder, arguments.out))
