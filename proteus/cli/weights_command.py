"""`proteus convert` and `push`: weights in and out."""

import argparse
from pathlib import Path

from .parser import Commands, add_command


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    _add_convert(commands)
    _add_push(commands)


def _add_convert(commands: Commands) -> None:
    convert = add_command(
        commands,
        "convert",
        "Turn a weight file of a model family into a folder that timm loads.",
        "proteus convert proteus_vit_s.pth --out proteus-vit-s14",
    )
    add = convert.add_argument
    add("file", type=Path, help="local .pth or .safetensors")
    add("--out", type=Path, required=True, help="folder to write")
    add(
        "--family",
        default="proteus",
        help="proteus (the authors' students), dinov2, synclr or openai-clip (default proteus)",
    )
    add("--weights", choices=["student", "ema"], help="of a training checkpoint (default student)")
    add("--image-size", type=int, help="pixels (default: the trained size)")
    add("--num-heads", type=int, help="attention heads (default: width / 64)")
    convert.set_defaults(run=_run_convert)


def _run_convert(arguments: argparse.Namespace) -> None:
    from ..hub.convert import convert

    options = {"image_size": arguments.image_size, "num_heads": arguments.num_heads}
    if arguments.weights is not None:
        if arguments.family != "proteus":
            raise ValueError(
                f"--weights would be ignored. Got it with --family {arguments.family}; it belongs "
                f"to the training checkpoints of --family proteus."
            )
        options["weights"] = arguments.weights
    folder, entry = convert(arguments.file, arguments.out, family=arguments.family, **options)
    what = entry.name if entry else f"a {arguments.family} model"
    print(f"{arguments.file.name} is {what}. Wrote {folder}; load it with")
    print(f'  timm.create_model("local-dir:{folder}", pretrained=True)')
    print(f'  proteus.load_pretrained("{folder}")')


def _add_push(commands: Commands) -> None:
    push = add_command(
        commands,
        "push",
        "Upload an export folder to the Hugging Face Hub.",
        "proteus push runs/first OWNER/my-student --private",
    )
    push.add_argument("folder", type=Path, help="a run or an export folder")
    push.add_argument("repo", help="owner/name, created if it does not exist")
    push.add_argument("--private", action="store_true", help="if it is created: private")
    push.set_defaults(run=_run_push)


def _run_push(arguments: argparse.Namespace) -> None:
    from ..hub.remote import upload

    inside = arguments.folder / "export"
    folder = inside if inside.is_dir() else arguments.folder
    print(upload(folder, arguments.repo, private=arguments.private))
