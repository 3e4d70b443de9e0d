"""`proteus prepare`: a teacher's features of the training images, made once and kept."""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from .parser import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    prepare = add_command(
        commands,
        "prepare",
        "Let a teacher look at all images once, and train without it afterwards.",
        "proteus prepare --teacher dinov2_vitb14 --data IMAGES --views 4 --out targets\n"
        "  proteus distill --prepared targets --teacher dinov2_vitb14 \\\n"
        "      --student vit_small_patch14 --data IMAGES --epochs 100 --out runs/first",
    )
    add = prepare.add_argument
    add("--teacher", help="as of `proteus distill`")
    add("--teacher-checkpoint", help="local .safetensors or .pth with its weights")
    add("--teacher-layers", nargs="+", type=int, metavar="N", help="as of `proteus distill`")
    add("--teacher-precision", choices=["bf16", "fp16"], help="compute in it (default fp32)")
    add("--student", help="image sizes as a run with this student chooses them")
    add("--image-size", type=int, help="pixels of the student's images, as of `proteus distill`")
    add("--teacher-image-size", type=int, help="pixels of the teacher's, likewise")
    add("--data", nargs="+", help="folder, .tar shards, pattern, list, hfds/…")
    add("--out", type=Path, required=True, help="folder for the targets")
    add("--views", type=int, default=1, help="views of each image, which take turns (default 1)")
    add("--tokens", choices=["all", "cls"], default="all",
        help="cls = class tokens alone, for --feature 0 --patch 0 (default all)")  # fmt: skip
    add("--dtype", choices=["fp16", "int8", "fp32"], default="fp16",
        help="int8 has a scale for each token (default fp16)")  # fmt: skip
    add("--augment", choices=["crop", "fast", "official", "none"], default="crop",
        help="see the docs on images (default crop)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the views (default 0)")
    add("--batch-size", type=int, default=64, help="images at once (default 64)")
    add("--workers", type=int, help="processes that decode (default: one less than the cores)")
    add("--device", default="auto", help="auto, cpu, cuda, … (default auto)")
    add("--part", default="0/1", metavar="N/OF", help="this process's share of the work, from 0/OF")
    add("--check", action="store_true", help="read what is there and compare it with its checksums")
    add("--overwrite", action="store_true", help="replace targets of other settings in --out")
    prepare.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ..data import open_source
    from ..prepared import PreparedTargets, prepare

    if arguments.check:
        targets = PreparedTargets(arguments.out)
        targets.check()
        print(f"{arguments.out}: all {targets.settings.shards} shards are what was written.")
        return
    missing = [f"--{name}" for name in ("teacher", "data") if not vars(arguments)[name]]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}. See `proteus prepare --help`.")
    part = _part(arguments.part)
    teacher, size = _teacher(arguments)
    names = ("views", "tokens", "dtype", "augment", "seed", "batch_size", "workers", "device")
    started = time.perf_counter()
    found = prepare(
        teacher, open_source(arguments.data), arguments.out, image_size=size, part=part,
        overwrite=arguments.overwrite, progress=True,
        **{name: vars(arguments)[name] for name in names},
    )  # fmt: skip
    print(_said(found, arguments, time.perf_counter() - started))


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise ValueError(f"--part: got {text!r}; expected a number and how many, such as 0/4.")
    return int(match[1]), int(match[2])


def _teacher(arguments: argparse.Namespace) -> tuple[Any, int]:
    """The teacher, and the size of a run's images, as the run would choose it."""
    from ..recipes.pair import open_teacher
    from ..recipes.recipe import Models

    names = (
        "teacher", "teacher_checkpoint", "teacher_precision", "image_size", "teacher_image_size",
    )  # fmt: skip
    layers = arguments.teacher_layers and tuple(arguments.teacher_layers)
    model = Models(
        student=arguments.student or "", teacher_layers=layers,
        **{name: vars(arguments)[name] for name in names},
    )  # fmt: skip
    return open_teacher(model)


def _said(found: Any, arguments: argparse.Namespace, seconds: float) -> str:
    if found is None:
        return f"Part {arguments.part} of {arguments.out} is made; other parts are missing."
    settings = found.settings
    lost = ", ".join(f"{name} {share:.1e}" for name, share in found.error.items())
    options = f"--prepared {arguments.out} --teacher {arguments.teacher}"
    if settings.tokens == "cls":
        options += " --feature 0 --patch 0"
    return (
        f"{arguments.out}: {settings.views} views of {settings.images['count']} images, "
        f"{settings.rows * settings.row_bytes / 1e6:.1f} MB, in {seconds:.0f} s. Lost by storing "
        f"(root mean square, relative): {lost}.\n"
        f"Go on with: proteus distill {options} --data {' '.join(arguments.data)} …"
    )
