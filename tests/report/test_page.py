import base64
import hashlib
import json
import math
import os
import re

import pytest
from PIL import Image

from proteus.report.page import (
    Charts,
    Details,
    Facts,
    Heading,
    Lead,
    Photo,
    Picture,
    Strip,
    Table,
    text_table,
    write_report,
)
from proteus.report.svg import Chart, Line, draw_chart, tick_text


def outside(page):
    """The page without its own style and script, whose hashes its policy names."""
    assert page.count("<script") == page.count("<style") == 1
    for kind in ("style", "script"):
        own = re.search(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page
        assert not re.search(r"https?:|@import|url\(|eval|innerHTML", own)
        page = page.replace(f"<{kind}>{own}</{kind}>", "")
    assert "default-src 'none'; img-src data:;" in page
    return page


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
    assert not re.search(r"<script|https?://|src=\"(?!data:)| style=| on[a-z]+=", outside(page))


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
        Picture(tmp_path / "p.png", HOSTILE), Lead([(HOSTILE, HOSTILE)]),
        Facts([(HOSTILE, HOSTILE)], [(HOSTILE, [(HOSTILE, HOSTILE)])]),
        Charts([Chart(HOSTILE, [Line(HOSTILE, [0, 1], [2, 3], [2, 3], [2, 3])], HOSTILE)]),
        Strip([(HOSTILE, [Photo(b"", HOSTILE)])], Photo(b"", HOSTILE)),
    ]  # fmt: skip
    write_report(tmp_path / "r.html", HOSTILE, parts)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = outside(page)
    assert page.count("alert(1)") == 27
    assert not re.search(r"<script|<[^>]*'x'|[\x00\x1b\u202e]", page)
    assert "\\udcff" in page
    text = text_table(Table(["a", HOSTILE], [[HOSTILE, "1"]]))
    assert len(text.splitlines()) == 2
    assert not re.search(r"[\x00\x1b\u202e\udcff]", text)


@pytest.mark.parametrize("kind", ["link", "pipe", "text", "huge", "cut", "folder", "missing"])
def test_only_a_picture_of_the_folder_is_put_into_the_page(tmp_path, kind, monkeypatch):
    secret, picture = tmp_path / "secret.png", tmp_path / "p.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    monkeypatch.setattr("proteus.report.page_parts._LARGEST", 10_000)
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


def test_words_are_set_left_numbers_right_and_sums_stay_below(tmp_path):
    table = Table(["set", "k-NN", "worst"], [["a", "1.5 (20)", "fog"], ["b", "", "rain"],
                                             ["mean", "2", "x"]], footer=1)  # fmt: skip
    write_report(tmp_path / "r.html", "t", [table])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<th scope="col">k-NN</th><th scope="col" class="t">worst</th>' in page
    assert '<tfoot><tr><td>mean</td><td>2</td><td class="t">x</td></tr></tfoot>' in page
    assert "<td>1.5 (20)</td>" in page


def test_a_chart_holds_its_curve_its_axes_and_its_numbers():
    band = Line("student", [0, 50, 99], [1, 0.5, 0.25], [0.5, 0.25, 0.25], [2, 0.75, 0.25])
    figure = draw_chart(Chart("loss <1>", [band, Line("teacher", [0], [1], [1], [1])], "nats"))
    assert "loss &lt;1&gt;<small>nats</small>" in figure
    assert '<text class="axis"' in figure and ">step</text>" in figure
    assert [*re.findall('class="(band|line|dots) c([01])"', figure)] == [
        ("band", "0"), ("line", "0"), ("dots", "0"), ("line", "1"), ("dots", "1"),
    ]  # fmt: skip
    data = json.loads(re.search("data-chart='(.*?)'", figure)[1])
    assert data["lines"][0] == {"x": [0, 50, 99], "y": [1, 0.5, 0.25]}
    low, high = data["domain"][2:]
    assert low < 0.25 and high > 2
    assert "student <output>0.25</output>" in figure and "step <output>99</output>" in figure
    points = re.search('class="line c0" d="M(.*?)"', figure)[1].split("L")
    across, up = zip(*(map(float, point.split()) for point in points), strict=True)
    assert sorted(across) == list(across) and sorted(up) == list(up)  # it falls
    assert min(*across, *up) >= 0 and max(*across, *up) <= 1000


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [-1e38, 1e38], [1e-30, 2e-30], [1e37] * 30, [0.1, 0.1 + 1e-12]]
)
@pytest.mark.parametrize("first", [0, 10**14])
def test_any_finite_curve_is_drawn_inside_its_axes(values, first):
    steps = [first + n for n in range(len(values))]
    figure = draw_chart(Chart("x", [Line("", steps, values, values, values)]))
    numbers = [float(n) for n in re.findall(r"translate\(([-\d.]+) ", figure)]
    assert numbers and all(math.isfinite(n) and 0 <= n <= 400 for n in numbers)
    assert "nan" not in figure and "inf" not in figure


def test_ticks_have_the_digits_that_their_distance_asks_for():
    assert [tick_text(n * 0.05, 0.05) for n in range(3)] == ["0", "0.05", "0.10"]
    assert [tick_text(n, 5000) for n in (0, 5000, 10000)] == ["0", "5000", "10k"]
    assert tick_text(-2.5e-7, 5e-8) == "-2.5e-7"
    assert tick_text(3e15, 1e15) == "3e15"
