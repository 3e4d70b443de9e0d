import re
from pathlib import Path

import pytest

import proteus
from proteus.models.names import TEACHERS
from proteus.words import install, nearest


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("dino", "dinov2_vits14"),
        ("dinov2_vits", "dinov2_vits14"),
        ("DINOv2_ViTB14", "dinov2_vitb14"),
        ("clip", "clip_vitb16"),
        ("dinov2-vitg14", "dinov2_vitg14"),
        ("siglip", "siglip_vitb16"),
    ],
)
def test_a_part_of_a_name_and_a_mistyped_one_are_recognised(name, found):
    assert re.match(rf"Did you mean {found}\b", nearest(name, TEACHERS))


@pytest.mark.parametrize("name", ["", "x", "zzzzzz"])
def test_where_nothing_is_like_it_nothing_is_said(name):
    assert nearest(name, TEACHERS) == ""


def test_every_hint_on_installing_comes_from_one_place():
    folder = Path(proteus.__file__).parent
    texts = {path: path.read_text() for path in folder.rglob("*.py")}
    assert [path.name for path, text in texts.items() if "pip install" in text] == ["words.py"]
    assert install("a", "b>=2") == "Run: pip install a b>=2"
