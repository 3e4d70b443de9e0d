"""fit: the minimal loop, and what surrounds it (schedule, parameter groups, log, checkpoints).

Everything random in step n depends on the seed and on n only, so a resumed run needs no saved
random state to repeat what an uninterrupted one would have done.
"""

import itertools
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from . import checkpoint, visualize
from .distiller import Distiller
from .features import Features
from .losses import Losses
from .saving import save_pretrained

History = list[dict[str, float]]
TERMS = Losses._fields


class NonFiniteLossError(ArithmeticError):
    """A loss term became NaN or infinite; the message says which, when, and what is kept."""


@runtime_checkable
class Resumable(Protocol):
    """Data that can start at any batch, such as `proteus.data.ImageLoader`."""

    def batches(self, start: int) -> Iterator[Any]:
        """Batch number `start`, `start` + 1, … without end."""


def fit(
    distiller: Distiller,
    data: Iterable[Any] | Resumable,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    seed: int = 0,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_every: int = 500,
    preview: Tensor | None = None,
    details: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> History:
    """Train the student. The minimal loop: AdamW, warm-up and cosine per step, log, checkpoints.

    Args:
        distiller: What to train, in place.
        data: Batches of RGB images, `[B, 3, H, W]` uint8 or float in [0, 1] (or tuples that start
            with one): an `ImageLoader`, a `DataLoader`, or any iterable that can be iterated again.
        steps: How many optimizer steps; or
        epochs: how many passes over `data`, which then must have a length. Exactly one of the two.
        lr: Peak learning rate.
        weight_decay: For matrices; never for biases, norms, positions and tokens.
        warmup: Share of the steps with linearly growing learning rate, in [0, 1). The cosine ends
            at a hundredth of the peak.
        seed: Of masks and drop path. torch's global generator is seeded anew in every step.
        device: `auto` = the accelerator if there is one, else the CPU.
        out: Folder for `log.jsonl`, `checkpoint/`, `export/` (timm layout; only for timm models),
            `curves.png` and `pca.png`. None = write nothing.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        save_every: Steps between checkpoints; there is one at the end too.
        preview: Images [B, 3, H, W] for `pca.png`; None = some of the last batch.
        details: JSON-able facts about the run (data, batch size, …), kept in checkpoints and the
            export; `resume` refuses to go on with others.
        progress: Show a progress bar with the terms, images/s and the time left.

    Returns:
        One row per step: step, total, token, feature, patch, lr, images_per_second.

    Raises:
        ValueError: If settings contradict each other or `out` holds a run already.
        NonFiniteLossError: If a loss is NaN or infinite; the last checkpoint stays.

    Examples:
        >>> import proteus
        >>> teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = proteus.Student("vit_tiny_patch16_224", image_size=32)
        >>> distiller = proteus.Distiller(teacher, student)
        >>> rows = fit(distiller, [torch.rand(2, 3, 32, 32)], steps=3, device="cpu", progress=False)
        >>> len(rows), sorted(rows[0])[:3]
        (3, ['feature', 'images_per_second', 'lr'])

    Source:
        Proteus (ICLR 2025), A.1.1; DeiT's recipe; `pretrain/main.py`, `pretrain/engine.py`.
        *Same:* AdamW (0.9, 0.999, 1e-8), weight decay 0.05, warm-up, cosine, no clipping.
        *Different:* the rate changes per step and not per epoch; positions and tokens are not
        decayed (the authors decay them); checkpoints hold no teacher.
    """
    total = _count_steps(data, steps, epochs)
    schedule = {"steps": total, "lr": lr, "weight_decay": weight_decay, "warmup": warmup}
    names = {"teacher": distiller.teacher.name, "student": distiller.student.name}
    settings = {**schedule, "seed": seed, **names, **(details or {})}
    place = choose_device(device)
    folder = None if out is None else Path(out)
    if folder is not None:
        checkpoint.claim_folder(folder, resume=resume, overwrite=overwrite)
    distiller.to(place).train()
    optimizer = torch.optim.AdamW(parameter_groups(distiller, weight_decay), lr=lr)
    start = checkpoint.load(folder, distiller, optimizer, settings) if folder and resume else 0
    log = _Log(folder, start, total, progress)
    images = preview
    with log:
        for step, images in enumerate(_batches(data, start, total), start):
            rate = learning_rate(step, total, lr, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Hashed, because torch's generator for the CPU looks at 32 bits only.
            torch.manual_seed(random.Random(f"{seed}/{step}").getrandbits(32))
            losses = distiller(images.to(place, non_blocking=True))
            losses.total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.add(losses, rate, images.shape[0])
            if folder and ((step + 1) % save_every == 0 or step + 1 == total):
                log.flush()  # raises if a loss was not finite: then nothing is saved
                checkpoint.save(folder, step + 1, distiller, optimizer, settings)
    if folder is not None:
        if images is None:  # resumed at its end, a run sees no batch
            images = next(_batches(data, total - 1, total))
        _write_results(
            distiller, folder, log.rows, images if preview is None else preview, settings
        )
    return log.rows


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.05) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak.

    Args:
        step: 0 … steps - 1.
        steps: Length of the run.
        peak: Highest rate.
        warmup: Share of the steps that warm up.

    Examples:
        >>> [round(learning_rate(step, 5, 1.0, warmup=0.4), 3) for step in range(5)]
        [0.5, 1.0, 1.0, 0.505, 0.01]
    """
    rising = int(steps * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    position = (step - rising) / max(1, steps - 1 - rising)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, position))))


@runtime_checkable
class _NamesUndecayed(Protocol):
    def no_weight_decay(self) -> set[str]: ...


def parameter_groups(distiller: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices, which decay, and all else, which does not.

    Biases, norms, LayerScale (at most one dimension), class, register and mask tokens, positions,
    and what the timm model lists itself are not decayed.

    Source:
        DeiT `main.py` (`no_weight_decay`).
        *Different:* the Proteus authors' code decays positions, class and mask token, because its
        wrapper hides the model's own list.
    """
    listed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in distiller.named_modules()
        if isinstance(module, _NamesUndecayed)
        for name in module.no_weight_decay()
    }
    tokens = ("pos_embed", "cls_token", "reg_token", "dist_token", "mask_token", "register_tokens")
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in distiller.named_parameters():
        if not parameter.requires_grad:
            continue
        spare = parameter.ndim <= 1 or name in listed or name.rsplit(".", 1)[-1] in tokens
        (spared if spare else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


class _Log:
    """Rows of the log, the progress bar, and the watch for losses that are not finite.

    Losses stay on the device until a flush, about once a second: reading a number makes the host
    wait for the device.
    """

    def __init__(self, folder: Path | None, start: int, total: int, progress: bool) -> None:
        from tqdm import tqdm

        self.folder, self.step, self.rows = folder, start, _read_rows(folder, start)
        self.pending: list[tuple[Tensor, float, int]] = []
        self.file = None if folder is None else (folder / "log.jsonl").open("a")
        self.bar = tqdm(initial=start, total=total, unit="step", disable=not progress)
        self.since = time.perf_counter()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self.flush()
        finally:
            self.bar.close()
            if self.file is not None:
                self.file.close()

    def add(self, losses: Losses, rate: float, images: int) -> None:
        """Note a step."""
        self.pending.append((torch.stack([term.detach() for term in losses]), rate, images))
        if time.perf_counter() - self.since > 1.0:
            self.flush()

    def flush(self) -> None:
        """Read the pending losses, write their rows, and stop the run if one is not finite."""
        if not self.pending:
            return
        values = torch.stack([row for row, _, _ in self.pending]).tolist()
        elapsed = time.perf_counter() - self.since
        speed = sum(count for _, _, count in self.pending) / max(elapsed, 1e-9)
        for terms, (_, rate, _) in zip(values, self.pending, strict=True):
            row = {"step": self.step, **dict(zip(TERMS, terms, strict=True))}
            if not all(math.isfinite(value) for value in terms):
                self._stop(row)
            row.update(lr=rate, images_per_second=round(speed, 2))
            self.rows.append(row)
            self.step += 1
            if self.file is not None:
                self.file.write(json.dumps(row) + "\n")
        if self.file is not None:
            self.file.flush()
        self.bar.update(len(self.pending))
        terms_shown = {name: f"{self.rows[-1][name]:.4f}" for name in TERMS}
        self.bar.set_postfix({**terms_shown, "images/s": f"{speed:.0f}"}, refresh=False)
        self.pending.clear()
        self.since = time.perf_counter()

    def _stop(self, row: dict[str, float]) -> None:
        bad = [name for name in TERMS[1:] if not math.isfinite(row[name])] or ["total"]
        kept = None if self.folder is None else checkpoint.newest(self.folder)
        rescue = (
            f"The last good checkpoint is kept: {kept}." if kept else "No checkpoint exists yet."
        )
        raise NonFiniteLossError(
            f"Training stopped: the {' and '.join(bad)} loss is not finite at step {row['step']}. "
            f"Got {', '.join(f'{name}={row[name]}' for name in bad)}. {rescue} Lower the learning "
            f"rate (--lr), or look at the images around that step."
        )


def _read_rows(folder: Path | None, start: int) -> History:
    """Rows of the steps before `start`; later ones, of a run that died, are cut from the file."""
    path = None if folder is None else folder / "log.jsonl"
    if path is None or not path.exists():
        return []
    lines = path.read_text().splitlines()[:start]
    path.write_text("".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]


def _count_steps(data: Iterable[Any] | Resumable, steps: int | None, epochs: float | None) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError(
            f"fit: exactly one of steps and epochs is needed. Got steps={steps}, epochs={epochs}."
        )
    if steps is None:
        if not isinstance(data, Sized):
            raise ValueError("fit: epochs needs data with a length. Got none; pass steps=.")
        assert epochs is not None
        steps = round(epochs * len(data))
    if steps < 1:
        raise ValueError(f"fit: nothing to do. Got {steps} steps; expected at least 1.")
    return steps


def _batches(data: Iterable[Any] | Resumable, start: int, stop: int) -> Iterator[Tensor]:
    """Images of batch `start` … `stop` - 1, going round as often as needed."""
    if isinstance(data, Resumable):
        stream = itertools.islice(data.batches(start), stop - start)
    else:
        stream = itertools.islice(_rounds(data), start, stop)
    for batch in stream:
        images = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(images, Tensor):
            raise ValueError(
                f"fit: data must give batches of images. Got {type(images).__name__}; expected a "
                f"tensor [B, 3, H, W], or a tuple that starts with one."
            )
        yield images


def _rounds(data: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty:
            raise ValueError("fit: data ran out. Got an iterable that gives nothing (any more).")


def choose_device(device: str | torch.device) -> torch.device:
    """`auto` = the accelerator if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    accelerator = None
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
    return accelerator or torch.device("cpu")


def _write_results(
    distiller: Distiller, folder: Path, rows: History, images: Tensor, settings: Mapping[str, Any]
) -> None:
    """Export and pictures of a finished run."""
    recipe = dict(settings)
    details = {
        "data": recipe.pop("data", None),
        "teacher": recipe.pop("teacher"),
        "recipe": recipe,
        "losses": {name: round(rows[-1][name], 4) for name in TERMS},
    }
    if distiller.student.architecture:
        save_pretrained(distiller, folder / "export", details=details)
    visualize.save_curves(rows, folder / "curves.png")
    if distiller.loss.feature_head is not None:
        visualize.save_pca(images[:8], compare(distiller, images[:8]), folder / "pca.png")


@torch.no_grad()
def compare(distiller: Distiller, images: Tensor) -> dict[str, Features]:
    """Teacher features and the student's, projected to the teacher's width, of the same images."""
    training = distiller.training
    distiller.eval()
    images = images.to(next(distiller.parameters()).device)
    student = distiller.loss.project(distiller.student(images))
    distiller.train(training)
    return {"teacher": distiller.teacher(images), "student": student}
