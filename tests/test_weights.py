import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from proteus.weights import from_dinov2, read_state_dict

FOLDER = Path(__file__).parent / "golden/02_dinov2_vit"


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


def test_the_number_of_heads_must_be_given_where_it_cannot_be_inferred(weights):
    with pytest.raises(ValueError, match=r"width 48.*num_heads="):
        from_dinov2(weights)


def test_the_image_size_must_be_whole_patches(weights):
    with pytest.raises(ValueError, match="100x100"):
        from_dinov2(weights, num_heads=3, image_size=100)


def test_a_pth_file_with_training_arguments_is_read(tmp_path, weights):
    content = {"model": weights, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    torch.save(content, tmp_path / "c.pth")
    read = read_state_dict(tmp_path / "c.pth")
    assert torch.equal(read["model"]["norm.bias"], weights["norm.bias"])
    torch.save(weights, tmp_path / "flat.pth")
    assert from_dinov2(tmp_path / "flat.pth", num_heads=3).embed_dim == 48


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.pth", "raw.pth"):
        with pytest.raises(ValueError, match=rf"{name} is not a readable weight file"):
            read_state_dict(name)
    assert not Path("exploded").exists()


def test_files_that_are_no_weights_are_refused_by_name(tmp_path, weights):
    save_file(weights, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("cut.safetensors", "page.safetensors", "page.pth", "empty.pth", "list.pth"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"no such file.*nowhere\.pth"):
        read_state_dict(tmp_path / "nowhere.pth")
