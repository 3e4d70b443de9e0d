"""What the words after `--data` mean: an existing path, whatever it is called, comes first."""

import json
import logging

import pytest
from PIL import Image

from proteus.evaluation import open_labelled
from proteus.evaluation.suite.find_sets import find_sets


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_split(folder, count=3, classes=("a", "b")):
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            for n in range(count):
                file = folder / split / name / f"{n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 40), (100 * label + n,) * 3).save(file)
    return folder


@pytest.mark.parametrize("name", ["flowers", "cars", "dtd", "voc2007", "gtsrb"])
def test_a_folder_named_like_a_set_of_the_paper_is_the_folder(here, name, caplog):
    write_split(here / name)
    for word, called in ((name, name), (f"mine={name}", "mine"), (f"{name}={name}", name)):
        caplog.clear()
        (found,) = find_sets([word])
        assert (found.name, found.root) == (called, None)
        data = open_labelled(found.source, split="test")
        assert (len(data), data.classes) == (6, ("a", "b"))
        assert (f"{name} is the folder" in caplog.text) == (called == name)


def test_a_name_with_torchvision_s_files_is_that_set_and_a_root_always_says_so(here, caplog):
    (here / "cars" / "stanford_cars").mkdir(parents=True)
    (found,) = find_sets(["cars=cars"])
    assert (found.source, found.root) == ("cars", "cars")
    assert not caplog.records
    with pytest.raises(ValueError, match=r"no folder for the split.*cars=cars"):
        open_labelled("cars", split="train")
    write_split(here / "dtd")
    with pytest.raises(ValueError, match="dtd cannot be read from"):
        open_labelled("dtd", split="train", root="dtd")


def test_a_pack_named_like_a_set_is_the_pack(here):
    (here / "flowers-train-000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard|tar"):
        open_labelled("flowers", split="train")
    (found,) = find_sets(["flowers"])
    assert (found.source, found.root) == ("flowers", None)


def test_a_folder_s_own_name_may_have_an_equals_sign(here):
    write_split(here / "lr=0.1")
    assert find_sets(["lr=0.1"])[0].name == "lr=0.1"
    assert find_sets(["x=lr=0.1"])[0].source == "lr=0.1"


@pytest.mark.parametrize("word", ["", "=", "a=", "flowers="])
def test_no_path_is_no_set(word):
    with pytest.raises(ValueError, match="no set there"):
        find_sets([word])


@pytest.mark.parametrize("extra", ["latest.txt", "test_notes.txt", "annotations/a.png"])
def test_files_beside_the_splits_do_not_change_what_a_set_is_for(here, extra):
    write_split(here / "mine")
    file = here / "mine" / extra
    file.parent.mkdir(exist_ok=True)
    Image.new("L", (4, 4)).save(file, "PNG")
    assert find_sets(["mine"])[0].task == "classification"


def test_lists_of_both_splits_are_depth(here):
    folder = here / "nyu"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"nyu_{split}.txt").write_text("a.jpg a.png 518.8\n")
    assert find_sets(["nyu"])[0].task == "depth"


@pytest.mark.parametrize(
    "sets",
    [
        "[" * 20_000,
        '{"sets": 5}',
        json.dumps(
            {
                "sets": [
                    {
                        "name": "a",
                        "role": "fine-grained",
                        "task": "classification",
                        "splits": [{"split": "train", "shards": []}],
                    }
                ]
            }
        ),
    ],
    ids=["nested", "number", "no shards"],
)
def test_an_index_of_another_form_is_refused(here, sets):
    (here / "packs").mkdir()
    (here / "packs" / "index.json").write_text(sets)
    with pytest.raises(ValueError, match="packs: "):
        find_sets(["packs"])


def test_what_was_taken_is_a_warning(here, caplog):
    caplog.set_level(logging.WARNING)
    write_split(here / "pets")
    find_sets(["pets"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
