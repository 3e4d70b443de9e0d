"""Recipes of one teacher in one run: the folders are those of separate runs."""

import json

import pytest
from PIL import Image

from proteus.cli import main
from proteus.recipes import Recipe, read_recipe, read_recipes, run, run_all
from proteus.report.groups_of_runs import runs_in

MODELS = {"small": "demo-student", "cnn": "resnet10t"}
WORDS = [
    "distill", "--teacher", "demo-teacher", "--steps", "2", "--batch-size", "4",
    "--workers", "0", "--device", "cpu", "--set", "cnn:science.loss.patch=0",
    "--set", "cnn:science.loss.feature=0", "--set", "small:science.optimizer.ema=0.9",
]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(8):
        Image.new("RGB", (40, 40), (n * 30, 99, 0)).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def distill(images, capsys):
    """Exit status and what was said, of the command with more words."""

    def call(out, *more, students=MODELS):
        named = [word for pair in students.items() for word in ("--student", "=".join(pair))]
        status = main([*WORDS, "--data", str(images), "--out", str(out), *named, *map(str, more)])
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr("proteus.training.loop.write_results", lambda *_: None)


def files_of(folder):
    paths = [folder / "log.jsonl", *sorted((folder / "checkpoint").rglob("*"))]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file()}


@pytest.mark.usefixtures("without_pictures")
def test_each_run_is_the_one_that_its_recipe_gives_alone(distill, tmp_path):
    status, said = distill(tmp_path / "all")
    assert status == 0
    assert "Image size: 64, the teacher's own" in said
    assert "\nsmall\n" in said
    assert "\ncnn\n" in said
    assert runs_in(tmp_path / "all") == ["small", "cnn"]
    recipes = read_recipes(tmp_path / "all")
    assert recipes["small"].science.optimizer.ema == 0.9
    for name, recipe in recipes.items():
        assert recipe.science.model.student == MODELS[name]
        run(recipe, tmp_path / name, progress=False)
        assert files_of(tmp_path / name) == files_of(tmp_path / "all" / name)
        record = (tmp_path / name / "run.json").read_text()
        assert record == (tmp_path / "all" / name / "run.json").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_all_go_on_by_their_options_and_by_their_record_and_each_alone(distill, tmp_path):
    out = tmp_path / "all"
    assert distill(out)[0] == 0
    before = {name: files_of(out / name) for name in MODELS}
    assert distill(out)[0] == 2  # it holds runs
    assert distill(out, "--resume")[0] == 0
    again = ["distill", "--from", str(out), "--out", str(out), "--resume"]
    assert main(again) == 0
    assert main([*again[:2], str(out / "cnn"), "--out", str(out / "cnn"), "--resume"]) == 0
    assert {name: files_of(out / name) for name in MODELS} == before
    assert distill(out, "--resume", "--lr", "1")[0] == 2
    assert main(["distill", "--from", str(out), "--out", str(tmp_path / "b"), "--seed", "4"]) == 0
    assert read_recipe(tmp_path / "b/cnn").science.seed == 4
    assert files_of(tmp_path / "b/cnn").keys() == before["cnn"].keys()


@pytest.mark.slow
def test_the_other_commands_know_the_folder(distill, images, tmp_path, capsys):
    out = tmp_path / "all"
    assert distill(out)[0] == 0
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / n / "report.html") for n in MODELS]
    assert main(["report", str(out), "--out", "x.html"]) == 2
    assert "which holds small, cnn" in capsys.readouterr().err
    evaluate = ["evaluate", str(out), "--data", f"a={images}", "--out", str(tmp_path / "e")]
    assert main(evaluate) == 2
    assert f"such as '{out / 'small'}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--student", "cnn=x"], "two students by one name. Got 'cnn' twice"),
        (["--set", "big:science.seed=1"], "no such student. Got 'big:science.seed=1'"),
        (["--set", "cnn:science.seed=1"], "science.seed is 0 and 1; expected one teacher"),
        (["--set", "cnn:science.model.image_size=32"], "image_size is None and 32"),
        (["--student", "../x=resnet10t"], "unknown"),
        (["--student", "export=resnet10t"], "no name of a run. Got 'export'"),
        (["--set", "cnn:machine.accumulate=2"], "machine.accumulate is 1 and 2"),
        (["--parallel", "fsdp"], "once for each"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(distill, tmp_path, more, said):
    status, error = distill(tmp_path / "all", *more)
    assert status == 2
    assert said in error
    assert not (tmp_path / "all").exists()


def test_a_name_for_one_student_alone_is_refused(images, tmp_path, capsys):
    words = [*WORDS[:-6], "--data", str(images), "--out", str(tmp_path / "a")]
    assert main([*words, "--student", "a=demo-student"]) == 2
    assert "expected 'demo-student', whose run is in --out itself" in capsys.readouterr().err


def test_a_damaged_list_of_runs_says_so(tmp_path):
    (tmp_path / "students.json").write_text(json.dumps({"students": ["../x"]}))
    with pytest.raises(ValueError, match=r"students.json is damaged"):
        runs_in(tmp_path)
    with pytest.raises(ValueError, match=r"holds no students.json"):
        read_recipes(tmp_path / "nowhere")


def test_recipes_without_models_are_refused():
    with pytest.raises(ValueError, match="no models"):
        run_all({"a": Recipe(), "b": Recipe()})
