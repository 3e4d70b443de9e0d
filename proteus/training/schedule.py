"""The learning rate of each step, as a function of the step alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..ranges import check_numbers

Schedule: TypeAlias = Callable[[int], float]


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


@dataclass(frozen=True)
class EpochSchedule:
    """DeiT's schedule, which the paper follows: 5 epochs of warm-up, cosine over all epochs.

    Args:
        peak: Learning rate at the top of the cosine.
        epochs: Length of the run.
        steps_per_epoch: Steps of an epoch.
        update: `step` = the rate moves in every step; `epoch_late` = once an epoch, to the value
            of the epoch before, as the authors' code does: its first two epochs run at
            `warmup_rate` and its last one with the last but one's.
        warmup_epochs: Epochs that warm up.
        warmup_rate: Where the warm-up starts, absolute.
        min_rate: Where the cosine ends, absolute.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> schedule = EpochSchedule(1e-3, epochs=300, steps_per_epoch=1251, update="epoch_late")
        >>> [round(schedule(epoch * 1251), 7) for epoch in (0, 1, 2, 3)]
        [1e-06, 1e-06, 0.0002008, 0.0004006]

    Source:
        Proteus (ICLR 2025), A.1.1; DeiT; timm `CosineLRScheduler`; Proteus `pretrain/main.py:428`.
        *Same:* with `epoch_late`, the rate of every epoch of the authors' code. The cosine is not
        shifted by the warm-up, so the peak itself is never reached.
        *Different:* a resumed run goes on with the rate that an uninterrupted one would have used.
    """

    peak: float
    epochs: float
    steps_per_epoch: int
    update: Literal["step", "epoch_late"] = "step"
    warmup_epochs: float = 5
    warmup_rate: float = 1e-6
    min_rate: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers("EpochSchedule", {k: v for k, v in vars(self).items() if k != "update"})
        if self.update not in ("step", "epoch_late"):
            raise ValueError(
                f"EpochSchedule: unknown update. Got {self.update!r}; expected 'step' or "
                f"'epoch_late'."
            )

    def __call__(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.update == "step":
            return self.at(step / self.steps_per_epoch)
        return self.at(max(0, step // self.steps_per_epoch - 1))

    def at(self, epoch: float) -> float:
        """The schedule itself at a point in time, in epochs."""
        if epoch < self.warmup_epochs:
            return self.warmup_rate + epoch * (self.peak - self.warmup_rate) / self.warmup_epochs
        cosine = 0.5 * (1 + math.cos(math.pi * min(epoch, self.epochs) / self.epochs))
        return self.min_rate + (self.peak - self.min_rate) * cosine
