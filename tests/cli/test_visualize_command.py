"""`proteus visualize`: its pictures, and what a user can get wrong."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proteus import Features, visualize
from proteus.cli import main
from proteus.evaluation import looking
from proteus.evaluation.looking import Look, find_neighbours, open_photos, pca_columns
from proteus.models.frozen import as_extractor
from proteus.recipes.reopen import reopen
from proteus.text import picture_text

PAIR = ["--teacher", "demo-teacher", "--student", "demo-student", "--image-size", "64"]


def photo(path, seed, size=(70, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photographs of two classes, one damaged file and one text."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(6):
        photo(folder / f"{'cat' if n % 2 else 'dog'}/{n} $x_{n}$ é世.png", n)
    (folder / "dog/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "notes.md").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def run_folder(photos, tmp_path_factory):
    """A run of a recipe that was stopped before its end: checkpoints, and no export."""
    out = tmp_path_factory.mktemp("run") / "first"
    options = ["--data", str(photos / "cat"), "--steps", "2", "--batch-size", "2", "--workers", "0"]
    assert main(["distill", *PAIR, *options, "--save-every", "1", "--out", str(out)]) == 0
    for name in ("export", "pca.png", "masks.png", "curves.png"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return out


@pytest.fixture
def drawn(monkeypatch):
    """The columns of the picture of maps, beside the real file."""
    found = {}
    real = visualize.save_columns

    def watch(columns, names, path, **options):
        found.update(columns=columns, names=list(names))
        real(columns, names, path, **options)

    monkeypatch.setattr(visualize, "save_columns", watch)
    return found


def show(*words):
    return main(["visualize", *map(str, words)])


def test_a_run_still_training_stands_beside_its_teacher_in_one_basis(
    run_folder, photos, tmp_path, capsys, drawn
):
    before = sorted(str(path) for path in run_folder.rglob("*"))
    words = [run_folder, photos, "--what", "pca,masks,neighbours", "--data", photos]
    assert show(*words, "--num", "3", "--out", tmp_path / "new/a.html") == 0
    columns = ["image", "teacher: demo-teacher", "student: demo-student", "seen", "error"]
    assert list(drawn["columns"]) == columns
    assert drawn["columns"]["student: demo-student"].shape == (3, 3, 8, 8)  # as trained
    assert len(drawn["names"]) == 3
    page = (tmp_path / "new/a.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "in one basis" in page and "nearest images of" in page
    output = capsys.readouterr()
    assert "broken.jpg" in output.err and "notes.md" in output.err
    assert str(tmp_path / "new/a.html") in output.out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.html"]
    assert sorted(str(path) for path in run_folder.rglob("*")) == before


def test_a_run_s_masks_are_its_own_and_the_same_for_a_seed(run_folder, photos, tmp_path, drawn):
    seen = []
    for seed in (1, 1, 2):
        assert show(run_folder, photos, "--what", "masks", "--seed", seed,
                    "--out", tmp_path / "m.png") == 0  # fmt: skip
        seen.append(drawn["columns"]["seen"])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    grey = (seen[0] == 0.5).all(1).float().mean((1, 2))
    assert torch.allclose(grey, torch.tensor(0.5), atol=0.02)  # half of the patches of each image
    error = drawn["columns"]["error"]
    assert error.max() == 1
    assert error[(drawn["columns"]["seen"] != 0.5)].float().mean() < 0.02


def test_reopening_gives_the_weights_of_the_newest_checkpoint(run_folder):
    distiller = reopen(run_folder)
    from safetensors.torch import load_file

    saved = load_file(sorted(run_folder.glob("checkpoint/step-*"))[-1] / "weights.safetensors")
    state = distiller.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in saved)


def test_a_checkpoint_of_another_model_is_refused(run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    content = json.loads((copy / "run.json").read_text())
    content["recipe"]["science"]["loss"]["head"] = "mlp"
    (copy / "run.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"step-00000002 does not fit its recipe"):
        reopen(copy)


@pytest.mark.parametrize("ending", ["png", "html"])
def test_a_model_alone_beside_another_and_in_bases_of_their_own(
    ending, photos, tmp_path, capsys, drawn
):
    out = tmp_path / f"a.{ending}"
    words = ["demo-student", photos, "--random-weights", "--teacher", "demo-teacher"]
    assert show(*words, "--what", "pca,masks", "--num", "2", "--out", out) == 0
    assert list(drawn["columns"]) == [
        "image", "teacher: demo-teacher", "student: demo-student", "seen"
    ]  # fmt: skip
    assert drawn["columns"]["student: demo-student"].shape == (2, 3, 32, 32)  # 256 pixels
    assert "a basis of its own" in capsys.readouterr().out
    if ending == "png":
        with Image.open(out) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            assert picture.width > 700


def test_single_files_are_given_and_neighbours_are_a_picture_of_their_own(
    photos, tmp_path, monkeypatch
):
    files = sorted((photos / "cat").iterdir())[:2]
    found = {}
    real = looking.save_found
    monkeypatch.setattr(looking, "save_found", lambda *a: (found.update(a[2]), real(*a)))
    assert show("demo-teacher", *files, "--data", photos, "--what", "neighbours",
                "--out", tmp_path / "n.png") == 0  # fmt: skip
    (near,) = found.values()
    assert [len(row) for row in near.indices] == [5, 5]  # six, and never the image itself
    assert all(row == sorted(row, reverse=True) for row in near.similarity)


def test_the_nearest_image_is_the_same_picture_and_the_image_itself_is_left_out(tmp_path):
    for n in range(4):
        photo(tmp_path / f"set/{n}.png", n)
    with Image.open(tmp_path / "set/2.png") as image:
        image.save(tmp_path / "set/twin.bmp")  # other bytes, the same pixels
    given = open_photos([tmp_path / "set/2.png"])
    source = looking.open_source(tmp_path / "set")
    looks = {"a": Look(as_extractor(torch.nn.Conv2d(3, 8, 4, stride=4), image_size=32))}
    found, skipped = find_neighbours(looks, given, source, 3)
    names = [source.name(i) for i in found["a"].indices[0]]
    assert names[0] == "twin.bmp" and "2.png" not in names
    assert found["a"].similarity[0][0] == pytest.approx(1)
    assert skipped == {}


def test_photos_are_spread_evenly_and_damaged_ones_replaced(photos):
    every = open_photos([photos], 100)
    assert (len(every.images), every.total) == (6, 7)
    assert set(every.skipped) == {"dog/broken.jpg", "notes.md"}
    some = open_photos([photos], 2)
    assert some.names[0].startswith("cat") and some.names[1].startswith("dog")
    assert len(open_photos([photos / "cat", *sorted((photos / "dog").glob("*x_*"))], 6).images) == 6


def test_maps_of_too_few_patches_and_of_broken_weights_are_plain_errors():
    images = torch.rand(1, 3, 32, 32)
    looks = {"a": Look(as_extractor(torch.nn.Conv2d(3, 8, 32, stride=32), image_size=32))}
    with pytest.raises(ValueError, match=r"too few patches.*Got 1 of width 8"):
        pca_columns(looks, images)
    nan = Features(torch.zeros(1, 4), torch.full((1, 9, 4), torch.nan), (3, 3))
    with pytest.raises(ValueError, match="features are not finite"):
        visualize.pca_maps(nan)


def test_a_size_that_a_model_refuses_is_a_plain_error():
    class Picky(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Conv2d(3, 8, 4, stride=4)

        def forward(self, images):
            assert images.shape[-1] == 32, "32 pixels only"
            return self.embed(images)

    looks = {"picky": Look(as_extractor(Picky(), image_size=32))}
    assert pca_columns(looks, torch.rand(1, 3, 64, 64))[0]["picky"].shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"cannot take.*Got 48x48.*32 pixels only.*32x32"):
        pca_columns(looks, torch.rand(1, 3, 64, 64), image_size=48)


def test_names_of_files_are_drawn_as_they_are(tmp_path):
    columns = {r"$\frac{$ a": torch.rand(1, 3, 8, 8)}
    visualize.save_columns(columns, ["\udcff\n世 $x$"], tmp_path / "a.png", title="$y")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert picture_text("a\nb\udcff", 9) == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert picture_text("0123456789", 4) == "…789"


WRONG = [
    (["demo-teacher", "{photos}/none"], r"no such folder or file. Got '.*none'"),
    (["demo-teacher", "{photos}/notes.md"], r"no image can be read.*notes\.md"),
    (["demo-teacher", "{photos}/dog/broken.jpg"], r"no image can be read.*broken\.jpg"),
    (["demo-teacher", "{photos}", "--what", "neighbours"], r"Add --data SET"),
    (["demo-teacher", "{photos}", "--what", "pca", "--data", "{photos}"], r"--data would be ign"),
    (["demo-teacher", "{photos}", "--what", "pca,atention"], r"unknown part. Got 'atention'"),
    (["demo-teacher", "{photos}", "--what", "masks", "--image-size", "64"], r"--image-size would"),
    (["demo-teacher", "{photos}", "--data", "{photos}/none"], r"no such folder or file"),
    (["demo-teacher", "{photos}", "--out", "a.jpg"], r"unknown kind of file. Got 'a\.jpg'"),
    (["demo-teacher", "{photos}", "--out", "folder"], r"unknown kind of file. Got 'folder'"),
    (["demo-teacher", "{photos}", "--num", "0"], r"--num: out of range. Got 0; expected 1"),
    (["demo-teacher", "{photos}", "--num", "101"], r"--num: out of range. Got 101"),
    (["demo-teacher", "{photos}", "--seed", "99999999999999999999"], r"--seed: out of range"),
    (["demo-teacher", "{photos}", "--image-size", "-5"], r"--image-size: out of range. Got -5"),
    (["demo-techer", "{photos}"], r"unknown name. Got 'demo-techer'.*demo-teacher"),
    (["demo-teacher", "{photos}", "--teacher-checkpoint", "x.pth"], r"belongs to --teacher"),
    (["pit_ti_224", "{photos}", "--random-weights", "--what", "masks"], r"masks: .*no patch"),
    (["{run}", "{photos}", "--teacher", "demo-teacher"], r"would be ignored. Got the run"),
    (["{run}", "{photos}", "--random-weights"], r"would be ignored. Got the run"),
    (["{empty}", "{photos}"], r"nothing to see yet.*wait for its first checkpoint"),
    (["demo-teacher", "{one}", "--data", "{one}"], r"none but the image itself"),
]  # fmt: skip


@pytest.fixture
def places(photos, run_folder, tmp_path, monkeypatch):
    """Paths by name, from a folder of its own: a run without a checkpoint, a single image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copy(run_folder / "run.json", tmp_path / "empty")
    photo(tmp_path / "one/a.png", 0)
    return {"photos": photos, "run": run_folder, "empty": "empty", "one": "one"}


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_what_a_user_gets_wrong_is_one_plain_paragraph(words, message, places, capsys):
    assert show(*(word.format(**places) for word in words)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("proteus visualize: error: ")
    assert re.search(message, error), error
    left = {path.name for path in Path().iterdir()}
    assert left == {"empty", "one"}  # no half picture, and no folder
