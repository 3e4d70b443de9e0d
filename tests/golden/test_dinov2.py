"""DINOv2's own outputs at several image sizes, under both position rules (case 02)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from proteus import Student, Teacher
from proteus.weights import from_dinov2
from proteus.weights.positions import fit_positions

FOLDER = Path(__file__).parent / "02_dinov2_vit"
SIZES = [(140, 140), (98, 98), (196, 196), (98, 126)]


@pytest.fixture(scope="module")
def weights():
    return load_file(FOLDER / "mlp_reg0_weights.safetensors")


@pytest.fixture(scope="module")
def stored():
    return load_file(FOLDER / "mlp_reg0_outputs.safetensors")


def images_of(size):
    return load_file(FOLDER / "images.safetensors")[f"{size[0]}x{size[1]}"]


def assert_same(features, stored, key):
    torch.testing.assert_close(features.cls, stored[f"{key}.cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.patches, stored[f"{key}.patches"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_plain_models_follow_dinov2_s_position_rule(size, weights, stored):
    model = from_dinov2(weights, image_size=size, num_heads=3)
    teacher = Teacher(model, image_size=size, normalize=False)
    assert_same(teacher(images_of(size)), stored, f"aa0_off0.1.{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", SIZES)
def test_timm_s_rule_is_the_one_of_register_models(size, weights, stored):
    model = from_dinov2(weights, num_heads=3)
    fit_positions(model, size, "timm", "test")
    teacher = Teacher(model, image_size=size, normalize=False)
    assert_same(teacher(images_of(size)), stored, f"aa1_off0.0.{size[0]}x{size[1]}")


def test_hidden_patches_are_replaced_as_in_dinov2(weights, stored):
    student = Student(from_dinov2(weights, num_heads=3), image_size=140, normalize=False).eval()
    assert_same(student(images_of((140, 140)), stored["masks"].bool()), stored, "masked.140x140")


def test_weights_are_exact_and_the_mask_token_is_handed_back(weights):
    before = {key: value.clone() for key, value in weights.items()}
    model = from_dinov2(weights, num_heads=3)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], before[key]) for key in before)
    assert torch.equal(model.mask_token, weights["mask_token"])
    state = model.state_dict()
    assert "mask_token" not in state
    assert all(torch.equal(state[key], weights[key]) for key in state)
