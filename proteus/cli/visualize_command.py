"""`proteus visualize`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .evaluate_command import _extractor
from .parser import Commands, add_command, check_whole, whole

_PARTS = ("pca", "masks", "neighbours")
_ENDINGS = (".png", ".html")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    visualize = add_command(
        commands,
        "visualize",
        "Show given images as a model sees them: PCA maps, masks, nearest images of a set.",
        "proteus visualize runs/first PHOTOS --out first.png\n"
        "  proteus visualize runs/first PHOTOS --what pca,masks,neighbours --data SET \\\n"
        "      --out first.html\n"
        "  proteus visualize runs/first/export a.jpg b.jpg --teacher dinov2_vitb14",
    )
    add = visualize.add_argument
    add("model", help="a run or export folder, a released name, a teacher, a timm name, hf-hub:…; "
        "a run, finished or still training, is shown beside its teacher")  # fmt: skip
    add("images", nargs="+", help="image files, folders, .tar shards, lists")
    add("--teacher", help="a model to stand beside: a published name, a timm name, a folder")
    add("--teacher-checkpoint", type=Path, help="local .safetensors or .pth with its weights")
    add("--what", metavar="PARTS",
        help="some of pca,masks,neighbours (default: pca, and neighbours with --data)")  # fmt: skip
    add("--data", nargs="+", metavar="SET", help="where neighbours are looked for")
    add("--out", type=Path, default=Path("visualize.png"),
        help="FILE.png or FILE.html (default visualize.png)")  # fmt: skip
    add("--num", type=whole, default=8, metavar="N", help="at most N images (default 8)")
    add("--image-size", type=whole, help="pixels of the PCA maps (default: of a run its own, else "
        "up to four times the model's own, at most 518)")  # fmt: skip
    add("--checkpoint", type=Path, help="local .safetensors or .pth with the model's weights")
    add("--random-weights", action="store_true", help="no weights: how much is the architecture")
    add("--seed", type=whole, default=0, help="of masks and random weights (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default auto)")
    visualize.set_defaults(run=_run_visualize)


def _run_visualize(arguments: argparse.Namespace) -> None:
    arguments.what = what = _parts(arguments)
    check_whole(arguments, {"num": 1, "seed": 0, "image_size": 1}, {"num": 100, "image_size": 4096})

    import tempfile

    import torch

    from ..data import open_source
    from ..evaluation.looking import find_neighbours, open_photos, save_found, with_length
    from ..report.page import Picture, write_report
    from ..text import picture_text
    from ..training import choose_device

    # Images first: a wrong path must not cost a download.
    photos = open_photos(arguments.images, arguments.num)
    source = with_length(open_source(arguments.data)) if arguments.data else None
    _tell(photos.skipped)
    torch.manual_seed(arguments.seed)
    looks, distiller = _models(arguments, choose_device(arguments.device))
    parts: list[Any] = [
        picture_text(
            f"{arguments.model}: {len(photos.images)} of {photos.total} images of "
            f"{', '.join(arguments.images)}.",
            2000,
        )
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent, prefix=".tmp-") as folder:
        if {"pca", "masks"} & set(what):
            path = Path(folder, "maps.png")
            parts.append(Picture(path, _draw_maps(arguments, photos, looks, distiller, path)))
        if source is not None:
            path = Path(folder, "neighbours.png")
            found, skipped = find_neighbours(looks, photos, source, progress=True)
            _tell(skipped)
            save_found(photos, source, found, path)
            parts.append(Picture(path, picture_text(
                f"The nearest images of {source.description}, by the cosine of class tokens.", 2000
            )))  # fmt: skip
        staged = Path(folder, "out")
        if arguments.out.suffix == ".html":
            write_report(staged, picture_text(f"What {arguments.model} sees", 200), parts)
        else:
            _stack([part.path for part in parts[1:]], staged)
        staged.replace(arguments.out)
    print("\n".join([parts[0], *(part.caption for part in parts[1:])]))
    print(arguments.out)


def _parts(arguments: argparse.Namespace) -> list[str]:
    default = "pca,neighbours" if arguments.data else "pca"
    given = default if arguments.what is None else arguments.what
    what = [word.strip() for word in given.split(",")]
    unknown = [word for word in what if word not in _PARTS]
    if unknown:
        raise ValueError(f"--what: unknown part. Got {unknown[0]!r}; expected some of "
                         f"{','.join(_PARTS)}.")  # fmt: skip
    if "neighbours" in what and not arguments.data:
        raise ValueError("--what neighbours needs a set to look in. Add --data SET.")
    if arguments.data and "neighbours" not in what:
        raise ValueError("--data would be ignored. It belongs to --what neighbours.")
    if arguments.image_size is not None and "pca" not in what:
        raise ValueError("--image-size would be ignored. It belongs to --what pca.")
    if arguments.out.suffix not in _ENDINGS:
        raise ValueError(f"--out: unknown kind of file. Got {str(arguments.out)!r}; expected "
                         f"FILE.png for one picture or FILE.html for a page.")  # fmt: skip
    return what


def _models(arguments: argparse.Namespace, device: Any) -> tuple[dict[str, Any], Any]:
    """What is looked through, by its heading, and the distiller of a run."""
    from ..evaluation.looking import Look
    from ..models.frozen import as_extractor
    from ..training.checkpoint import newest

    run, checkpoint, random = Path(arguments.model), arguments.checkpoint, arguments.random_weights
    if (run / "run.json").is_file() and newest(run) is not None:
        if arguments.teacher or arguments.teacher_checkpoint or checkpoint or random:
            raise ValueError(
                f"--teacher, --checkpoint and --random-weights would be ignored. Got the run "
                f"{str(run)!r}, which has a teacher and weights of its own; leave them out, or "
                f"show {str(run / 'export')!r}."
            )
        from ..recipes.reopen import reopen

        distiller = reopen(run).to(device).eval()
        project = target = None
        if distiller.heads is not None and distiller.heads.feature_head is not None:
            project = distiller.heads.project
            if distiller.heads.targets == "angle":
                target = distiller.heads.target
        looks = {
            f"teacher: {distiller.teacher.name}": Look(as_extractor(distiller.teacher), target),
            f"student: {distiller.student.name}": Look(as_extractor(distiller.student), project),
        }
        return looks, distiller
    if (run / "run.json").is_file() and not (run / "export").is_dir():
        raise ValueError(
            f"run: nothing to see yet. Got {str(run)!r}, which holds no checkpoint and no export; "
            f"wait for its first checkpoint (--save-every)."
        )
    model = Look(_extractor(arguments.model, None, device, checkpoint, random))
    if arguments.teacher is None and arguments.teacher_checkpoint:
        raise ValueError("--teacher-checkpoint would be ignored. It belongs to --teacher NAME.")
    if arguments.teacher is None:
        return {arguments.model: model}, None
    teacher = Look(_extractor(arguments.teacher, None, device, arguments.teacher_checkpoint))
    return {f"teacher: {arguments.teacher}": teacher, f"student: {arguments.model}": model}, None


def _draw_maps(
    arguments: argparse.Namespace,
    photos: Any,
    looks: Mapping[str, Any],
    distiller: Any,
    path: Path,
) -> str:
    """One row an image: PCA maps, what a student sees under a mask. Returns the caption."""
    from ..evaluation.looking import pca_columns
    from ..evaluation.pictures import squares_of
    from ..visualize import save_columns

    largest = max(max(look.extractor.image_size) for look in looks.values())
    squares = squares_of(photos.images, max(224, largest, arguments.image_size or 0))
    columns, sentences = {"image": squares}, []
    if "pca" in arguments.what:
        maps, basis = pca_columns(looks, squares, arguments.image_size)
        columns |= maps
        alone = len(looks) == 1
        sentences.append("Patch features: the first three principal components as colours"
                         + (". " if alone else ", in one basis: equal colours, equal features."
                            if basis == "joint" else ", each model in a basis of its own: compare "
                            "shapes, not colours."))  # fmt: skip
    if "masks" in arguments.what:
        columns |= _masked(squares, looks, distiller, arguments.seed)
        sentences.append("Seen: what the patch term leaves of the image.")
        if "error" in columns:
            sentences.append(
                "Error: 1 - cosine to the teacher at hidden patches, the largest white."
            )
    caption = " ".join(sentence.strip() for sentence in sentences)
    save_columns(columns, photos.names, path)
    return caption


def _masked(squares: Any, looks: Mapping[str, Any], distiller: Any, seed: int) -> dict[str, Any]:
    """The images with hidden patches in grey; of a run, how wrong the student is about them."""
    import torch
    import torch.nn.functional as F

    from ..evaluation.pictures import patch_errors
    from ..masking import MaskGenerator
    from ..student import Student
    from ..visualize import mask_pictures

    generator = torch.Generator().manual_seed(seed)
    if distiller is None:
        extractor = list(looks.values())[-1].extractor
        student = Student(extractor.model, image_size=extractor.image_size)
        if student.mask_token is None:
            raise ValueError(f"--what masks: {student.cannot_hide()}")
        hidden = MaskGenerator(student.grid, probability=1).masks(len(squares), generator)
        return mask_pictures(squares, hidden, student.grid)
    masks = distiller.masks
    if masks is None:
        raise ValueError("--what masks: this run hides no patches. Got a run without patch term.")
    own = MaskGenerator(masks.grid, ratio=masks.ratio, probability=1, strategy=masks.strategy)
    hidden = own.masks(len(squares), generator)
    images = F.interpolate(squares, size=distiller.student.image_size, mode="bicubic",
                           antialias=True).clamp(0, 1)  # fmt: skip
    images = images.to(next(distiller.parameters()).device)
    with torch.no_grad():
        masked = distiller.student(images, hidden.to(images.device))
        guess = masked._replace(patches=distiller.loss.patch_head(masked.patches))
        errors = patch_errors(guess, distiller.teacher(images)).cpu() * hidden
    return mask_pictures(squares, hidden, masks.grid, errors)


def _stack(files: list[Path], out: Path) -> None:
    """Pictures one below the other in one PNG."""
    from PIL import Image

    from ..data import decode

    pictures = [decode(file.read_bytes()) for file in files]
    width, height = max(p.width for p in pictures), sum(p.height for p in pictures)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    whole.save(out, format="PNG")


def _tell(skipped: Mapping[str, str]) -> None:
    for name, why in list(skipped.items())[:10]:
        print(f"Skipped {name}: {why}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"Skipped {len(skipped) - 10} more.", file=sys.stderr)
