"""The log of a run: losses, speed, the progress bar, and the watch for losses that are not finite.

Losses stay on the device until a flush, about once a second: reading a number makes the host wait
for the device. All processes flush after the same steps, because a flush is also where they agree:
on the mean of their losses, on when to flush next, and on whether to stop.
"""

import contextlib
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from ..files import sync
from ..models.read import ImageInput
from ..report.curves import NO_TERMS
from ..world import World
from . import checkpoint
from .bars import Bar
from .interrupt import decided, votes
from .rows import LOG, TIMING, WATCH, Row, cut_rows, read_rows
from .trackers import Tracker

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")
_MOST_STEPS = 200  # between two flushes
_MOST_OVERFLOWS = 40  # in a row: the scaler has then tried every scale there is


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the message says which, when, and what is kept."""


class RunLog:
    """Rows of a run.

    `log.jsonl` holds one row a step and nothing that depends on the machine, so that a resumed run
    has the same file as an uninterrupted one; `timing.jsonl` one row a flush; `watch.jsonl` what
    was measured in between.

    Args:
        folder: The run's; None = keep rows in memory only.
        start: Steps done before; later rows, of a run that died, are cut from the files.
        total: Steps of the run.
        world: The processes; only the first writes and shows progress.
        progress: Show a progress bar.
        overflows: Infinite gradients are the fp16 scaler's business, up to 40 steps in a row.
        trackers: Get the newest row at each flush.
        asked: Which signal asked this process to end the run, if any.
        inputs: What the models' images go through: a flush reads whether they were in [0, 1].
        name: Of the run among several.
        bar: What shows the progress of several; None = its own.
    """

    def __init__(
        self,
        folder: Path | None,
        start: int,
        total: int,
        world: World,
        *,
        progress: bool,
        overflows: bool = False,
        trackers: Sequence[Tracker] = (),
        asked: Callable[[], signal.Signals | None] = lambda: None,
        inputs: Sequence[ImageInput] = (),
        name: str = "",
        bar: Bar | None = None,
    ) -> None:
        from tqdm import tqdm

        self.world, self.step, self.overflows = world, start, overflows
        self.folder, self.inputs = folder, inputs
        self._what = f"Training of {name}" if name else "Training"
        self.trackers = trackers if world.first else ()
        self.names: list[str] = []
        self._untracked = False
        self.asked = asked
        self.stop_agreed: signal.Signals | None = None
        self._kept: list[Row] = []
        self._files: dict[str, IO[str]] = {}
        if folder is not None and world.first:
            for file in (LOG, TIMING, WATCH):
                cut_rows(folder / file, start)
            for file in (LOG, TIMING):
                self._files[file] = (folder / file).open("a", encoding="utf-8")
        self._pending: list[tuple[Tensor, float, int]] = []
        self._interval, self._skipped_in_a_row = 1, 0
        self._waited = 0.0
        self._watched: dict[str, str] = {}
        self._bar: Bar = bar or tqdm(
            initial=start, total=total, unit="step", disable=not (progress and world.first)
        )
        self._begin = self._since = time.perf_counter()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._bar.close()
        for file in self._files.values():
            # On a full disk, closing fails once more, and must not hide the first error.
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                file.close()
        for tracker in self.trackers:
            with contextlib.suppress(Exception):  # what it holds is in the log, too
                tracker.close()

    def timed(self, stream: Iterable[Item]) -> Iterator[Item]:
        """The same items; how long the loop waits for each is noted."""
        items = iter(stream)
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield item

    def add(self, names: list[str], values: Tensor, rate: float, images: int) -> None:
        """Note a step."""
        self.names = names
        self._pending.append((values, rate, images))
        alone = self.world.size == 1
        if len(self._pending) >= self._interval or (alone and self.asked()):
            self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Read the pending losses, write their rows, and stop the run if one is not finite.

        Where any process was asked to end the run, `stop_agreed` then is set on all of them.

        Args:
            durable: Put the rows on the disk before returning.
        """
        try:
            if self._pending:
                self._write_pending()
            if durable and self.folder is not None:
                for name, file in self._files.items():
                    file.flush()
                    sync(self.folder / name)
        except OSError as error:
            raise OSError(
                f"log: it could not be written in {self.folder}. Got {error}. Checkpoints are not "
                f"touched. Make room, then resume (--resume)."
            ) from error

    def _write_pending(self) -> None:
        if self.world.device.type != "cpu":  # what is queued belongs to this interval
            torch.accelerator.synchronize(self.world.device)
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        wanted = min(_MOST_STEPS, max(1, int(len(self._pending) / elapsed)))
        losses = torch.stack([values for values, _, _ in self._pending])  # [steps, terms]
        agreed = losses.new_tensor([wanted if self.world.first else 0, *votes(self.asked())])
        outside = sum((one.outside().to(losses) for one in self.inputs), losses.new_zeros(()))
        packed = self.world.sum(torch.cat([losses.flatten(), outside[None], agreed])).tolist()
        *packed, strange, interval, terminated, interrupted = packed
        if strange > 0:
            self._refuse_images()
        self.stop_agreed = decided(terminated, interrupted) or self.stop_agreed
        self._interval = max(1, round(interval)) if math.isfinite(interval) else 1
        width = len(self.names)
        for number, (_, rate, _) in enumerate(self._pending):
            mean = [v / self.world.size for v in packed[number * width : (number + 1) * width]]
            self._write_row(dict(zip(self.names, mean, strict=True)), rate)
        if LOG in self._files:
            self._files[LOG].flush()
        self._show(elapsed)
        self._pending.clear()
        self._since, self._waited = time.perf_counter(), 0.0

    def _refuse_images(self) -> None:
        """On all processes at once, with the numbers where they are known."""
        for one in self.inputs:
            one.check()
        raise ValueError(
            f"images: those of another process are not in [0, 1], in one of the "
            f"{len(self._pending)} steps from {self.step} on. Look at that process's message."
        )

    def _write_row(self, values: dict[str, float], rate: float) -> None:
        terms = [name for name in self.names if name != "grad_norm"]
        bad = [name for name in terms if not math.isfinite(values[name])]
        if bad:
            bad = [name for name in bad if name != "total"] or bad
            self._stop(f"the {' and '.join(bad)} loss is not finite", {n: values[n] for n in bad})
        norm: float | None = values["grad_norm"]
        if norm is not None and not math.isfinite(norm):
            self._skipped_in_a_row += 1
            if not self.overflows or self._skipped_in_a_row > _MOST_OVERFLOWS:
                self._stop("the gradient is not finite", {"grad_norm": norm})
            norm = None  # JSON has no infinity; the scaler left this step out
        else:
            self._skipped_in_a_row = 0
        row: Row = {"step": self.step, **{n: values[n] for n in terms}}
        row |= {"lr": rate, "grad_norm": norm}
        self.step += 1
        if self._files:
            self._files[LOG].write(json.dumps(row) + "\n")
        elif self.folder is None:
            self._kept.append(row)
        self._last = row

    def _show(self, elapsed: float) -> None:
        images = sum(count for _, _, count in self._pending) * self.world.size
        speed = {
            "images_per_second": round(images / elapsed, 2),
            "data_wait": round(min(1.0, self._waited / elapsed), 4),
            "memory_mib": memory_mib(self.world.device),
            "seconds": round(time.perf_counter() - self._begin, 2),
        }
        if self._files:
            row = {"step": self.step - 1, **speed}
            self._files[TIMING].write(json.dumps(row) + "\n")
            self._files[TIMING].flush()
        self._bar.update(len(self._pending))
        losses = {n: f"{self._last[n]:.4f}" for n in self.names if n != "grad_norm"}
        shown = {
            "images/s": f"{speed['images_per_second']:.0f}",
            "wait": f"{speed['data_wait']:.0%}",
            "memory": f"{speed['memory_mib'] / 1024:.1f}G",
        }
        self._bar.set_postfix({**losses, **shown, **self._watched}, refresh=False)
        values = {k: v for k, v in self._last.items() if v is not None and k != "step"}
        self._track(values | speed)

    def watch(self, values: Mapping[str, float]) -> None:
        """Note what was measured after the newest step; the rows up to it are written first."""
        self.flush()
        self._watched = {
            name: f"{share:.3f}±{values[f'{name}_margin']:.3f}"
            for name, share in values.items()
            if f"{name}_margin" in values
        }
        if self.folder is not None and self._files:
            if WATCH not in self._files:
                self._files[WATCH] = (self.folder / WATCH).open("a", encoding="utf-8")
            row = {"step": self.step - 1, **values}
            self._files[WATCH].write(json.dumps(row) + "\n")
            self._files[WATCH].flush()
        self._track(values)
        self._since = time.perf_counter()  # measuring is not training

    def _track(self, values: Mapping[str, float]) -> None:
        """Tell the trackers; a run does not die of a server that is away."""
        for tracker in self.trackers:
            try:
                tracker.log(values, max(0, self.step - 1))  # before the first step: beside it
            except Exception as error:
                if not self._untracked:
                    _logger.warning(
                        "trackers: numbers were not taken at step %s and later; they are in "
                        "log.jsonl. Got %s: %s.", self.step - 1, type(error).__name__, error,
                    )  # fmt: skip
                self._untracked = True

    def rows(self) -> list[Row]:
        """All rows of the run, those before a resume included."""
        if self.folder is None:
            return self._kept
        return read_rows(self.folder / LOG)

    def _stop(self, what: str, values: Mapping[str, float]) -> None:
        kept = None if self.folder is None else checkpoint.newest(self.folder)
        rescue = (
            f"The last good checkpoint is kept: {kept}." if kept else "No checkpoint exists yet."
        )
        numbers = ", ".join(f"{name}={value}" for name, value in values.items())
        raise NonFiniteLossError(
            f"{self._what} stopped: {what} at step {self.step}. Got {numbers}. {rescue} Lower "
            f"the learning rate (--lr), or look at the images around that step."
        )


def memory_mib(device: torch.device) -> int:
    """Most memory so far: the device's, or the process's where it computes on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) >> 20)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak >> 20 if sys.platform == "darwin" else peak >> 10)


def summary_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The losses of a row, rounded for people."""
    losses = {k: v for k, v in row.items() if k not in NO_TERMS}
    return {k: round(v, 4) for k, v in losses.items() if isinstance(v, int | float)}
