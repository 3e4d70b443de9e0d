"""Pictures: PCA maps of patch features (the paper's Fig. 3), masks."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import Features, ShapeError
from .text import picture_text

Basis = Literal["reference", "joint", "own"]


class _Palette(NamedTuple):
    """Tokens to colours: three directions, and the range that is shown."""

    mean: Tensor  # [D]
    directions: Tensor  # [D, 3]
    low: Tensor  # [3]
    high: Tensor

    def project(self, features: Features) -> Tensor:
        """[B, N, 3], in the tokens' units."""
        return (_tokens(features) - self.mean) @ self.directions

    def colours(self, features: Features) -> Tensor:
        """[B, 3, h, w] in [0, 1]."""
        span = (self.high - self.low).clamp(min=1e-12)
        values = ((self.project(features) - self.low) / span).clamp(0, 1)
        return _on_grid(values, features).float()


def pca_maps(
    reference: Features,
    *others: Features,
    basis: Basis = "reference",
    foreground: float | None = None,
) -> list[Tensor]:
    """Patch features as colours: the first three principal components over a set of images.

    Args:
        reference: Features of B images, [B, N, D]: the teacher's.
        others: Features of the same images; grids may differ.
        basis: Where the components come from. "reference" = from `reference`: equal colours mean
            equal features; "joint" = from all of them together, so that no model is favoured; both
            need one width: project the student with `ProteusLoss.project`. "own" = each model's
            own, for widths that differ; signs are chosen so that colours are as alike as they can
            be, and only the shapes can be compared.
        foreground: A share, 0.0 … 1.0, of the range of the first component: what lies below is
            black, and the components are computed once more from the rest. The foreground is the
            side that the border of the images shows less of. None = everything is coloured.

    Returns:
        One tensor [B, 3, h, w] in [0, 1] for each argument.

    Raises:
        ShapeError: If the widths differ and the basis is shared.
        ValueError: If the basis is unknown, features are not finite, or there are fewer than four
            patches, or `foreground` leaves fewer.

    Examples:
        >>> features = Features(torch.zeros(2, 8), torch.randn(2, 12, 8), (3, 4))
        >>> [tuple(colours.shape) for colours in pca_maps(features, features)]
        [(2, 3, 3, 4), (2, 3, 3, 4)]

    Source:
        Proteus (ICLR 2025), Fig. 3 and A.10: PCA on the patches of a set of images, first three
        components, 518 x 518; DINOv2's two steps for the foreground.
        *Same:* `basis="own"` is the paper's. *Different:* colours are scaled between the 2nd and
        98th percentile; a shared basis is the default.
    """
    if basis not in get_args(Basis):
        raise ValueError(f"pca_maps: no such basis. Got {basis!r}; expected {get_args(Basis)}.")
    models = (reference, *others)
    for other in others if basis != "own" else ():
        if other.patches.shape[-1] != reference.patches.shape[-1]:
            raise ShapeError(
                f"pca_maps: widths differ. Got {other.patches.shape[-1]} and "
                f"{reference.patches.shape[-1]}; project the student with loss.project(features), "
                f"or use basis='own'."
            )
    palettes: list[_Palette] = []
    masks: list[Tensor | None] = []
    for shown in [(model,) for model in models] if basis == "own" else [models]:
        source = (reference,) if basis == "reference" else shown
        palette, found = _palette_of(source, shown, foreground)
        palettes += [palette] * len(shown)
        masks += found
    if basis == "own":
        palettes = [
            _align(p, m, palettes[0], reference) for p, m in zip(palettes, models, strict=True)
        ]
    maps = [p.colours(m) for p, m in zip(palettes, models, strict=True)]
    return [m if mask is None else m * mask for m, mask in zip(maps, masks, strict=True)]


def _on_grid(values: Tensor, features: Features) -> Tensor:
    """[B, N, C] -> [B, C, h, w]."""
    batch, _, channels = values.shape
    return values.mT.reshape(batch, channels, *features.grid)


def _tokens(features: Features) -> Tensor:
    return features.patches.detach().double().cpu()


def _palette_of(
    source: Sequence[Features], shown: Sequence[Features], foreground: float | None
) -> tuple[_Palette, list[Tensor | None]]:
    """Colours from `source`, and the foreground [B, 1, h, w] of each of `shown`."""
    palette = _fit_palette([_tokens(features).flatten(0, 1) for features in source])
    if foreground is None:
        return palette, [None] * len(shown)
    first = [palette.project(features)[..., 0] for features in source]
    sign = _foreground_sign(first, source)
    every = torch.cat([values.flatten() for values in first]) * sign
    limit = every.min() + foreground * (every.max() - every.min())
    kept = [
        _tokens(features)[values * sign > limit]
        for features, values in zip(source, first, strict=True)
    ]
    if sum(len(tokens) for tokens in kept) < 4:
        raise ValueError(
            f"pca_maps: no foreground is left. Got foreground={foreground}; take a smaller share."
        )
    masks: list[Tensor | None] = [
        _on_grid((palette.project(features)[..., :1] * sign > limit).float(), features)
        for features in shown
    ]
    return _fit_palette(kept), masks


def _fit_palette(groups: Sequence[Tensor]) -> _Palette:
    tokens = torch.cat(list(groups))
    if len(tokens) < 4 or tokens.shape[1] < 3:
        raise ValueError(
            f"pca_maps: too few patches for three components. Got {len(tokens)} of width "
            f"{tokens.shape[1]}; expected at least 4 of width 3. Take more images, or larger ones."
        )
    if not tokens.isfinite().all():
        raise ValueError(
            "pca_maps: features are not finite. Got NaN or infinity; check the model's weights."
        )
    mean = tokens.mean(0)
    # The sign of a component is arbitrary; fix it, so that the same features give the same picture.
    basis = torch.linalg.svd(tokens - mean, full_matrices=False).Vh[:3]
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    projected = (tokens - mean) @ basis.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    return _Palette(mean, basis.T, low, high)


def _foreground_sign(first: Sequence[Tensor], source: Sequence[Features]) -> float:
    """+1 if the border of the images has smaller values than their inside, else -1."""
    difference = 0.0
    for values, features in zip(first, source, strict=True):
        picture = _on_grid(values[..., None], features)[:, 0]
        inside = torch.zeros_like(picture, dtype=torch.bool)
        inside[:, 1:-1, 1:-1] = True
        if inside.any():
            difference += float(picture[inside].mean() - picture[~inside].mean())
    return 1.0 if difference >= 0 else -1.0


def _align(palette: _Palette, own: Features, first: _Palette, reference: Features) -> _Palette:
    """Turn components round where they run against the reference's."""
    ours = _on_grid(palette.project(own), own)
    theirs = _on_grid(first.project(reference), reference)
    theirs = F.interpolate(theirs, size=own.grid, mode="bilinear", align_corners=False)
    sign = (ours * theirs).sum((0, 2, 3)).sign()
    sign = torch.where(sign == 0, 1.0, sign)
    bounds = torch.stack([palette.low * sign, palette.high * sign])
    return _Palette(palette.mean, palette.directions * sign, bounds.amin(0), bounds.amax(0))


def save_pca(
    images: Tensor,
    features: Mapping[str, Features],
    path: str | Path,
    *,
    basis: Basis = "reference",
    foreground: float | None = None,
) -> None:
    """Rows of pictures: the images, then the PCA map of each model; the first is the reference.

    Args:
        images: RGB [B, 3, H, W], uint8 or float in [0, 1].
        features: Name -> features of these images.
        path: PNG file.
        basis: As for `pca_maps`.
        foreground: As for `pca_maps`.
    """
    rows = [_enlarged(images)]
    size = rows[0].shape[-1]
    for colours in pca_maps(*features.values(), basis=basis, foreground=foreground):
        rows.append(F.interpolate(colours, size=(size, size), mode="nearest"))
    save_rows(rows, ["image", *features], path)


def to_shown(images: Tensor) -> Tensor:
    """Images [B, 3, H, W], uint8 or float in [0, 1], as float32 on the CPU."""
    shown = images.detach().cpu()
    return shown.float() / 255 if shown.dtype == torch.uint8 else shown.float()


def _enlarged(images: Tensor) -> Tensor:
    """Square, at least 128 pixels."""
    size = max(128, images.shape[-1])
    shown = F.interpolate(to_shown(images), size=(size, size), mode="bicubic", antialias=True)
    return shown.clamp(0, 1)


def save_rows(rows: Sequence[Tensor], names: Sequence[str], path: str | Path) -> None:
    """A picture of rows of images, each row with its name.

    Args:
        rows: RGB [B, 3, H, W] in [0, 1], all of B images; sizes may differ from row to row.
        names: One for each row.
        path: PNG file.
    """
    count = rows[0].shape[0]
    figure = new_figure(1.3 * count + 0.4, 1.35 * len(rows))
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, row, name in zip(axes, rows, names, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(picture_text(name))
    write_figure(figure, path)


def save_columns(
    columns: Mapping[str, Tensor], names: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """A picture of columns of images, each under its title, one row for each of B images.

    Args:
        columns: Title -> RGB [B, 3, h, w] in [0, 1]; sizes may differ from column to column.
        names: Of the B images.
        path: PNG file.
        title: Of the whole.
    """
    figure = new_figure(1.9 * len(columns) + 0.4, 1.9 * len(names) + 0.4 + 0.3 * bool(title))
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for x, (heading, column) in enumerate(columns.items()):
        axes[0, x].set_title(picture_text(heading, 26), fontsize=10)
        for y, picture in enumerate(column):
            axes[y, x].imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[y, x].set_xticks([])
            axes[y, x].set_yticks([])
    for line, name in zip(axes, names, strict=True):
        line[0].set_ylabel(picture_text(name, 26), fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    write_figure(figure, path)


def write_figure(figure: Any, path: str | Path) -> None:
    """Save a figure whose words are words, not mathematics, in whatever letters they are."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(path, dpi=110)


def save_masks(
    images: Tensor,
    hidden: Tensor,
    grid: tuple[int, int],
    path: str | Path,
    *,
    errors: Tensor | None = None,
) -> None:
    """Images, the same with hidden patches in grey, and how wrong the student is about each patch.

    Args:
        images: RGB [B, 3, H, W], uint8 or float in [0, 1].
        hidden: bool [B, N], True = hidden from the student.
        grid: (h, w) of the patches, h * w == N.
        path: PNG file.
        errors: [B, N], for example of `proteus.evaluation.pictures.patch_errors`; the largest is
            white. None = no third row.

    Raises:
        ShapeError: If `hidden` or `errors` does not fit the images or the grid.
    """
    expected = (images.shape[0], grid[0] * grid[1])
    for name, values in (("hidden", hidden), ("errors", errors)):
        if values is not None and values.shape != expected:
            raise ShapeError(
                f"save_masks: {name} does not fit. Got {tuple(values.shape)}; expected "
                f"[images, patches] = {expected} for {expected[0]} images and a grid of {grid}."
            )
    if hidden.dtype != torch.bool:
        raise ShapeError(f"save_masks: hidden is no mask. Got {hidden.dtype}; expected torch.bool.")
    shown = _enlarged(images)
    rows = {"image": shown, **mask_pictures(shown, hidden, grid, errors)}
    save_rows(list(rows.values()), list(rows), path)


def mask_pictures(
    shown: Tensor, hidden: Tensor, grid: tuple[int, int], errors: Tensor | None = None
) -> dict[str, Tensor]:
    """`seen` (hidden patches in grey) and, with errors, `error` (the largest is white).

    Args:
        shown: Images [B, 3, H, W] in [0, 1].
        hidden: bool [B, N], True = hidden from the student.
        grid: (h, w), h * w == N.
        errors: [B, N] or None.
    """

    def spread(values: Tensor) -> Tensor:
        maps = values.detach().cpu().float().view(-1, 1, *grid)
        return F.interpolate(maps, size=shown.shape[-2:], mode="nearest")

    pictures = {"seen": shown.lerp(torch.full_like(shown, 0.5), spread(hidden))}
    if errors is not None:
        pictures["error"] = spread(errors / errors.max().clamp(min=1e-12)).expand_as(shown)
    return pictures


def new_figure(width: float, height: float) -> Any:
    """A matplotlib `Figure`, inches."""
    # matplotlib costs a second to import; `Figure` and not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
