"""Curves as SVG, complete as they stand; the page's script reads and zooms them."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..text import printable

_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 10, 34
_UNIT = 1000  # the curves' own coordinates, 0 … 1000 both ways, so that a zoom is a view of them
_FEW = 20  # points that are also drawn as dots
_COLOURS = 6


class Line(NamedTuple):
    """One curve, all lists of one length.

    Attributes:
        name: In the legend; "" where there is one alone, which the title names.
        steps: Rising.
        mean: Finite.
        low: Lower edge of the band.
        high: Upper edge.
    """

    name: str
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Curves over steps in one pair of axes.

    Attributes:
        title: Above it.
        lines: One colour each.
        unit: Of the values; "" where they have none.
    """

    title: str
    lines: Sequence[Line]
    unit: str = ""


def draw_chart(chart: Chart) -> str:
    """The chart as a `<figure>`.

    Examples:
        >>> figure = draw_chart(Chart("total", [Line("total", [0, 1], [3, 1], [3, 1], [3, 1])]))
        >>> figure.count("<svg"), figure.count('class="line c0"')
        (2, 1)
    """
    lines = [line for line in chart.lines if len(line.steps)]
    x0, x1 = _range([(min(line.steps), max(line.steps)) for line in lines])
    if any(len(line.steps) < _FEW for line in lines):  # dots at the ends are whole
        x0, x1 = x0 - 0.02 * (x1 - x0), x1 + 0.02 * (x1 - x0)
    y0, y1 = _range([(min(line.low), max(line.high)) for line in lines])
    y0, y1 = y0 - 0.04 * (y1 - y0), y1 + 0.04 * (y1 - y0)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    across = "".join(
        f'<g class="tick" transform="translate({_LEFT + width * (x - x0) / (x1 - x0):.1f} 0)">'
        f'<text y="{_TOP + height + 15}">{tick_text(x, gap)}</text></g>'
        for x, gap in _ticks(x0, x1, whole=True)
    )
    up = "".join(
        f'<g class="tick" transform="translate(0 {_TOP + height * (y1 - y) / (y1 - y0):.1f})">'
        f'<line x1="{_LEFT}" x2="{_LEFT + width}"/>'
        f'<text x="{_LEFT - 6}" y="4">{tick_text(y, gap)}</text></g>'
        for y, gap in _ticks(y0, y1)
    )
    drawn = "".join(_draw_line(line, n, (x0, x1, y0, y1)) for n, line in enumerate(lines))
    title, unit = _escape(chart.title), _escape(chart.unit)
    label = f"{title} over steps: " + ", ".join(
        f"{_escape(line.name)} from {line.mean[0]:.4g} to {line.mean[-1]:.4g}".strip()
        for line in lines
    )
    data = json.dumps(
        {
            "domain": [x0, x1, y0, y1],
            "lines": [
                {"x": [_short(x) for x in one.steps], "y": [_short(y) for y in one.mean]}
                for one in lines
            ],
        },
        separators=(",", ":"),
    )
    return (
        f'<figure class="chart" data-chart=\'{data}\' tabindex="0">'
        f"<figcaption>{title}{f'<small>{unit}</small>' if unit else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'<g class="up">{up}</g><g class="across">{across}</g>'
        f'<text class="axis" x="{_LEFT + width / 2:g}" y="{_HEIGHT - 3}">step</text>'
        f'<svg class="plot" x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" '
        f'viewBox="0 0 {_UNIT} {_UNIT}" preserveAspectRatio="none">{drawn}</svg>'
        f'<rect class="area" x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}"/>'
        f'<rect class="chosen" y="{_TOP}" height="{height}"/>'
        f'<line class="cursor" y1="{_TOP}" y2="{_TOP + height}"/></svg>'
        f"{_legend(lines)}</figure>"
    )


def _legend(lines: Sequence[Line]) -> str:
    """The curves' names and last values; the script puts those under the pointer here."""
    keys = "".join(
        f'<span class="key k{n % _COLOURS}">{_escape(line.name)} '
        f"<output>{line.mean[-1]:.4g}</output></span>"
        for n, line in enumerate(lines)
    )
    last = max(line.steps[-1] for line in lines)
    return f'<p class="legend">{keys}<span class="at">step <output>{last:,.0f}</output></span></p>'


def _draw_line(line: Line, number: int, domain: tuple[float, float, float, float]) -> str:
    x0, x1, y0, y1 = domain

    def at(x: float, y: float) -> str:
        across, up = _UNIT * (x - x0) / (x1 - x0), _UNIT * (y1 - y) / (y1 - y0)
        return f"{across:.1f} {up:.1f}".replace(".0", "")

    colour = f"c{number % _COLOURS}"
    points = [at(*pair) for pair in zip(line.steps, line.mean, strict=True)]
    found = f'<path class="line {colour}" d="M{"L".join(points)}"/>'
    if len(points) < _FEW:
        # A line of no length with round ends is a dot, whatever the two scales are.
        found += f'<path class="dots {colour}" d="{"".join(f"M{point}h0" for point in points)}"/>'
    if list(line.low) != list(line.high):
        upper = [at(*pair) for pair in zip(line.steps, line.high, strict=True)]
        lower = [at(*pair) for pair in zip(line.steps, line.low, strict=True)]
        edge = "L".join([*upper, *reversed(lower)])
        found = f'<path class="band {colour}" d="M{edge}Z"/>{found}'
    return found


def _range(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """From the lowest to the highest, never empty."""
    low, high = float(min(pair[0] for pair in pairs)), float(max(pair[1] for pair in pairs))
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    return (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


def _ticks(low: float, high: float, *, whole: bool = False) -> list[tuple[float, float]]:
    """About four round numbers in a range, and the gap between them; one at least.

    Examples:
        >>> [x for x, _ in _ticks(0.0, 187.0)]
        [0.0, 50.0, 100.0, 150.0]
    """
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.8)
    if whole:
        gap = max(gap, 1.0)
    first, last = math.ceil(low / gap), math.floor(high / gap)
    return [(n * gap, gap) for n in range(first, last + 1)] or [(low, gap)]


def tick_text(value: float, gap: float) -> str:
    """A tick, with as many digits as the gap between ticks asks for.

    Examples:
        >>> tick_text(0.25, 0.05), tick_text(200000, 50000), tick_text(2e-5, 1e-5), tick_text(0, 1)
        ('0.25', '200k', '2e-5', '0')
    """
    if not value:
        return "0"
    if not 1e-3 <= abs(value) < 1e13:
        mantissa, _, power = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if max(abs(value), gap) >= size:
            scale = 1e3 if name == "k" else size
            return f"{value / scale:.4g}{name}"
    digits = max(0, -math.floor(math.log10(gap) + 1e-9))
    return f"{value:.{digits}f}"


def _short(value: float) -> float:
    """With as many digits as are shown."""
    number = float(f"{value:.6g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def _escape(text: str) -> str:
    return html.escape(printable(text))
