import json
import re

import pytest

from proteus.demo import run_demo
from proteus.report.run_page import write_run_report

TEACHER_LIMIT, SHARE = 6_000_000, 0.25


def test_the_embedded_teacher_is_small_and_its_card_says_what_it_is():
    from proteus.demo.show import IMAGES

    folder = IMAGES.parent / "teacher"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= TEACHER_LIMIT
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Data", "Licence", "Scores", "train_demo_teacher.py"))
    scores = json.loads((folder / "scores.json").read_text())
    assert all(f"{score}" in card for score in scores.values())
    assert "Apache-2.0" in (IMAGES / "LICENSE.md").read_text()


@pytest.mark.slow
def test_a_short_demo_writes_one_page_that_holds_everything(tmp_path, capsys):
    scores = run_demo(tmp_path, steps=2, device="cpu")
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("teacher", "student before", "student after", "k-NN"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert all(row in page for row in ("teacher (demo-teacher)", "student, untrained"))
    assert "The student recovered" in page
    found = json.loads((tmp_path / "demo.json").read_text())["scores"]
    assert found == {name: pytest.approx(score) for name, score in scores.items()}
    assert "k-NN top-1" in write_run_report(tmp_path).read_text(encoding="utf-8")  # once more
    assert page.count("<script") == 1 and not re.search(r"https?://", page)
    assert scores["before"] < scores["teacher"]


@pytest.mark.slow
def test_the_student_recovers_four_fifths_of_the_gap_at_a_quarter_of_the_size(tmp_path):
    import proteus

    sizes = [
        sum(p.numel() for p in model.backbone.parameters())
        for model in (
            proteus.Teacher("demo-teacher"),
            proteus.Student("demo-student", image_size=64),
        )
    ]
    assert sizes[1] <= SHARE * sizes[0]
    scores = run_demo(tmp_path, device="cpu")
    assert scores["teacher"] - scores["before"] > 20
    assert scores["recovered"] >= 0.8
