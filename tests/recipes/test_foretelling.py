"""One line before a run: how long it will take, and nothing of the run moved."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from proteus.recipes import Recipe, launch, run, with_settings
from proteus.recipes.foretelling import foretell
from proteus.recipes.open_images import open_data
from proteus.training import World


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


def recipe(images, **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(Recipe(), {
        "science.model.teacher": "demo-teacher", "science.model.student": "test_resnet",
        "science.model.image_size": 64, "science.data.paths": [str(images)],
        "science.data.batch_size": 4, "science.data.steps": 24, "machine.device": "cpu",
        "machine.workers": 0, **named,
    })  # fmt: skip


def test_nothing_of_the_run_changes(images):
    asked = recipe(images, science__loss__token_distance="queue")
    model, world = launch.build(asked).train(), World(torch.device("cpu"))
    data = open_data(asked, world, print)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    said = foretell(model, asked, data, 1000, world)
    assert re.fullmatch(
        r"(About|At most about) .* on this machine \(.* a step of 4 images.*\)\.", said
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(p.grad is None for p in model.parameters())


def test_a_run_says_it_once_and_its_numbers_are_those_of_one_that_does_not(
    images, monkeypatch, tmp_path
):
    said = []
    with_it = run(recipe(images), tmp_path / "a", progress=False, say=said.append)
    assert len([line for line in said if " on this machine (" in line]) == 1
    monkeypatch.setattr(launch, "foretell", lambda *args: "")
    assert run(recipe(images), tmp_path / "b", progress=False) == with_it


@pytest.mark.parametrize(("settings", "steps"), [({}, 19), ({"machine__parallel": "fsdp"}, 1000)])
def test_short_and_sharded_runs_say_nothing(images, settings, steps):
    asked, world = recipe(images, **settings), World(torch.device("cpu"))
    assert foretell(launch.build(asked), asked, open_data(asked, world, print), steps, world) == ""
