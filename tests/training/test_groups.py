import json
import re
from pathlib import Path

import pytest
from timm.models.beit import Beit

import proteus
from conftest import vit
from proteus.models.parts import layer_rates
from proteus.training import parameter_groups

GOLDEN = Path(__file__).parents[1] / "golden/07_schedules"
OFFICIAL = json.loads((GOLDEN / "weight_decay_groups.json").read_text())

# Our names, in this order of rewriting, to those of the authors' code.
HEADS = [
    (r"^loss\.feature_head\.", "fea_head."),
    (r"^loss\.(token|patch)_head\.", r"\1_head."),
    (r"_head\.norm\.", "_head.0."),
    (r"_head\.linear\.", "_head.1."),
    (r"^student\.mask_token$", "student.backbone.mask_token"),
]
CLIP = [
    (r"\.cls_token$", ".class_embedding"),
    (r"\.pos_embed$", ".positional_embedding"),
    (r"\.patch_embed\.proj\.", ".conv1."),
    (r"\.norm_pre\.", ".ln_pre."),
    (r"\.backbone\.norm\.", ".backbone.ln_post."),
    (r"\.blocks\.", ".transformer.resblocks."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.(weight|bias)", r".attn.in_proj_\1"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
FAMILIES = {
    "dinov2": ({"init_values": 1.0}, (), HEADS),
    "synclr": ({}, (), HEADS),
    "clip": ({"pre_norm": True}, ("cls_token",), HEADS + CLIP),
}


def build(family):
    model = vit(24, depth=1, **FAMILIES[family][0])
    terms = {"feature": 0, "patch": 0} if family == "clip" else {}
    return proteus.Distiller(
        proteus.Teacher(vit(36), image_size=32),
        proteus.Student(model, image_size=32),
        proteus.ProteusLoss(24, 36, **terms),
    )


def renamed(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_groups_of_the_authors_code(family):
    _, undecayed, rules = FAMILIES[family]
    distiller = build(family)
    names = {id(p): renamed(n, rules) for n, p in distiller.named_parameters()}
    groups = parameter_groups(distiller, 0.05, undecayed)
    ours = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    theirs = {g["weight_decay"]: set(g["names"]) for g in OFFICIAL[family]["groups"]}
    if family == "clip":  # its mask token, never used, is frozen here and in no group
        theirs[0.05] -= {"student.backbone.mask_token"}
    assert ours == theirs


def test_the_optimizer_s_settings_are_the_authors():
    from proteus.training import Engine, join

    engine = Engine(build("dinov2"), join("cpu"), lr=5e-4, undecayed=())
    for group in engine.optimizer.param_groups:
        assert group["betas"] == tuple(OFFICIAL["dinov2"]["defaults"]["betas"])
        assert group["eps"] == OFFICIAL["dinov2"]["defaults"]["eps"]
        assert not group["amsgrad"]


def test_biases_norms_positions_and_tokens_are_not_decayed(teacher):
    model = vit(24, reg_tokens=2, no_embed_class=True, init_values=1.0)
    distiller = proteus.Distiller(teacher, proteus.Student(model, image_size=32))
    decayed, spared = parameter_groups(distiller, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(p): n for n, p in distiller.named_parameters()}
    spared_names = {names[id(p)].rsplit(".", 1)[-1] for p in spared["params"]}
    assert {"pos_embed", "cls_token", "reg_token", "mask_token", "gamma", "bias"} <= spared_names
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decayed["params"])
    together = [id(p) for group in (decayed, spared) for p in group["params"]]
    assert sorted(together) == sorted(names)
    assert not {id(p) for p in teacher.parameters()} & set(together)


def test_what_a_timm_model_lists_itself_is_spared_too():
    model = Beit(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=0,
        use_rel_pos_bias=True,
    )  # fmt: skip
    student = proteus.Student(model, image_size=32)
    listed = {n for n in model.no_weight_decay() if n in dict(model.named_parameters())}
    assert any("relative_position" in name for name in listed)
    decayed = {id(p) for p in parameter_groups(student, 0.05)[0]["params"]}
    assert not any(id(model.get_parameter(name)) in decayed for name in listed)
    with_tables = {id(p) for p in parameter_groups(student, 0.05, ())[0]["params"]}
    assert with_tables > decayed


def test_frozen_parameters_are_in_no_group(distiller):
    frozen = distiller.student.backbone.pos_embed.requires_grad_(False)
    groups = parameter_groups(distiller, 0.05)
    assert not any(p is frozen for group in groups for p in group["params"])


def test_a_name_that_no_parameter_has_is_an_error(distiller):
    with pytest.raises(ValueError, match="pos_embd"):
        parameter_groups(distiller, 0.05, undecayed=("pos_embd", "cls_token"))


def test_rates_make_groups_of_their_own_and_heads_have_the_whole_one(distiller):
    backbone = distiller.student.backbone
    groups = parameter_groups(distiller, 0.05, rates=layer_rates(backbone, 0.5))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(distiller.parameters()))
    assert scales[id(distiller.student.mask_token)] == 1
    assert {scales[id(p)] for p in distiller.loss.parameters()} == {1}
    assert scales[id(backbone.norm.weight)] == 1
    assert scales[id(backbone.blocks[1].norm1.weight)] == 0.5
    assert scales[id(backbone.pos_embed)] == 0.125
    assert {(group["lr_scale"], group["weight_decay"]) for group in groups} == {
        (scale, decay) for scale in (1, 0.5, 0.25, 0.125) for decay in (0.05, 0)
    }
    assert [group["lr_scale"] for group in parameter_groups(distiller, 0.05)] == [1, 1]
