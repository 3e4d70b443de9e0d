import os
import re

import pytest
from PIL import Image

from proteus.report.page import Details, Heading, Picture, Table, text_table, write_report


def test_the_page_needs_nothing_but_itself(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    parts = ["1 < 2", Table(["a", "b"], [["x & y", "1"]]), Picture(tmp_path / "p.png", "a picture")]
    write_report(tmp_path / "r.html", "Title <1>", parts)
    (tmp_path / "p.png").unlink()
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "1 &lt; 2" in page
    assert "<td>x &amp; y</td>" in page
    assert "<h1>Title &lt;1&gt;</h1>" in page
    assert "data:image/png;base64," in page
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)


def test_columns_of_the_text_table_line_up():
    lines = text_table(Table(["", "n"], [["long name", "1"], ["x", "1000"]])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith("   1")


def test_headings_and_folded_text_are_escaped(tmp_path):
    write_report(tmp_path / "r.html", "t", [Heading("a < b"), Details("more", '{"x": "<"}\n')])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h2>a &lt; b</h2>" in page
    assert "<summary>more</summary><pre>{&quot;x&quot;: &quot;&lt;&quot;}\n</pre>" in page


HOSTILE = "</td><script>alert(1)</script>\" onerror='x' \n\x00\x1b[31m\udcff\u202e&|"


def test_nothing_from_outside_is_markup_or_a_control_character(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    parts = [
        HOSTILE, Heading(HOSTILE), Details(HOSTILE, HOSTILE), Table([HOSTILE], [[HOSTILE]]),
        Picture(tmp_path / "p.png", HOSTILE),
    ]  # fmt: skip
    write_report(tmp_path / "r.html", HOSTILE, parts)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("alert(1)") == 10
    assert not re.search(r"<script|<[^>]*'x'|[\x00\x1b\u202e]", page)
    assert "\\udcff" in page
    text = text_table(Table(["a", HOSTILE], [[HOSTILE, "1"]]))
    assert len(text.splitlines()) == 2
    assert not re.search(r"[\x00\x1b\u202e\udcff]", text)


@pytest.mark.parametrize("kind", ["link", "pipe", "text", "huge", "cut", "folder", "missing"])
def test_only_a_picture_of_the_folder_is_put_into_the_page(tmp_path, kind, monkeypatch):
    secret, picture = tmp_path / "secret.png", tmp_path / "p.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    monkeypatch.setattr("proteus.report.page._LARGEST", 10_000)
    {
        "link": lambda: picture.symlink_to(secret),
        "pipe": lambda: os.mkfifo(picture),
        "text": lambda: picture.write_text("root:x:0:0"),
        "huge": lambda: picture.write_bytes(secret.read_bytes() + b"\0" * 10_000),
        "cut": lambda: picture.write_bytes(secret.read_bytes()[:-20]),
        "folder": picture.mkdir,
        "missing": lambda: None,
    }[kind]()
    write_report(tmp_path / "r.html", "t", [Picture(picture, "a picture")])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "base64" not in page
    assert "p.png is not shown: it" in page


def test_a_page_replaces_its_own_kind_only(tmp_path):
    page = tmp_path / "r.html"
    for name in ("a", "b <c>"):
        write_report(page, f"Run {name}", [])
    for others in ("Evaluation of a", "proteus demo"):
        with pytest.raises(ValueError, match=r"where a page called 'Run b <c>' is.*--out"):
            write_report(page, others, [])
    page.write_text("my notes")
    with pytest.raises(ValueError, match="another file"):
        write_report(page, "Run a", [])
    assert page.read_text() == "my notes"
    with pytest.raises(ValueError, match="no file"):
        write_report(tmp_path, "Run a", [])
