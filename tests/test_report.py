import re

from PIL import Image

from proteus.report import Details, Heading, Picture, Table, text_table, write_report


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
