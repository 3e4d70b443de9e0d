"""Three students in one run against three runs: CPU seconds and wall-clock, in one process.

A ViT-Ti, a ViT-S and a ResNet-18 (class token alone) learn from one ViT-B: with `fit_all`, where
the teacher sees each batch once, and with `fit` one after the other, where it sees it three times.
The same loop and optimizers; images in memory, or decoded and augmented in this process, which
`fit_all` does once as well (`--images`). Rounds of both alternate, so that a noisy machine disturbs
both alike; the losses of both are compared, and must be equal.

    python benchmarks/students.py                          # ViT-B/14, 112 px, batch 16
    python benchmarks/students.py --images "../shared/data/proxy-imagenet1k-sample-train-000.tar"
    python benchmarks/students.py --device cuda --image-size 224 --batch-size 128 --precision bf16
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor

from proteus import Distiller, ProteusLoss, Student, Teacher
from proteus.data import ImageLoader, open_source
from proteus.training import fit, fit_all

WAYS = ("one run", "three runs")


def build(args: argparse.Namespace, teacher: Teacher) -> dict[str, Distiller]:
    torch.manual_seed(0)
    found = {}
    for name in args.students:
        student = Student(name, image_size=args.image_size)
        alike = student.grid == teacher.grid and student.mask_token is not None
        token = ProteusLoss(student.embed_dim, teacher.embed_dim, feature=0, patch=0)
        found[name] = Distiller(teacher, student, None if alike else token)
    return found


def cpu_seconds() -> float:
    """Of this process and of those that it waited for, in user and system mode."""
    return sum(os.times()[:4])


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, wall-clock seconds, and what came out."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = work()
    return cpu_seconds() - cpu, time.perf_counter() - wall, result


def batches(args: argparse.Namespace) -> list[Tensor] | ImageLoader:
    """The same batches whenever they are asked for."""
    if args.images:
        return ImageLoader(
            open_source(args.images), batch_size=args.batch_size, image_size=args.image_size,
            augment="fast", workers=0, device=args.device,
        )  # fmt: skip
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    numbers = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers) for _ in range(2)]


def one_round(way: str, args: argparse.Namespace, teacher: Teacher) -> Any:
    """Seconds and losses of one way; building students and opening images is not timed."""
    distillers = build(args, teacher)
    images = batches(args)
    options = {"steps": args.steps, "device": args.device, "precision": args.precision}
    if way == "one run":
        return timed(lambda: fit_all(distillers, images, progress=False, **options))
    return timed(
        lambda: {
            name: fit(one, images, progress=False, **options) for name, one in distillers.items()
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="vit_base_patch14")
    students = ["vit_tiny_patch14", "vit_small_patch14", "resnet18"]
    parser.add_argument("--students", nargs="+", default=students)
    parser.add_argument("--images", help="decode these instead of images in memory")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    teacher = Teacher(args.teacher, pretrained=False, image_size=args.image_size)
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(args.rounds + 1):
        rows = {}
        for way in WAYS if number % 2 else reversed(WAYS):
            *seconds, rows[way] = one_round(way, args, teacher)
            if number:  # the first round warms up
                cpu[way].append(seconds[0])
                wall[way].append(seconds[1])
        if args.device == "cpu" and rows["one run"] != rows["three runs"]:
            raise SystemExit("The two ways gave different losses.")
    hardware = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{', '.join(args.students)} <- {args.teacher}, {args.image_size} px, ", end="")
    print(f"batch {args.batch_size}, {args.steps} steps, {args.rounds} rounds, ", end="")
    print(args.images or "images in memory")
    print(
        f"{hardware}, {torch.get_num_threads()} threads, {args.precision}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    )
    result = {}
    for name, seconds in (("cpu", cpu), ("wall", wall)):
        ratios = [one / three for one, three in zip(*seconds.values(), strict=True)]
        result[name] = round(statistics.median(ratios), 3)
        each = ", ".join(f"{way} {statistics.median(seconds[way]):.2f} s" for way in WAYS)
        print(f"{name:4} {each}; ratio {min(ratios):.3f} to {max(ratios):.3f}")
    print("one run / three runs:", json.dumps(result))


if __name__ == "__main__":
    main()
