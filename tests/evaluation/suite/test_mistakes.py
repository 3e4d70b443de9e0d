import io
import re

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proteus.evaluation.suite.judged import judge_results
from proteus.evaluation.suite.mistakes import mistakes_of
from proteus.evaluation.suite.results_page import write_tables
from proteus.evaluation.suite.shown_images import thumbnail

LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(LABELS)
def test_mistakes_are_wrong_images_of_the_hardest_classes(pairs):
    labels, predictions = (torch.tensor(one) for one in zip(*pairs, strict=True))
    found = mistakes_of(predictions, labels, ["a", "b", "c"])
    shares = [row["right"] / row["of"] for row in found["worst"]]
    assert shares == sorted(shares) and all(share < 1 for share in shares)
    names = ["a", "b", "c", *map(str, range(3, 8))]
    for one in found["examples"]:
        wanted, taken = pairs[one["image"]]
        assert (names[wanted], names[taken]) == (one["class"], one["taken_for"])
        assert wanted != taken
    assert bool(found["worst"]) == bool(found["examples"]) == any(a != b for a, b in pairs)
    assert sum(row["of"] for row in found["worst"]) <= len(pairs)


def test_a_photo_is_small_square_and_framed_by_what_it_is():
    photo = thumbnail(Image.new("RGB", (600, 2), "red"), "strip", same=False)
    assert Image.open(io.BytesIO(photo.data)).size == (2, 2) and photo.mark == "bad"
    photo = thumbnail(Image.new("L", (600, 400)), "grey", same=True)
    assert Image.open(io.BytesIO(photo.data)).size == (112, 112) and photo.mark == "good"
    assert len(photo.data) < 5000


def texts(results):
    return [sentence.text for sentence in judge_results(results)]


def test_results_are_judged_from_what_they_hold_alone():
    assert texts({}) == ["Nothing was measured."]
    assert texts({"knn/a": {"error": "x"}}) == ["1 of 1 measurements failed: knn/a."]
    two = {
        "knn/a": {"best": 20.0, "num_classes": 10, "subset": True},
        "knn/b": {"best": 60.0, "num_classes": 4},
        "depth/c": {"rmse": 0.512}, "segmentation/d": {"miou": 0.25}, "linear/e": {"error": "x"},
    }  # fmt: skip
    found = texts(two)
    assert found[0] == (
        "k-NN scores 40.0 % (guessing: 18 %) on average over 2 sets, from 20.0 % (a) to 60.0 % (b)."
    )
    assert found[1:3] == ["Segmentation of d: mIoU 25.0 %.", "Depth on c: off by 0.51 m (RMSE)."]
    assert found[3] == "1 of 5 measurements failed: linear/e."
    assert "not with published ones" in found[4]
    assert not re.search("guess", " ".join(texts({"finegrained/a": {"score": 5.0}})))


def test_the_hardest_class_and_the_agreement_have_their_words():
    mistakes = mistakes_of(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1]), ["cat", "dog"])
    results = {
        "knn/a": {"best": 33.0, "num_classes": 2, "mistakes": mistakes},
        "agreement/a": {"distances": {}, "cka_cls": None},
        "agreement/b": {"distances": {"cls_cosine": 0.5}, "cka_cls": 0.25},
    }
    found = " ".join(texts(results))
    assert "'dog' of a: 0 of 2 right, the others mostly taken for 'cat'." in found
    assert "on b: cosine of class tokens 0.500, CKA of class tokens 0.250" in found
    assert "teacher on a" not in found


def test_the_page_tells_the_settings_of_what_was_measured(tmp_path):
    settings = {"image_size": 64, "limit": None, "linear_iterations": 500, "severities": (1, 3),
                "dense_augment": False, "sweep": "paper"}  # fmt: skip
    write_tables(tmp_path, "m", {"robustness/a": {"error": "x"}}, settings=settings)
    page = re.sub("<[^>]*>", "", (tmp_path / "report.html").read_text().partition(">Settings<")[2])
    assert "image_size 64linear_iterations 500severities 1, 3" in page
    assert not any(name in page for name in ("limit", "dense", "sweep"))
