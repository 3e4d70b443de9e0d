"""Every way in for weights against every fault of a file: refused, and the file is named."""

import json

import pytest
import timm
import torch
from oracles import openai_names
from safetensors.torch import save_file
from torch import nn

import proteus
from proteus.logits import load_linear_head
from proteus.weights import from_dinov2, from_openai_clip, from_proteus, from_synclr

SMALL = {"img_size": 56, "embed_dim": 64, "depth": 1, "num_heads": 1}


def dinov2(**options):
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **SMALL, **options)
    return dict(model.state_dict())


def clip():
    name = "vit_base_patch16_clip_quickgelu_224"
    return openai_names(timm.create_model(name, num_classes=0, patch_size=14, **SMALL).state_dict())


def proteus_file():
    return {f"student.backbone.{key}": value for key, value in dinov2().items()}


def head():
    return {"weight": torch.randn(5, 16), "bias": torch.randn(5)}


def load_folder(path):
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    path.rename(folder / f"pytorch_model{path.suffix}")
    arguments = {**SMALL, "init_values": 1e-5}
    config = {"architecture": "vit_small_patch14_dinov2", "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return proteus.load_pretrained(folder)


def load_teacher(path):
    return proteus.Teacher("vit_tiny_patch16_224", checkpoint=path)


IMPORTERS = {  # name: (what it reads, the function)
    "from_dinov2": (dinov2, from_dinov2),
    "from_synclr": (lambda: dinov2(init_values=0.0), from_synclr),
    "from_openai_clip": (clip, from_openai_clip),
    "from_proteus": (proteus_file, from_proteus),
    "linear head": (head, lambda path: load_linear_head(path, teacher_dim=8)),
    "folder": (dinov2, load_folder),
    "checkpoint": (
        lambda: dict(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()),
        load_teacher,
    ),
}


def with_value(value):
    def put(weights):
        name = list(weights)[-1]
        weights[name] = weights[name].clone()
        weights[name].view(-1)[0] = value
        return weights

    return put


FAULTS = {  # name: what becomes of the weights
    "nothing in it": lambda weights: {},
    "a list": lambda weights: list(weights.values()),
    "a module's name for values": lambda weights: {**weights, "extra": "text"},
    "one key missing": lambda weights: dict(list(weights.items())[:-1]),
    "one key more": lambda weights: {**weights, "extra.weight": torch.zeros(3)},
    "another shape": lambda weights: {**weights, list(weights)[-1]: torch.zeros(7, 7)},
    "whole numbers": lambda weights: {k: v.long() for k, v in weights.items()},
    "whole numbers in one": lambda weights: {
        **weights, list(weights)[1]: weights[list(weights)[1]].to(torch.int32)
    },
    "NaN": with_value(float("nan")),
    "infinity": with_value(float("inf")),
    "minus infinity in half precision": lambda weights: with_value(-float("inf"))(
        {k: v.half() for k, v in weights.items()}
    ),
    "another model": lambda weights: nn.Linear(3, 4).state_dict(),
    "a sparse tensor": lambda weights: {
        **weights, list(weights)[-1]: weights[list(weights)[-1]].to_sparse()
    },
    "a few bytes that claim to be many": lambda weights: {
        k: torch.zeros(1).expand(v.shape) for k, v in weights.items()
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:(Validating sparse|Sparse invariant):UserWarning")
@pytest.mark.parametrize("importer", IMPORTERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_and_named(tmp_path, importer, fault):
    make, load = IMPORTERS[importer]
    weights = make()
    last = list(weights)[-1]
    torch.save(FAULTS[fault](weights), tmp_path / "strange.pth")
    with pytest.raises(ValueError, match=r"strange\.pth|pytorch_model\.pth") as caught:
        load(tmp_path / "strange.pth")
    if "NaN" in fault or "infinity" in fault:
        assert "NaN or infinity" in str(caught.value)
        assert last.removeprefix("student.backbone.") in str(caught.value)


@pytest.mark.parametrize("importer", IMPORTERS)
def test_the_same_file_without_a_fault_loads(tmp_path, importer):
    make, load = IMPORTERS[importer]
    torch.save(make(), tmp_path / "good.pth")
    assert isinstance(load(tmp_path / "good.pth"), nn.Module)


@pytest.mark.parametrize("importer", [from_dinov2, from_synclr, from_openai_clip, from_proteus])
@pytest.mark.parametrize("source", [None, 3, [], nn.Linear(3, 4)])
def test_what_is_neither_weights_nor_a_file_is_refused(importer, source):
    with pytest.raises(ValueError, match=f"{importer.__name__}: no weights"):
        importer(source)


def test_a_nan_in_the_mask_token_or_the_positions_is_no_less_wrong():
    for name, shape in (("mask_token", (1, 64)), ("pos_embed", (1, 17, 64))):
        with pytest.raises(ValueError, match=f"NaN or infinity. Got them in {name}"):
            from_dinov2({**dinov2(), name: torch.full(shape, float("nan"))}, image_size=70)


def test_a_nan_in_what_is_left_alone_does_no_harm():
    weights = {"dino_head.mlp.weight": torch.full((3,), float("nan"))}
    weights |= {f"backbone.{key}": value for key, value in dinov2().items()}
    assert from_dinov2({"teacher": weights}).embed_dim == 64


def test_a_student_with_nan_is_not_saved(tmp_path):
    student = proteus.Student("demo-student", image_size=64)
    with torch.no_grad():
        student.backbone.norm.bias[3] = float("nan")
    with pytest.raises(ValueError, match=r"save_pretrained.*NaN or infinity.*norm\.bias"):
        proteus.save_pretrained(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_s_teacher_with_nan_is_refused(tmp_path):
    student = proteus.Student("demo-student", image_size=64)
    folder = proteus.save_pretrained(student, tmp_path / "out")
    weights = {**student.backbone.state_dict(), "norm.bias": torch.full((128,), float("inf"))}
    save_file(weights, folder / "model.safetensors")
    for load in (
        lambda: proteus.Teacher(f"local-dir:{folder}"),
        lambda: proteus.Student(f"local-dir:{folder}", image_size=64),
        lambda: proteus.load_pretrained(folder),
        lambda: proteus.hub.remote.upload(folder, "me/student"),
    ):
        with pytest.raises(ValueError, match=r"norm\.bias.*model\.safetensors"):
            load()
