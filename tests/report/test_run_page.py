import json
import math
import os
import re

import numpy as np
import pytest
from PIL import Image

from proteus.cli import main
from proteus.files import seal
from proteus.report.curves import read_columns
from proteus.report.measured import judge_run
from proteus.report.run_page import write_run_report


def write(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def log_rows(count, start=0, **more):
    return [
        {"step": n, "total": 3.0 / (n + 1), "token": 1.0 / (n + 1), "feature": 1.0, "patch": 0.0,
         "lr": 1e-3, "grad_norm": 0.5, **more}
        for n in range(start, start + count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as a loop leaves it, with everything in it."""
    folder = tmp_path_factory.mktemp("runs") / "first <run>"
    folder.mkdir()
    write(folder / "log.jsonl", log_rows(200))
    timing = [
        {"step": n, "images_per_second": 100.0, "data_wait": 0.25, "memory_mib": 900.0 + n,
         "seconds": seconds}
        for n, seconds in ((50, 60.0), (99, 3600.0), (150, 30.0), (199, 65.0))
    ]  # fmt: skip
    write(folder / "timing.jsonl", timing)
    write(
        folder / "watch.jsonl",
        [
            {"step": -1, "cls_cosine": 0.125, "knn_top1": 0.5, "teacher_knn_top1": 0.75},
            {"step": 100, "cls_cosine": 0.875, "knn_top1": 0.625, "teacher_knn_top1": 0.75},
        ],
    )
    facts = {
        "recipe": {"name": "vit_s & co", "loss": {"token": 1.0, "head": "ln_linear"}, "steps": 375},
        "versions": {"torch": "2.14.1"},
        "settings": {"batch_size": 256, "sources": ["a", "b"]},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    for name in ("pca.png", "masks.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return write_run_report(run)


def text_of(page):
    """The page without its pictures, tags and line ends."""
    page = page.read_text(encoding="utf-8")
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).replace("&nbsp;", " ").split())


def test_the_page_shows_everything_and_needs_nothing_but_itself(run, page):
    assert page == run / "report.html"
    page, text = page.read_text(encoding="utf-8"), text_of(page)
    assert "<h1>Run first &lt;run&gt;</h1>" in page
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Student beside teacher", "On held-out images", "Losses", "Throughput", "Pictures",
        "Settings",
    ]  # fmt: skip
    assert "steps 200 of 375" in text
    assert "time spent training 1 h 01 min" in text  # an hour, and 65 seconds of a second process
    assert "processes one after the other 2" in text
    assert "images/s (median) 100" in text
    assert "waiting for data (median) 25.0 %" in text
    assert "memory (highest) 1,099 MiB" in text
    assert "total 3 0.015" in text
    assert "knn_top1 0.5 0.625" in text
    assert "Loss token 1.0 head ln_linear" in text
    assert "sources a, b" in text
    assert "Versions torch 2.14.1" in text
    assert page.count("data:image/png;base64,") == 2
    assert page.count('<figure class="chart"') == 5 + 3 + 2
    assert page.count("<script>") == 1
    assert not re.search(r"https?://|src=\"(?!data:)|<link", page)


def test_the_verdict_stands_first_and_in_the_numbers(run, page):
    text = text_of(page)
    assert text.index("The run is at step 200 of 375.") < text.index("steps 200 of 375")
    assert (
        "The student reaches 83 % of the teacher's k-NN (untrained: 67 %)".replace("'", "&#x27;")
        in text
    )
    assert "It waited for images 25 % of the time" in text
    found = json.loads((run / "report.json").read_text())["verdict"]
    assert found == judge_run(run).lines
    assert found[1].startswith("The student reaches 83 %")


def test_the_student_stands_beside_its_teacher_with_sizes_and_costs(tmp_path):
    write(tmp_path / "log.jsonl", log_rows(3))
    write(tmp_path / "watch.jsonl", [{"step": 2, "cls_cosine": 0.5, "knn_top1": 0.25,
                                      "teacher_knn_top1": 0.5}])  # fmt: skip
    facts = {
        "models": {"teacher": {"name": "big <t>", "parameters": 2_720_000},
                   "student": {"name": "small", "parameters": 630_000}},
        "device": "H100", "processes": 8, "steps": 3,
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(facts))
    text = text_of(write_run_report(tmp_path))
    assert "model parameters as float32 k-NN top-1 cosine, class tokens teacher" in text
    assert "teacher (big &lt;t&gt;) 2.72 M 10.4 MiB 50.0 % 1.000" in text
    assert "student (small) 0.63 M 2.4 MiB 25.0 % 0.500" in text
    assert "on 8 × H100" in text and "steps 3 of 3" in text
    assert "untrained student was not measured" in text


def test_the_recipe_is_there_as_json(run, page):
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(
        r"<summary>The whole recipe as JSON</summary><pre>(.*?)</pre>", text, re.DOTALL
    )
    found = json.loads(block.replace("&quot;", '"').replace("&amp;", "&"))
    assert found == json.loads((run / "run.json").read_text())["recipe"]


def test_a_run_that_was_killed_has_half_a_line_and_a_page(tmp_path):
    write(tmp_path / "log.jsonl", log_rows(5), tail='{"step": 5, "tot')
    write(tmp_path / "timing.jsonl", [{"step": 4, "seconds": 9.0}], tail='{"st')
    (tmp_path / "run.json").write_text('{"recipe": ')
    text = text_of(write_run_report(tmp_path))
    assert "steps 5" in text
    assert "could not be read: 1 " in text
    assert "run.json could not be read" in text
    assert "0 min 09 s" in text


def test_a_run_without_a_step_yet_has_a_page(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    assert "No step has been logged yet" in text_of(write_run_report(tmp_path))


def test_whatever_terms_there_are_are_shown(tmp_path):
    write(tmp_path / "log.jsonl", [{"step": 0, "total": 1.0, "kl": 0.75, "ce": 0.25, "lr": 0.1}])
    text = text_of(write_run_report(tmp_path))
    assert "kl 0.75 0.75" in text
    assert [text.count(f" {name} ") for name in ("learning rate", "ce", "norm")] == [1, 2, 0]


def test_a_term_that_is_off_has_a_row_and_no_curve(page):
    assert "patch 0 0" in text_of(page)
    drawn = re.findall('aria-label="(.*?) over steps', page.read_text(encoding="utf-8"))
    assert drawn[2:7] == ["total", "token", "feature", "learning rate", "norm of the gradient"]


def test_losses_that_are_not_finite_are_counted_and_not_drawn(tmp_path):
    rows = log_rows(30)
    rows[7]["total"] = math.nan
    rows[8]["token"] = math.inf
    write(tmp_path / "log.jsonl", rows)
    assert "not finite, and not drawn: 2." in text_of(write_run_report(tmp_path))


def test_rows_of_a_resumed_run_replace_those_that_were_lost(tmp_path):
    rows = [*log_rows(10), *log_rows(4, start=6, total=9.0), *log_rows(1, start=8, total=7.0)]
    write(tmp_path / "log.jsonl", rows)
    values = read_columns(tmp_path / "log.jsonl").values
    assert values["step"].tolist() == list(range(9))
    assert values["total"][6:].tolist() == [9.0, 9.0, 7.0]
    assert values["token"][5] == pytest.approx(1 / 6)


def test_columns_that_come_and_go_are_not_numbers_in_between(tmp_path):
    lines = ['{"step": 0, "a": 1}', "", "[1]", '{"a": 2}', "nonsense", '{"step": 3, "b": "x"}',
             '{"step": 4, "b": 2, "a": null}']  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    columns = read_columns(tmp_path / "log.jsonl")
    assert columns.unreadable == 3
    assert columns.values["step"].tolist() == [0, 3, 4]
    np.testing.assert_equal(columns.values["a"], [1, np.nan, np.nan])
    np.testing.assert_equal(columns.values["b"], [np.nan, np.nan, 2])
    assert len(read_columns(tmp_path / "none.jsonl")) == 0


def test_a_long_log_is_read_whole_across_its_chunks(tmp_path):
    write(tmp_path / "log.jsonl", [{"step": n, "total": n % 7} for n in range(25_000)])
    columns = read_columns(tmp_path / "log.jsonl")
    assert columns.values["total"].sum() == sum(n % 7 for n in range(25_000))
    page = write_run_report(tmp_path)
    assert page.stat().st_size < 300_000
    assert "steps 25,000" in text_of(page)


def test_the_command_writes_where_it_is_told_and_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    write(run / "log.jsonl", log_rows(2))
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (run / "report.html").exists()


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "holds no log.jsonl; expected the folder" in capsys.readouterr().err


def test_rows_that_the_log_lacks_and_notes_are_told(tmp_path):
    write(tmp_path / "log.jsonl", [*log_rows(2), *log_rows(3, start=5), *log_rows(1, start=9)])
    (tmp_path / "notes.txt").write_text("Resumed after 5 steps: <b>rows</b> are lost.\nTwice.\n")
    page = write_run_report(tmp_path)
    assert "Rows that the log lacks: steps 2 to 4, 8." in text_of(page)
    assert "&lt;b&gt;rows&lt;/b&gt; are lost." in page.read_text()
    assert json.loads((tmp_path / "report.json").read_text())["missing"] == "steps 2 to 4, 8"


def test_the_numbers_of_the_page_are_also_json(run, page):
    found = json.loads((run / "report.json").read_text())
    assert (found["run"], found["steps"], found["of"]) == ("first <run>", 200, 375)
    assert found["losses"]["total"][0] == 3
    assert found["watch"]["knn_top1"] == [0.5, 0.625]
    assert found["images_per_second"] == 100
    write_run_report(run)  # it replaces its own


def test_numbers_of_others_are_not_replaced(tmp_path):
    write(tmp_path / "log.jsonl", log_rows(2))
    (tmp_path / "page.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"page\.json' would be replaced"):
        write_run_report(tmp_path, tmp_path / "page.html")
    assert (tmp_path / "page.json").read_text() == "[1, 2]"
    assert not (tmp_path / "page.html").exists()


def test_what_a_demo_found_stands_first(tmp_path):
    write(tmp_path / "log.jsonl", log_rows(2))
    table = {"header": ["", "k-NN"], "rows": [["student <after>", "61.0 %"]]}
    (tmp_path / "demo.json").write_text(seal({"scores": {}, "page": ["It recovered.", table]}))
    text = text_of(write_run_report(tmp_path))
    assert text.index("It recovered. k-NN student &lt;after&gt; 61.0 %") < text.index("Losses")
    (tmp_path / "demo.json").write_text((tmp_path / "demo.json").read_text().replace("61", "91"))
    text = text_of(write_run_report(tmp_path))
    assert "demo.json is damaged, and not shown" in text
    assert "91.0" not in text


@pytest.mark.parametrize(
    "name", ["run.json", "watch.jsonl", "timing.jsonl", "notes.txt", "demo.json"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_of_the_run_s_folder_nothing_but_its_own_files_is_read(tmp_path, name, kind):
    run = tmp_path / "run"
    run.mkdir()
    write(run / "log.jsonl", log_rows(2))
    secret = tmp_path / "secret"
    secret.write_text('{"step": 1, "settings": {"password": 1234567}, "1234567": 1}\n')
    (run / name).symlink_to(secret) if kind == "link" else os.mkfifo(run / name)
    assert "1234567" not in write_run_report(run).read_text()


def test_a_log_that_is_a_link_is_no_run(tmp_path):
    write(tmp_path / "mine", log_rows(2))
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="Links are not followed"):
        write_run_report(tmp_path)


def test_names_and_numbers_of_a_log_may_be_anything(tmp_path):
    row = {"a$b$\\frac": 1.0, "<script>x": -1e308, "_hidden": 1e308, "n" * 5000: 10**400, "": True}
    write(tmp_path / "log.jsonl", [{"step": n} | row | {"lr": 0.1} for n in range(3)])
    write(tmp_path / "timing.jsonl", [{"step": n, "seconds": 1e308} for n in (3, 2, 1)])
    many = {f"measure {n}": 1.0 for n in range(300)}
    write(tmp_path / "watch.jsonl", [{"step": 10**14} | many])
    page = write_run_report(tmp_path)
    assert page.read_text().count("<script") == 1
    assert "Not drawn: 276 more columns." in text_of(page)


def test_shares_of_few_images_say_how_sure_they_are(tmp_path):
    write(tmp_path / "log.jsonl", log_rows(3))
    row = {"step": 0, "knn_top1": 0.516, "teacher_knn_top1": 0.508, "knn_images": 128}
    margins = {"knn_top1_margin": 0.0853, "teacher_knn_top1_margin": 0.0853}
    later = {"step": 2, "knn_top1": 0.6, "teacher_knn_top1": 0.508}  # of a version that had none
    write(tmp_path / "watch.jsonl", [row | margins, later])
    text = text_of(write_run_report(tmp_path))
    assert "knn_top1 0.516 ± 0.085 0.6 " in text
    assert "scored on 128 images; ± is the 95 % interval" in text
    assert "_margin" not in text
    assert "knn_images" not in text
