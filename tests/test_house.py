"""The picture in CONTRIBUTING.md is the house: every file has a place, every import goes down."""

import ast
import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

import proteus

PACKAGE = Path(proteus.__file__).parent
FILES = {
    path.relative_to(PACKAGE).with_suffix("").parts: path for path in sorted(PACKAGE.rglob("*.py"))
}
FACES = {("__init__",), ("__main__",)}  # they name what is in the house, and are on no floor


def orders():
    """Place -> what is in it -> how deep down: "" for the rooms, "data" for files of `data`."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = re.search("## The house.*?```text\n(.*?)```", text, re.DOTALL)[1]
    found, room = {"": {}}, ""
    for depth, floor in enumerate(picture.split("--------------------\n")):
        for line in floor.splitlines():
            if not line.startswith(" "):
                room = line.split()[0]
                found[""][room] = depth
            else:
                found[room] = f"{found.get(room, '')} {line}"
    for place, files in found.items():
        if place:
            found[place] = {
                name: depth for depth, part in enumerate(files.split(">")) for name in part.split()
            }
    return found


ORDERS = orders()


def depth_of(place, name):
    """How deep down a file or folder is in its place; the last word on files without one."""
    return next(d for pattern, d in ORDERS[place].items() if fnmatch(name, pattern))


def imports(name, path):
    """Our own files that a file imports, wherever in it."""
    base = name[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            whole = [*base[: len(base) - node.level + 1], *(node.module or "").split(".")]
            whole = tuple(part for part in whole if part)
            for alias in node.names:
                maybe = (*whole, alias.name), (*whole, alias.name, "__init__"), whole
                yield next(one for one in (*maybe, (*whole, "__init__")) if one in FILES)


@pytest.mark.parametrize("name", sorted(set(FILES) - FACES), ids="/".join)
def test_every_import_goes_down(name):
    for other in imports(name, FILES[name]):
        shared = 0
        while name[shared] == other[shared]:
            shared += 1
        place = "/".join(name[:shared])
        if name[shared] == "__init__" or (other[0] == "version"):
            continue  # a folder's face names what is in it
        above, below = depth_of(place, name[shared]), depth_of(place, other[shared])
        assert above < below, f"{'/'.join(name)} imports {'/'.join(other)}"


def test_no_two_files_have_one_name():
    counted = Counter(name[-1] for name in FILES if name[-1] != "__init__")
    assert [name for name, count in counted.items() if count > 1] == []


def test_the_picture_shows_nothing_that_is_gone():
    for place, names in ORDERS.items():
        for name in names:
            known = list((PACKAGE / place).glob(name)) + list((PACKAGE / place).glob(f"{name}.py"))
            assert known, f"{place}/{name}"
