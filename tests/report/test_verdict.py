import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus.report.verdict import judge


def columns(rows):
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def losses(values):
    return {"step": [*map(float, range(len(values)))], "total": values}


def looks(cosines, every=10, **last):
    rows = [{"step": every * (n + 1) - 1, "cls_cosine": c} for n, c in enumerate(cosines)]
    rows[-1] |= last
    return columns(rows)


def said(*words, **options):
    return judge(*words, **options).lines


def test_nothing_logged_is_nothing_judged():
    verdict = judge({}, {})
    assert [one.kind for one in verdict.sentences] == ["unknown"]
    assert "nothing to judge" in str(verdict)


def test_what_was_not_measured_is_said_and_nothing_else_of_it():
    text = str(judge(losses([3.0, 1.0])))
    assert "The training loss fell from 3 to 1; too few steps to tell" in text
    assert "was not measured: give some with --watch" in text
    assert not re.search("k-NN|cosine|%|untrained", text)
    votes = {"knn_top1": 0.5, "teacher_knn_top1": 0.625}
    assert "untrained student was not measured" in str(judge(losses([1.0]), looks([0.5], **votes)))
    assert "No k-NN was measured" in str(judge(losses([1.0]), looks([0.5])))


def test_the_student_is_a_share_of_its_teacher_beside_what_it_was():
    votes = looks([0.5], knn_top1=0.5, teacher_knn_top1=0.625, knn_images=1000.0,
                  knn_top1_margin=0.03, teacher_knn_top1_margin=0.03)  # fmt: skip
    lines = said(losses([1.0]), votes, untrained={"knn_top1": 0.125})
    assert lines[0] == (
        "The student reaches 80 % of the teacher's k-NN (untrained: 20 %): 50.0 % against 62.5 %."
    )
    assert not any("tell" in line and "k-NN" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("student", "before", "expected"),
    [(0.61, 0.1, "1,000 images cannot tell the two apart (± 4.2 points)."),
     (0.12, 0.1, "By k-NN it is no better than before training, as far as 1,000 images tell.")],
)  # fmt: skip
def test_a_difference_that_few_images_leave_open_is_none(student, before, expected):
    votes = looks([0.5], knn_top1=student, teacher_knn_top1=0.625, knn_images=1000.0,
                  knn_top1_margin=0.03, teacher_knn_top1_margin=0.03)  # fmt: skip
    assert expected in said(losses([1.0]), votes, untrained={"knn_top1": before})


def test_a_teacher_that_gets_nothing_right_is_no_measure():
    lines = said(losses([1.0]), looks([0.5], knn_top1=0.25, teacher_knn_top1=0.0))
    assert lines[0] == "The student's k-NN top-1 is 25.0 %."


RISING = [0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.84, 0.88, 0.92]


def test_agreement_that_still_rises_asks_for_more():
    log = losses([1.0] * 100)
    text = str(judge(log, looks(RISING, patch_cosine=0.9), steps=100))
    assert "(cosine of class tokens 0.920, of patches 0.900; 1 = equal) still rose over" in text
    assert "over the last tenth of the run, by 0.040: train longer." in text
    text = str(judge(log, looks(RISING), steps=200))
    assert text.startswith("The run is at step 100 of 200.")
    assert "train longer" not in text and "it is not at its end" in text


def test_agreement_that_stands_still_or_falls_does_not():
    log = losses([1.0] * 100)
    flat = str(judge(log, looks([*RISING[:-1], 0.8805])))
    assert "no longer rose over the last tenth of the run (+0.000)" in flat.replace(
        "+0.001", "+0.000"
    )
    fell = judge(log, looks([*RISING, *RISING[::-1]], every=5))
    assert "is 0.820 below its best, 0.920 at step 49." in str(fell)
    # A look that was low by chance makes no rise.
    assert "no longer rose" in str(judge(log, looks([*RISING[:-1], 0.7, 0.88], every=9)))
    assert not any("longer." in one.text for one in fell.sentences if one.kind == "advice")


def test_looks_too_far_apart_tell_no_trend():
    text = str(judge(losses([1.0] * 100), looks([0.5, 0.9], every=50)))
    assert "too rarely to tell" in text and "longer" not in text


def test_without_looks_the_loss_is_what_there_is():
    falling = losses([3.0 - 0.01 * n for n in range(200)])
    assert "still by 15 % over the last tenth of the run: train longer" in str(judge(falling))
    noisy = losses([1.0 + 0.1 * (-1) ** n for n in range(200)])
    assert "stood still" in str(judge(noisy))
    rising = losses([1.0] * 100 + [1 + 0.01 * n for n in range(100)])
    assert "rose by" in str(judge(rising))


def test_troubles_are_told():
    log = losses([1.0, math.nan, 1.0])
    text = str(judge(log, data_wait=0.35))
    assert "The loss of 1 steps is missing or not finite." in text
    assert "waited for images 35 % of the time" in text
    assert "waited" not in str(judge(log, data_wait=0.1))


@pytest.mark.parametrize(
    ("student", "teacher"), [(1.0, 2e-308), (0.5, 1e38), (7.0, 0.5), (-1e9, 0.5), (0.5, math.inf)]
)
def test_shares_that_are_none_are_not_judged(student, teacher):
    text = str(judge(losses([1.0]), looks([0.5], knn_top1=student, teacher_knn_top1=teacher)))
    assert "of the teacher" not in text
    assert ("The student's k-NN" in text) == (0 <= student <= 1)
    assert "Agreement" not in str(judge(losses([1.0]), looks([3.5, 1e30])))


NUMBERS = st.one_of(st.floats(), st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e308, -1e308]))
NAMES = ("cls_cosine", "patch_cosine", "knn_top1", "teacher_knn_top1", "knn_images",
         "knn_top1_margin", "teacher_knn_top1_margin")  # fmt: skip


@st.composite
def tables(draw, names, most=45):
    steps = sorted(draw(st.sets(st.integers(0, 10**6), max_size=most)))
    kept = draw(st.sets(st.sampled_from(names))) if names else set()
    found = {
        name: draw(st.lists(NUMBERS, min_size=len(steps), max_size=len(steps))) for name in kept
    }
    return {"step": [*map(float, steps)], **found}


@settings(deadline=None, max_examples=60)
@given(
    log=tables(("total",)), watch=st.none() | tables(NAMES, 6),
    untrained=st.none() | st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1)),
    steps=st.none() | st.integers(1, 10**7), wait=st.none() | st.floats(0, 1),
)  # fmt: skip
def test_whatever_the_numbers_are_it_says_something_and_nothing_unmeasured(
    log, watch, untrained, steps, wait
):
    verdict = judge(log, watch, untrained=untrained, steps=steps, data_wait=wait)
    text = str(verdict)
    assert verdict.lines and all(line and line.endswith(".") for line in verdict.lines)
    assert not re.search(r"\bnan\b|\binf\b", text)
    json.dumps(verdict.lines)
    finite = {
        name
        for name, values in (watch or {}).items()
        if log["step"] and any((0 if "top1" in name else -1) <= v <= 1 for v in values)
    }
    if not {"cls_cosine", "patch_cosine"} & finite:
        assert "Agreement" not in text
    if "knn_top1" not in finite:
        assert "The student" not in text
    if "teacher_knn_top1" not in finite or not (untrained or {}).get("knn_top1"):
        assert "(untrained" not in text or "(untrained: 0 %)" in text
    if steps is not None and log["step"] and log["step"][-1] + 1 < steps:
        assert "train longer" not in text
