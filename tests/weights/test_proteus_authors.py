import argparse

import pytest
import timm
import torch

import proteus
from proteus.weights import from_proteus


@pytest.fixture
def student():
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=56, depth=1)
    return {f"student.backbone.{k}": v for k, v in model.state_dict().items()}


def test_a_training_checkpoint_gives_the_student_and_not_the_teacher(student):
    teacher = {k.replace("student", "teacher"): v + 1 for k, v in student.items()}
    heads = {f"{name}_head.0.weight": torch.zeros(3) for name in ("token", "fea", "patch")}
    content = {
        "model": {**teacher, **heads, **student},
        "model_ema": {k.removeprefix("student.backbone."): v + 2 for k, v in student.items()},
        "optimizer": {"state": {}},
        "epoch": 4,
        "args": argparse.Namespace(lr=1),
    }
    bias = student["student.backbone.norm.bias"]
    assert torch.equal(from_proteus(content).norm.bias, bias)
    assert torch.equal(from_proteus(content, weights="ema").norm.bias, bias + 2)


@pytest.mark.parametrize(
    ("content", "weights", "message"),
    [
        ({"model": {"teacher.backbone.norm.bias": torch.zeros(3)}}, "student", "no student"),
        ({"head.weight": torch.zeros(3)}, "student", "another family.*cls_token"),
        ({"model": {"norm.bias": torch.zeros(3)}}, "ema", "no EMA weights.*model_ema"),
        ({}, "student", "an empty dictionary"),
        ({"model": {"a": [1]}}, "student", "entries that are not tensors"),
        ({}, "mean", "unknown weights.*'student' or 'ema'"),
    ],
)
def test_a_file_without_the_student_is_an_error(content, weights, message):
    with pytest.raises(ValueError, match=message):
        from_proteus(content, weights=weights)


def test_a_left_over_key_is_an_error(student):
    with pytest.raises(ValueError, match=r"left over \(decoder\.weight\)"):
        from_proteus({"model": {**student, "decoder.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"left over \(extra\)"):
        from_proteus({**student, "student.backbone.extra": torch.zeros(1)})


def test_a_bare_key_never_takes_the_student_s_place(student):
    with pytest.raises(ValueError, match=r"two tensors for one place.*'norm\.bias'"):
        from_proteus({"model": {**student, "norm.bias": torch.zeros(384)}})


def test_a_synclr_student_is_known_by_its_missing_layer_scale(student):
    tensors = {k: v for k, v in student.items() if ".ls" not in k}
    tensors["student.backbone.mask_token"] = torch.randn(1, 1, 384)
    model = from_proteus(tensors)
    assert not [k for k in model.state_dict() if ".ls" in k]
    assert model.mask_token.shape == (1, 384)


def test_a_clip_student_keeps_imagenet_s_statistics():
    clip = {
        "class_embedding": torch.randn(64),
        "positional_embedding": torch.randn(17, 64),
        "mask_token": torch.randn(1, 64),
        "conv1.weight": torch.randn(64, 3, 14, 14),
    }
    block = "transformer.resblocks.0"
    for name, shape in {
        "attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,),
        "attn.out_proj.weight": (64, 64), "attn.out_proj.bias": (64,),
        "mlp.c_fc.weight": (256, 64), "mlp.c_fc.bias": (256,),
        "mlp.c_proj.weight": (64, 256), "mlp.c_proj.bias": (64,),
        "ln_1.weight": (64,), "ln_1.bias": (64,), "ln_2.weight": (64,), "ln_2.bias": (64,),
    }.items():  # fmt: skip
        clip[f"{block}.{name}"] = torch.randn(shape)
    for name in ("ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias"):
        clip[name] = torch.randn(64)
    model = from_proteus({"model": {f"student.backbone.{k}": v for k, v in clip.items()}})
    student = proteus.Student(model, image_size=56)
    # *Different:* timm's CLIP architectures say CLIP's statistics; the authors used ImageNet's.
    assert student.statistics[0] == (0.485, 0.456, 0.406)
    assert torch.equal(student.mask_token.detach(), clip["mask_token"])
