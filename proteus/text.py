"""Text made fit for a page, a table, a terminal: names from outside, times and sizes."""

import math
import re

# Control characters (of a terminal, too), what turns the direction of writing, half characters.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKS = re.compile(r"([\\`*\[\]|])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with what cannot be shown as its escape; one line, unless `lines` are kept.

    Examples:
        >>> print(printable("a\x1b[31m\udcff"))
        a\x1b[31m\udcff
        >>> printable("a\nb")
        'a b'
    """
    if not lines:
        text = " ".join(re.split(r"[\r\n\u2028\u2029]+", text))
    return (_LINES if lines else _UNFIT).sub(lambda found: ascii(found[0])[1:-1], text)


def markdown_text(text: str) -> str:
    r"""The text as one line of Markdown that shows it and nothing else: no link, tag or cell.

    Examples:
        >>> print(markdown_text("a|b <script> [x](y)"))
        a\|b &lt;script&gt; \[x\](y)
    """
    marked = _MARKS.sub(r"\\\1", printable(text))
    return re.sub("[&<>]", lambda found: _HTML[found[0]], marked)


def picture_text(text: str, length: int = 40) -> str:
    r"""The text as a label of a picture: its end, where it is longer.

    A sign, not an escape of six letters, where nothing can be drawn. A dollar is one to
    `write_figure`.

    Examples:
        >>> picture_text("runs\n/first", 8)
        '…�/first'
    """
    shown = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return shown if len(shown) <= length else "…" + shown[1 - length :]


def time_text(seconds: float) -> str:
    """A length of time in the two units that matter.

    Examples:
        >>> [time_text(n) for n in (0.4, 59.6, 61, 7800, 400000)]
        ['0.4 s', '60 s', '1 min 1 s', '2 h 10 min', '4 d 15 h']
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if round(seconds) <= 60:
        return f"{seconds:.0f} s"
    small, large, names = (3600, 24, ("d", "h"))
    if seconds < 3599.5:
        small, large, names = (1, 60, ("min", "s"))
    elif seconds < 24 * 3600 - 30:
        small, large, names = (60, 60, ("h", "min"))
    whole, rest = divmod(round(seconds / small), large)
    return f"{whole:,} {names[0]}" + (f" {rest} {names[1]}" if rest else "")


def size_text(count: float) -> str:
    """Bytes in the largest unit of which there is one at least.

    Examples:
        >>> [size_text(n) for n in (900, 3 << 20, 13.4 * 2**30)]
        ['900 B', '3.0 MiB', '13.4 GiB']
    """
    if count < 1024:
        return f"{count:.0f} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(count) // 10), len(units))
    return f"{count / 1024**power:,.1f} {units[power - 1]}"
