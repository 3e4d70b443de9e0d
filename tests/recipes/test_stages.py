from pathlib import Path

import pytest

from proteus.recipes import Logits, Masks, Recipe, Science, Stage, recipe, with_settings
from proteus.recipes.stages import plan_chain

STAGES = [Stage("vit_base_patch14"), Stage("local-dir:runs/a b/export")]


def plan(base, stages=STAGES):
    return plan_chain(base, stages, Path("out"))


def test_the_first_teacher_s_file_and_the_paper_s_scores_are_not_the_next_one_s():
    base = with_settings(
        recipe("s14-dinov2-b14", "official"), {"science.model.teacher_checkpoint": "b.pth"}
    )
    assert base.scores
    (first, one), (second, two) = plan(base)
    assert (first.name, second.name) == ("1-vit_base_patch14", "2-local-dir-runs-a-b-export")
    models = one.science.model, two.science.model
    assert [model.teacher_checkpoint for model in models] == ["b.pth", None]
    assert [model.teacher for model in models] == [
        base.science.model.teacher, "local-dir:out/1-vit_base_patch14/export",
    ]  # fmt: skip
    assert (two.name, two.preset, two.scores) == ("custom", None, {})
    assert two.science.masks == base.science.masks
    assert two.science.optimizer == base.science.optimizer


def test_a_student_teaches_no_more_than_its_teacher_could():
    base = with_settings(Recipe(), {"science.model.teacher": "clip_vitl14"})
    one, two = (found.science.loss for _, found in plan(base))
    assert (one.token, one.feature, one.patch) == (None, None, None)
    assert (two.token, two.feature, two.patch) == (1, 0, 0)
    given = with_settings(base, {"science.loss.token": 2, "science.loss.feature": 0.5})
    two = plan(given)[1][1].science.loss
    assert (two.token, two.feature, two.patch) == (2, 0.5, 0)


def test_a_stage_has_its_own_settings_but_the_chain_s_models_and_machine():
    stages = [STAGES[0], Stage("vit_tiny_patch14", {"science.data.epochs": 3})]
    assert [one.science.data.epochs for _, one in plan(Recipe(), stages)] == [None, 3]
    for path in ("machine.keep", "science", "science.model", "science.model.teacher"):
        with pytest.raises(ValueError, match=f"{path} is not a stage's own"):
            plan(Recipe(), [STAGES[0], Stage("vit_tiny_patch14", {path: 1})])


def test_what_is_no_chain_is_refused():
    with pytest.raises(ValueError, match=r"too few students. Got \['vit_base_patch14'\]"):
        plan(Recipe(), STAGES[:1])
    logits = Recipe(science=Science(logits=Logits(classifier="head.pth")))
    with pytest.raises(ValueError, match="no class logits to teach with"):
        plan(logits)
    base = Recipe(science=Science(masks=Masks(ratio=0.3)))
    clip = with_settings(base, {"science.model.teacher": "clip_vitl14"})
    with pytest.raises(ValueError, match=r"stage 2-.* science.masks would be ignored"):
        plan(clip)
