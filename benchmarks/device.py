"""Students in fp16 and int8: agreement, size and latency beside float32, on this machine.

The models are those that real weights are at hand for: the demo's teacher, EfficientNet-Lite0 of
the extra `teachers`, and students of it, distilled for a few minutes before:

    proteus distill --teacher efficientnet_lite0 --student vit_tiny_patch16_224 --student resnet18 \
        --student mobilenetv3_small_100 --student mobilenetv2_100 --student mobilenetv4_conv_small \
        --data ../shared/data/flowers5-train-000.tar --image-size 128 --steps 120 --batch-size 16 \
        --augment fast --out runs/device
    python benchmarks/device.py --students runs/device    # writes benchmarks/results/device.json
    python benchmarks/device_page.py                      # and the table of docs/device.md from it
"""

import argparse
import json
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from device_page import RESULTS
from torch import nn

import proteus
from proteus.data import center_resize
from proteus.evaluation.looking import open_photos
from proteus.exports import quantize_onnx
from proteus.exports.graph import taken_size

INSTALLED = ("demo-teacher", "efficientnet_lite0")
CALIBRATION, CHECK = 128, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", type=Path, required=True, help="folder of runs")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="models with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the exporter's own
    models: dict[str, Any] = {name: name for name in INSTALLED}
    models |= {path.parent.name: path for path in sorted(args.students.glob("*/export"))}
    rows = []
    for name, where in models.items():
        if args.only in name:
            model = proteus.Teacher(where).backbone if name == where else None
            model = proteus.load_pretrained(where) if model is None else model.float().cpu()
            rows += [measure(name, model, dtype, args.data) for dtype in ("fp16", "int8")]
    facts = {"command": command(), "hardware": hardware(), "rows": rows}
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


def measure(name: str, model: nn.Module, dtype: Any, data: Path) -> dict[str, Any]:
    """A model in fewer bits, or why there is no such file."""
    size = taken_size(model)
    photos = open_photos([data / "flowers5-train-000.tar"], CALIBRATION + CHECK)
    squares = np.stack([np.array(center_resize(image, size[0])) for image in photos.images])
    images = torch.from_numpy(squares).permute(0, 3, 1, 2)
    held_out = torch.arange(len(images)) % 3 == 2
    calibration = images[~held_out] if dtype == "int8" else None
    said: list[str] = []
    row = {
        "model": name, "image_size": size[0], "dtype": dtype,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        try:
            report = quantize_onnx(
                model, file, images[held_out], calibration, dtype=dtype, normalize=True,
                say=said.append,
            )  # fmt: skip
            row |= {**report._asdict(), "path": None}
            print(name, report, sep="\n", flush=True)
        except ValueError as error:
            row |= {"refused": str(error)}
            print(name, error, sep="\n", flush=True)
    return {**row, "said": said}


def command() -> str:
    """How it was started, with the settings that count."""
    threads = os.environ.get("OMP_NUM_THREADS")
    start = f"OMP_NUM_THREADS={threads} " if threads else ""
    return f"{start}python benchmarks/device.py --students runs/device"


def hardware() -> str:
    """What it ran on, and with which versions."""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0]
    known = [kind for kind in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if kind in flags]
    return (
        f"{os.cpu_count()} cores of a {platform.machine()} CPU ({', '.join(known)}), "
        f"{torch.get_num_threads()} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, timm {timm.__version__}, onnxruntime {onnxruntime.__version__}"
    )


if __name__ == "__main__":
    main()
