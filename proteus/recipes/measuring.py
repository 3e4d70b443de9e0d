"""What a step and an image cost on this machine, measured within seconds."""

import contextlib
import copy
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..data import ImageLoader
from ..data.loader import Keys
from ..distiller import Distiller
from ..logits import LogitDistiller
from ..settings import Machine, Optimizer
from ..training import Engine, World, checkpoint, fit
from .reckoning import Reading, Step

_SAVED = 64 << 20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Probe:
    """The run's own step on noise, at any batch size.

    The objective is trained: give a copy, see `copy_of`, where it is needed afterwards. Global
    generators are put back after each step.

    Args:
        objective: What a run would train.
        optimizer: The recipe's.
        machine: The recipe's; nothing is compiled, and there is one process.
        device: Where to measure.
    """

    def __init__(
        self,
        objective: Distiller | LogitDistiller,
        optimizer: Optimizer,
        machine: Machine,
        device: torch.device,
    ) -> None:
        machine = replace(machine, compile=False, parallel="auto")
        self.device, self.inputs = device, objective.num_inputs
        self.size, self.accumulate = objective.image_size, machine.accumulate
        with untouched():
            self.engine = Engine(objective, World(device), optimizer, machine)
        self._steps = 0

    def noise(self, images: int) -> list[torch.Tensor]:
        """A batch of it, of a generator of its own."""
        shape = (images, 3, *self.size)
        drawn = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn).to(self.device)
        labels = torch.zeros(images, dtype=torch.long, device=self.device)
        return [noise, labels][: self.inputs]

    def step(self, images: int, least: int = 1, seconds: float = 0.0) -> Step:
        """Steps of a batch of noise: at least so many, then until the time is used up."""
        batch = self.noise(images)
        reset_peak(self.device)
        walls: list[float] = []
        spent: list[float] = []
        begun = time.perf_counter()
        with untouched():
            while len(walls) < least or time.perf_counter() - begun < seconds:
                wall, core = time.perf_counter(), time.process_time()
                self.engine.step(batch, self._steps, 0.0)
                wait_for(self.device)
                walls.append(time.perf_counter() - wall)
                spent.append(time.process_time() - core)
                self._steps += 1
        return Step(
            images, statistics.mean(walls), statistics.mean(spent), peak(self.device), walls[0]
        )


def measure(
    probe: Probe, sizes: Sequence[int], seconds: float, *, briefly: bool = False
) -> list[Step]:
    """Steps of growing sizes, as far as the time goes: the smallest always, two steps of each.

    Args:
        probe: The step.
        sizes: Batches, growing.
        seconds: To use, about.
        briefly: Use no more than is needed; else all, most of it for the largest size.
    """
    found: list[Step] = []
    begun = time.perf_counter()
    for size in sizes:
        left = seconds - (time.perf_counter() - begun)
        steps = 2 if briefly else 3
        if found and steps * found[-1].seconds * size / found[-1].images > left:
            break
        try:
            first = probe.step(size).first
            step = probe.step(size, seconds=0 if briefly else left / 8)
            found.append(step._replace(first=first))
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
    left = seconds - (time.perf_counter() - begun)
    if left > 2 * found[-1].seconds and not briefly:
        found[-1] = _both(found[-1], probe.step(found[-1].images, seconds=left / 2))
    return found


def _both(first: Step, second: Step) -> Step:
    """Of two times the same size; the later steps were more."""
    highest = [step.memory for step in (first, second) if step.memory is not None]
    return second._replace(memory=max(highest, default=None), first=first.first)


def measure_ending(probe: Probe, seconds: float) -> float:
    """Seconds of what a run does besides its steps: a checkpoint, the export, pictures.

    A run of one step is done in a folder for the while, and what the step takes is taken off.
    """
    images = 4 * probe.accumulate
    with tempfile.TemporaryDirectory() as folder, untouched():
        begun = time.perf_counter()
        fit(
            probe.engine.plain, [tuple(probe.noise(images))], steps=1, device=probe.device,
            out=folder, accumulate=probe.accumulate, progress=False,
        )  # fmt: skip
        return max(0.0, time.perf_counter() - begun - seconds)


def measure_saving(engine: Engine) -> float:
    """Seconds of a checkpoint: a part of it is written, at most 64 MB, and the whole reckoned."""
    tensors = {
        f"{file}/{name}": tensor
        for file, named in engine.state().tensors.items()
        for name, tensor in named.items()
    }
    whole, part, some = sum(t.nbytes for t in tensors.values()), 0, {}
    for name, tensor in tensors.items():
        if part >= _SAVED:
            break
        some[name], part = tensor, part + tensor.nbytes
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        checkpoint.save(Path(folder), 1, {"weights": some}, settings={})
        return (time.perf_counter() - begun) * whole / part


def measure_loader(loader: ImageLoader, seconds: float) -> Reading:
    """Load images as one of the loader's processes would, for some time, and at least one batch's.

    Nothing of the loader changes.
    """
    threads, done = torch.get_num_threads(), 0
    torch.set_num_threads(1)  # as in the processes that load
    try:
        wall, core = time.perf_counter(), time.process_time()
        for keys in Keys(loader, 0, None):
            for first in range(0, len(keys), 16):
                some = keys[first : first + 16]
                loader.samples[some]
                done += len(some)
                if done >= 16 and time.perf_counter() - wall > seconds:
                    spent = time.perf_counter() - wall, time.process_time() - core
                    return Reading(spent[0] / done, spent[1] / done, done)
    finally:
        torch.set_num_threads(threads)
    raise AssertionError("the keys have no end")


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Put Python's, NumPy's and torch's global generators back afterwards."""
    ours, numpys = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def copy_of(objective: Distiller | LogitDistiller) -> Distiller | LogitDistiller:
    """A copy to train, of all but the frozen models, which no step changes."""
    frozen = {id(teacher): teacher for teacher in objective.teachers.values()}
    return copy.deepcopy(objective, frozen)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the largest memory so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with contextlib.suppress(OSError):  # some containers do not allow it
            _CLEAR.write_text("5")


def peak(device: torch.device) -> int | None:
    """Bytes at the most since `reset_peak`; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not _STATUS.exists():
        return None
    return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run could have, those of this process included; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    facts = Path("/proc/meminfo").read_text()
    mine = int(_STATUS.read_text().split("VmRSS:")[1].split()[0])
    return (int(facts.split("MemAvailable:")[1].split()[0]) + mine) * 1024


def cores() -> int:
    """Processor cores that this process may use."""
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
