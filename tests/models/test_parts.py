import pytest
import timm
import torch
from torch import nn

from conftest import vit
from proteus.models.parts import batch_norms, layer_rates, names_of

NAMES = [name for name, _ in vit(depth=12).named_parameters()]


def rates_of(model, decay=0.5):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: rate for p, rate in layer_rates(model, decay).items()}


def test_a_transformer_s_rates_are_beits():
    rates = rates_of(vit(depth=12, reg_tokens=2), 0.65)
    assert rates["norm.weight"] == 1
    assert rates["blocks.11.mlp.fc1.bias"] == 0.65
    assert rates["blocks.0.attn.qkv.weight"] == 0.65**12
    embeddings = ("patch_embed.proj.weight", "pos_embed", "cls_token", "reg_token")
    assert {rates[name] for name in embeddings} == {0.65**13}


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("resnet18", "conv1.weight", "layer4.1.conv2.weight"),
        ("mobilenetv3_small_050", "conv_stem.weight", "conv_head.weight"),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj.weight", "norm.weight"),
    ],
)
def test_other_timm_models_have_timm_s_layers(name, lowest, highest):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    rates = rates_of(model)
    assert rates.keys() == dict(model.named_parameters()).keys()
    assert rates[highest] == max(rates.values()) == 0.5
    assert rates[lowest] == min(rates.values()) < 0.5**5


def test_a_model_without_known_layers_is_named():
    with pytest.raises(ValueError, match=r"layer_decay: .* Got Sequential; expected"):
        layer_rates(nn.Sequential(nn.Linear(2, 2)), 0.5)


def test_patterns_are_a_shell_s():
    found = names_of(["blocks.1[01].*", "pos_embed"], NAMES)
    assert {".".join(name.split(".")[:2]) for name in found} == {
        "blocks.10",
        "blocks.11",
        "pos_embed",
    }
    with pytest.raises(ValueError, match=r"Got 'blocks.12.\*'"):
        names_of(["patch_embed.*", "blocks.12.*"], NAMES)


def test_a_batch_norm_is_frozen_with_both_of_its_parameters():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    found = batch_norms(model, ["0.weight", "1.weight", "1.bias"])
    assert [name for name, _ in found] == ["1"]
