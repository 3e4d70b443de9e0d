"""Images by the hundred million: opening, first batch, memory, and images/s from disk and server.

Every figure is taken in a process of its own, with a cache of its own. The hundred million are
10,000 links to one shard of 10,000 tiny JPEGs: what grows with their number (the list of shards,
the plan, the workers) is real, what is decoded is small. Memory is PSS, which counts shared pages
once, of this process and of its workers.

    python benchmarks/scale.py --json benchmarks/results/scale.json
    python benchmarks/scale.py --only rates wait --seconds 5
"""

import argparse
import http.server
import io
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL
import torch
from loader import write_images
from PIL import Image

from proteus.data import ShardLoader, make_loader, open_source
from proteus.data.shard_plan import ShardPlan

Row = dict[str, Any]
# 10^9 multiply-adds an image (`proteus recipes`), and the images a second of the authors' 8 A100:
# 300 epochs of ImageNet in 30 hours (section A.8). An H100's bf16 peak is 989 TFLOP/s, A100's 312.
GMAC = {"ti14-dinov2-s14": 14, "s14-dinov2-b14": 51, "b14-dinov2-l14": 185}
AUTHORS = 300 * 1_281_167 / (30 * 3600)
H100_OVER_A100 = 989 / 312


def memory() -> Row:
    """PSS of this process and of its children, MB."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    mine, *others = [pss(pid) for pid in ("self", *children)]
    return {"main_mb": mine, "workers_mb": others, "total_mb": mine + sum(others)}


def pss(pid: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024)


def write_shard(path: Path, images: Iterator[bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number:06}.jpg")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


def tiny(count: int) -> Iterator[bytes]:
    for number in range(count):
        data = io.BytesIO()
        Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 0)).save(data, "JPEG")
        yield data.getvalue()


def links(folder: Path, shards: int, images: int) -> str:
    """A set of so many shards, all of which are one; its pattern."""
    one = folder / "one.tar"
    if not one.exists():
        write_shard(one, tiny(images))
    target = folder / f"links-{shards}"
    if not target.exists():
        target.mkdir()
        for number in range(shards):
            (target / f"s-{number:05}.tar").symlink_to(one)
    return f"{target}/s-*.tar"


def begin(pattern: str, batch: int = 256, **options: Any) -> tuple[Iterator[Any], Row]:
    """A stream, after its first batch, and what that took."""
    before = pss("self")
    at = time.perf_counter()
    source = open_source(pattern)
    opened = time.perf_counter() - at
    settings = {"batch_size": batch, "image_size": 16, "workers": 2, "seed": 0} | options
    stream = make_loader(source, **settings).batches()
    next(stream)
    first = time.perf_counter() - at - opened
    row = {"open_s": round(opened, 3), "first_batch_s": round(first, 3), "imported_mb": before}
    return stream, row | memory()


def hundred_million(folder: Path, args: argparse.Namespace) -> Row:
    """Open 10,000 × 10,000 images, and read so many batches of them."""
    stream, row = begin("wds/" + links(folder, args.shards, args.images))
    after = []
    for _ in range(4):
        begun = time.perf_counter()
        for _ in itertools.islice(stream, args.batches // 4):
            pass
        seen = args.batches // 4 * 256
        after.append(memory() | {"images_s": round(seen / (time.perf_counter() - begun))})
    return {"images": args.shards * args.images, **row, "batches": args.batches, "after": after}


def planned(folder: Path, args: argparse.Namespace) -> Row:
    """Every image of the epoch planned, as one process does it; nothing decoded."""
    source = open_source("wds/" + links(folder, args.shards, args.images))
    loader = ShardLoader(source, batch_size=1024, image_size=16, workers=0)
    plan = ShardPlan(
        source, loader.order, batch_size=1024, rank=0, world_size=1, start=0, on_damage=print
    )
    keys, total, after = iter(plan), args.shards * args.images // 1024, []
    begun = time.perf_counter()
    for number in range(total):
        next(keys)
        plan.delivered(plan.batch - 1)
        if number in {total // 100, total // 2, total - 1}:
            after.append({"images": (number + 1) * 1024, "main_mb": pss("self")})
    seconds = time.perf_counter() - begun
    plan.close()
    return {"after": after, "us_an_image": round(seconds / total / 1024 * 1e6, 2)}


def epoch(folder: Path, args: argparse.Namespace) -> Row:
    """All images of a smaller set read, decoded and delivered."""
    shards = args.epoch_shards
    stream, row = begin("wds/" + links(folder, shards, args.images))
    total = shards * args.images // 256 - 1
    begun = time.perf_counter()
    for _ in itertools.islice(stream, total):
        pass
    return {
        "images": (total + 1) * 256, **row, "at_the_end": memory(),
        "images_s": round(total * 256 / (time.perf_counter() - begun)),
    }  # fmt: skip


def listed(folder: Path, args: argparse.Namespace) -> Row:
    """Today's source, which lists every image before the first batch."""
    _, row = begin(links(folder, args.listed_shards, args.images))
    return {"images": args.listed_shards * args.images, **row}


def resume(folder: Path, args: argparse.Namespace) -> Row:
    """Start in the middle of the first and of a late epoch, with what is known of the shards."""
    source = open_source("wds/" + links(folder, args.shards, args.images))
    row = {}
    for epochs in (0.5, 10.5, 100.5):
        start = int(epochs * args.shards * args.images) // 256
        begun = time.perf_counter()
        next(ShardLoader(source, batch_size=256, image_size=16, workers=0).batches(start))
        row[f"epoch {epochs}"] = round(time.perf_counter() - begun, 2)
    return row


def photos(folder: Path) -> Path:
    """Eight shards of 100 photographs."""
    target = folder / "photos"
    if not target.exists():
        (folder / "jpegs").mkdir()
        write_images(folder / "jpegs", 100)
        target.mkdir()
        files = sorted((folder / "jpegs").iterdir())
        for number in range(8):
            write_shard(target / f"s-{number:03}.tar", (file.read_bytes() for file in files))
    return target


def streams(folder: Path, url: str, **options: Any) -> dict[str, Iterator[Any]]:
    """The same photographs listed, as shards on the disk, and as shards on a server."""
    settings = {"batch_size": 64, "image_size": 224, "augment": "fast", **options}
    paths = {
        "listed": str(photos(folder)),
        "shards on the disk": f"wds/{photos(folder)}",
        "shards on a server": f"wds/{url}/photos/s-{{000..007}}.tar",
    }
    found = {}
    for name, path in paths.items():
        loader = make_loader(open_source(path), **settings)
        loader.samples.augmenter.whole = False  # what a GPU leaves to this machine
        found[name] = iter(loader.batches())
    return found


def rates(folder: Path, args: argparse.Namespace) -> Row:
    """Images/s of one core (CPU time of this process), one after the other, round after round.

    The server's cache holds three shards of eight, so that nearly all are fetched again and again;
    the threads that fetch are in its CPU time.
    """
    photos(folder)
    size = next((folder / "photos").iterdir()).stat().st_size
    os.environ["PROTEUS_CACHE_SIZE"] = str(3 * size)
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    with serve(folder) as url:
        running = streams(folder, url, workers=0)
        for _, (name, stream) in itertools.product(range(args.rounds + 1), running.items()):
            found.setdefault(name, []).append(rate(lambda s=stream: len(next(s)), args.seconds))
    return {
        name: {
            "median": round(statistics.median(values[1:])),
            "rounds": [round(v) for v in values[1:]],
        }
        for name, values in found.items()
    }


def rate(work: Callable[[], int], seconds: float) -> float:
    done, begun = 0, time.process_time()
    while time.process_time() - begun < seconds:
        done += work()
    return done / (time.process_time() - begun)


def wait(folder: Path, args: argparse.Namespace) -> Row:
    """A consumer that takes a batch and sleeps for a step: the share of its time it waits.

    Steps are as long as to ask for a share of what one worker can make, measured first.
    """
    photos(folder)
    found: Row = {}
    with serve(folder) as url:
        for name, stream in streams(folder, url, workers=1).items():
            for _ in range(4):
                next(stream)
            begun = time.perf_counter()
            for _ in range(60):
                next(stream)
            able = 60 * 64 / (time.perf_counter() - begun)
            found[name] = {"images_s": round(able)}
            for share in (0.5, 0.8, 1.5):
                found[name][f"asked for {share}"] = round(waiting(stream, 64 / able / share), 3)
    return found


def waiting(stream: Iterator[Any], step: float) -> float:
    waited, begun = 0.0, time.perf_counter()
    for _ in range(40):
        at = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - at
        time.sleep(step)
    return waited / (time.perf_counter() - begun)


class serve:  # noqa: N801 - used as a function
    """A web server on loopback for a folder, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        code = f"from scale import run_server; run_server({str(folder)!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        return f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def run_server(folder: str) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *rest: Any) -> None:
            super().__init__(*rest, directory=folder)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever).start()


def on_paper(core: float, cores: int, gpus: int = 8) -> Row:
    """Cores that keep the GPUs of one machine busy, at two rates that GPUs may have."""
    found = {}
    for name, gmac in GMAC.items():
        authors = AUTHORS / 8 * gpus * H100_OVER_A100 * GMAC["s14-dinov2-b14"] / gmac
        busy = gpus * 400e12 / (2 * gmac * 1e9)
        found[name] = {
            "images_s_as_busy_as_the_authors_gpus": round(authors),
            "cores": round(authors / core, 1),
            "images_s_at_400_tflops": round(busy), "cores_at_400_tflops": round(busy / core, 1),
        }  # fmt: skip
    return {"gpus": gpus, "images_s_a_core": round(core), "cores_here": cores, **found}


PARTS = {
    one.__name__: one for one in (hundred_million, planned, epoch, listed, resume, rates, wait)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg = parser.add_argument
    arg("--shards", type=int, default=10_000)
    arg("--images", type=int, default=10_000, help="in a shard")
    arg("--batches", type=int, default=2000, help="of 256, of the hundred million")
    arg("--epoch-shards", type=int, default=100, help="of the epoch that is read whole")
    arg("--listed-shards", type=int, default=100, help="of today's source")
    arg("--rounds", type=int, default=5)
    arg("--seconds", type=float, default=3.0, help="of CPU time, for a source and round")
    arg("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arg("--json", type=Path)
    arg("--part", choices=PARTS, help=argparse.SUPPRESS)
    arg("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args.folder, args)))
        return
    found: Row = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"Pillow {PIL.__version__}",
    }
    with tempfile.TemporaryDirectory() as name:
        for part in args.only:
            cache = Path(name) / f"cache-{part if part != 'resume' else 'planned'}"
            command = [sys.executable, __file__, "--part", part, "--folder", name, *sys.argv[1:]]
            done = subprocess.run(
                command, env=os.environ | {"PROTEUS_CACHE": str(cache)}, check=True,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found[part] = json.loads(done.stdout)
            print(part, json.dumps(found[part], indent=1), flush=True)
    if "rates" in found:
        core = found["rates"]["shards on a server"]["median"]
        found["on_paper"] = on_paper(core, os.cpu_count() or 1)
        print("on paper", json.dumps(found["on_paper"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
