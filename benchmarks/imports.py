"""What `import proteus` costs beside `import torch`, and `proteus --help` beside an interpreter.

Each figure is the wall clock of a fresh interpreter; the rounds alternate, so that a noisy machine
disturbs all alike. The bar is a tenth more than torch alone.

    python benchmarks/imports.py
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import torch

LOSSES = "import proteus; from proteus import ProteusLoss"
HELP = "import sys; sys.argv = ['proteus', '--help']; from proteus.cli import main; main()"


def seconds(code: str) -> float:
    """The wall clock of a fresh interpreter that runs the code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure all four in turn and print the medians and the medians of the paired ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    codes = {"python": "pass", "torch": "import torch", "proteus": LOSSES, "help": HELP}
    for code in codes.values():  # once unmeasured: the files are read and compiled
        seconds(code)
    took = [{name: seconds(code) for name, code in codes.items()} for _ in range(rounds)]
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores")
    for name in codes:
        print(f"{name:8} {statistics.median(one[name] for one in took):.3f} s")
    for name, beside in (("proteus", "torch"), ("help", "python")):
        ratio = statistics.median(one[name] / one[beside] for one in took)
        print(f"{name} / {beside}: {ratio:.2f}")


if __name__ == "__main__":
    main()
