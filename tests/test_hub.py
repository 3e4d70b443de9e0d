import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import proteus
from conftest import vit
from proteus import hub
from proteus.weights import from_dinov2

GOLDEN = Path(__file__).parent / "golden/02_dinov2_vit"
LOAD = """
import sys
sys.modules["proteus"] = None  # any import of it fails
import timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
images = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model.forward_features(images), sys.argv[3])
"""


def features_without_us(folder, images, tmp_path):
    torch.save(images, tmp_path / "images.pt")
    arguments = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-W", "error", "-c", LOAD, *arguments], check=True)
    return torch.load(tmp_path / "out.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: proteus.Student("vit_tiny_patch14", image_size=56),
        lambda: proteus.Student("vit_small_patch14_reg4_dinov2", image_size=(56, 70)),
        lambda: proteus.Student("resnet18", image_size=64),
        lambda: proteus.Student("demo-student", image_size=64),
        lambda: proteus.Student(
            timm.create_model("vit_small_patch16_dinov3", img_size=64, depth=2, num_classes=0),
            image_size=64,
        ),
        lambda: proteus.Student(
            from_dinov2(GOLDEN / "mlp_reg0_weights.safetensors", image_size=56, num_heads=3),
            image_size=56,
        ),
    ],
    ids=["tiny", "registers", "resnet", "demo", "timm module", "from_dinov2"],
)
def test_plain_timm_gives_the_same_features_from_the_folder(make, tmp_path):
    student = make().eval()
    folder = proteus.save_pretrained(student, tmp_path / "export")
    images = torch.randn(2, 3, *student.image_size)
    with torch.no_grad():
        ours = student.backbone.forward_features(images)
    torch.testing.assert_close(
        features_without_us(folder, images, tmp_path), ours, rtol=0, atol=1e-6
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, *student.image_size]
    assert "num_classes" not in config["model_args"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_the_distiller_s_student_is_saved_with_facts_in_the_card(teacher, tmp_path):
    student = proteus.Student("demo-student", image_size=64)
    proteus.save_pretrained(student, tmp_path, details={"teacher": "a big one"})
    assert "teacher: a big one" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["proteus"]["teacher"] == "a big one"


def test_a_model_timm_does_not_know_is_refused(student, tmp_path):
    with pytest.raises(ValueError, match=r"VisionTransformer.*timm name"):
        proteus.save_pretrained(student, tmp_path)


def test_arguments_that_do_not_rebuild_the_model_are_found_before_anything_is_replaced(tmp_path):
    good = proteus.Student("demo-student", image_size=64)
    proteus.save_pretrained(good, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    bad = proteus.Student("demo-student", image_size=64)
    bad.arguments = {**bad.arguments, "depth": 2}
    with pytest.raises(ValueError, match=r"'depth': 2.*student\.arguments"):
        proteus.save_pretrained(bad, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_an_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    student = proteus.Student("demo-student", image_size=64)
    proteus.save_pretrained(student, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "_verify", die)
    with pytest.raises(KeyboardInterrupt):
        proteus.save_pretrained(proteus.Student("demo-student", image_size=64), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_load_pretrained_gives_a_plain_model_in_eval(tmp_path):
    student = proteus.Student("vit_tiny_patch14", image_size=56)
    folder = proteus.save_pretrained(student, tmp_path)
    model = proteus.load_pretrained(folder)
    assert type(model) is timm.models.vision_transformer.VisionTransformer
    assert not model.training
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_load_pretrained_resamples_by_dinov2_s_rule(tmp_path):
    student = proteus.Student("vit_tiny_patch14", image_size=56)
    model = proteus.load_pretrained(proteus.save_pretrained(student, tmp_path), image_size=70)
    expected = proteus.positions.resample_positions(
        student.backbone.pos_embed, (5, 5), prefix=1, rule="dinov2"
    )
    assert torch.equal(model.pos_embed, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("proteus-vit-l14", "not published yet"),
        ("proteus-vit-x14", "unknown model"),
        ("./nowhere", "unknown model"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, message):
    with pytest.raises(ValueError, match=rf"{message}.*"):
        proteus.load_pretrained(name)


def test_a_folder_that_is_no_export_points_to_the_right_one(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json.*RUN/export"):
        proteus.load_pretrained(tmp_path)


def test_a_student_can_be_a_teacher(tmp_path):
    student = proteus.Student("demo-student", image_size=64).eval()
    folder = proteus.save_pretrained(student, tmp_path)
    teacher = proteus.Teacher(f"local-dir:{folder}")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).cls, student(images).cls)


def test_a_user_s_own_vit_is_not_exported_under_a_guessed_name(tmp_path):
    assert proteus.Student(vit(), image_size=32).architecture == ""
