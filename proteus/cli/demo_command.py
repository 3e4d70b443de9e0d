"""`proteus demo`."""

import argparse
from pathlib import Path

from .distill_command import until_stopped
from .parser import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    demo = add_command(
        commands,
        "demo",
        "Distil the embedded teacher, about two minutes on two cores, nothing downloaded.",
        "proteus demo --out runs/demo",
    )
    demo.add_argument("--out", type=Path, default=Path("proteus-demo"), help="folder for the run")
    demo.add_argument("--steps", type=int, default=500, help="optimizer steps (default 500)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default auto)")
    demo.add_argument("--resume", action="store_true", help="go on with the run in --out")
    demo.add_argument("--overwrite", action="store_true", help="replace a run in --out")
    demo.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    from ..demo import run_demo

    def work() -> None:
        run_demo(
            arguments.out,
            steps=arguments.steps,
            seed=arguments.seed,
            device=arguments.device,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
        )

    return until_stopped("demo", work)
