import json

import numpy as np
import pytest
from PIL import Image

from proteus.cli import main
from proteus.recipes import choosing, read_recipe

PAIR = ["--teacher", "demo-teacher", "--student", "demo-student"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """60 photographs of two classes, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choosing, "_MEASURED", 0.3)
    draw = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "my photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return "my photos"


def test_images_alone_are_enough(photos, tmp_path, capsys):
    words = ["distill", "--data", photos, *PAIR, "--minutes", "0.001"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs/my-photos"
    for word in ("Images: 60 in", "Held out: 6 images", "2 classes", "Length: ", "runs/my-photos"):
        assert word in printed
    seen = [json.loads(line) for line in (run / "watch.jsonl").read_text().splitlines()]
    assert seen[0]["step"] == -1
    assert seen[-1]["step"] == len((run / "log.jsonl").read_text().splitlines()) - 1
    assert "teacher_knn_top1" in seen[-1]
    assert json.loads((run / "run.json").read_text())["images"]["count"] == 54
    assert (run / "export/model.safetensors").is_file()

    assert main(words) == 0  # nothing is replaced
    assert (tmp_path / "runs/my-photos-2/export").is_dir()

    again = ["distill", "--data", photos, "--out", str(run), "--resume"]
    assert main(again) == 0  # what was chosen then, the models too
    assert read_recipe(run).science.model.teacher == "demo-teacher"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*PAIR, "--steps", "1", "--out", "x", "--minutes", "1"], "--minutes would be ignored"),
        (["--minutes", "0"], "minutes is out of range. Got 0"),
        (["--resume"], "missing --out"),
        ([*PAIR, "--hold-out", "6", "--watch", "x"], "hold_out would be ignored"),
        ([*PAIR, "--hold-out", "60"], "no image would be left to train on"),
        (["--student", "a", "--student", "b"], "missing --teacher NAME, --epochs N"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_built(
    photos, tmp_path, capsys, options, words
):
    assert main(["distill", "--data", photos, *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_processes_of_torchrun_share_a_folder_that_is_named(photos, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["distill", "--data", photos]) == 2
    assert "missing --out" in capsys.readouterr().err
