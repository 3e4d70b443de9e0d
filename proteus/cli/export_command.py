"""`proteus export`: a distilled model for those who have no timm, also in fp16 and int8."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .parser import Commands, add_command

_CALIBRATION, _CHECK, _FEWEST = 128, 64, 12  # images


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    export = add_command(
        commands,
        "export",
        "Write a distilled model for those who have no timm: transformers, ONNX, torch.export.",
        "proteus export runs/first --to onnx --dtype int8 --out student-int8.onnx",
    )
    add = export.add_argument
    add("model", help="a run, an export folder, owner/repo or a released name")
    add("--to", required=True, choices=["transformers", "onnx", "torch"], help="format")
    add("--out", type=Path, required=True, help="file (onnx, torch) or folder (transformers)")
    add("--image-size", type=int, help="pixels (default: the trained size)")
    add("--normalize", action="store_true", help="onnx, torch: take RGB in [0, 1]")
    add("--dynamic-size", action="store_true", help="onnx, torch: any height and width")
    add("--opset", type=int, help="onnx: operator set (default 18)")
    add("--dtype", choices=["fp32", "fp16", "int8"], help="onnx: numbers inside (default fp32)")
    add(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help=f"onnx in fp16, int8: images to compare on, and of int8 to calibrate on; at most "
        f"{_CALIBRATION + _CHECK} are taken (default: those of the run)",
    )
    export.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    graph = {"normalize": arguments.normalize, "dynamic_size": arguments.dynamic_size}
    _refuse_ignored(arguments)
    few_bits = (arguments.dtype or "fp32") != "fp32"
    paths = _image_paths(arguments) if few_bits else []

    from .. import exports
    from ..exports.graph import taken_size
    from ..hub.remote import load_pretrained

    model = load_pretrained(arguments.model, image_size=arguments.image_size)
    if arguments.to == "transformers":
        path = exports.to_transformers(model, arguments.out)
    elif arguments.to == "torch":
        path = exports.to_torch_export(model, arguments.out, **graph)
    else:
        graph["opset"] = arguments.opset or 18
        if few_bits:
            calibration, check = _read_images(paths, taken_size(model), arguments)
            report = exports.quantize_onnx(
                model, arguments.out, check, calibration, dtype=arguments.dtype,
                say=lambda text: print(text, file=sys.stderr), **graph,
            )  # fmt: skip
            print(report)
            path = report.path
        else:
            path = exports.to_onnx(model, arguments.out, **graph)
    print(f"Wrote {path}")


def _refuse_ignored(arguments: argparse.Namespace) -> None:
    graph_only = arguments.normalize or arguments.dynamic_size
    if arguments.to == "transformers" and graph_only:
        raise ValueError("--normalize and --dynamic-size would be ignored with --to transformers.")
    for option in ("opset", "dtype"):
        if arguments.to != "onnx" and vars(arguments)[option] is not None:
            raise ValueError(f"--{option} would be ignored with --to {arguments.to}.")
    if arguments.calibration and arguments.dtype not in ("fp16", "int8"):
        raise ValueError("--calibration would be ignored without --dtype int8 or fp16.")


def _image_paths(arguments: argparse.Namespace) -> list[str]:
    """The images that were named, or those of the run."""
    if arguments.calibration:
        return list(arguments.calibration)
    from ..recipes.by_path import read_recipe

    if not (Path(arguments.model) / "run.json").is_file():
        raise ValueError(
            f"--dtype {arguments.dtype}: no images to calibrate and compare on. Got "
            f"{arguments.model!r}, which is no run and names none; expected --calibration IMAGES, "
            f"such as the model was trained on."
        )
    return list(read_recipe(arguments.model).science.data.paths)


def _read_images(paths: Sequence[str], size: tuple[int, int], arguments: argparse.Namespace) -> Any:
    """Images to calibrate on (None for fp16) and others to compare on, evenly spread.

    Centre crops, as a model is evaluated.
    """
    import numpy as np
    import torch

    from ..data import center_resize
    from ..evaluation.looking import open_photos

    try:
        photos = open_photos(paths, _CALIBRATION + _CHECK)
    except ValueError as error:
        if arguments.calibration:
            raise
        raise ValueError(
            f"--dtype {arguments.dtype}: the images of the run cannot be read. Got: {error} Say "
            f"where they are now, or name others: --calibration IMAGES."
        ) from error
    _tell(photos.skipped)
    if len(photos.images) < _FEWEST:
        raise ValueError(
            f"--calibration: too few images. Got {len(photos.images)} in {', '.join(paths)}; "
            f"expected at least {_FEWEST}, better {_CALIBRATION + _CHECK}, of which a third is "
            f"kept to compare on."
        )
    squares = [np.array(center_resize(image, size[0])) for image in photos.images]
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)  # [N, 3, S, S], uint8
    held_out = torch.arange(len(images)) % 3 == 2  # every third
    return (images[~held_out] if arguments.dtype == "int8" else None), images[held_out]


def _tell(skipped: Mapping[str, str]) -> None:
    if skipped:
        name, why = next(iter(skipped.items()))
        print(f"Passed over {len(skipped)}, such as {name}: {why}", file=sys.stderr)
