"""`proteus plan` against five real runs of `proteus distill`, each about a minute on two cores.

Each run is planned first, then done, in processes of their own. Compared are the whole command's
seconds and the memory that the run's log names. Beside the wall clock stand processor seconds, and
how many cores other programs had meanwhile: on a shared machine the two runs meet different loads.
The teachers have random weights; nothing is downloaded.

    python benchmarks/plan.py --data ../shared/data        # writes benchmarks/results/plan.json
    python benchmarks/plan_page.py                         # and the table of docs/plan.md from it
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan_page import RESULTS, error

TEACHERS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")


@dataclass(frozen=True)
class Case:
    """A run: a teacher of `TEACHERS` or an installed one, a student, options of the commands."""

    teacher: str
    student: str
    data: str
    options: str

    @property
    def name(self) -> str:
        """What the page calls it."""
        return f"{self.student} <- {self.teacher}"


REAL, SMALL = "proxy-imagenet1k-sample-train-*.tar", "proxy-tinyimagenet-train-*.tar"
CASES = [
    Case("vit_small_patch16_224", "vit_tiny_patch16_224", REAL,
         "--image-size 112 --batch-size 32 --steps 28 --augment crop"),
    Case("vit_base_patch16_224", "vit_small_patch16_224", REAL,
         "--image-size 112 --batch-size 16 --steps 20 --augment fast"),
    Case("vit_small_patch16_224", "resnet18", SMALL,
         "--image-size 128 --batch-size 32 --steps 20 --augment crop"),
    Case("efficientnet_lite0", "vit_tiny_patch16_224", REAL,
         "--image-size 224 --batch-size 16 --steps 20 --augment official"),
    Case("vit_tiny_patch16_224", "mobilenetv3_small_100", REAL,
         "--image-size 224 --batch-size 64 --steps 20 --augment crop"),
]  # fmt: skip

MAKE = """
import sys, torch
from proteus import Student, save_pretrained
torch.manual_seed(0)
save_pretrained(Student(sys.argv[1]), sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        teachers = make_teachers(Path(scratch))
        for number, case in enumerate(CASES):
            if args.only not in case.name:
                continue
            rows.append(compare(case, teachers, args.data, Path(scratch) / f"run-{number}"))
            print(said(rows[-1]), flush=True)
    threads = "OMP_NUM_THREADS=" + os.environ.get("OMP_NUM_THREADS", "")
    threads = threads if "OMP_NUM_THREADS" in os.environ else ""
    facts = {
        "command": f"{threads} python benchmarks/plan.py --data ../shared/data".strip(),
        "hardware": hardware(),
        "rows": rows,
    }
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


def make_teachers(folder: Path) -> dict[str, str]:
    """Random weights of each, as an export."""
    found = {}
    for name in TEACHERS:
        command = [sys.executable, "-c", MAKE, name, str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
        found[name] = f"local-dir:{folder / name}"
    return found


def compare(case: Case, teachers: dict[str, str], data: Path, out: Path) -> dict[str, Any]:
    """Plan a run, then do it."""
    words = ["--teacher", teachers.get(case.teacher, case.teacher), "--student", case.student,
             "--data", *map(str, sorted(data.glob(case.data))), *case.options.split()]  # fmt: skip
    planned = timed(["plan", *words, "--json"])
    done = timed(["distill", *words, "--out", str(out)])
    plan = json.loads(planned.pop("output"))
    said_first = [line for line in done.pop("output").splitlines() if " on this machine (" in line]
    timing = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    one = plan["estimates"][0]
    return {
        "case": case.name,
        "options": case.options,
        "predicted": {
            "seconds": one["seconds"], "cpu_seconds": one["cpu_seconds"],
            "memory": one["memory"], "parts": one["parts"],
            "said_by_distill": said_first, "steps": plan["steps"], "reading": plan["reading"],
        },
        "measured": {
            "seconds": done["seconds"], "cpu_seconds": done["cpu_seconds"],
            "memory": max(row["memory_mib"] for row in timing) << 20,
        },
        "others": {"plan": planned["others"], "run": done["others"]},
        "planning_seconds": planned["seconds"],
    }  # fmt: skip


def timed(words: list[str]) -> dict[str, Any]:
    """A command of the library: what it printed and took, and what others took meanwhile."""
    before, busy = resource.getrusage(resource.RUSAGE_CHILDREN), busy_seconds()
    begun = time.perf_counter()
    command = [sys.executable, "-m", "proteus", *words]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    others = max(0.0, busy_seconds() - busy - own) / seconds
    return {"output": ended.stdout, "seconds": seconds, "cpu_seconds": own, "others": others}


def busy_seconds() -> float:
    """Processor seconds of everything on the machine since it started (Linux)."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def hardware() -> str:
    """What it ran on, and with which versions."""
    code = "import torch, timm; print(torch.get_num_threads(), torch.__version__, timm.__version__)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    threads, torch, timm = found.stdout.split()
    return (
        f"{os.cpu_count()} cores of a {platform.machine()} CPU, {threads} thread(s) for the step, "
        f"Python {platform.python_version()}, torch {torch}, timm {timm}"
    )


def said(row: dict[str, Any]) -> str:
    predicted, measured = row["predicted"], row["measured"]
    return (
        f"{row['case']:50} predicted {predicted['seconds']:5.1f} s, measured "
        f"{measured['seconds']:5.1f} s ({error(row, 'seconds'):+.0%}); "
        f"{predicted['memory'] / 2**30:.2f} and {measured['memory'] / 2**30:.2f} GiB "
        f"({error(row, 'memory'):+.0%}); CPU {predicted['cpu_seconds']:.0f} and "
        f"{measured['cpu_seconds']:.0f} s ({error(row, 'cpu_seconds'):+.0%}); others had "
        f"{row['others']['plan']:.1f} and {row['others']['run']:.1f} cores"
    )


if __name__ == "__main__":
    main()
