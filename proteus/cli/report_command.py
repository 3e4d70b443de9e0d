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
        "folder",
        metavar="RUN",
        type=Path,
        help="folder of the run, or of several, --out of `proteus distill`",
    )
    report.add_argument("--out", type=Path, help="HTML file (default: report.html in the folder)")
    report.set_defaults(run=_run_report)


def _run_report(arguments: argparse.Namespace) -> None:
    from ..report.groups_of_runs import runs_in
    from ..report.run_page import write_run_report

    names = runs_in(arguments.folder)
    if names and arguments.out is not None:
        raise ValueError(
            f"--out: one page for {len(names)} runs. Got {str(arguments.folder)!r}, which holds "
            f"{', '.join(names)}; leave --out out for a page in each, or name the run of one."
        )
    for name in names:
        print(write_run_report(arguments.folder / name, None))
    if names:
        return
    print(write_run_report(arguments.folder, arguments.out))
