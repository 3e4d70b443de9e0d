"""`--json` wherever a command lists something: valid JSON on standard output, and nothing else."""

import argparse
import json
import subprocess
import sys

import pytest
from PIL import Image

from proteus.cli import _parser, main
from proteus.models.names import STUDENTS, TEACHERS
from proteus.recipes import RUNS

LISTING = {"data", "evaluate", "info", "plan", "recipes"}


@pytest.fixture
def images(tmp_path):
    for number in range(8):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number * 20, 0, 0)).save(folder / f"{number}.jpg")
    (tmp_path / "images/notes.txt").write_text("mine")
    (tmp_path / "images/class0/broken.jpg").write_bytes(b"no image")
    return str(tmp_path / "images")


def printed(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_command_that_lists_has_it():
    (commands,) = (
        action.choices
        for action in _parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    having = {name for name, one in commands.items() if "--json" in one._option_string_actions}
    assert having == LISTING


def test_names(capsys):
    found = printed(capsys, "info")
    assert set(found) == {"teachers", "students", "released students"}
    assert list(found["teachers"]) == list(TEACHERS)
    assert list(found["students"]) == list(STUDENTS)
    assert found["teachers"]["clip_vitb16"]["terms"] == ["token"]
    assert found["students"]["vit_tiny_patch14"]["arguments"]


def test_recipes(capsys):
    found = printed(capsys, "recipes", "--preset", "official")
    assert [one["name"] for one in found] == list(RUNS)
    assert {one["preset"] for one in found} == {"official"}
    (one,) = (one for one in found if one["name"] == "s14-dinov2-b14")
    assert one["steps"] > 1e5
    assert one["a100_hours"] > 1
    assert printed(capsys, "recipes", "s14-dinov2-b14")["science"]["model"]["student"]


def test_images(images, tmp_path, capsys):
    found = printed(capsys, "info", "--data", images)["source"]
    assert (found["kind"], found["images"]) == ("images", 9)
    assert found["classes"] == {"class0": 5, "class1": 4}
    assert list(found["passed_over"]) == ["notes.txt"]
    out = tmp_path / "part.json"
    words = ["data", images, "--check", "--sub-class", "0.5", "--out", str(out)]
    found = printed(capsys, *words)
    assert found["source"]["images"] == 9
    assert found["part"]["kind"] == "sub-class"
    assert found["check"]["read"] + len(found["check"]["corrupt"]) == found["part"]["images"]
    assert found["check"]["commonest_size"] == [40, 30]
    assert found["list"] == str(out)
    assert out.exists()
    found = printed(capsys, "data", images, images, "--merge")
    assert set(found) == {"merged"}
    assert len(found["merged"]["dropped"]) == 9


def test_nothing_else_is_on_standard_output_of_a_process(images):
    words = ["data", images, "--check", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "proteus", *words], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["check"]["corrupt"]
