"""Curves of a run: what its log holds, thinned so that any length can be drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .visualize import new_figure

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
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
        values: [n]; those that are not finite are left out.
        points: At most so many.

    Examples:
        >>> import numpy as np
        >>> curve = thin(np.arange(6.0), np.array([1.0, 3, 5, 5, 0, 2]), points=3)
        >>> curve.mean.tolist(), curve.low.tolist(), curve.high.tolist()
        ([2.0, 5.0, 1.0], [1.0, 5.0, 0.0], [3.0, 5.0, 2.0])
    """
    import numpy as np

    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
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
                curve.steps, curve.mean, color, label=name, linewidth=1.2, marker=marker, ms=3
            )
        if len(curves) > 1:
            axis.legend(fontsize=7)
        axis.set_title(title, fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        axis.tick_params(labelsize=7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


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
    names = [name for name in terms if any(row[name] for row in rows)]
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    panels = {}
    for name in [*names, "lr"]:
        values = np.array([row[name] for row in rows], dtype=np.float64)
        panels[name] = {name: thin(steps, values)}
        if name != "lr" and len(rows) > 20:
            panels[name]["mean"] = thin(steps, _smooth(values))
    save_panels(panels, path)


def _smooth(values: Array) -> Array:
    """Running mean over 5 % of the run, shorter at the ends."""
    import numpy as np

    width = max(1, len(values) // 40)
    total = np.append(0.0, values.cumsum())
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    smooth: Array = (total[high] - total[low]) / (high - low)
    return smooth
