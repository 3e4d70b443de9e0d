"""Pictures: PCA maps of patch features (the paper's Fig. 3), masks, curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import Features, ShapeError

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
# What a row of a log holds besides the loss terms.
NO_TERMS = ("step", "lr", "grad_norm", "images_per_second")


def pca_maps(reference: Features, *others: Features) -> list[Tensor]:
    """Patch features as colours: the first three principal components, in one shared basis.

    The basis and the colour range come from `reference` (the teacher), so equal colours mean equal
    features. `others` must have its width: project the student with `ProteusLoss.project`.

    Args:
        reference: Features of B images, [B, N, D].
        others: Features of the same width D; grids may differ.

    Returns:
        One tensor [B, 3, h, w] in [0, 1] for each argument.

    Raises:
        ShapeError: If the widths differ.

    Examples:
        >>> features = Features(torch.zeros(2, 8), torch.randn(2, 12, 8), (3, 4))
        >>> [tuple(colours.shape) for colours in pca_maps(features, features)]
        [(2, 3, 3, 4), (2, 3, 3, 4)]

    Source:
        Proteus (ICLR 2025), Fig. 3 and A.10 (first three components over a set of images).
        *Different:* colours are scaled between the 2nd and 98th percentile of the reference.
    """
    for other in others:
        if other.patches.shape[-1] != reference.patches.shape[-1]:
            raise ShapeError(
                f"pca_maps: widths differ. Got {other.patches.shape[-1]} and "
                f"{reference.patches.shape[-1]}; project the student with loss.project(features)."
            )
    tokens = reference.patches.flatten(0, 1).double().cpu()
    mean = tokens.mean(0)
    # The sign of a component is arbitrary; fix it, so that the same features give the same picture.
    basis = torch.linalg.svd(tokens - mean, full_matrices=False).Vh[:3]
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    projected = (tokens - mean) @ basis.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    maps = []
    for features in (reference, *others):
        colours = (features.patches.double().cpu() - mean) @ basis.T
        colours = ((colours - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        maps.append(colours.unflatten(1, features.grid).permute(0, 3, 1, 2).float())
    return maps


def save_pca(images: Tensor, features: Mapping[str, Features], path: str | Path) -> None:
    """Rows of pictures: the images, then the PCA map of each model; the first gives the basis.

    Args:
        images: RGB [B, 3, H, W], uint8 or float in [0, 1].
        features: Name -> features of these images, all of one width.
        path: PNG file.
    """
    shown = _shown(images)
    rows, size = [shown], shown.shape[-1]
    for colours in pca_maps(*features.values()):
        rows.append(F.interpolate(colours, size=(size, size), mode="nearest"))
    _figure(rows, ["image", *features], Path(path))


def _shown(images: Tensor) -> Tensor:
    """Images as floats on the CPU, square, at least 128 pixels."""
    shown = images.cpu()
    shown = shown.float() / 255 if shown.dtype == torch.uint8 else shown.float()
    size = max(128, shown.shape[-1])
    return F.interpolate(shown, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _figure(rows: Sequence[Tensor], names: Sequence[str], path: Path) -> None:
    figure_class = _figure_class()
    count = rows[0].shape[0]
    figure = figure_class(figsize=(1.3 * count + 0.4, 1.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, row, name in zip(axes, rows, names, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name)
    figure.savefig(path, dpi=110)


def save_masks(images: Tensor, hidden: Tensor, grid: tuple[int, int], path: str | Path) -> None:
    """What the student sees: a row of images, and below it the same with hidden patches in grey.

    Args:
        images: RGB [B, 3, H, W], uint8 or float in [0, 1].
        hidden: bool [B, N], True = hidden from the student.
        grid: (h, w) of the patches, h * w == N.
        path: PNG file.

    Raises:
        ShapeError: If `hidden` does not fit the images or the grid.
    """
    if hidden.shape != (images.shape[0], grid[0] * grid[1]) or hidden.dtype != torch.bool:
        raise ShapeError(
            f"save_masks: `hidden` has the wrong shape. Got {hidden.dtype} {tuple(hidden.shape)}; "
            f"expected torch.bool [images, patches] = {(images.shape[0], grid[0] * grid[1])}."
        )
    shown = _shown(images)
    cover = hidden.cpu().view(-1, 1, *grid).float()
    cover = F.interpolate(cover, size=shown.shape[-2:], mode="nearest")
    _figure([shown, shown.lerp(torch.full_like(shown, 0.5), cover)], ["image", "seen"], Path(path))


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
    figure = _figure_class()(figsize=(3 * columns, 2.6 * lines), layout="constrained")
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
            panels[name]["mean"] = thin(steps, _smooth(torch.from_numpy(values)).numpy())
    save_panels(panels, path)


def _smooth(values: Tensor) -> Tensor:
    """Running mean over 5 % of the run, shorter at the ends."""
    width = max(1, len(values) // 40)
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    index = torch.arange(len(values))
    low, high = (index - width).clamp(min=0), (index + width + 1).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low)


def _figure_class() -> type:
    # matplotlib costs a second to import; `Figure` and not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    return Figure
