"""fit: the minimal loop, for one run or for several on the same batches.

Everything random in step n depends on the seed and on n only, so a resumed run needs no saved
random state to repeat what an uninterrupted one would have done.
"""

import contextlib
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..prepared import PreparedTargets
from ..settings import Parallel, Precision
from ..world import join
from .bars import SharedBar
from .batches import Resumable, batches, check_data
from .folder import Resume, holding
from .interrupt import Interrupt, RunStopped
from .objective import Objective
from .results import write_results
from .rows import Row
from .run import Plan, Run, Watch, plan_run
from .schedule import Schedule
from .start import start_runs, trim
from .trackers import Tracker

History = list[Row]
_FIRST_SAVE = 10  # whatever `save_every`: what a short run did is not lost


def fit(
    distiller: Objective,
    data: Iterable[Any] | Resumable,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    lr: float | Schedule = 1e-3,
    weight_decay: float = 0.05,
    undecayed: Collection[str] | None = None,
    layer_decay: float | None = None,
    frozen: Sequence[str] | None = None,
    warmup: float | None = None,
    first_scale: float | None = None,
    first_share: float | None = None,
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
    targets: PreparedTargets | None = None,
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
        layer_decay: Factor on the student's rate from layer to layer, see
            `proteus.models.parts.layer_rates`; None = one rate.
        frozen: Patterns of names of parameters that stay as they are, see `Student.freeze`.
        warmup: Share of the steps with linearly growing learning rate, in [0, 1), by default 0.05.
            The cosine ends at a hundredth of the peak. Not with a function for `lr`.
        first_scale: Side of the student's images in the first part, as a share of its own
            (to whole patches), for steps that cost less; None = its own throughout. The teacher
            keeps its size.
        first_share: Share of the steps with `first_scale`, by default half of them.
        clip_grad: Largest norm of the gradient; None = no clipping, as in the paper.
        ema: Decay of a moving average of the student, exported too; None = none.
        seed: Of masks, drop path and data. The global generators are seeded anew in every step.
        precision: `fp32`, `bf16` or `fp16`; see `proteus.settings.Optimizer`.
        accumulate: Parts of a batch that go through the model one after the other, for the same
            gradient in less memory.
        parallel: `auto`, `ddp` or `fsdp`; see `proteus.settings.Machine`. Processes come from
            torchrun.
        compile: Compile the whole step with `torch.compile`; with FSDP, block by block.
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
        targets: The teacher's features of these images, prepared: the steps do without the teacher.
            `data` must be the `ImageLoader` of what was prepared; see `proteus.prepared`.
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
    plan = plan_run(
        distiller, data, None if out is None else Path(out), steps=steps, epochs=epochs, lr=lr,
        weight_decay=weight_decay, undecayed=undecayed, layer_decay=layer_decay, frozen=frozen,
        warmup=warmup, first_scale=first_scale, first_share=first_share, clip_grad=clip_grad,
        ema=ema,
        seed=seed, precision=precision, accumulate=accumulate, parallel=parallel, compile=compile,
        activation_checkpointing=activation_checkpointing, save_every=save_every, keep=keep,
        watch=watch, trackers=trackers, details=details, targets=targets,
    )  # fmt: skip
    return train(
        [plan], data, plan.folder, device=device, resume=resume, overwrite=overwrite,
        preview=preview, progress=progress,
    )[0]  # fmt: skip


def train(
    plans: Sequence[Plan],
    data: Iterable[Any] | Resumable,
    out: Path | None,
    *,
    device: str | torch.device,
    resume: Resume,
    overwrite: bool,
    preview: Tensor | None,
    progress: bool,
) -> list[History]:
    """Do what was planned, all of it on each batch; see `fit` and `fit_all`."""
    first, total = plans[0], plans[0].total
    inputs, seed = max(plan.distiller.num_inputs for plan in plans), first.seed
    if first.targets is not None:
        data = first.targets.check_fits(first.distiller.teacher, data).beside(first.targets)
        inputs += len(first.targets.parts)
    world = join(device)
    with contextlib.ExitStack() as held:
        for plan in plans:
            held.enter_context(holding(plan.folder, world))
        with world.as_one():
            check_data(data, world, total, first.machine.accumulate)
            start, begun = start_runs(plans, world, resume, overwrite)
        interrupt = Interrupt(say=world.first)
        bar = None
        if len(plans) > 1:
            names = [plan.name for plan in plans]
            bar = SharedBar(names, start, total, shown=progress and world.first)
        runs = [
            Run(plan, *one, start, interrupt, progress=progress, bar=bar)
            for plan, one in zip(plans, begun, strict=True)
        ]
        stream = batches(data, start, total, inputs=inputs, seed=seed)
        # Closed, because a traceback would keep it, and the processes that load images, alive.
        one = world.as_one(unless=(RunStopped,))
        with contextlib.ExitStack() as logs, interrupt, one, contextlib.closing(stream):
            waits: Iterable[tuple[Tensor, ...]] = stream
            for run in runs:
                waits = logs.enter_context(run.log).timed(waits)
            for run in runs if start == 0 else ():
                run.look(0)
            last = _go_through(runs, waits, start, data, out)
            images = last if preview is None else preview
            for run in runs:
                run.log.flush(durable=True)
                if run.plan.folder is None:
                    continue
                if images is None:  # resumed at its end, a run sees no batch
                    images = next(batches(data, total - 1, total, inputs=1, seed=seed))[0]
                write_results(run.engine, run.log, run.plan.folder, images, run.settings)
        return [run.log.rows() for run in runs]


def _go_through(
    runs: Sequence[Run],
    stream: Iterable[tuple[Tensor, ...]],
    start: int,
    data: Any,
    out: Path | None,
) -> Tensor | None:
    """Train on the batches from `start` on; the images of the last one."""
    images, several = None, len(runs) > 1
    world, plan = runs[0].engine.world, runs[0].plan
    total, machine = plan.total, plan.machine
    for step, batch in enumerate(stream, start):
        inputs = [item.to(world.device, non_blocking=True) for item in batch]
        with contextlib.ExitStack() as shared:
            for teacher in plan.distiller.teachers.values() if several else ():
                shared.enter_context(teacher.shared())
            target = None
            if plan.targets is not None:
                inputs, parts = inputs[:1], inputs[1:]
                target = plan.targets.features(parts)
            for run in runs:
                run.step(inputs, step, target)
        done, images = step + 1, batch[0]
        for run in runs:
            run.look(done)
        due = done % machine.save_every == 0 or done in (
            min(_FIRST_SAVE, machine.save_every),
            total,
        )
        if out is not None and (due or _agreed(runs)):
            _save(runs, done, data)
        by = _agreed(runs)
        if by and done < total:  # saving, too, is where processes agree
            raise RunStopped(_stopped(out, done, total, by), by)
    return images


def _save(runs: Sequence[Run], done: int, data: Any) -> None:
    """Checkpoints of all runs, or a step that all have saved before stays in each."""
    keep, more = runs[0].plan.machine.keep, len(runs) > 1
    for run in runs:  # a loss that is not finite ends all, and leaves them at the same step
        run.log.flush(durable=True)
    for run in runs:
        run.save(done, data, keep + more)
    if more:
        trim([run.plan.folder for run in runs if run.plan.folder], runs[0].engine.world, keep)


def _agreed(runs: Sequence[Run]) -> signal.Signals | None:
    """The signal for which all stop, if any run's processes have agreed on one."""
    return next((run.log.stop_agreed for run in runs if run.log.stop_agreed), None)


def _stopped(folder: Path | None, done: int, total: int, by: signal.Signals) -> str:
    where = f"saved in {folder}; go on with resume (--resume)" if folder else "nothing was saved"
    name = "Ctrl-C" if by is signal.SIGINT else by.name
    return f"Stopped by {name} after {done} of {total} steps: {where}."
