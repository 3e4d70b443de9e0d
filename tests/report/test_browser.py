"""The pages in a real browser: nothing fails, nothing is asked for, nothing sticks out."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from proteus.evaluation.suite.mistakes import mistakes_of
from proteus.evaluation.suite.results_page import write_tables
from proteus.evaluation.suite.shown_images import thumbnail
from proteus.files import seal
from proteus.report.page import Heading, Picture, Strip
from proteus.report.run_page import write_run_report

pytestmark = pytest.mark.slow  # a browser is started
TOOLS = Path(__file__).parents[2] / "tools"
WIDTHS = (420, 1280)
LONG = "a-name-of-a-model-that-is-longer-than-any-telephone-is-wide-" * 3


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill_run(folder, steps=400):
    """A run folder with everything in it, of numbers made up here."""
    folder.mkdir()
    rows = [
        {"step": n, "total": 3 * math.exp(-n / 80) + 0.5, "token": math.exp(-n / 80), "patch": 0.0,
         "lr": 1e-3 * math.cos(n / steps), "grad_norm": 0.5 + n % 7}
        for n in range(steps)
    ]  # fmt: skip
    write(folder / "log.jsonl", rows)
    timing = {"images_per_second": 100, "data_wait": 0.3, "memory_mib": 900, "seconds": 200}
    write(folder / "timing.jsonl", [{"step": 9} | timing, {"step": 399} | timing])
    looks = [
        {"step": n, "cls_cosine": n / 500, "patch_cosine": n / 600, "knn_top1": n / 1000,
         "teacher_knn_top1": 0.5, "knn_images": 128, "knn_top1_margin": 0.08,
         "teacher_knn_top1_margin": 0.08}
        for n in (99, 199, 299, 399)
    ]  # fmt: skip
    write(folder / "watch.jsonl", looks)
    facts = {
        "recipe": {"science": {"model": {"teacher": LONG, "student": "small"}}, "note": "<b>"},
        "models": {"teacher": {"name": LONG, "parameters": 86_000_000}}, "steps": steps,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    Image.new("RGB", (900, 300), "navy").save(folder / "pca.png")
    return folder


def run_page(folder):
    return write_run_report(fill_run(folder / "run"))


def demo_page(folder):
    run = fill_run(folder / "demo")
    (run / "run.json").unlink()
    found = {"scores": {}, "page": ["The student recovered 94 %."], "before": {"knn_top1": 0.1},
             "settings": {"steps": 400, "lr": 2e-3}}  # fmt: skip
    (run / "demo.json").write_text(seal(found))
    return write_run_report(run)


def evaluation_page(folder):
    import torch

    Image.new("RGB", (700, 300), "olive").save(folder / "pca.png")
    wrong = mistakes_of(
        torch.arange(40) % 7, torch.arange(40) % 10, [f"class {n}" for n in range(10)]
    )
    results = {
        f"knn/{name}": {"best": 30.0 + n, "best_k": 20, "num_classes": 10, "mistakes": wrong}
        for n, name in enumerate(("butterflies75", LONG, "cars40"))
    }
    red = Image.new("RGB", (90, 60), "red")
    photos = [thumbnail(red, "class 3, taken for class 4", same=bool(n % 2)) for n in range(5)]
    more = [Heading("Nearest"), Strip([("teacher", photos), ("student", photos)], photos[0]),
            Strip([("", photos * 3)]), Picture(folder / "pca.png", "Patches.")]  # fmt: skip
    write_tables(
        folder, "first", results, settings={"image_size": 64, "limit": None}, pictures=more
    )
    return folder / "report.html"


PAGES = {"run": run_page, "demo": demo_page, "evaluation": evaluation_page}


@pytest.fixture(scope="module")
def browser():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        module = importlib.import_module("browser")
    if module.CHROMIUM is None:
        pytest.skip("no chromium: `apt-get install chromium` (Debian) makes these tests run")
    with module.Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in PAGES.items()}


def contrast(one, other):
    """WCAG's contrast of two colours `rgb(r, g, b)`."""
    light = []
    for colour in (one, other):
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        light.append(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_is_readable_and_asks_for_nothing(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.problems == []
    assert browser.requests == [pages[name].resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width == browser.run("innerWidth")
    # No label of a chart is cut off, and no picture sticks out.
    outside = (
        "[...document.querySelectorAll('.chart text, .legend, img, summary')].filter(one => {"
        "const box = one.getBoundingClientRect();"
        "return box.left < 0 || box.right > innerWidth + 1; })"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert browser.run(outside) == []
    colours = browser.run(
        "(() => { const of = (name, part) => getComputedStyle(document.querySelector(name))[part];"
        "return [of('body', 'backgroundColor'), of('body', 'color'), of('th', 'color')]; })()"
    )
    assert (
        contrast(colours[0], "rgb(0, 0, 0)") < 1.5 if dark else colours[0] == "rgb(255, 255, 255)"
    )
    assert contrast(colours[0], colours[1]) > 10 and contrast(colours[0], colours[2]) > 4.5


def middle(browser, selector):
    """Scrolled to, its middle in the window."""
    browser.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    return browser.run(
        f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
        "return [box.left + box.width / 2, box.top + box.height / 2, box.width]; })()"
    )


def click(browser, selector):
    x, y, _ = middle(browser, selector)
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseReleased", x, y)


def test_a_click_on_a_header_sorts_and_sums_stay_below(browser, pages):
    browser.open(pages["evaluation"], width=1280)
    column = (
        "[...document.querySelectorAll('table')[0].rows].map(r => r.cells[1].textContent.trim())"
    )
    before = browser.run(column)[1:]
    click(browser, "thead th:nth-child(2) button")
    sort = "document.querySelector('thead th:nth-child(2)').getAttribute('aria-sort')"
    assert browser.run(sort) == "ascending"
    assert browser.run(column)[1:] == before == ["30.0 (20)", "31.0 (20)", "32.0 (20)", "31.0"]
    click(browser, "thead th:nth-child(2) button")
    assert browser.run(sort) == "descending"
    assert browser.run(column)[1:] == ["32.0 (20)", "31.0 (20)", "30.0 (20)", "31.0"]
    click(browser, "thead th button")
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.run("document.querySelector('tbody td').textContent") == LONG
    assert browser.problems == []


CHART = "figure.chart[aria-found]"


def test_a_curve_is_read_under_the_pointer_and_zoomed(browser, pages):
    browser.open(pages["run"], width=1280)
    browser.run(
        "[...document.querySelectorAll('.chart')].find(f => f.textContent.startsWith('total'))"
        ".setAttribute('aria-found', '')"
    )
    read = f"[...document.querySelectorAll('{CHART} output')].map(o => o.textContent)"
    assert browser.run(read) == ["0.5206", "399"]  # the mean of two steps
    x, y, width = middle(browser, f"{CHART} .area")
    browser.mouse("mouseMoved", x, y)
    value, step = browser.run(read)
    assert abs(int(step) - 199.5) <= 2
    assert float(value) == pytest.approx(3 * math.exp(-int(step) / 80) + 0.5, abs=0.02)
    assert browser.run(f"document.querySelector('{CHART} .cursor').style.visibility") == "visible"
    ticks = f"[...document.querySelectorAll('{CHART} .across text')].map(t => t.textContent)"
    assert browser.run(ticks) == ["0", "100", "200", "300"]

    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseMoved", x + width / 8, y)
    browser.mouse("mouseMoved", x + width / 4, y)
    browser.mouse("mouseReleased", x + width / 4, y)
    shown = (
        f"document.querySelector('{CHART} .plot').getAttribute('viewBox').split(' ').map(Number)"
    )
    left, top, across, up = browser.run(shown)
    assert (left, across) == (pytest.approx(500, abs=3), pytest.approx(250, abs=3))
    assert top > 0 and 0 < up < 500  # the axis of the values follows
    assert browser.run(ticks) == ["200", "220", "240", "260", "280"]
    whole = f"document.querySelector('{CHART} .whole').hidden"
    assert browser.run(whole) is False
    click(browser, f"{CHART} .whole")
    assert browser.run(shown) == [0, 0, 1000, 1000] and browser.run(whole) is True
    assert browser.run(ticks) == ["0", "100", "200", "300"]
    assert browser.problems == []


def test_a_curve_is_read_with_keys(browser, pages):
    browser.open(pages["run"], width=420)
    browser.run("document.querySelector('.chart').focus()")
    for key, step in (("ArrowLeft", "299"), ("ArrowLeft", "199"), ("ArrowRight", "299")):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert browser.run("document.querySelector('.chart .at output').textContent") == step


def test_without_scripts_the_page_is_whole(browser, pages):
    browser.open(pages["run"], width=420, scripts=False)
    drawn = browser.run(
        "[...document.querySelectorAll('.chart .line')]"
        ".filter(path => path.getTotalLength() > 100).length"
    )
    assert drawn == browser.run("document.querySelectorAll('.chart .line').length") > 8
    assert browser.run("document.querySelectorAll('th button').length") == 0
    assert browser.run("document.querySelector('.hint').checkVisibility()") is False
    assert browser.run("document.querySelector('.verdict p').textContent.length") > 20


def test_what_the_policy_forbids_is_seen_here(browser, tmp_path):
    """Else the checks above could not fail."""
    page = write_run_report(fill_run(tmp_path / "run"))
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</main>", "<script>nothing()</script><img src='a.png'></main>"))
    browser.open(page, width=420)
    assert len(browser.problems) == 2
    free = text.replace("<meta http-equiv", "<meta name").replace("overflow-wrap: anywhere", "")
    wrong = f"<script>nothing()</script><div>{'wide' * 200}</div><img src='a.png'></main>"
    page.write_text(free.replace("</main>", wrong))
    browser.open(page, width=420)
    assert any("nothing is not defined" in one for one in browser.problems)
    assert any(address.endswith("a.png") for address in browser.requests)
    assert browser.run("document.documentElement.scrollWidth") > 420
