"""Our step against its peers, in one run: time, memory and the share of the machine's peak.

- ours: what `fit` does with a batch, the norm of the gradient included.
- prepared: the same with the teacher's features prepared beforehand.
- half: ours with the teacher in bf16, the student as it is.
- straightforward: what the paper's words say, written plainly with the same models: teacher on all
  images, student on all images, student on all images again with patches hidden, three losses.
- authors: the authors' own step (`--authors CHECKOUT`, see benchmarks/authors_step.py).
- lightly: `distillationv3` of lightly-train, which does less: one pass of each model, class token
  and patches (`--lightly`, in an environment that has it, see benchmarks/lightly_step.py).
- timm: its `FeatureDistillationTask`, which does less: one pass, the class token alone (and a
  classifier of the labels, which we do not need).

Same optimizer; rounds of all alternate, so that a noisy machine disturbs them alike, and ratios are
taken within a round. The gradients of ours and of the straightforward step are compared first. On
the CPU memory is measured in a process of its own for each.

    python benchmarks/step.py                       # ViT-Ti/14 <- ViT-S/14, 224 px, batch 16
    python benchmarks/step.py --device cuda --batch-size 128 --precision bf16 --compile
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from authors_step import AuthorsStep
from lightly_step import LightlyStep
from timm.task import FeatureDistillationTask
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from proteus import Distiller, Features, Losses, Student, Teacher
from proteus.losses import token_distance
from proteus.training import parameter_groups
from proteus.training.engine import Engine
from proteus.world import join

WAYS = ("ours", "prepared", "half", "straightforward", "authors", "lightly", "timm")
Step = Callable[[], None]


def straightforward(distiller: Distiller, images: Tensor, hidden: Tensor) -> Losses:
    """Two full student passes and the three losses as the paper writes them."""
    loss = distiller.loss
    target: Features = distiller.teacher(images)
    seen: Features = distiller.student(images)
    masked: Features = distiller.student(images, hidden)
    token_rows = loss.token_head(seen.cls)
    rows = torch.cat([token_rows[:, None], loss.feature_head(seen.patches)], dim=1)
    targets = torch.cat([target.cls[:, None], target.patches], dim=1)
    token = token_distance(token_rows, target.cls).mean()
    feature = token_distance(rows, targets).mean()
    patch = token_distance(loss.patch_head(masked.patches[hidden]), target.patches[hidden]).mean()
    return Losses(token + feature + patch, token, feature, patch)


def build(args: argparse.Namespace) -> tuple[Distiller, Tensor]:
    torch.manual_seed(0)
    teacher = Teacher(args.teacher, pretrained=False, image_size=args.image_size)
    student = Student(args.student, image_size=args.image_size)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=args.device)
    return Distiller(teacher, student).to(args.device), images


def draw(distiller: Distiller, images: Tensor) -> Tensor:
    """Masks [B, N] on the CPU, where a loader would draw them."""
    assert distiller.masks is not None
    return distiller.masks.masks(images.shape[0])


def make(way: str, args: argparse.Namespace) -> Step:
    """One step, to be called again and again."""
    made: dict[str, Callable[[argparse.Namespace], Step]] = {
        "ours": make_ours, "prepared": functools.partial(make_ours, prepared=True),
        "half": functools.partial(make_ours, half=True),
        "straightforward": make_straightforward,
        "authors": make_authors, "lightly": make_lightly, "timm": make_timm,
    }  # fmt: skip
    return made[way](args)


def make_ours(args: argparse.Namespace, *, prepared: bool = False, half: bool = False) -> Step:
    distiller, images = build(args)
    if half:
        distiller.teacher.precision = "bf16"
    engine = Engine(
        distiller,
        join(args.device),
        precision=args.precision,
        compile=args.compile,
        accumulate=args.accumulate,
        lr=1e-4,
    )
    numbers = iter(range(10**9))
    target = distiller.target(distiller.teacher, images) if prepared else None

    def step() -> None:
        engine.step([images], next(numbers), 1e-4, target=target)

    return step


def make_straightforward(args: argparse.Namespace) -> Step:
    distiller, images = build(args)
    optimizer = torch.optim.AdamW(parameter_groups(distiller, 0.05), lr=1e-4)

    def step() -> None:
        with precision(args):
            losses = straightforward(distiller, images, draw(distiller, images).to(args.device))
        update(losses.total, optimizer)

    return step


def make_authors(args: argparse.Namespace) -> Step:
    distiller, images = build(args)
    theirs = AuthorsStep(args.authors, args.teacher, args.student, args.batch_size, args.device)

    def step() -> None:
        with precision(args):
            losses = theirs.losses(images, draw(distiller, images))
        theirs.read(losses)
        update(losses["loss"], theirs.optimizer)

    return step


def make_lightly(args: argparse.Namespace) -> Step:
    distiller, images = build(args)
    models = distiller.teacher.backbone, distiller.student.backbone
    theirs = LightlyStep(*models, args.batch_size, args.device)

    def step() -> None:
        with precision(args):
            loss = theirs.loss(images)
        loss.backward()
        theirs.clip()
        theirs.optimizer.step()
        theirs.optimizer.zero_grad(set_to_none=True)

    return step


def make_timm(args: argparse.Namespace) -> Step:
    distiller, images = build(args)
    student, teacher = distiller.student.backbone, distiller.teacher.backbone
    student.reset_classifier(1000)
    student.to(args.device)
    task = FeatureDistillationTask(
        student, teacher, torch.nn.CrossEntropyLoss(), device=torch.device(args.device),
        verbose=False,
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(task.trainable_module.parameters(), lr=1e-4, weight_decay=0.05)
    labels = torch.zeros(args.batch_size, dtype=torch.int64, device=args.device)
    inputs = distiller.student.inputs

    def step() -> None:
        with precision(args):
            losses = task(inputs(images), labels)
        update(losses["loss"], optimizer)

    return step


def update(total: Tensor, optimizer: torch.optim.Optimizer) -> None:
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def precision(args: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    enabled = args.precision == "bf16"
    return torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=enabled)


def check(args: argparse.Namespace) -> float:
    """Largest relative difference of the two steps' gradients, on the same masks."""
    distiller, images = build(args)
    hidden = draw(distiller, images)
    gradients = []
    for step in (Distiller.forward, straightforward):
        distiller.zero_grad(set_to_none=True)
        step(distiller, images, hidden).total.backward()
        gradients.append([p.grad.clone() for p in distiller.trainable_parameters()])
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(*gradients, strict=True)
    )


def timed(step: Step, args: argparse.Namespace) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a step."""
    synchronize(args)
    started, cpu = time.perf_counter(), sum(os.times()[:2])
    step()
    synchronize(args)
    return time.perf_counter() - started, sum(os.times()[:2]) - cpu


def synchronize(args: argparse.Namespace) -> None:
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def count(step: Step) -> float:
    """Floating-point operations of a step: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def peak_rate(args: argparse.Namespace) -> float:
    """Operations a second of a large matrix product: what this machine can do, measured."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    side = 8192 if args.device.startswith("cuda") else 2048
    a = torch.randn(side, side, dtype=dtype, device=args.device)
    rates = []
    for _ in range(8):
        seconds, _ = timed(lambda: torch.mm(a, a), args)
        rates.append(2 * side**3 / seconds)
    return statistics.median(sorted(rates)[-3:])


def peak_memory(way: str, args: argparse.Namespace) -> float:
    """MiB above what the models and the first images need, of a few steps of one kind."""
    step = make(way, args)
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated() / 2**20
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated() / 2**20 - base
    base = resident_peak(reset=True)
    for _ in range(3):
        step()
    return resident_peak() - base


def memory_of(way: str, args: argparse.Namespace) -> float:
    """`peak_memory`: here on a GPU, whose allocator counts, else in a process of its own."""
    if args.device.startswith("cuda"):
        return peak_memory(way, args)
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident_peak(reset: bool = False) -> float:
    """Peak resident memory, MiB, of this process since the last reset (Linux).

    Not `getrusage`: its peak starts at what the parent process had.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="vit_small_patch14")
    parser.add_argument("--student", default="vit_tiny_patch14")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="of ours (and prepared)")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, of ours")
    parser.add_argument("--authors", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--lightly", action="store_true", help="compare with lightly-train, too")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    absent = {
        "authors": not args.authors,
        "lightly": not args.lightly,
        "half": args.precision != "fp32",
    }
    ways = [way for way in WAYS if not absent.get(way)]
    difference = check(args)
    steps = {way: make(way, args) for way in ways}
    operations = {way: count(steps[way]) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds + 2):
        for way in ways if number % 2 else reversed(ways):
            wall, spent = timed(steps[way], args)
            if number >= 2:  # the first two rounds warm up
                seconds[way].append(wall)
                cpu[way].append(spent)
    rate = peak_rate(args)
    del steps
    memory = {way: memory_of(way, args) for way in ways}
    return {
        "gradient_difference": difference,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "operations": operations,
        "peak_rate": rate,
        "mebibytes": memory,
    }


def main() -> None:
    args = parse()
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return
    found = measure(args)
    cuda = args.device.startswith("cuda")
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    facts = {
        "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "hardware": hardware,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "settings": {
            name: value if isinstance(value, bool | int) else str(value)
            for name, value in vars(args).items()
            if name not in ("json", "memory_of", "authors")
        },
        **found,
    }
    print(f"{args.student} <- {args.teacher}, {args.image_size} px, batch {args.batch_size}")
    print(f"{hardware}, {args.precision}, Python {facts['python']}, torch {facts['torch']}")
    print(f"largest relative difference of a gradient: {found['gradient_difference']:.1e}")
    for row in table(facts):
        print("{:16} {:>9} {:>9} {:>9} {:>9} {:>9}".format(*row))
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


def table(facts: dict[str, Any]) -> list[list[str]]:
    """Rows of a way's median time, and of its ratios to ours, taken within each round."""
    rows = [["", "ms a step", "/ ours", "MiB", "/ ours", "of peak"]]
    ours = facts["seconds"]["ours"]
    for way, seconds in facts["seconds"].items():
        ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
        median = statistics.median(seconds)
        memory = facts["mebibytes"]
        share = facts["operations"][way] / median / facts["peak_rate"]
        rows.append([
            way, f"{median * 1e3:.1f}", f"{ratio:.2f}", f"{memory[way]:.0f}",
            f"{memory[way] / memory['ours']:.2f}", f"{share:.0%}",
        ])  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
