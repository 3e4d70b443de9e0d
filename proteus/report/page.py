"""One self-contained HTML page: tables and pictures, no script, no network."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..files import is_plain, write_whole
from ..text import printable

_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # its first and its last bytes
_LARGEST = 32 << 20  # bytes of a picture
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
pre { overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: .85rem; }
figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Table:
    """A table; every row has as many cells as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


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


Part: TypeAlias = str | Table | Picture | Heading | Details


def text_table(table: Table) -> str:
    """The table for a terminal, first column left, others right.

    Examples:
        >>> print(text_table(Table(["a", "b"], [["x", "10"]])))
        a   b
        x  10
    """
    rows = [[printable(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    lines = []
    for row in rows:
        first, *rest = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def write_report(path: str | Path, title: str, parts: Sequence[Part]) -> None:
    """Write the page.

    Args:
        path: HTML file.
        title: Heading.
        parts: In order: paragraphs (plain text), headings, tables, pictures, folded text. All of
            it is shown as it stands: nothing in it is markup. A picture that is no PNG file of
            its folder (a link, a pipe), or a huge one, is left out with a word.

    Raises:
        ValueError: As `check_page`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = Path(folder) / "report.html"
        ...     write_report(page, "A run", ["It went well.", Table(["loss"], [["0.1"]])])
        ...     "<td>0.1</td>" in page.read_text(encoding="utf-8")
        True
    """
    target = Path(path)
    check_page(target, title)
    body = "\n".join(_render(part) for part in parts)
    title = _escape(title)
    write_whole(
        target,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n{body}\n</html>\n",
    )


def check_page(path: Path, title: str) -> None:
    """Make sure that a page may be written: one page never replaces another.

    Args:
        path: HTML file.
        title: Its first word says what kind of page it is.

    Raises:
        ValueError: If another page, or another file, is there.
    """
    if not path.exists():
        return
    found = "no file"
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(1000).decode("utf-8", "replace")
        known = re.search(r"<title>(.*?)</title>", head)
        if known and html.unescape(known[1]).split(" ")[0] == title.split(" ", maxsplit=1)[0]:
            return
        found = f"a page called {html.unescape(known[1])!r:.80}" if known else "another file"
    raise ValueError(
        f"report: one page does not replace another. Got {str(path)!r}, where {found} is. Move it "
        f"away, or write to another place (--out)."
    )


def _escape(text: str, *, lines: bool = False) -> str:
    return html.escape(printable(text, lines=lines))


def _render(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{_escape(part)}</p>"
    if isinstance(part, Heading):
        return f"<h2>{_escape(part.text)}</h2>"
    if isinstance(part, Details):
        text = _escape(part.text, lines=True)
        return f"<details><summary>{_escape(part.title)}</summary><pre>{text}</pre></details>"
    if isinstance(part, Picture):
        return _picture(part)
    header = "".join(f"<th>{_escape(cell)}</th>" for cell in part.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows
    )
    return f"<table><tr>{header}</tr>{rows}</table>"


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
        return f"<p>{_escape(part.path.name)} is not shown: {reason}.</p>"
    data, caption = base64.b64encode(content).decode("ascii"), _escape(part.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
