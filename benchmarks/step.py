"""Our step against the straightforward one, in one run: time and memory.

The straightforward step is what the paper's words say, written plainly: teacher on all images,
student on all images, student on all images again with patches hidden, then the losses. Ours sends
only the masked images through the masked view, together with the whole ones. Same losses and
gradients (checked here first), same optimizer, fp32; rounds of both alternate, so that a noisy
machine disturbs both alike. On the CPU memory is measured in a process of its own for each.

    python benchmarks/step.py                       # ViT-Ti/14 <- ViT-S/14, 224 px, batch 16
    python benchmarks/step.py --device cuda --batch-size 128 --precision bf16 --json step.json
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import timm
import torch
from torch import Tensor

from proteus import Distiller, Features, Losses, Student, Teacher
from proteus.losses import token_distance
from proteus.training import parameter_groups


def straightforward(distiller: Distiller, images: Tensor, hidden: Tensor) -> Losses:
    """Two full student passes and the three losses as the paper writes them."""
    loss = distiller.loss
    target: Features = distiller.teacher(images)
    seen: Features = distiller.student(images)
    masked: Features = distiller.student(images, hidden)
    token_rows = loss.token_head(seen.cls)
    rows = torch.cat([token_rows[:, None], loss.feature_head(seen.patches)], dim=1)
    targets = torch.cat([target.cls[:, None], target.patches], dim=1)
    token = token_distance(token_rows, target.cls).mean()
    feature = token_distance(rows, targets).mean()
    patch = token_distance(loss.patch_head(masked.patches[hidden]), target.patches[hidden]).mean()
    return Losses(token + feature + patch, token, feature, patch)


def ours(distiller: Distiller, images: Tensor, hidden: Tensor) -> Losses:
    """The library's step; it draws the same masks (first half of the batch) itself."""
    losses: Losses = distiller(images)
    return losses


STEPS = {"ours": ours, "straightforward": straightforward}


def build(args: argparse.Namespace) -> tuple[Distiller, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    teacher = Teacher(args.teacher, pretrained=False, image_size=args.image_size)
    student = Student(args.student, image_size=args.image_size)
    distiller = Distiller(teacher, student).to(args.device)
    optimizer = torch.optim.AdamW(parameter_groups(distiller, 0.05), lr=1e-4)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=args.device)
    return distiller, optimizer, images


def precision(args: argparse.Namespace) -> AbstractContextManager[None]:
    enabled = args.precision == "bf16"
    return torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=enabled)


def check(distiller: Distiller, images: Tensor) -> float:
    """Largest relative difference of the two steps' gradients, on the same masks."""
    hidden = draw(distiller, images)
    gradients = []
    for losses in (distiller(images, hidden.cpu()), straightforward(distiller, images, hidden)):
        distiller.zero_grad(set_to_none=True)
        losses.total.backward()
        gradients.append([p.grad.clone() for p in distiller.trainable_parameters()])
    distiller.zero_grad(set_to_none=True)
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(*gradients, strict=True)
    )


def draw(distiller: Distiller, images: Tensor) -> Tensor:
    assert distiller.masks is not None
    return distiller.masks.masks(images.shape[0], device=images.device)


def one_step(name: str, args: argparse.Namespace, parts: tuple) -> float:
    distiller, optimizer, images = parts
    synchronize(args)
    started = time.perf_counter()
    with precision(args):
        losses = STEPS[name](distiller, images, draw(distiller, images))
    losses.total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronize(args)
    return time.perf_counter() - started


def synchronize(args: argparse.Namespace) -> None:
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """MiB above what the models and the first images need, of a few steps of one kind."""
    parts = build(args)
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated() / 2**20
        for _ in range(3):
            one_step(name, args, parts)
        return torch.cuda.max_memory_allocated() / 2**20 - base
    base = resident_peak(reset=True)
    for _ in range(3):
        one_step(name, args, parts)
    return resident_peak() - base


def memory_of(name: str, args: argparse.Namespace) -> float:
    """`peak_memory`: here on a GPU, whose allocator counts, else in a process of its own."""
    if args.device.startswith("cuda"):
        return peak_memory(name, args)
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident_peak(reset: bool = False) -> float:
    """Peak resident memory, MiB, of this process since the last reset (Linux).

    Not `getrusage`: its peak starts at what the parent process had.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="vit_small_patch14")
    parser.add_argument("--student", default="vit_tiny_patch14")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--memory-of", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return
    parts = build(args)
    difference = check(parts[0], parts[2])
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for number in range(args.rounds + 2):
        for name in STEPS if number % 2 else reversed(STEPS):
            elapsed = one_step(name, args, parts)
            if number >= 2:  # the first two rounds warm up
                seconds[name].append(elapsed)
    memory = {name: memory_of(name, args) for name in STEPS}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["straightforward"], strict=True)]
    hardware = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{args.student} <- {args.teacher}, {args.image_size} px, batch {args.batch_size}")
    print(
        f"{hardware}, {torch.get_num_threads()} threads, {args.precision}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    )
    print(f"largest relative difference of a gradient: {difference:.1e}")
    milliseconds = {name: statistics.median(seconds[name]) * 1e3 for name in STEPS}
    for name in STEPS:
        print(
            f"{name:16} {milliseconds[name]:8.1f} ms a step (median of "
            f"{args.rounds}), {memory[name]:7.0f} MiB"
        )
    result = {
        "time": statistics.median(ratios),
        "memory": memory["straightforward"] / memory["ours"],
    }
    print("straightforward / ours:", json.dumps({k: round(v, 2) for k, v in result.items()}))
    if args.json:
        facts = {
            "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
            "hardware": hardware,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "settings": {
                name: value
                for name, value in vars(args).items()
                if name not in ("json", "memory_of")
            },
            "gradient_difference": difference,
            "seconds": seconds,
            "milliseconds": milliseconds,
            "mebibytes": memory,
            "straightforward_to_ours": result,
        }
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
