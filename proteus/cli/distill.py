"""`proteus distill`."""

import argparse
from pathlib import Path
from typing import Any

from .parser import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    distill = add_command(
        commands,
        "distill",
        "Distil a teacher into a student on a folder of images or tar shards.",
        "proteus distill --teacher dinov2_vitb14 --student vit_small_patch14 \\\n"
        "      --data IMAGES --epochs 100 --batch-size 256 --out runs/first",
    )
    add = distill.add_argument
    add("--teacher", required=True, help="a published name, a timm name, hf-hub:…, local-dir:…")
    add("--teacher-checkpoint", type=Path, help="local .safetensors or .pth with its weights")
    add("--student", required=True, help="vit_tiny|small|base|large_patch14, a timm name, …")
    add("--pretrained-student", action="store_true", help="start from its published weights")
    add("--data", required=True, nargs="+", help="folder, .tar shards, pattern, list, hfds/…")
    add("--single", type=int, metavar="N", help="--data is one large image: N views of it")
    augment = ["crop", "fast", "official", "none"]
    add("--augment", choices=augment, default="crop", help="see the docs on images (default crop)")
    add("--repeats", type=int, default=1, help="samples of an image in a row (default 1)")
    length = distill.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=float, help="passes over the images")
    length.add_argument("--steps", type=int, help="optimizer steps")
    length.add_argument("--images", type=int, help="images seen, whatever the set's size")
    add("--batch-size", type=int, default=64, help="images a step (default 64)")
    add("--lr", type=float, default=1e-3, help="peak learning rate (default 1e-3)")
    add("--weight-decay", type=float, default=0.05, help="(default 0.05)")
    add("--warmup", type=float, default=0.05, help="share of the steps (default 0.05)")
    add("--image-size", type=int, default=224, help="pixels (default 224)")
    supported = "(default 1 if the teacher supports it, else 0)"
    add("--token", type=float, help=f"weight of the class-token term {supported}")
    add("--feature", type=float, help=f"weight of the all-tokens term {supported}")
    add("--patch", type=float, help=f"weight of the hidden-patches term {supported}")
    add("--mask", choices=["random", "block"], default="random", help="(default random)")
    add("--out", type=Path, required=True, help="folder for log, checkpoint, export, pictures")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default auto)")
    add("--workers", type=int, help="processes that decode images (default: cores - 1)")
    add("--save-every", type=int, default=500, help="steps between checkpoints (default 500)")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--overwrite", action="store_true", help="replace the run in --out")
    distill.set_defaults(run=_run_distill)


def _run_distill(arguments: argparse.Namespace) -> None:
    from ..checkpoint import claim_folder

    # First of all: a wrong folder must not cost a download.
    if arguments.resume or arguments.out.exists():
        claim_folder(arguments.out, resume=arguments.resume, overwrite=arguments.overwrite)

    import torch

    from ..data import make_loader
    from ..distiller import Distiller
    from ..losses import ProteusLoss
    from ..masking import MaskGenerator
    from ..student import Student
    from ..teacher import Teacher
    from ..training import choose_device

    device = choose_device(arguments.device)
    data = make_loader(
        _source(arguments),
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        seed=arguments.seed,
        augment=arguments.augment,
        repeats=arguments.repeats,
        workers=arguments.workers,
        device=device,
    )
    steps = arguments.steps
    if arguments.images is not None:
        steps = max(1, round(arguments.images / arguments.batch_size))
    torch.manual_seed(arguments.seed)
    size = arguments.image_size
    teacher = Teacher(arguments.teacher, checkpoint=arguments.teacher_checkpoint, image_size=size)
    student = Student(arguments.student, pretrained=arguments.pretrained_student, image_size=size)
    given = {name: getattr(arguments, name) for name in ("token", "feature", "patch")}
    weights: dict[str, Any] = {
        name: float(name in teacher.objectives) if weight is None else weight
        for name, weight in given.items()
    }
    loss = ProteusLoss(student.embed_dim, teacher.embed_dim, **weights)
    masks = MaskGenerator(student.grid, strategy=arguments.mask) if loss.patch else None
    distiller = Distiller(teacher, student, loss, masks)
    rows = distiller.fit(
        data,
        steps=steps,
        epochs=arguments.epochs,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        warmup=arguments.warmup,
        seed=arguments.seed,
        device=device,
        out=arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        save_every=arguments.save_every,
        details={
            "data": ", ".join(arguments.data),
            "batch_size": arguments.batch_size,
            "image_size": size,
            "augment": arguments.augment,
            "repeats": arguments.repeats,
            "weights": weights,
            "mask": arguments.mask if masks else None,
        },
    )
    _summarize(rows, data.skipped, arguments.out)


def _source(arguments: argparse.Namespace) -> Any:
    from ..data import open_source, single_image

    if arguments.single is None:
        return open_source(arguments.data)
    if len(arguments.data) != 1:
        raise ValueError(f"--single goes with one image. Got {len(arguments.data)} paths.")
    source, manifest = single_image(arguments.data[0], arguments.single, seed=arguments.seed)
    print(manifest)
    return source


def _summarize(rows: list[dict[str, float]], skipped: dict[str, str], out: Path) -> None:
    from ..report import Table, text_table

    terms = ("total", "token", "feature", "patch")
    table = Table(
        ["loss", *terms],
        [
            [label, *(f"{row[term]:.4f}" for term in terms)]
            for label, row in (("first step", rows[0]), ("last step", rows[-1]))
        ],
    )
    print(f"\n{text_table(table)}\n")
    if skipped:
        lines = "".join(f"{name}\t{reason}\n" for name, reason in skipped.items())
        (out / "skipped.tsv").write_text(lines)
        print(f"Skipped {len(skipped)} corrupt images: {out / 'skipped.tsv'}")
    print(f"Student: {out / 'export'}    Pictures: {out / 'pca.png'}, {out / 'curves.png'}")
