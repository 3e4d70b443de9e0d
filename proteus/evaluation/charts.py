"""The paper's charts: bars and a radar of several models on several benchmarks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..text import picture_text
from ..visualize import new_figure, write_figure

Scores = Mapping[str, Mapping[str, float]]
_LEAST_AXES = 3


def save_bars(scores: Scores, path: str | Path, *, title: str = "", label: str = "") -> None:
    """A group of bars for each benchmark, one bar a model; a score that is missing leaves a gap.

    Args:
        scores: Model -> benchmark -> score; the order is kept.
        path: PNG file.
        title: Above the chart.
        label: What the scores are, beside the axis.

    Raises:
        ValueError: If there is nothing to draw or a score is not finite.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "bars.png")
        ...     save_bars({"ours": {"DTD": 78.4, "CUB": 86.7}, "theirs": {"DTD": 80.3}}, file)
        ...     file.stat().st_size > 1000
        True
    """
    names = _benchmarks(scores)
    figure = new_figure(max(4.0, 0.28 * len(names) * (len(scores) + 1) + 1.5), 3.2)
    axis = figure.subplots()
    width = 0.8 / len(scores)
    for number, (model, row) in enumerate(scores.items()):
        places = [i + (number - (len(scores) - 1) / 2) * width for i in range(len(names))]
        heights = [row.get(name, math.nan) for name in names]
        bars = axis.bar(places, heights, width, label=picture_text(model))
        texts = [f"{row[name]:.3g}" if name in row else "" for name in names]
        axis.bar_label(bars, texts, fontsize=6, padding=1)
    labels = [picture_text(name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=30, ha="right", fontsize=8)
    axis.set_ylabel(label)
    axis.set_title(picture_text(title))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside right upper")
    write_figure(figure, path)


def save_radar(
    scores: Scores, path: str | Path, *, lower_is_better: Sequence[str] = (), title: str = ""
) -> None:
    """The paper's Figure 1: a polygon for each model, a direction for each benchmark.

    Every direction has a scale of its own, from the worst model (at two fifths of the radius) to
    the best (at the rim): areas say nothing, only the order along a direction does. The numbers at
    the rim are the best ones.

    Args:
        scores: Model -> benchmark -> score; all models have the same benchmarks, three or more.
        path: PNG file.
        lower_is_better: Benchmarks such as RMSE and mCE.
        title: Above the chart.

    Raises:
        ValueError: If a model lacks a benchmark, there are fewer than three, a name in
            `lower_is_better` is unknown, or a score is not finite.
    """
    names = _benchmarks(scores)
    missing = {model: [n for n in names if n not in row] for model, row in scores.items()}
    if any(missing.values()) or len(names) < _LEAST_AXES:
        raise ValueError(
            f"save_radar: every model needs a score in every direction, of three or more. Got "
            f"{len(names)} directions, missing { ({m: n for m, n in missing.items() if n}) }; "
            f"save_bars leaves gaps."
        )
    strange = sorted(set(lower_is_better) - set(names))
    if strange:
        raise ValueError(f"save_radar: unknown in lower_is_better=. Got {strange}; expected some "
                         f"of {names}.")  # fmt: skip
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    figure = new_figure(5.6, 4.6)
    axis = figure.subplots(subplot_kw={"projection": "polar"})
    radii = {model: radar_radii(scores, model, lower_is_better) for model in scores}
    for model, values in radii.items():
        axis.plot(
            [*angles, angles[0]], [*values, values[0]], label=picture_text(model), linewidth=1.4
        )
        axis.fill(angles, values, alpha=0.1)
    best = [
        (min if n in lower_is_better else max)(row[n] for row in scores.values()) for n in names
    ]
    axis.set_xticks(
        angles,
        [f"{picture_text(n)}\n{b:.3g}" for n, b in zip(names, best, strict=True)],
        fontsize=7,
    )
    axis.set_yticks([])
    axis.set_ylim(0, 1)
    axis.set_title(picture_text(title))
    figure.legend(fontsize=8, loc="outside right upper")
    write_figure(figure, path)


def radar_radii(scores: Scores, model: str, lower_is_better: Sequence[str] = ()) -> list[float]:
    """Where a model's polygon has its corners: 0.4 = the worst of all models, 1 = the best.

    Examples:
        >>> scores = {"a": {"acc": 80.0, "rmse": 0.4}, "b": {"acc": 90.0, "rmse": 0.3}}
        >>> radar_radii(scores, "a", ["rmse"]), radar_radii(scores, "b", ["rmse"])
        ([0.4, 0.4], [1.0, 1.0])
    """
    radii = []
    for name in _benchmarks(scores):
        sign = -1 if name in lower_is_better else 1
        column = [sign * row[name] for row in scores.values()]
        low, high = min(column), max(column)
        share = 1.0 if high == low else (sign * scores[model][name] - low) / (high - low)
        radii.append(0.4 + 0.6 * share)
    return radii


def _benchmarks(scores: Scores) -> list[str]:
    """All names in the order they come."""
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    bad = [f"{m}: {n}" for m, row in scores.items() for n, v in row.items() if not math.isfinite(v)]
    if not names or bad:
        raise ValueError(
            f"charts: nothing to draw, or scores that are no numbers. Got {len(names)} benchmarks "
            f"of {len(scores)} models, not finite: {bad}."
        )
    return names
