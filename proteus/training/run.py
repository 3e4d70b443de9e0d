"""One training run between two batches: what was asked of it, and what is done with a batch."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..features import Features, ShapeError
from ..prepared import PreparedTargets
from ..ranges import check_numbers
from ..settings import Machine, Optimizer, Parallel, Precision, numbers
from ..traits import Trait
from ..world import World
from .bars import SharedBar
from .batches import Resumable, count_steps, skipped_by
from .engine import Engine
from .folder import save_run
from .interrupt import Interrupt
from .log import RunLog
from .objective import Objective, check_objective
from .schedule import EpochSchedule, Schedule, learning_rate
from .trackers import Tracker

_DESCRIBED = ("weight_decay", "undecayed", "layer_decay", "frozen", "clip_grad", "ema", "precision")


class Watch(Protocol):
    """A measurement now and then; see `proteus.training.watch.Watch`."""

    every: int

    def __call__(self, distiller: Any) -> dict[str, float]:
        """Measure."""


@runtime_checkable
class _Sampled(Trait, Protocol):
    """A watch that knows how sure its numbers are."""

    def margins(self, values: Mapping[str, float]) -> dict[str, float]: ...


@dataclass(frozen=True)
class Plan:
    """What was asked of a run, found to make sense; see `fit`.

    Attributes:
        name: Among several; "" of one alone.
        described: The learning rate, for the settings.
    """

    distiller: Objective
    folder: Path | None
    total: int
    optimizer: Optimizer
    machine: Machine
    seed: int
    schedule: Schedule
    described: Mapping[str, Any]
    watch: Watch | None
    trackers: Sequence[Tracker]
    details: Mapping[str, Any]
    name: str
    first_size: tuple[int, int] | None = None
    targets: PreparedTargets | None = None

    @property
    def first_steps(self) -> int:
        """Steps in which the student sees smaller images."""
        share = self.optimizer.first_share
        if self.optimizer.first_scale is None:
            return 0
        return round(self.total * (0.5 if share is None else share))

    def image_size(self, step: int) -> tuple[int, int] | None:
        """(height, width) of the student's images in a step; None = its own."""
        return self.first_size if step < self.first_steps else None

    def settings(self, world: World) -> dict[str, Any]:
        """JSON-able: what the run goes on with only.

        Raises:
            ValueError: If the details are not JSON-able.
        """
        distiller, teachers = self.distiller, tuple(self.distiller.teachers.values())
        settings = {
            "steps": self.total, **self.described, "seed": self.seed,
            **{name: value for name, value in vars(self.optimizer).items() if name in _DESCRIBED},
            **({"first_size": self.first_size, "first_steps": self.first_steps}
               if self.first_size else {}),
            "teacher": " + ".join(t.name for t in teachers), "student": distiller.student.name,
            "teacher_digest": world.once(lambda: "+".join(t.digest() for t in teachers)),
            **({"targets": self.targets.describe()} if self.targets else {}),
            **distiller.describe(), **self.details,
        }  # fmt: skip
        _check_describable(settings)
        return settings


def plan_run(
    distiller: Objective,
    data: Iterable[Any] | Resumable,
    folder: Path | None,
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
    save_every: int = 500,
    keep: int = 2,
    watch: Watch | None = None,
    trackers: Sequence[Tracker] = (),
    details: Mapping[str, Any] | None = None,
    targets: PreparedTargets | None = None,
    name: str = "",
) -> Plan:
    """The options of `fit` as a plan.

    Raises:
        ValueError: If they contradict each other.
    """
    optimizer = Optimizer(
        lr=0.0 if callable(lr) else lr, weight_decay=weight_decay, warmup=warmup,
        undecayed=None if undecayed is None else tuple(sorted(undecayed)),
        layer_decay=layer_decay, frozen=tuple(frozen or ()) or None,
        first_scale=first_scale, first_share=first_share,
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
    if targets is not None:
        _check_targets(targets, distiller, data)
    total = count_steps(data, steps, epochs)
    size = first_size_of(distiller, optimizer)
    schedule, described = _schedule(lr, warmup, total)
    return Plan(
        distiller, folder, total, optimizer, machine, seed, schedule, described, watch, trackers,
        details or {}, name, size, targets,
    )  # fmt: skip


@runtime_checkable
class _TakesSizes(Trait, Protocol):
    """An objective whose student can see smaller images in some steps."""

    def also_take(self, image_size: tuple[int, int]) -> None: ...


def first_size_of(distiller: Objective, optimizer: Optimizer) -> tuple[int, int] | None:
    """(height, width) of the student's images in the first steps, found to be possible."""
    scale = optimizer.first_scale
    if scale is None:
        if optimizer.first_share is not None:
            raise ValueError(
                f"fit: first_share would be ignored. Got first_share={optimizer.first_share} and "
                f"no first_scale; give the scale of the first steps, or leave both out."
            )
        return None
    if not isinstance(distiller, _TakesSizes):
        raise ValueError(
            f"fit: this objective has no steps of a smaller size. Got first_scale={scale} for a "
            f"{type(distiller).__name__} without also_take; leave first_scale out."
        )
    student = distiller.student
    height, width = (
        (
            max(1, round(scale * patches)) * (side // patches)
            for side, patches in zip(student.image_size, student.grid, strict=True)
        )
        if student.grid[0]
        else (round(scale * side) for side in student.image_size)
    )
    try:
        distiller.also_take((height, width))
    except ShapeError as error:
        raise ShapeError(
            f"fit: first_scale={scale} does not suit this student, whose images would be "
            f"{height}x{width}: {error} Try another share of the side, such as 0.5."
        ) from error
    return height, width


@runtime_checkable
class _TakesTarget(Trait, Protocol):
    """An objective that says whether a step can do without the teacher."""

    takes_target: bool


def _check_targets(targets: PreparedTargets, distiller: Objective, data: Any) -> None:
    """Refuse targets of another teacher, of other images, or that lack what the loss compares."""
    if not isinstance(distiller, _TakesTarget) or not distiller.takes_target:
        raise ValueError(
            f"fit: this objective asks its teachers in each step. Got targets with a "
            f"{type(distiller).__name__}; expected a Distiller. Leave targets out."
        )
    targets.check_sample(distiller.teacher, targets.check_fits(distiller.teacher, data))
    loss = distiller.heads
    if targets.settings.tokens == "cls" and loss is not None and (loss.feature or loss.patch):
        raise ValueError(
            f"fit: the targets hold class tokens alone. Got {targets.folder} and a loss with "
            f"feature={loss.feature}, patch={loss.patch}; expected tokens='all', or a loss with "
            f"feature=0, patch=0."
        )


class Run:
    """A run that has begun.

    Args:
        plan: What to do.
        engine: With the run's weights.
        settings: Of the plan.
        start: Steps done.
        interrupt: Tells whether a signal came.
        progress: Show a bar.
        bar: Of several runs, in place of an own one.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        settings: dict[str, Any],
        start: int,
        interrupt: Interrupt,
        *,
        progress: bool,
        bar: SharedBar | None = None,
    ) -> None:
        self.plan, self.engine, self.settings = plan, engine, settings
        distiller, part = plan.distiller, None if bar is None else bar.part(plan.name)
        self.log = RunLog(
            plan.folder, start, plan.total, engine.world, progress=progress,
            overflows=plan.optimizer.precision == "fp16", trackers=plan.trackers,
            asked=lambda: interrupt.requested, name=plan.name, bar=part,
            inputs=tuple(m.inputs for m in (*distiller.teachers.values(), distiller.student)),
        )  # fmt: skip

    def step(self, batch: Sequence[Tensor], step: int, target: Features | None = None) -> None:
        """Train on a batch, which is on the device; without the teacher, given its features."""
        rate = self.plan.schedule(step)
        names, values = self.engine.step(batch, step, rate, self.plan.image_size(step), target)
        self.log.add(names, values, rate, len(batch[0]))

    def look(self, done: int) -> None:
        """Measure the student if it is time; always before the first step and after the last."""
        watch = self.plan.watch
        if watch is None or (done % watch.every and done != self.plan.total):
            return
        self.log.flush()  # a loss that is not finite is said first: nothing to measure
        seen = watch(self.plan.distiller)
        self.log.watch(seen | (watch.margins(seen) if isinstance(watch, _Sampled) else {}))

    def save(self, done: int, data: Any, keep: int) -> None:
        """Write a checkpoint; all processes must call it together."""
        if self.plan.folder is not None:
            save_run(
                self.plan.folder, done, self.engine, self.log, skipped_by(data),
                settings=self.settings, keep=keep,
            )  # fmt: skip


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
