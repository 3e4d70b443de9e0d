"""From a few measurements to what a step of any size takes: arithmetic alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """Steps of one size.

    Attributes:
        images: In the batch.
        seconds: Of a step, the mean: a run has the slow ones, too.
        cpu_seconds: Of all cores together, the mean.
        memory: Bytes at the most: of the process on a CPU, of the device's allocator on a GPU;
            None where the system does not tell.
        first: Seconds of the first one of this size, which has to find its memory.
    """

    images: int
    seconds: float
    cpu_seconds: float
    memory: int | None
    first: float


class Reading(NamedTuple):
    """What it takes to load one image.

    Attributes:
        seconds: Of one process.
        cpu_seconds: Without waiting for the disk.
        images: How many were looked at.
    """

    seconds: float
    cpu_seconds: float
    images: int


class Line(NamedTuple):
    """What grows with the batch: `start + each * images`."""

    start: float
    each: float

    def at(self, images: float) -> float:
        """Of a batch."""
        return self.start + self.each * images


def wall_of_a_step(
    seconds: float,
    reading: Reading,
    images: int,
    *,
    workers: int,
    threads: int | None,
    cores: int,
) -> float:
    """Seconds of a step whose batch is loaded meanwhile.

    The slowest of three: the step itself; the processes that load; and all work together, shared
    among the cores. On an accelerator the step takes no core.

    Args:
        seconds: Of the step alone.
        reading: Of an image.
        images: In the batch.
        workers: Processes that load; 0 = the one that trains, before each step.
        threads: Cores that the step keeps busy; None = an accelerator computes.
        cores: Of the machine.

    Examples:
        >>> slow = Reading(0.1, 0.1, 16)
        >>> wall_of_a_step(1.0, slow, 8, workers=1, threads=1, cores=2)
        1.0
        >>> wall_of_a_step(1.0, slow, 8, workers=1, threads=2, cores=2)
        1.4
        >>> wall_of_a_step(1.0, slow, 16, workers=1, threads=None, cores=2)
        1.6
    """
    if not workers:
        return seconds + reading.seconds * images
    loading = reading.seconds * images / min(workers, cores)
    together = (seconds * (threads or 0) + reading.cpu_seconds * images) / cores
    return max(seconds, loading, together)


def line_of(images: Sequence[int], values: Sequence[float]) -> Line:
    """The line with the least relative error; it starts at 0 or above, and goes through one point.

    Examples:
        >>> line = line_of([2, 4, 8], [3.0, 5.0, 9.0])
        >>> round(line.start, 6), round(line.each, 6)
        (1.0, 1.0)
        >>> line_of([4], [2.0])
        Line(start=0.0, each=0.5)
    """
    weights = [1 / value**2 for value in values]
    total = math.fsum(weights)
    middle = math.fsum(w * n for w, n in zip(weights, images, strict=True)) / total
    height = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    spread = math.fsum(w * (n - middle) ** 2 for w, n in zip(weights, images, strict=True))
    if spread:
        rows = zip(weights, images, values, strict=True)
        each = math.fsum(w * (n - middle) * (v - height) for w, n, v in rows) / spread
        start = height - each * middle
        if start >= 0 and each >= 0:
            return Line(start, each)
    rows = zip(weights, images, values, strict=True)
    through = math.fsum(w * n * v for w, n, v in rows)
    return Line(0.0, through / math.fsum(w * n * n for w, n in zip(weights, images, strict=True)))
