import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import proteus
from proteus.cli import main
from proteus.recipes import Recipe, Stage, read_recipe, run_chain, stages_table, with_settings
from proteus.training import Engine
from proteus.training.checkpoint import CheckpointError

STUDENTS = ["demo-student", Stage("demo-student", {"science.data.steps": 2})]
FOLDERS = ["1-demo-student", "2-demo-student"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def recipe(images):
    settings = {
        "science.model.teacher": "demo-teacher",
        "science.model.image_size": 16,
        "science.data.paths": [str(images)],
        "science.data.steps": 3,
        "science.data.batch_size": 2,
        "machine.device": "cpu",
        "machine.workers": 0,
        "machine.save_every": 1,
    }
    return with_settings(Recipe(), settings)


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """They take most of the time of runs this small."""
    for name in ("curves.save_curves", "visualize.save_masks", "visualize.save_pca"):
        monkeypatch.setattr(f"proteus.training.results.{name}", lambda *_: None)


def chain(recipe, out, students=STUDENTS, **options):
    return run_chain(recipe, students, out, progress=False, **options)


def weights_of(out):
    return [load_file(out / name / "export/model.safetensors") for name in FOLDERS]


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def refuse_to_run(*args, **options):
    raise AssertionError("a finished stage was run again")


def test_each_student_is_the_next_one_s_teacher(recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    results = chain(recipe, out)
    assert [one.folder.name for one in results] == FOLDERS
    assert [one.last["step"] for one in results] == [2, 1]
    found = [read_recipe(out / name).science.model for name in FOLDERS]
    assert [one.teacher for one in found] == [
        "demo-teacher",
        f"local-dir:{out / FOLDERS[0]}/export",
    ]
    teacher = proteus.Teacher(found[1].teacher).backbone.state_dict()
    saved = load_file(out / FOLDERS[0] / "checkpoint/step-00000003/weights.safetensors")
    assert all(torch.equal(t, saved[f"student.backbone.{n}"]) for n, t in teacher.items())

    monkeypatch.setattr("proteus.recipes.chain.run", refuse_to_run)
    said = []
    assert chain(recipe, out, resume=True, say=said.append) == results
    assert said == [f"Stage {name} is finished." for name in FOLDERS]
    table = stages_table(results)
    assert [row[:2] for row in table.rows] == [[FOLDERS[0], "3"], [FOLDERS[1], "2"]]
    assert table.rows[1][3] == f"{results[1].last['total']:.4f}"


def test_a_chain_that_failed_goes_on_where_it_was(recipe, tmp_path, monkeypatch):
    chain(recipe, tmp_path / "whole")
    step, steps = Engine.step, []

    def failing(engine, *args):
        steps.append(args[1])
        if len(steps) == 5:  # the second stage's second
            raise RuntimeError("out of memory")
        return step(engine, *args)

    monkeypatch.setattr(Engine, "step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        chain(recipe, tmp_path / "out")
    with pytest.raises(ValueError, match=r"already holds one. Pass resume"):
        chain(recipe, tmp_path / "out")
    chain(recipe, tmp_path / "out", resume=True)
    assert steps == [0, 1, 2, 0, 1, 1]
    for ours, theirs in zip(*map(weights_of, (tmp_path / "out", tmp_path / "whole")), strict=True):
        assert equal(ours, theirs)


def test_another_chain_is_refused_and_harms_nothing_unless_it_replaces(recipe, tmp_path):
    recipe = with_settings(recipe, {"science.data.steps": 1})
    three = [*STUDENTS, "demo-student"]
    chain(recipe, tmp_path, three)
    before = (tmp_path / "chain.json").read_bytes()
    longer = with_settings(recipe, {"science.optimizer.lr": 0.01})
    for other, students, words in (
        (longer, three, r"Got recipe.science.optimizer.lr was 0.001, is 0.01\. Resume"),
        (recipe, ["demo-student"] * 2, r"stages.2-demo-student.settings.science.data.steps was 2"),
        (
            recipe,
            ["vit_tiny_patch16_224", "demo-student"],
            r"stages.1-vit_tiny_patch16_224.student",
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            chain(other, tmp_path, students, resume=True)
    with pytest.raises(ValueError, match="already holds one"):
        chain(recipe, tmp_path, ["vit_tiny_patch16_224", "demo-student"])
    assert (tmp_path / "chain.json").read_bytes() == before
    missing = with_settings(recipe, {"science.data.paths": [str(tmp_path / "none")]})
    with pytest.raises(ValueError, match="none"):
        chain(missing, tmp_path, overwrite=True)
    assert (tmp_path / "chain.json").read_bytes() == before
    chain(with_settings(recipe, {"machine.keep": 1}), tmp_path, three, resume=True)
    chain(recipe, tmp_path, STUDENTS, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == [
        *FOLDERS, "chain.json",
    ]  # fmt: skip


def test_what_cannot_be_is_found_before_anything_runs(recipe, tmp_path):
    out = tmp_path / "out"
    missing = {"science.data.paths": [str(tmp_path / "none")]}
    frozen = {"science.optimizer.frozen": ["blocks.9.*"]}
    for other, students, words in (
        (recipe, ["demo-student", "vit_tinny"], r"stage 2-vit_tinny: Student: unknown name"),
        (recipe, ["demo-student", Stage("demo-student", frozen)], r"stage 2-.*Got 'blocks.9"),
        (with_settings(recipe, missing), STUDENTS, "none"),
    ):
        with pytest.raises(ValueError, match=words):
            chain(other, out, students)
        assert not out.exists()
    with pytest.raises(CheckpointError, match="nothing to resume"):
        chain(recipe, out, resume=True)
    with pytest.raises(ValueError, match="exclude each other"):
        chain(recipe, out, resume=True, overwrite=True)


def test_a_damaged_record_is_told(recipe, tmp_path):
    (tmp_path / "chain.json").write_text('{"chain": {}, "finished": []}')
    with pytest.raises(CheckpointError, match=r"chain.json is damaged. Got it holds no checksum"):
        chain(recipe, tmp_path, resume=True)


def command(images, out):
    return [
        "distill", "--teacher", "demo-teacher", "--chain", "demo-student,demo-student",
        "--set-stage", "2:science.data.steps=4", "--data", str(images), "--steps", "5",
        "--batch-size", "2", "--image-size", "16", "--workers", "0", "--device", "cpu",
        "--save-every", "1", "--out", str(out),
    ]  # fmt: skip


def test_the_command_runs_a_chain_and_shows_its_stages(images, tmp_path, capsys):
    watch = ["--watch", str(images), "--watch-every", "2"]
    assert main([*command(images, tmp_path / "out"), *watch]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (header,) = (row for row in rows if row[:2] == ["stage", "steps"])
    assert header[-4:] == ["watch", "cls_cosine", "watch", "patch_cosine"]
    assert [row[:2] for row in rows if row and row[0] in FOLDERS] == [
        [FOLDERS[0], "5"], [FOLDERS[1], "4"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--student", "demo-student"], "--student would be ignored. Got 'demo-student'"),
        (["--chain", ",", "--set-stage", "1:a=1"], "N from 1 to 0"),
        (["--set-stage", "3:science.seed=1"], "expected N:PATH=VALUE with N from 1 to 2"),
        (["--set-stage", "1:science.seed"], "not a setting of a stage. Got '1:science.seed'"),
        (["--set-stage", "2:science.data.steps=9"], "given twice"),
        (["--set-stage", "1:science.sed=1"], "stage 1-demo-student: recipe: unknown setting"),
        (["--set-stage", "1:machine.keep=1"], "machine.keep is not a stage's own"),
    ],
)
def test_what_a_user_gets_wrong_is_said(images, tmp_path, capsys, options, words):
    assert main([*command(images, tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_kill_9_at_any_moment_costs_nothing(images, tmp_path):
    assert main(command(images, tmp_path / "whole")) == 0
    words = [
        sys.executable,
        "-m",
        "proteus",
        *command(images, tmp_path / "out"),
        "--resume",
        "auto",
    ]
    chance, killed = random.Random(1), 0
    for _ in range(6):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "out/chain.json").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 6))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    assert subprocess.run(words, check=False, env=os.environ).returncode == 0
    for ours, theirs in zip(*map(weights_of, (tmp_path / "out", tmp_path / "whole")), strict=True):
        assert equal(ours, theirs)
    for name in FOLDERS:
        logs = [(tmp_path / run / name / "log.jsonl").read_bytes() for run in ("out", "whole")]
        assert logs[0] == logs[1]
    assert json.loads((tmp_path / "out/chain.json").read_text())["finished"] == FOLDERS
