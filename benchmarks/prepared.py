"""Prepared targets against asking the teacher: what an image costs, what storing takes and loses.

    python benchmarks/prepared.py --data ../shared/data --json benchmarks/results/prepared.json

One thread, no worker processes, everything counted: CPU milliseconds an image of the loader alone,
of the loader and the teacher (a live run), and of the loader beside targets in each number format.
Rounds of all alternate, and ratios are taken within a round.
"""

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from proteus import Teacher
from proteus.data import ImageLoader, open_source
from proteus.prepared import prepare

DTYPES = ("fp32", "fp16", "int8")


def asked(loader: ImageLoader, teacher: Teacher) -> Iterator[Any]:
    """What the teacher says of the loader's batches, without end."""
    for images in loader.batches():
        yield teacher(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--teacher", default="demo-teacher")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Teacher(args.teacher)
    source = open_source(str(args.data / "proxy-tinyimagenet-train-0*.tar"))
    source = source.select(range(args.images), f"{args.images} of {source.description}")
    loader = ImageLoader(
        source, batch_size=args.batch_size, image_size=teacher.image_size[0], workers=0, views=1
    )
    with tempfile.TemporaryDirectory() as name:
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "loader": loader.batches,
            "live": lambda: asked(loader, teacher),
        }
        stored = {}
        for dtype in DTYPES:
            targets = prepare(teacher, source, Path(name, dtype), dtype=dtype, workers=0)
            assert targets is not None  # one part alone makes them all
            stored[dtype] = {
                "bytes_an_image": targets.settings.row_bytes,
                "error": targets.error,
            }
            ways[dtype] = loader.beside(targets).batches
        streams = {way: begin() for way, begin in ways.items()}
        took: dict[str, list[float]] = {way: [] for way in ways}
        for stream in streams.values():
            next(stream)
        for _ in range(args.rounds):
            for way, stream in streams.items():
                started = time.process_time()
                for _ in range(args.batches):
                    next(stream)
                spent = time.process_time() - started
                took[way].append(spent / args.batches / args.batch_size)
        for stream in streams.values():
            stream.close()
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"CPU, 1 thread, Python {platform.python_version()}, torch "
        f"{torch.__version__}, timm {timm.__version__}",
        "teacher": f"{args.teacher}, {teacher.image_size[0]} px",
        "stored": stored,
        "cpu_seconds_an_image": took,
    }
    print(json.dumps(facts, indent=1))
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
