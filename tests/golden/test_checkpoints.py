"""The authors' training checkpoint and released students, every published form (case 03)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import proteus
from proteus.weights import from_proteus, read_state_dict

FOLDER = Path(__file__).parent / "03_checkpoints"
CHECKPOINT = FOLDER / "official_training_checkpoint.pth"
PREFIX = "student.backbone."


def features(model, images):
    return proteus.Student(model, image_size=56, normalize=False).eval()(images)


@pytest.fixture(scope="module")
def stored():
    return load_file(FOLDER / "expected_outputs.safetensors")


@pytest.fixture(scope="module")
def bare():
    flat = read_state_dict(FOLDER / "released_backbone_flat.pth")
    return {k.removeprefix(PREFIX): v for k, v in flat.items()}


FORMS = {
    "flat": lambda w: {f"{PREFIX}{k}": v for k, v in w.items()},
    "under model": lambda w: {"model": {f"{PREFIX}{k}": v for k, v in w.items()}},
    "under state_dict, module": lambda w: {
        "state_dict": {f"module.{PREFIX}{k}": v for k, v in w.items()}
    },
    "bare": dict,
}


@pytest.mark.parametrize("weights", ["student", "ema"])
def test_the_training_checkpoint_gives_the_authors_outputs(weights, stored):
    model = from_proteus(CHECKPOINT, weights=weights, num_heads=2)
    with torch.no_grad():
        got = features(model, stored["images"])
    torch.testing.assert_close(got.cls, stored[f"{weights}.cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.patches, stored[f"{weights}.patches"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_released_form_is_exact(form, bare, stored, tmp_path):
    content = FORMS[form](bare)
    torch.save(content, tmp_path / "file.pth")
    for source in (content, tmp_path / "file.pth"):
        model = from_proteus(source, num_heads=2)
        state = model.state_dict()
        assert {*state, "mask_token"} == set(bare)
        assert all(torch.equal(state[k], bare[k]) for k in state)
        assert torch.equal(model.mask_token, bare["mask_token"])
        with torch.no_grad():
            got = features(model, stored["images"])
        torch.testing.assert_close(got.cls, stored["student.cls"], rtol=0, atol=1e-5)


def test_safetensors_holds_the_same(bare, tmp_path):
    save_file(bare, tmp_path / "file.safetensors")
    state = from_proteus(tmp_path / "file.safetensors", num_heads=2).state_dict()
    assert all(torch.equal(state[k], bare[k]) for k in state)


def test_the_student_goes_on_with_its_trained_mask_token(bare):
    student = proteus.Student(from_proteus(bare, num_heads=2), image_size=56)
    assert torch.equal(student.mask_token.detach(), bare["mask_token"])
