from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from proteus.recipes import Recipe, choosing, with_settings
from proteus.recipes.choosing import choose, pair_for
from proteus.recipes.open_images import open_held_out, open_images
from proteus.recipes.watching import watch_of
from proteus.world import World

CPU = World(torch.device("cpu"))


@pytest.fixture
def photos(tmp_path):
    """60 photographs of two classes, as folders."""
    draw = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def measured(monkeypatch):
    """A machine on which a step takes 0.125 s, and a run 6 s besides; what was planned."""
    asked = []

    def plan(recipe, seconds):
        asked.append(recipe)
        cost = SimpleNamespace(steps=10, step_seconds=0.125, seconds=7.25)
        return SimpleNamespace(estimates=(cost,))

    monkeypatch.setattr(choosing, "plan", plan)
    return asked


def of(images, **settings):
    paths = {"science.data.paths": [str(images)], "machine.device": "cpu"}
    return with_settings(Recipe(), paths | settings)


def names(recipe):
    return recipe.science.model.teacher, recipe.science.model.student


def test_all_that_a_run_needs_is_chosen_and_said(photos, measured):
    said = []
    recipe = choose(of(photos), minutes=1, say=said.append)
    pair = pair_for(torch.device("cpu"))
    assert names(recipe) == (pair.teacher, pair.student)
    assert recipe.science.model.image_size == pair.image_size
    assert recipe.science.data.hold_out == 6
    assert recipe.machine.watch_labels
    assert recipe.science.data.batch_size == 8  # 54 images: 6 steps, fewer than are wished
    assert recipe.science.data.epochs == 72  # of 0.75 s, in the 54 s that are left
    assert recipe.machine.watch_every == 72 * 6 // 10
    text = "\n".join(said)
    options = ("--teacher", "--student", "--image-size", "--hold-out", "--minutes")
    assert [one for one in options if f"({one}" not in text] == []
    assert "60 in " in text
    assert "2 classes" in text


def test_what_is_set_stays(photos, measured):
    given = {
        "science.model.teacher": "demo-teacher", "science.model.student": "demo-student",
        "science.data.steps": 3, "science.data.hold_out": 5,
    }  # fmt: skip
    recipe = choose(of(photos, **given), batch_size=4)
    assert recipe == of(photos, **given, **{"science.data.batch_size": 4})
    assert measured == []


@pytest.mark.parametrize("given", ["demo-teacher", "vit_tiny_patch16_224"])
def test_a_student_is_chosen_for_a_given_teacher_and_its_size(photos, measured, given):
    recipe = choose(of(photos, **{"science.model.teacher": given}), minutes=1)
    assert names(recipe) == (given, pair_for(torch.device("cpu")).student)
    assert recipe.science.model.image_size is None


def test_photographs_without_classes_are_measured_without_scores(photos, measured):
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        path.rename(photos / f"{number}.png")
    recipe = choose(of(photos), minutes=1)
    assert recipe.science.data.hold_out == 6
    assert not recipe.machine.watch_labels


def test_few_images_are_all_trained_on(photos, measured):
    for path in sorted(photos.glob("a/*.png"))[:20]:
        path.unlink()
    recipe = choose(of(photos), minutes=1)
    assert recipe.science.data.hold_out is None
    assert recipe.machine.watch_every == 1000


def test_the_length_is_measured_with_the_run_s_own_step(photos, monkeypatch):
    monkeypatch.setattr(choosing, "_MEASURED", 0.5)
    given = {"science.model.teacher": "demo-teacher", "science.model.student": "demo-student"}
    short, long = (choose(of(photos, **given), minutes=m) for m in (1e-3, 300))
    assert short.science.data.epochs == 1
    assert 1 < long.science.data.epochs <= 300


@pytest.mark.parametrize("count", [1, 40, 127, 128, 1000, 10**6])
def test_batches_are_as_large_as_leaves_enough_steps(count):
    size = choosing._batch_for(count)
    assert count // size >= 16 or size == min(8, count)
    assert size in (64, count) or count // (2 * size) < 16


def test_models_follow_the_device(monkeypatch):
    assert pair_for(torch.device("cuda")).teacher.startswith("dinov2")
    monkeypatch.setattr(choosing, "is_installed", lambda package: False)
    lacking = pair_for(torch.device("cpu"))
    assert lacking.teacher == "dinov2_vits14"
    assert "pip install" in lacking.why
    assert pair_for(torch.device("cpu")).image_size % 14 == 0


def test_images_are_kept_out_of_a_run_and_looked_at(photos):
    recipe = of(photos, **{"science.data.hold_out": 7, "machine.watch_labels": True})
    everything = open_images(of(photos), CPU, print)
    trained, (held, others) = open_images(recipe, CPU, print), open_held_out(recipe)
    assert len(held) == 7
    assert trained.places == others.places
    assert {*held.places} | {*others.places} == {*everything.places}
    assert not {*held.places} & {*others.places}
    watch = watch_of(recipe, 32, print)
    assert len(watch.images) == watch.scored == 7
    assert len(watch.bank) == 53


def test_no_image_is_left_out_by_mistake(photos, tmp_path):
    with pytest.raises(ValueError, match=r"no image would be left to train on.* of 60 images"):
        open_images(of(photos, **{"science.data.hold_out": 60}), CPU, print)
    with pytest.raises(ValueError, match=r"hold_out would be ignored, because machine.watch"):
        of(photos, **{"science.data.hold_out": 6, "machine.watch": ["other"]})
