"""`proteus plan`."""

import json

import pytest
from PIL import Image

from proteus.cli import main

MODELS = ["--teacher", "vit_tiny_patch16_224", "--student", "test_resnet", "--image-size", "32"]
CARD = [*MODELS, "--on", "2xH100", "RTX4090"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(8):
        Image.new("RGB", (40, 40), (n * 30, 99, 0)).save(folder / f"{n}.png")
    return folder


def plan(*words):
    return main(["plan", *map(str, words)])


def test_two_machines_and_what_their_numbers_rest_on(capsys):
    words = ["--epochs", 2, "--images", 100_000, "--batch-size", 128, "--precision", "bf16"]
    assert plan(*CARD, *words) == 0
    said = capsys.readouterr().out
    for text in ("1,562 steps of 128", "2xH100", "RTX4090", "assumed: the paper's 30 h",
                 "measured on H100: 59 runs", "100,000 images", "all/int8", "generated JPEGs",
                 "Memory: counted, not measured"):  # fmt: skip
        assert text in said, text


def test_all_numbers_for_a_program(images, capsys):
    words = [*CARD, "--data", images, "--epochs", 3, "--batch-size", 4, "--workers", 0, "--json"]
    assert plan(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["set_size"] == 8
    assert found["images"] == 24
    assert [one["on"] for one in found["estimates"]] == ["2xH100"] * 2 + ["RTX4090"] * 2
    assert found["recipe"]["science"]["model"]["teacher"] == "vit_tiny_patch16_224"
    assert found["count"]["flops"] > found["count"]["teacher_flops"] > 0


def test_what_is_in_no_number_is_said(capsys):
    assert plan(*CARD, "--steps", 9, "--compile", "--parallel", "fsdp") == 0
    assert "Not in these numbers: compile, parallel=fsdp." in capsys.readouterr().out


def test_images_alone_are_images_seen(capsys):
    assert plan(*CARD, "--images", 640, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["set_size"]) == (640, None)


def test_a_run_of_the_paper_is_on_its_own_images(capsys):
    assert plan("--recipe", "ti14-dinov2-s14", "--on", "8xA100", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["set_size"] == 1_281_167
    assert found["estimates"][0]["steps"] == 300 * 1251
    assert found["estimates"][0]["source"].startswith("17.0% of the peak, measured on A100")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--on", "H1000", "--steps", 9], "unknown machine. Got 'H1000'"),
        (["--on", "H100"], "plan: no length"),
        (["--on", "H100", "--epochs", 1], "how many images are there"),
        (["--on", "H100", "--epochs", 1, "--images", 0], "images is out of range"),
        (["--on", "H100", "--steps", 1, "--student", "resnet10t"], "one student at a time"),
        (["--on", "H100", "--steps", 1, "--images", 9, "--data", "x"], "--images would be ignored"),
        (["--on", "this", "--steps", 1, "--data", "nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, error, capsys):
    assert plan(*MODELS, *words) == 2
    assert error in capsys.readouterr().err
