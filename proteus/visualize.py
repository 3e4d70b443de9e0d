"""Pictures: PCA maps of patch features (the paper's Fig. 3), loss curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import Features, ShapeError


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
    shown = images.cpu()
    shown = shown.float() / 255 if shown.dtype == torch.uint8 else shown.float()
    size = max(128, shown.shape[-1])
    rows = [F.interpolate(shown, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)]
    for colours in pca_maps(*features.values()):
        rows.append(F.interpolate(colours, size=(size, size), mode="nearest"))
    _figure(rows, ["image", *features], Path(path))


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


def save_curves(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Loss curves of a run, one panel a term, and the learning rate.

    Args:
        rows: As `fit` returns them and `log.jsonl` holds them.
        path: PNG file.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("save_curves: nothing to draw. Got no rows; expected those of a run.")
    names = [n for n in ("total", "token", "feature", "patch") if any(row[n] for row in rows)]
    figure = _figure_class()(figsize=(3 * (len(names) + 1), 2.6), layout="constrained")
    axes = figure.subplots(1, len(names) + 1)
    steps = [row["step"] for row in rows]
    for axis, name in zip(axes, [*names, "lr"], strict=True):
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        axis.plot(steps, values, linewidth=0.7, alpha=0.4)
        if name != "lr":
            axis.plot(steps, _smooth(values), linewidth=1.4)
        axis.set_title(name)
        axis.set_xlabel("step")
    figure.savefig(path, dpi=110)


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
