"""What a page is made of, and each part as HTML; nothing in a part is markup."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..files import is_plain
from ..text import printable
from .svg import Chart, draw_chart

_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # its first and its last bytes
_LARGEST = 32 << 20  # bytes of a picture
_NUMBER = re.compile(r"[-+(]?[\d.,]+(e[-+]?\d+)?\b|error$|$")  # what a number's cell starts with


@dataclass(frozen=True)
class Table:
    """A table; every row has as many cells as the header.

    Attributes:
        header: Of the columns.
        rows: Below it; the page sorts them on a click.
        footer: So many of the last rows are sums, and stay where they are.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    footer: int = 0


@dataclass(frozen=True)
class Picture:
    """A PNG file, put into the page itself."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Details:
    """Text as it stands, folded away under its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Lead:
    """What stands first: sentences, the first in large letters.

    Attributes:
        sentences: (text, kind), see `proteus.report.verdict.Sentence`.
    """

    sentences: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Names and values: a row of large ones, or groups of small ones, each under its title."""

    rows: Sequence[tuple[str, str]] = ()
    groups: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()


@dataclass(frozen=True)
class Charts:
    """Curves beside one another."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Photo:
    """A small JPEG.

    Attributes:
        data: The file's bytes, made here.
        caption: Below it.
        mark: A frame: green for `good`, red for `bad`.
    """

    data: bytes
    caption: str
    mark: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class Strip:
    """Photos in a row; with `query`, beside the image they belong to, in named rows."""

    rows: Sequence[tuple[str, Sequence[Photo]]]
    query: Photo | None = None


Part: TypeAlias = str | Table | Picture | Heading | Details | Lead | Facts | Charts | Strip


def escape(text: str, *, lines: bool = False) -> str:
    """The text as HTML that shows it, and what cannot be shown as its escape."""
    return html.escape(printable(text, lines=lines))


def render(part: Part) -> str:
    """A part as HTML.

    Examples:
        >>> render(Heading("a < b"))
        '<h2>a &lt; b</h2>'
    """
    match part:
        case str():
            found = f"<p>{escape(part)}</p>"
        case Heading(text):
            found = f"<h2>{escape(text)}</h2>"
        case Details(title, text):
            content = escape(text, lines=True)
            found = f"<details><summary>{escape(title)}</summary><pre>{content}</pre></details>"
        case Picture():
            found = _picture(part)
        case Lead(sentences):
            lines = (
                f'<p class="{escape(kind)}">{escape(text).replace(" %", "&nbsp;%")}</p>'
                for text, kind in sentences
            )
            found = f'<section class="verdict">{"".join(lines)}</section>'
        case Facts():
            found = _facts(part)
        case Charts(charts):
            drawn = "".join(map(draw_chart, charts))
            found = (
                f'<div class="charts">{drawn}</div><p class="hint" hidden>Point at a curve to '
                f"read it, drag across it to zoom, press Escape for the whole run.</p>"
            )
        case Strip():
            found = _strip(part)
        case Table():
            found = _table(part)
    return found


def _facts(part: Facts) -> str:
    def listed(rows: Sequence[tuple[str, str]]) -> str:
        return "".join(
            f"<div><dt>{escape(name)}</dt> <dd>{escape(value)}</dd></div>" for name, value in rows
        )

    found = f'<dl class="facts">{listed(part.rows)}</dl>' if part.rows else ""
    groups = "".join(
        f'<section class="group"><h3>{escape(title)}</h3><dl>{listed(rows)}</dl></section>'
        for title, rows in part.groups
    )
    return found + (f'<div class="groups">{groups}</div>' if groups else "")


def _table(part: Table) -> str:
    count = len(part.rows) - part.footer
    # A column with words is set left; the first one is in any case.
    words = {
        column
        for column in range(1, len(part.header))
        if not all(_NUMBER.match(row[column]) for row in part.rows)
    }

    def line(row: Sequence[str], tag: str, more: str = "") -> str:
        kinds = (' class="t"' if n in words else "" for n in range(len(row)))
        cells = (
            f"<{tag}{more}{kind}>{escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    head = line(part.header, "th", ' scope="col"')
    body = "".join(line(row, "td") for row in part.rows[:count])
    foot = "".join(line(row, "td") for row in part.rows[count:])
    foot = f"<tfoot>{foot}</tfoot>" if foot else ""
    return (
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody>{foot}</table></div>'
    )


def _strip(part: Strip) -> str:
    rows = "".join(
        ("<div>" + (f"<h4>{escape(name)}</h4>" if name else ""))
        + f'<div class="strip">{"".join(map(_photo, photos))}</div></div>'
        for name, photos in part.rows
    )
    if part.query is None:
        return rows
    return f'<section class="query">{_photo(part.query)}<div class="sides">{rows}</div></section>'


def _photo(photo: Photo) -> str:
    data, caption = base64.b64encode(photo.data).decode("ascii"), escape(photo.caption)
    return (
        f'<figure class="photo {photo.mark}"><img alt="{caption}" src="data:image/jpeg;base64,'
        f'{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _picture(part: Picture) -> str:
    content = b""
    if not is_plain(part.path):
        reason = "it is not a file of this folder"
    elif part.path.stat().st_size > _LARGEST:
        reason = f"it has more than {_LARGEST >> 20} MiB"
    else:
        content = part.path.read_bytes()
        whole = content.startswith(_PNG[0]) and content.endswith(_PNG[1])
        reason = "" if whole else "it is no whole PNG picture"
    if reason:
        return f"<p>{escape(part.path.name)} is not shown: {reason}.</p>"
    data, caption = base64.b64encode(content).decode("ascii"), escape(part.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
