"""Images a second of one core: the fast pipeline against timm's, in one run.

    python benchmarks/loader.py

JPEGs of about 500x375 (cropped from photographs that scikit-learn ships, enlarged tiles with grain)
are read from a folder. Pipelines take turns; each figure is the median of the rounds, in images a
second of processor time of one process with one thread.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from PIL import Image

from proteus.data import ImageLoader, open_source
from proteus.data.loader import Keys
from proteus.data.transforms import official


def write_images(folder: Path, count: int) -> float:
    """Photographs of 500x375 with the detail of a camera; returns their mean size in KB."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        photo = photos[number % len(photos)]
        left, top = int(rng.integers(0, 140)), int(rng.integers(0, 52))
        part = np.asarray(photo.crop((left, top, left + 500, top + 375)), dtype=np.float32)
        grain = rng.normal(0, 4, part.shape)
        image = Image.fromarray((part + grain).clip(0, 255).astype(np.uint8))
        data = io.BytesIO()
        image.save(data, "JPEG", quality=91)
        (folder / f"{number:03}.jpg").write_bytes(data.getvalue())
        sizes.append(len(data.getvalue()) / 1024)
    return statistics.mean(sizes)


def timm_images(files: list[Path], size: int) -> Iterator[int]:
    """What the authors run: Pillow, timm's transform, one image at a time."""
    transform = official(size)
    while True:
        for file in files:
            with file.open("rb") as handle:
                transform(Image.open(handle).convert("RGB"))
            yield 1


def our_images(folder: Path, size: int, batch: int, repeats: int, host_only: bool) -> Iterator[int]:
    # On "meta" the loader leaves the last steps to the device, as with a GPU; they are not done.
    loader = ImageLoader(
        open_source(folder),
        batch_size=batch,
        image_size=size,
        augment="fast",
        repeats=repeats,
        workers=0,
        device="meta" if host_only else "cpu",
    )
    for keys in Keys(loader, 0, None):
        yield len(loader.samples[keys].images)


def rate(stream: Iterator[int], seconds: float) -> float:
    done, begun = 0, time.process_time()
    while time.process_time() - begun < seconds:
        done += next(stream)
    return done / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="for a pipeline and round")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kilobytes = write_images(folder, args.images)
        files = sorted(folder.iterdir())
        make: dict[str, Callable[[], Iterator[int]]] = {
            "timm (Pillow, official transform)": lambda: timm_images(files, args.size),
            "fast, host part, 1 copy": lambda: our_images(folder, args.size, 48, 1, True),
            "fast, host part, 3 copies": lambda: our_images(folder, args.size, 48, 3, True),
            "fast, all on this core, 1 copy": lambda: our_images(folder, args.size, 48, 1, False),
            "fast, all on this core, 3 copies": lambda: our_images(folder, args.size, 48, 3, False),
        }
        streams = {label: build() for label, build in make.items()}
        rates: dict[str, list[float]] = {label: [] for label in streams}
        for label, stream in streams.items():
            rate(stream, 0.3)  # warm
            assert label in rates
        for _ in range(args.rounds):
            for label, stream in streams.items():
                rates[label].append(rate(stream, args.seconds))
    print(f"{args.images} JPEGs 500x375, {kilobytes:.0f} KB on average, to {args.size} px")
    print(
        f"one core of {platform.processor() or platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Pillow {PIL.__version__}, simplejpeg {_simplejpeg_version()}"
    )
    reference = statistics.median(rates["timm (Pillow, official transform)"])
    ratios = {}
    for label, values in rates.items():
        median = statistics.median(values)
        ratios[label] = round(median / reference, 2)
        print(f"{label:36} {median:7.0f} images/s   x{median / reference:.2f}")
    print(json.dumps(ratios))


def _simplejpeg_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("simplejpeg")
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
