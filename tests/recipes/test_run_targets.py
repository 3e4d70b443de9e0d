"""Targets prepared first, and the preset that does so."""

import pytest
import torch
from PIL import Image

from proteus.prepared import PreparedTargets
from proteus.recipes import (
    Data,
    Recipe,
    Science,
    cost,
    faster,
    recipe,
    run,
    run_all,
    with_settings,
)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def test_a_fast_run_prepares_its_targets_and_goes_on_with_them(images, tmp_path):
    asked = {
        "science.model.teacher": "demo-teacher", "science.model.student": "demo-student",
        "science.data.paths": [str(images)], "science.data.batch_size": 4, "science.data.steps": 4,
        "machine.workers": 0, "machine.save_every": 2, "machine.device": "cpu",
    }  # fmt: skip
    fast = with_settings(faster(Recipe()), asked)
    rows = run(fast, tmp_path / "run", progress=False)
    targets = PreparedTargets(tmp_path / "run/targets")
    assert (targets.views, targets.settings.dtype, targets.settings.tokens) == (2, "int8", "all")
    stamp = targets.path(0).stat().st_mtime_ns
    assert run(fast, tmp_path / "run", resume=True, progress=False) == rows
    assert targets.path(0).stat().st_mtime_ns == stamp
    token = with_settings(fast, {"science.loss.feature": 0, "science.loss.patch": 0})
    run(token, tmp_path / "token", progress=False)
    assert PreparedTargets(tmp_path / "token/targets").settings.tokens == "cls"
    with pytest.raises(ValueError, match=r"need a folder. Got science.data.views=2 and no out"):
        run(fast, progress=False)


def test_targets_that_are_made_and_views_to_make_exclude_each_other():
    with pytest.raises(ValueError, match=r"science.data.views would be ignored"):
        Recipe(science=Science(data=Data(prepared="x", views=2)))


def test_a_fast_run_does_without_the_teacher_and_logits_cannot():
    with pytest.raises(ValueError, match=r"Got 'table1-soft-kl', which compares logits"):
        recipe("table1-soft-kl", "fast")
    features = recipe("s14-dinov2-b14", "fast")
    assert (features.preset, features.science.data.views, features.scores) == ("fast", 2, {})
    assert cost(features).gmac < 0.55 * cost(recipe("s14-dinov2-b14")).gmac


def test_several_students_have_the_targets_in_the_folder_of_all(images, tmp_path):
    asked = {
        "science.model.teacher": "demo-teacher", "science.data.paths": [str(images)],
        "science.data.batch_size": 4, "science.data.steps": 2, "science.data.views": 1,
        "machine.workers": 0, "machine.device": "cpu", "science.model.student": "demo-student",
    }  # fmt: skip
    recipes = {name: with_settings(Recipe(), asked) for name in ("a", "b")}
    rows = run_all(recipes, tmp_path / "run", progress=False)
    assert len(rows["a"]) == len(rows["b"]) == 2
    assert PreparedTargets(tmp_path / "run/targets").views == 1


def test_a_finished_run_is_not_lost_to_settings_that_do_not_fit(images, tmp_path):
    asked = {
        "science.model.teacher": "demo-teacher", "science.model.student": "demo-student",
        "science.data.paths": [str(images)], "science.data.batch_size": 4, "science.data.steps": 2,
        "machine.workers": 0, "machine.device": "cpu",
    }  # fmt: skip
    done = with_settings(Recipe(), asked)
    run(done, tmp_path / "run", progress=False)
    before = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    for wrong, words in (
        ({"science.data.prepared": str(tmp_path)}, "no prepared targets"),
        ({"science.optimizer.first_scale": 0.99}, r"first_scale=0.99 does not suit this student"),
    ):
        with pytest.raises(ValueError, match=words):
            run(with_settings(done, wrong), tmp_path / "run", overwrite=True, progress=False)
        assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == before


def test_settings_that_exclude_prepared_views_are_refused_at_once():
    with pytest.raises(ValueError, match=r"science.data.repeats would be ignored"):
        Recipe(science=Science(data=Data(views=2, repeats=3)))
    with pytest.raises(ValueError, match=r"science.optimizer.first_share would be ignored"):
        with_settings(Recipe(), {"science.optimizer.first_share": 0.5})
