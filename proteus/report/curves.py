"""Curves of a run: what its log holds, thinned so that any length can be drawn."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..files import newest, read_lines
from ..text import picture_text
from ..visualize import new_figure, write_figure

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
_LARGEST = 1e38  # no float32 is larger; axes cannot have ticks at the end of all floats
# What a row of a log holds besides the loss terms.
NO_TERMS = ("step", "lr", "grad_norm", "images_per_second")


class Curve(NamedTuple):
    """A series for a picture: for each point the mean, lowest and highest of the steps it covers.

    Attributes:
        steps: float64 [points].
        mean: float64 [points].
        low: float64 [points].
        high: float64 [points].
    """

    steps: Array
    mean: Array
    low: Array
    high: Array


def thin(steps: Array, values: Array, points: int = 500) -> Curve:
    """A long series as at most `points` points; no value is lost, each is inside its band.

    Args:
        steps: [n], rising.
        values: [n]; those that are not finite, or of no size for a picture, are left out.
        points: At most so many.

    Examples:
        >>> import numpy as np
        >>> curve = thin(np.arange(6.0), np.array([1.0, 3, 5, 5, 0, 2]), points=3)
        >>> curve.mean.tolist(), curve.low.tolist(), curve.high.tolist()
        ([2.0, 5.0, 1.0], [1.0, 5.0, 0.0], [3.0, 5.0, 2.0])
    """
    import numpy as np

    drawn = np.abs(values) < _LARGEST
    steps, values = steps[drawn], values[drawn]
    if len(steps) <= points:
        return Curve(steps, values, values, values)
    first = np.arange(points) * len(steps) // points
    size = np.diff(np.append(first, len(steps)))
    return Curve(
        np.add.reduceat(steps, first) / size,
        np.add.reduceat(values, first) / size,
        np.minimum.reduceat(values, first),
        np.maximum.reduceat(values, first),
    )


def save_panels(panels: Mapping[str, Mapping[str, Curve]], path: str | Path) -> None:
    """Panels of curves over the steps, each curve with the band of what it sums up.

    Args:
        panels: Title -> name -> curve.
        path: PNG file.

    Raises:
        ValueError: If there are no panels.
    """
    if not panels:
        raise ValueError("save_panels: nothing to draw. Got no panels; expected at least one.")
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(3 * columns, 2.6 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for number, (name, curve) in enumerate(curves.items()):
            color = f"C{number}"
            axis.fill_between(
                curve.steps, curve.low, curve.high, color=color, alpha=0.25, linewidth=0
            )
            marker = "o" if len(curve.steps) < 20 else None
            axis.plot(
                curve.steps,
                curve.mean,
                color,
                label=picture_text(name),
                linewidth=1.2,
                marker=marker,
                ms=3,
            )
        if len(curves) > 1:
            axis.legend(fontsize=7)
        axis.set_title(picture_text(title), fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        axis.tick_params(labelsize=7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    write_figure(figure, path)


def save_curves(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Loss curves of a run, one panel a term, and the learning rate.

    Args:
        rows: As `fit` returns them and `log.jsonl` holds them.
        path: PNG file.

    Raises:
        ValueError: If there are no rows.
    """
    import numpy as np

    if not rows:
        raise ValueError("save_curves: nothing to draw. Got no rows; expected those of a run.")
    terms = [name for name in rows[0] if name not in NO_TERMS]
    steps, panels = column(rows, "step"), {}
    for name in [*terms, "lr"]:
        values = column(rows, name)
        finite = np.abs(values) < _LARGEST
        if name != "lr" and not values[finite].any():
            continue
        panels[name] = {name: thin(steps, values)}
        if name != "lr" and len(rows) > 20:
            panels[name]["mean"] = thin(steps[finite], _smooth(values[finite]))
    save_panels(panels, path)


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    """One number of each row; NaN where it is missing or no number.

    Examples:
        >>> column([{"a": 1}, {"a": "x"}, {}], "a").tolist()
        [1.0, nan, nan]
    """
    import numpy as np

    return np.array([_number(row.get(name)) for row in rows], np.float64)


def _number(value: Any) -> float:
    try:
        known = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # an integer may be larger than any float
        known = math.nan
    return known if math.isfinite(known) else math.nan


@dataclass
class Columns:
    """A log read from JSON lines.

    Attributes:
        values: Name -> one number a row, NaN where the row has none; "step" is always there.
        unreadable: Lines that could not be read (a run that was killed leaves half of one).
    """

    values: "dict[str, Array]" = field(default_factory=dict)
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.values["step"])


def read_columns(path: str | Path) -> Columns:
    r"""Read the newest rows of a log: JSON lines, each an object of numbers with a "step".

    Args:
        path: File; one that does not exist, or is a link, is empty.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "log.jsonl")
        ...     _ = path.write_text('{"step": 0, "total": 2.0}\n{"step": 1, "tot')
        ...     columns = read_columns(path)
        >>> columns.values["total"].tolist(), columns.unreadable
        ([2.0], 1)
    """
    import numpy as np

    chunks: list[dict[str, Array]] = []
    unreadable, lines = 0, read_lines(Path(path))
    while chunk := list(itertools.islice(lines, 10_000)):
        rows = [row for _, row in chunk if row is not None]
        unreadable += sum(bool(line.strip()) for line, row in chunk if row is None)
        names = dict.fromkeys(["step", *(name for row in rows for name in row)])
        chunks.append({name: column(rows, name) for name in names})
    names = dict.fromkeys(["step", *(name for chunk in chunks for name in chunk)])
    values = {}
    for name in names:
        parts = [c.get(name, np.full(len(c["step"]), np.nan)) for c in chunks]
        values[name] = np.concatenate([np.empty(0), *parts])
    kept = newest(values["step"].tolist())
    return Columns({name: found[kept] for name, found in values.items()}, unreadable)


def _smooth(values: Array) -> Array:
    """Running mean over 5 % of the run, shorter at the ends."""
    import numpy as np

    width = max(1, len(values) // 40)
    total = np.append(0.0, values.cumsum())
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    smooth: Array = (total[high] - total[low]) / (high - low)
    return smooth
