"""`config.json` of strangers: a plain error that names the file, soon, whatever it holds."""

import json

import pytest
import torch

import proteus
from proteus.weights.timm_folder import load_folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    student = proteus.Student("demo-student", image_size=64)
    return proteus.save_pretrained(student, tmp_path_factory.mktemp("export") / "good")


def described(**changes):
    return {"pretrained_cfg": changes}


def built(**changes):
    return {"model_args": changes}


ODD = {
    "an architecture that is a number": {"architecture": 3},
    "an architecture that is a list": {"architecture": ["vit_small_patch8_224"]},
    "no such architecture": {"architecture": "vit_smal_patch8_224"},
    "an architecture in another place": {"architecture": "hf-hub:me/model"},
    "arguments that are a list": {"model_args": [1, 2]},
    "arguments that are text": {"model_args": "depth=3"},
    "a description that is a list": {"pretrained_cfg": [0.5]},
    "a mean of text": described(mean="0.5"),
    "a mean of texts": described(mean=["0.5", "0.5", "0.5"]),
    "a mean of one": described(mean=[0.5]),
    "a mean of four": described(mean=[0.5] * 4),
    "a mean that is a number": described(mean=0.5),
    "a mean of nothing": described(mean=[None] * 3),
    "a mean of truths": described(mean=[True, False, True]),
    "a mean of 0-255": described(mean=[123.7, 116.3, 103.5]),
    "a mean that is no number": described(mean=[float("nan"), 0.5, 0.5]),
    "a std of zero": described(std=[0.2, 0, 0.2]),
    "a negative std": described(std=[0.2, 0.2, -0.2]),
    "an infinite std": described(std=[0.2, 0.2, float("inf")]),
    "a std in a dictionary": described(std={"r": 1, "g": 1, "b": 1}),
    "a size of text": described(input_size="224"),
    "a size that is a number": described(input_size=224),
    "a size of two": described(input_size=[224, 224]),
    "a size of texts": described(input_size=[3, "64", "64"]),
    "a size of zero": described(input_size=[3, 0, 64]),
    "one channel": described(input_size=[1, 64, 64]),
    "a size beyond all memory": described(input_size=[3, 10**9, 64]),
    "an unknown key of the description": described(colour="blue"),
    "an unknown argument": built(colour="blue"),
    "an argument twice": built(pretrained=True),
    "another file to read": built(checkpoint_path="/etc/passwd"),
    "features only": built(features_only=True),
    "a depth of text": built(depth="3"),
    "a depth below zero": built(depth=-3),
    "no heads": built(num_heads=0),
    "no width": built(embed_dim=0),
    "endless depth": built(depth=10**9),
    "endless width": built(embed_dim=4 * 10**6, num_heads=4),
    "endless image": built(img_size=2 * 10**6),
    "no image": built(img_size=0),
    "a patch of nothing": built(patch_size=0),
    "a layer by another name": built(norm_layer="os.system"),
    "another shape": built(embed_dim=64),
}


def write(exported, folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "model.safetensors").symlink_to(exported / "model.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_config_is_refused_and_the_file_named(exported, tmp_path, odd):
    config = json.loads((exported / "config.json").read_text())
    for key, value in ODD[odd].items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    folder = write(exported, tmp_path / "odd", config)
    for load in (load_folder, lambda path, _: proteus.Teacher(f"local-dir:{path}")):
        with pytest.raises(ValueError, match=r"config\.json|model\.safetensors"):
            load(folder, "load_pretrained")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '"a"', "{}", "\udcff"])
def test_what_is_no_description_is_refused(exported, tmp_path, text):
    folder = write(exported, tmp_path / "odd", "")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_folder(folder, "load_pretrained")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        described(mean=None, std=None, input_size=None),
        described(classifier=5, license=5),
        described(mean=[0, 0, 0], std=[1, 1, 1]),
        {"num_classes": "many", "label_names": 7},
    ],
)
def test_what_does_no_harm_is_taken(exported, tmp_path, changes):
    config = json.loads((exported / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    teacher = proteus.Teacher(f"local-dir:{write(exported, tmp_path / 'fine', config)}")
    assert teacher(torch.rand(1, 3, 64, 64)).cls.isfinite().all()
    assert isinstance(teacher.license, str)
