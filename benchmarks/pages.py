"""Generated tables in the pages of the documentation."""

from collections.abc import Iterable


def fill(text: str, name: str, lines: Iterable[str]) -> str:
    """A page with these lines between its marks `<!-- NAME -->` and `<!-- end of NAME -->`."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    head, rest = text.split(start)
    return head + start + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end)[1]
