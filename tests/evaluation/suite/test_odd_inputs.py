"""`proteus evaluate` on what strangers pass: the right numbers or a plain error, never a trace."""

import json
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import proteus
from proteus.cli import main
from proteus.evaluation.suite import gallery as pictures

SIZE = 32


def write_split(folder, train, test, count=6, size=(40, 40)):
    """Red, green and blue images; the first class of training is red, wherever it is."""
    colours = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    for split, names in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        for name in names:
            number = train.index(name) if name in train else 2
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                colour = tuple(min(part + 5 * n, 255) for part in colours[number])
                Image.new("RGB", size, colour).save(folder / split / name / f"{n}.png")
    return folder


def write_model(folder, **options):
    torch.manual_seed(0)
    options = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2,
               **options}  # fmt: skip
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    proteus.save_pretrained(proteus.Student(model, image_size=SIZE), folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and sets, each made once."""
    root = tmp_path_factory.mktemp("odd")
    write_model(root / "tiny")
    write_model(root / "one", embed_dim=1, num_heads=1)
    for name, value in (("nan", float("nan")), ("overflow", 3e38)):
        shutil.copytree(root / "tiny", root / name)
        tensors = load_file(root / name / "model.safetensors")
        tensors["norm.weight"] = torch.full_like(tensors["norm.weight"], value)
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
    two = ["a", "b"]
    write_split(root / "good", two, two)
    write_split(root / "stranger", two, ["a", "b", "c"])
    write_split(root / "absent", ["a", "b", "c"], ["c"])
    write_split(root / "single", ["a"], ["a"])
    write_split(root / "rare", two, two, count=1)
    write_split(root / "unicode", ["猫", "<b>|犬"], ["<b>|犬", "猫"])
    write_split(root / "digits", ["10", "9"], ["9", "10"])
    write_split(root / "specks", two, two, size=(1, 1))
    write_split(root / "strips", two, two, size=(2, 600))
    write_split(root / "lr=0.1", two, two)
    write_split(root / "flowers", two, two)
    shutil.rmtree(write_split(root / "untested", two, two) / "test")
    for split in ("train", "test"):
        (write_split(root / f"hollow-{split}", two, two) / split / "zzz").mkdir()
    (write_split(root / "broken", two, two) / "test" / "a" / "0.png").write_bytes(b"nothing")
    for name in ("runs", "resnet18", "proteus-vit-s14", "demo-student"):
        (root / name).mkdir()
    (root / "file").write_text("x")
    (root / "nested").mkdir()
    (root / "nested" / "index.json").write_text("[" * 20_000)
    return root


@pytest.fixture
def evaluate(place, tmp_path, monkeypatch, capfd, caplog):
    """Words -> exit status, what was said on standard error, results."""
    monkeypatch.chdir(place)

    def run(words, suite="knn", *, draw=False):
        if not draw:
            monkeypatch.setattr(pictures, "suite_pictures", lambda *words: [])
        out = tmp_path / "out"
        line = ["evaluate", *words.split(), "--suite", suite, "--device", "cpu", "--out", str(out)]
        try:
            status = main(line)
        except SystemExit as left:  # argparse
            status = left.code
        file = out / "results.json"
        results = json.loads(file.read_text())["results"] if file.exists() else {}
        return status, capfd.readouterr().err + caplog.text, results

    return run


@pytest.mark.parametrize(
    "name",
    ["good", "absent", "unicode", "digits", "specks", "strips", "hollow-train", "hollow-test",
     "lr=0.1", "flowers", "mine=flowers", "flowers=flowers", "./flowers", "mine=lr=0.1"],
)  # fmt: skip
def test_what_can_be_measured_gets_the_right_answer(evaluate, name):
    status, said, results = evaluate(f"tiny --data {name}", draw=name in ("unicode", "specks"))
    (one,) = results.values()
    assert (status, one["best"]) == (0, 100.0), said
    assert one["num_classes"] == (3 if name == "absent" else 2)


def test_one_image_a_class_is_enough_but_for_a_choice_of_the_penalty(evaluate):
    status, said, results = evaluate("tiny --data rare", "knn,finegrained")
    assert status == 2 and "nothing to choose C on. Got 2 training images in rare" in said
    assert results["knn/rare"]["best"] == 100 and results["knn/rare"]["best_k"] == 1


def test_a_model_of_width_one_says_no_more_than_chance(evaluate):
    _, _, results = evaluate("one --data good", "knn")  # its last norm makes one number 0
    assert results["knn/good"]["best"] == 50


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("tiny --data stranger", "classes that are not among those of training. Got ['c']"),
        ("tiny --data untested", "no folder for the split. Got 'untested' and 'test'"),
        ("tiny --data single", "one class only"),
        ("tiny --data broken", "Got 'a/0.png' of broken/test"),
        ("tiny --data good --limit 1", "one class only. Got 1 training images"),
        ("nan --data good", "the weights hold NaN or infinity"),
        ("overflow --data good", "features are not finite"),
        ("tiny --data nested", "packs: no readable index"),
        ("tiny --data a=", "no set there. Got ''"),
        ("tiny --data good --limit 0", "--limit: must be at least 1. Got 0."),
        ("tiny --data good --batch-size 0", "--batch-size: must be at least 1. Got 0."),
        ("tiny --data good --batch-size -1", "--batch-size: must be at least 1. Got -1."),
        ("tiny --data good --workers -1", "--workers: must be at least 0. Got -1."),
        ("tiny --data good --seed -1", "--seed: must be at least 0. Got -1."),
        ("tiny --data good --limit many", "--limit: invalid whole number value: 'many'"),
        ("tiny --data good --image-size 33", "not a multiple of the patch size. Got 33x33"),
        ("tiny --data good --image-size 1000000", "cannot take images of this size. Got 1000000"),
        ("runs/first --data good", "there is no such folder. Got 'runs/first'"),
        ("nowhere/first --data good", "there is no such folder. Got 'nowhere/first'"),
        ("file --data good", "there is no such folder. Got 'file'"),
        ("proteus-vit-s14 --data good", "'proteus-vit-s14' is not published yet"),
        ("demo-student --data good", "no published weights"),
        (
            "demo-student --data good --checkpoint file --random-weights",
            "--random-weights would be ignored",
        ),
        ("tiny --data good --random-weights", "would be ignored"),
        ("tiny --data good --paper --preset official", "not allowed with argument"),
    ],
)
def test_what_cannot_be_measured_is_a_plain_error(evaluate, words, text):
    status, said, results = evaluate(words)
    assert status == 2 and text in said, said
    assert all("error" in one for one in results.values())


@pytest.mark.parametrize("word", ["agreement", "knn,agreement"])
def test_agreement_of_features_that_are_not_finite_is_an_error(evaluate, word):
    status, said, results = evaluate("overflow --data good --teacher tiny", word)
    assert status == 2 and "by the student" in results["agreement/good"]["error"], said


def test_a_name_goes_before_a_folder_without_a_model_and_after_one_with(evaluate, place):
    status, said, _ = evaluate(f"demo-student --random-weights --image-size {SIZE} --data good")
    assert status == 0 and "the published model of this name, not the folder" in said
    shutil.copytree(place / "tiny", place / "resnet18", dirs_exist_ok=True)
    status, said, _ = evaluate("resnet18 --data good")
    assert status == 0 and "'resnet18' is the folder of this name, not the published" in said


@pytest.mark.parametrize(
    ("suite", "text"),
    [("segmentation-finetuned", "Did you mean segmentation-finetune"), (",", "Got 'none'")],
)
def test_a_mistyped_protocol_gets_the_nearest(evaluate, suite, text):
    status, said, _ = evaluate("tiny --data good", suite)
    assert status == 2 and text in said


def test_a_protocol_named_twice_runs_once(evaluate):
    status, _, results = evaluate("tiny --data good", "knn,knn")
    assert status == 0 and list(results) == ["knn/good"]


def test_features_that_fail_at_the_picture_s_size_alone_cost_the_picture_only(
    evaluate, monkeypatch
):
    def fails(*words, **options):
        raise ValueError("pictures: not finite")

    monkeypatch.setattr(pictures, "save_side_by_side", fails)
    status, said, results = evaluate("tiny --data good", draw=True)
    assert status == 0 and "no picture of the features" in said
    assert results["knn/good"]["best"] == 100
