"""One self-contained HTML page: tables and pictures, no script, no network."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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
    rows = [table.header, *table.rows]
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
        parts: In order: paragraphs (plain text), headings, tables, pictures, folded text.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = Path(folder) / "report.html"
        ...     write_report(page, "A run", ["It went well.", Table(["loss"], [["0.1"]])])
        ...     "<td>0.1</td>" in page.read_text(encoding="utf-8")
        True
    """
    body = "\n".join(_render(part) for part in parts)
    title = html.escape(title)
    Path(path).write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n{body}\n</html>\n",
        encoding="utf-8",
    )


def _render(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, Heading):
        return f"<h2>{html.escape(part.text)}</h2>"
    if isinstance(part, Details):
        title, text = html.escape(part.title), html.escape(part.text)
        return f"<details><summary>{title}</summary><pre>{text}</pre></details>"
    if isinstance(part, Picture):
        data = base64.b64encode(part.path.read_bytes()).decode("ascii")
        caption = html.escape(part.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in part.rows
    )
    return f"<table><tr>{header}</tr>{rows}</table>"
