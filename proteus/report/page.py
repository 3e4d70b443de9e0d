"""One self-contained HTML page: verdict, tables, curves, pictures; no network.

It is complete without scripts. The one it carries (`page.js`) sorts tables and reads curves; the
page's own policy lets nothing else run and nothing be fetched.
"""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

from ..files import write_whole
from ..text import printable
from ..version import __version__
from .page_parts import (
    Charts,
    Details,
    Facts,
    Heading,
    Lead,
    Part,
    Photo,
    Picture,
    Strip,
    Table,
    escape,
    render,
)

__all__ = [
    "Charts",
    "Details",
    "Facts",
    "Heading",
    "Lead",
    "Part",
    "Photo",
    "Picture",
    "Strip",
    "Table",
    "check_page",
    "text_table",
    "write_report",
]


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
    body = "\n".join(render(part) for part in parts)
    title = escape(title)
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    write_whole(
        target,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{style}</style>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n"
        f"<footer>Written by proteus-distill {escape(__version__)}.</footer>\n"
        f"<script>{script}</script>\n</html>\n",
    )


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


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
