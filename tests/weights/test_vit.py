from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from proteus.weights import from_dinov2, from_synclr
from proteus.weights.positions import resample_positions

FOLDER = Path(__file__).parents[1] / "golden/02_dinov2_vit"


@pytest.fixture
def weights():
    return load_file(FOLDER / "mlp_reg0_weights.safetensors")


def swiglu(weights, hidden=128):
    """The same model with DINOv2's SwiGLU block in place of the MLP."""
    out = {k: v for k, v in weights.items() if ".mlp." not in k}
    for block in range(2):
        name = f"blocks.{block}.mlp"
        out[f"{name}.w12.weight"] = torch.randn(2 * hidden, 48) * 0.1
        out[f"{name}.w12.bias"] = torch.randn(2 * hidden) * 0.1
        out[f"{name}.w3.weight"] = torch.randn(48, hidden) * 0.1
        out[f"{name}.w3.bias"] = torch.randn(48) * 0.1
    return out


def test_swiglu_is_silu_of_the_first_half_times_the_second(weights):
    tensors = swiglu(weights)
    mlp = from_dinov2(tensors, num_heads=3).blocks[0].mlp
    x = torch.randn(5, 48)
    first, second = nn.functional.linear(
        x, tensors["blocks.0.mlp.w12.weight"], tensors["blocks.0.mlp.w12.bias"]
    ).chunk(2, -1)
    expected = nn.functional.linear(
        nn.functional.silu(first) * second,
        tensors["blocks.0.mlp.w3.weight"],
        tensors["blocks.0.mlp.w3.bias"],
    )
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("hidden", [128, 176, 2736 // 16])
def test_any_swiglu_width_is_inferred(weights, hidden):
    assert from_dinov2(swiglu(weights, hidden), num_heads=3).blocks[1].mlp.fc2.in_features == hidden


def test_registers_get_no_position_and_stand_behind_the_class_token(weights):
    registers = torch.randn(1, 4, 48)
    model = from_dinov2({**weights, "register_tokens": registers}, num_heads=3)
    embedded = model._pos_embed(torch.zeros(1, 100, 48))
    position = weights["pos_embed"]
    torch.testing.assert_close(embedded[:, :1], weights["cls_token"] + position[:, :1])
    torch.testing.assert_close(embedded[:, 1:5], registers)
    torch.testing.assert_close(embedded[:, 5:], position[:, 1:])


def test_the_argument_is_never_changed(weights):
    tensors = {**swiglu(weights), "register_tokens": torch.randn(1, 4, 48)}
    before = {k: v.clone() for k, v in tensors.items()}
    from_dinov2(tensors, image_size=98, num_heads=3)
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[k], before[k]) for k in before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.bias"), r"1 missing \(norm\.bias\)"),
        (lambda w: w.pop("pos_embed"), "pos_embed"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 left over \(extra\)"),
        (
            lambda w: w.update({"norm.bias": torch.zeros(7)}),
            r"norm\.bias \(7,\) instead of \(48,\)",
        ),
        (lambda w: w.clear(), "an empty dictionary"),
    ],
)
def test_anything_but_exactly_the_right_keys_is_an_error_that_names_them(weights, change, message):
    change(weights)
    with pytest.raises(ValueError, match=message):
        from_dinov2(weights, num_heads=3)


@pytest.mark.parametrize(
    ("wrap", "stranger"),
    [
        (lambda w: {f"backbone.{k}": v for k, v in w.items()}, "norm.bias"),
        (lambda w: {**w, "register_tokens": torch.zeros(1, 4, 48)}, "reg_token"),
        (swiglu, "blocks.0.mlp.fc1.weight"),
    ],
    ids=["backbone", "registers", "swiglu"],
)
def test_no_tensor_takes_another_s_place_silently(wrap, stranger, weights):
    with pytest.raises(ValueError, match="two tensors for one place"):
        from_dinov2({**wrap(weights), stranger: torch.zeros(1, 1)}, num_heads=3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cls_token", torch.zeros(1, 1, 0), "none of them 0"),
        ("patch_embed.proj.weight", torch.zeros(48, 3, 0, 0), "none of them 0"),
        ("register_tokens", torch.zeros(4), "expected 3 dimensions"),
        ("blocks.0.mlp.fc1.weight", torch.zeros(()), "expected 2 dimensions"),
        ("mask_token", torch.zeros(7), r"mask_token has the wrong shape.*\(7,\).*expected 48"),
        ("norm.weight", torch.ones(48, dtype=torch.complex64), "of another kind"),
        ("norm.weight", torch.ones(48, dtype=torch.int64), "of another kind"),
        (3, torch.zeros(1), r"entries that are not tensors \(3\)"),
    ],
)
def test_a_tensor_of_another_shape_or_kind_is_an_error(weights, key, value, message):
    with pytest.raises(ValueError, match=message):
        from_dinov2({**weights, key: value}, num_heads=3)


def test_a_name_cannot_ask_for_a_billion_blocks(weights):
    with pytest.raises(ValueError, match=r"left over \(blocks\.999999999\.x\)"):
        from_dinov2({**weights, "blocks.999999999.x": torch.zeros(1)}, num_heads=3)


def test_half_precision_positions_are_added_and_resampled_in_full(weights):
    half = {k: v.half() for k, v in {**weights, "register_tokens": torch.ones(1, 4, 48)}.items()}
    full = {k: v.float() for k, v in half.items()}
    found, expected = (from_dinov2(w, num_heads=3, image_size=98) for w in (half, full))
    assert torch.equal(found.cls_token, expected.cls_token)
    assert torch.equal(found.pos_embed, expected.pos_embed)


def test_the_number_of_heads_must_be_given_where_it_cannot_be_inferred(weights):
    with pytest.raises(ValueError, match=r"width 48.*num_heads="):
        from_dinov2(weights)


def test_the_image_size_must_be_whole_patches(weights):
    with pytest.raises(ValueError, match="100x100"):
        from_dinov2(weights, num_heads=3, image_size=100)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 3},
        lambda w: {
            "teacher": {
                **{f"backbone.{k}": v for k, v in w.items()},
                "dino_head.last_layer.weight": torch.zeros(3),
            }
        },
    ],
    ids=["model", "module", "training"],
)
def test_every_wrapping_of_dinov2_is_read(wrap, weights):
    plain = from_dinov2(weights, num_heads=3).state_dict()
    wrapped = from_dinov2(wrap(weights), num_heads=3).state_dict()
    assert all(torch.equal(plain[k], wrapped[k]) for k in plain)


def synclr(size=56, patch=14):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=patch, depth=2, num_classes=0
    )
    nn.init.normal_(model.cls_token)
    return model.eval()


@pytest.mark.parametrize("prefix", ["module.visual.", "visual.", "module.", ""])
def test_synclr_is_a_plain_vit_under_several_prefixes(prefix):
    model = synclr()
    tensors = {**model.state_dict(), "mask_token": torch.randn(1, 1, 192)}
    file = {"model": {f"{prefix}{k}": v for k, v in tensors.items()}}
    if "visual" in prefix:
        file["model"][f"{prefix.removesuffix('visual.')}logit_scale"] = torch.zeros(())
    loaded = from_synclr(file)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.forward_features(images), model.forward_features(images), rtol=0, atol=1e-6
        )
    assert torch.equal(loaded.mask_token, tensors["mask_token"][0])


def test_synclr_resamples_as_dinov2_does():
    tensors = synclr().state_dict()
    loaded = from_synclr(tensors, image_size=70)
    expected = resample_positions(tensors["pos_embed"], (5, 5), prefix=1, rule="dinov2")
    assert torch.equal(loaded.pos_embed, expected)


def test_a_left_over_key_of_the_tower_is_an_error():
    tensors = {f"visual.{k}": v for k, v in synclr().state_dict().items()}
    tensors["visual.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 left over \(extra\)"):
        from_synclr(tensors)


def test_a_dinov2_file_is_not_taken_for_synclr_s(weights):
    with pytest.raises(ValueError, match=r"another family.*from_dinov2"):
        from_synclr(weights, num_heads=3)


def test_a_tensor_of_another_rank_is_an_error(weights):
    weights["cls_token"] = weights["cls_token"].flatten()
    with pytest.raises(ValueError, match=r"cls_token has the wrong shape. Got \(48,\)"):
        from_dinov2(weights, num_heads=3)


@pytest.mark.parametrize("heads", [-1, 0, 5])
def test_a_number_of_heads_that_does_not_divide_the_width_is_an_error(weights, heads):
    with pytest.raises(ValueError, match=rf"num_heads={heads}. Expected a divisor"):
        from_dinov2(weights, num_heads=heads)


@pytest.mark.parametrize("size", [np.int64(98), [98, 98], (98, 98)])
def test_sizes_come_in_many_types(weights, size):
    assert from_dinov2(weights, num_heads=3, image_size=size).patch_embed.img_size == (98, 98)


@pytest.mark.parametrize("size", ["98", (98,), 98.5])
def test_what_is_no_size_is_an_error(weights, size):
    with pytest.raises(ValueError, match="expected a whole number of pixels, or two"):
        from_dinov2(weights, num_heads=3, image_size=size)
