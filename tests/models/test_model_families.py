"""docs/families.md says what holds of one small model of each timm family."""

import importlib.util
from pathlib import Path

import pytest
import timm
from timm.models import model_entrypoint

TOOL = Path(__file__).parents[2] / "tools" / "model_families.py"
SPEC = importlib.util.spec_from_file_location("model_families", TOOL)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
FAMILIES = {model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
FAST = [
    "byobnet", "convnext", "efficientnet", "hgnet", "mambaout", "maxxvit", "mobilenetv3", "pit",
    "resnet", "starnet", "vision_transformer", "vision_transformer_relpos",
]  # fmt: skip
LINES = {
    line.split(" | ")[0].removeprefix("| "): line
    for line in tool.PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "`" in line
}
same_timm = pytest.mark.skipif(
    f"timm {timm.__version__};" not in tool.PAGE.read_text(encoding="utf-8"),
    reason="the page is of another timm",
)


@same_timm
def test_the_page_lists_every_family():
    assert set(LINES) == set(tool.EXAMPLES) == FAMILIES


@same_timm
@pytest.mark.slow
def test_the_page_says_what_single_layers_give():
    assert tool.PAGE.read_text(encoding="utf-8").endswith(tool.layers_section())


def test_every_family_works_or_is_refused_with_a_reason():
    for line in LINES.values():
        *_, teacher, student, terms, masks, why = (part.strip(" |") for part in line.split(" | "))
        assert teacher in ("yes", "vector", "no")
        assert student in ("yes", "no")
        assert masks in ("tokens", "pixels", "no")
        assert (terms != "") == (student == "yes")
        assert (why == "") == (masks != "no")


@pytest.mark.parametrize("family", FAST)
def test_a_family_does_what_the_page_says(family):
    assert tool.examine(family).line() == LINES[family]


@same_timm
@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*tool.EXAMPLES} - {*FAST}))
def test_any_family_does_what_the_page_says(family):
    assert tool.examine(family).line() == LINES[family]
