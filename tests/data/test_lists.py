import json
import os
import re

import pytest
from PIL import Image

from proteus.data import open_source


@pytest.fixture
def folder(tmp_path):
    for n in range(3):
        Image.new("RGB", (20, 16), (n, n, n)).save(tmp_path / f"{n}.png")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


def saved(folder, *rows, **content):
    first = [str(folder / "0.png"), "0.png", 0, None, None]
    whole = {"proteus_images": 1, "description": "x", "places": [first, *rows], **content}
    path = folder / "list.json"
    path.write_text(json.dumps(whole))
    return path


def test_a_list_of_an_older_release_is_read(folder):
    source = open_source(saved(folder, [str(folder / "1.png"), "1.png", 8, 20, "b"]))
    assert (len(source), source.label(1), len(source.read(1))) == (2, "b", 20)


@pytest.mark.parametrize(
    "row",
    [
        ["F", "x", "abc", None, None],
        ["F", "x", 0, "7", None],
        ["F", 5, 0, None, None],
        [1, "x", 0, None, None],
        [None, "x", 0, None, None],
        ["F", "x", 0, None, 3],
        ["F", "x", 0, None, ["a"]],
        ["F", "x", -1, None, None],
        ["F", "x", 0, -1, None],
        ["F", "x", 0.0, None, None],
        ["F", "x", True, None, None],
        ["F", "x", 0, 1e300, None],
        ["F", "x", 0, None, None, "more"],
        ["F"],
        [],
        "Fx",
        {"file": "F", "name": "x"},
        None,
        7,
    ],
)
def test_a_row_of_wrong_types_is_no_list(folder, row):
    row = [str(folder / "0.png"), *row[1:]] if isinstance(row, list) and row[:1] == ["F"] else row
    with pytest.raises(ValueError, match="is no list of images"):
        open_source(saved(folder, row))


@pytest.mark.parametrize(("offset", "size"), [(10**6, None), (0, 10**6), (10**30, 1), (1, 10**30)])
def test_what_lies_behind_the_end_of_a_file_is_not_there(folder, offset, size):
    row = [str(folder / "1.png"), "1.png", offset, size, None]
    with pytest.raises(ValueError, match=r"lists what is not there.*1\.png \(cut off\)"):
        open_source(saved(folder, row))


@pytest.mark.parametrize("name", ["gone.png", "pipe.png", "/dev/zero", ".", "a\0b", "x" * 5000])
def test_what_is_no_file_is_not_there(folder, name):
    path = name if name.startswith("/") else str(folder / name)
    with pytest.raises(ValueError, match="lists what is not there") as error:
        open_source(saved(folder, [path, "x", 0, None, None]))
    assert len(str(error.value)) < 1000
    (folder / "list.txt").write_text(f"0.png\n{name}\n")
    with pytest.raises(ValueError, match="lists files that are not there") as error:
        open_source(folder / "list.txt")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'{"description": "x"}',
        b'{"description": "x", "places": null}',
        b'{"description": "x", "places": 5}',
        b'{"description": "x", "places": {"a": 1}}',
        b'{"description": {}, "places": []}',
        b'{"description": "x", "places": "' + b"[" * 1000 + b'"}',
        b'{"description": "x", "places": ' + b"[" * 100_000,
        b'{"places": ' * 100_000,
        b'{"description": "\xff\xfe", "places": []}',
        b"\xff\xfe\x00\x00",
        b'{"description": "x", "places": [["f", "n", ' + b"9" * 10_000 + b", null, null]]}",
        b'{"description": "x", "places": [["f", "n", NaN, null, null]]}',
    ],
)
def test_what_is_no_list_is_refused_in_a_paragraph(folder, content):
    (folder / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape("a.json' is no list of images")) as error:
        open_source(folder / "a.json")
    assert len(str(error.value)) < 1000


def test_a_list_of_nothing_lists_nothing(folder):
    with pytest.raises(ValueError, match="Got 0 images"):
        open_source(saved(folder, places=[]))
    for content in ("", "# only a comment\n", "\0\0\0", "\xff" * 10_000):
        (folder / "a.txt").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"a\.txt' lists files that are not there"):
            open_source(folder / "a.txt")
