"""fit: the minimal loop.

Everything random in step n depends on the seed and on n only, so a resumed run needs no saved
random state to repeat what an uninterrupted one would have done.
"""

import contextlib
import hashlib
import json
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..ranges import check_numbers
from ..settings import Machine, Optimizer, Parallel, Precision, numbers
from ..traits import Trait
from ..world import join
from .batches import Resumable, batches, check_data, count_steps, skipped_by
from .engine import Engine
from .folder import Resume, begin, claim, holding, resume_run, save_run
from .interrupt import Interrupt, RunStopped
from .log import RunLog
from .objective import Objective, check_objective
from .results import write_results
from .rows import Row
from .schedule import EpochSchedule, Schedule, learning_rate
from .trackers import Tracker

History = list[Row]
_DESCRIBED = ("weight_decay", "undecayed", "clip_grad", "ema", "precision")
_FIRST_SAVE = 10  # whatever `save_every`: what a short run did is not lost


class Watch(Protocol):
    """A measurement now and then; see `proteus.training.watch.Watch`."""

    every: int

    def __call__(self, distiller: Any) -> dict[str, float]:
        """Measure."""


@runtime_checkable
class _Sampled(Trait, Protocol):
    """A watch that knows how sure its numbers are."""

    def margins(self, values: Mapping[str, float]) -> dict[str, float]: ...


def fit(
    distiller: Objective,
    data: Iterable[Any] | Resumable,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    lr: float | Schedule = 1e-3,
    weight_decay: float = 0.05,
    undecayed: Collection[str] | None = None,
    warmup: float | None = None,
    clip_grad: float | None = None,
    ema: float | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    accumulate: int = 1,
    parallel: Parallel = "auto",
    compile: bool = False,
    activation_checkpointing: bool = False,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    resume: Resume = False,
    overwrite: bool = False,
    save_every: int = 500,
    keep: int = 2,
    watch: Watch | None = None,
    trackers: Sequence[Tracker] = (),
    preview: Tensor | None = None,
    details: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> History:
    """Train the student. The minimal loop: AdamW, a schedule per step, log, checkpoints.

    Args:
        distiller: What to train, in place: a `Distiller`, or a module of the same form.
        data: Batches of RGB images, `[B, 3, H, W]` uint8 or float in [0, 1] (or tuples that start
            with one): an `ImageLoader`, a `DataLoader`, or any iterable that can be iterated again.
            Under torchrun, of this process.
        steps: How many optimizer steps; or
        epochs: how many passes over `data`, which then must have a length. Exactly one of the two.
        lr: Peak learning rate; or the rate of each step as a function of its number, such as an
            `EpochSchedule`.
        weight_decay: For matrices; see `undecayed`.
        undecayed: Parameters that are not decayed, see `parameter_groups`.
        warmup: Share of the steps with linearly growing learning rate, in [0, 1), by default 0.05.
            The cosine ends at a hundredth of the peak. Not with a function for `lr`.
        clip_grad: Largest norm of the gradient; None = no clipping, as in the paper.
        ema: Decay of a moving average of the student, exported too; None = none.
        seed: Of masks, drop path and data. The global generators are seeded anew in every step.
        precision: `fp32`, `bf16` or `fp16`; see `proteus.settings.Optimizer`.
        accumulate: Parts of a batch that go through the model one after the other, for the same
            gradient in less memory.
        parallel: `auto`, `ddp` or `fsdp`; see `proteus.settings.Machine`. Processes come from
            torchrun.
        compile: Compile teacher and student.
        activation_checkpointing: Less memory for a second forward pass.
        device: `auto` = the accelerator if there is one, else the CPU.
        out: Folder for `log.jsonl`, `checkpoint/`, `export/` (timm layout; only for timm models),
            `curves.png` and `pca.png`. None = write nothing.
        resume: Go on with the run in `out`; `"auto"` = if there is one, else start.
        overwrite: Replace the run in `out`.
        save_every: Steps between checkpoints; there is one after step 10 and at the end too.
        keep: How many checkpoints stay.
        watch: Measures the student every so many steps; see `proteus.training.watch.Watch`.
        trackers: Where the numbers go besides `log.jsonl`; see `proteus.training.trackers`.
        preview: Images [B, 3, H, W] for `pca.png`; None = some of the last batch.
        details: JSON-able facts about the run (data, batch size, …), kept in checkpoints and the
            export; `resume` refuses to go on with others.
        progress: Show a progress bar with the terms, images/s and the time left.

    Returns:
        One row per step: step, total, the terms, lr, grad_norm (None where fp16 skipped the step).

    Raises:
        ValueError: If settings contradict each other or `out` holds a run already.
        NonFiniteLossError: If a loss is NaN or infinite; the last checkpoint stays.
        RunStopped: After SIGTERM or Ctrl-C, when the checkpoint is written.

    Examples:
        >>> import proteus
        >>> teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = proteus.Student("vit_tiny_patch16_224", image_size=32)
        >>> distiller = proteus.Distiller(teacher, student)
        >>> rows = fit(distiller, [torch.rand(2, 3, 32, 32)], steps=3, device="cpu", progress=False)
        >>> len(rows), sorted(rows[0])[:3]
        (3, ['feature', 'grad_norm', 'lr'])

    Source:
        Proteus (ICLR 2025), A.1.1; DeiT's recipe; `pretrain/main.py`, `pretrain/engine.py`.
        *Same:* AdamW (0.9, 0.999, 1e-8), weight decay 0.05, warm-up, cosine, no clipping.
        *Different:* the rate changes per step and not per epoch; positions and tokens are not
        decayed (the authors decay them): `proteus.recipes` has their settings. Checkpoints hold no
        teacher.
    """
    optimizer = Optimizer(
        lr=0.0 if callable(lr) else lr, weight_decay=weight_decay, warmup=warmup,
        undecayed=None if undecayed is None else tuple(sorted(undecayed)),
        clip_grad=clip_grad, ema=ema, precision=precision,
    )  # fmt: skip
    machine = Machine(
        accumulate=accumulate, parallel=parallel, compile=compile,
        activation_checkpointing=activation_checkpointing, save_every=save_every, keep=keep,
        watch_every=watch.every if watch else 1,
    )  # fmt: skip
    lengths = {"steps": steps, "epochs": epochs, "seed": seed}
    check_numbers("fit", lengths | numbers(optimizer, machine))
    check_objective(distiller)
    total = count_steps(data, steps, epochs)
    schedule, described = _schedule(lr, warmup, total)
    world = join(device)
    folder = None if out is None else Path(out)
    with holding(folder, world):
        with world.as_one():
            check_data(data, world, total, accumulate)
            settings = {
                "steps": total, **described, "seed": seed,
                **{name: value for name, value in vars(optimizer).items() if name in _DESCRIBED},
                "teacher": distiller.teacher.name, "student": distiller.student.name,
                "teacher_digest": world.once(lambda: _digest(distiller.teacher)),
                **distiller.describe(), **(details or {}),
            }  # fmt: skip
            _check_describable(settings)
            going_on = folder is not None and claim(folder, world, resume, overwrite)
            engine = Engine(distiller, world, optimizer, machine, seed=seed, lr=schedule(0))
            start = resume_run(folder, engine, settings) if folder and going_on else 0
            if folder is not None:
                begin(folder, world, going_on)
        images = preview
        interrupt = Interrupt(say=world.first)
        log = RunLog(
            folder, start, total, world, progress=progress, overflows=precision == "fp16",
            trackers=trackers, asked=lambda: interrupt.requested,
            inputs=(distiller.teacher.inputs, distiller.student.inputs),
        )  # fmt: skip
        stream = batches(data, start, total, inputs=distiller.num_inputs, seed=seed)
        # Closed, because a traceback would keep it, and the processes that load images, alive.
        with log, interrupt, world.as_one(unless=(RunStopped,)), contextlib.closing(stream):
            for step, batch in enumerate(log.timed(stream), start):
                rate = schedule(step)
                inputs = [item.to(world.device, non_blocking=True) for item in batch]
                names, values = engine.step(inputs, step, rate)
                log.add(names, values, rate, len(batch[0]))
                if watch is not None and (step + 1) % watch.every == 0:
                    log.flush()  # a loss that is not finite is said first: nothing to measure
                    seen = watch(distiller)
                    log.watch(seen | (watch.margins(seen) if isinstance(watch, _Sampled) else {}))
                done, images = step + 1, batch[0]
                due = done % save_every == 0 or done in (min(_FIRST_SAVE, save_every), total)
                if folder and (due or log.stop_agreed):
                    save_run(
                        folder, done, engine, log, skipped_by(data), settings=settings, keep=keep
                    )
                if log.stop_agreed and done < total:  # saving, too, is where processes agree
                    raise RunStopped(
                        _stopped(folder, done, total, log.stop_agreed), log.stop_agreed
                    )
            log.flush(durable=True)
            if folder is not None:
                if images is None:  # resumed at its end, a run sees no batch
                    images = next(batches(data, total - 1, total, inputs=1, seed=seed))[0]
                write_results(engine, log, folder, images if preview is None else preview, settings)
        return log.rows()


def _digest(model: nn.Module) -> str:
    """Of the first few numbers of each tensor: a name does not tell whose weights it got.

    To three digits: resampled positions differ in their last bits among machines.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):  # a module may keep other things in its state
            rounded = value.flatten()[:16].cpu().to(torch.bfloat16) + 0  # -0 is 0
            digest.update(rounded.double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_describable(settings: Mapping[str, Any]) -> None:
    """Now, and not at the first checkpoint."""
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"fit: details must be JSON-able, and numbers finite. Got {settings}, and: {error}. "
            f"Leave out what is not, or pass its description."
        ) from error


def _schedule(
    lr: float | Schedule, warmup: float | None, steps: int
) -> tuple[Schedule, dict[str, Any]]:
    """The rate of each step, and how the run's settings describe it."""
    if not callable(lr):
        share = 0.05 if warmup is None else warmup
        peak = lr
        return lambda step: learning_rate(step, steps, peak, share), {"lr": lr, "warmup": share}
    if warmup is not None:
        raise ValueError(
            f"fit: warmup would be ignored. Got warmup={warmup} with a function for lr; leave "
            f"warmup out, and let the function warm up."
        )
    described = dict(vars(lr)) if isinstance(lr, EpochSchedule) else lr.__class__.__name__
    return lr, {"lr": described}


def _stopped(folder: Path | None, done: int, total: int, by: signal.Signals) -> str:
    where = f"saved in {folder}; go on with resume (--resume)" if folder else "nothing was saved"
    name = "Ctrl-C" if by is signal.SIGINT else by.name
    return f"Stopped by {name} after {done} of {total} steps: {where}."
