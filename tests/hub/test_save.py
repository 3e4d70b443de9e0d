import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from packaging.version import Version

import proteus
from conftest import vit
from proteus.hub import save as saving
from proteus.hub.card import model_card
from proteus.weights import from_dinov2

GOLDEN = Path(__file__).parents[1] / "golden/02_dinov2_vit"
STUDENTS = {
    "tiny": lambda: proteus.Student("vit_tiny_patch14", image_size=56),
    "registers": lambda: proteus.Student("vit_small_patch14_reg4_dinov2", image_size=(56, 70)),
    "resnet": lambda: proteus.Student("resnet18", image_size=64),
    "demo": lambda: proteus.Student("demo-student", image_size=64),
    "timm module": lambda: proteus.Student(
        timm.create_model("vit_small_patch16_dinov3", img_size=64, depth=2, num_classes=0),
        image_size=64,
    ),
    "from_dinov2": lambda: proteus.Student(
        from_dinov2(GOLDEN / "mlp_reg0_weights.safetensors", image_size=56, num_heads=3),
        image_size=56,
    ),
}
LOAD = """
import sys
from pathlib import Path
sys.modules["proteus"] = None  # any import of it fails
import timm, torch
for images in Path(sys.argv[1]).glob("*/images.pt"):
    model = timm.create_model(f"local-dir:{images.parent / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        torch.save(model.forward_features(torch.load(images)), images.with_name("features.pt"))
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder a student: its export, images, its features of them, and what timm alone gives."""
    if Version(timm.__version__) < Version("1.0.31"):
        pytest.skip("timm reads local safetensors with torch.load before 1.0.31; hf-hub: works")
    root = tmp_path_factory.mktemp("exports")
    for name, make in STUDENTS.items():
        student = make().eval()
        proteus.save_pretrained(student, root / name / "export")
        images = torch.randn(2, 3, *student.image_size)
        torch.save(images, root / name / "images.pt")
        with torch.no_grad():
            torch.save(student.backbone.forward_features(images), root / name / "ours.pt")
    subprocess.run([sys.executable, "-W", "error", "-c", LOAD, str(root)], check=True)
    return root


@pytest.mark.parametrize("name", STUDENTS)
def test_plain_timm_gives_the_same_features_from_the_folder(name, exports):
    folder = exports / name
    features, ours = torch.load(folder / "features.pt"), torch.load(folder / "ours.pt")
    torch.testing.assert_close(features, ours, rtol=0, atol=1e-6)
    config = json.loads((folder / "export/config.json").read_text())
    size = torch.load(folder / "images.pt").shape[2:]
    assert config["pretrained_cfg"]["input_size"] == [3, *size]
    assert "num_classes" not in config["model_args"]
    assert sorted(p.name for p in (folder / "export").iterdir()) == [
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

    monkeypatch.setattr(saving, "_verify", die)
    with pytest.raises(KeyboardInterrupt):
        proteus.save_pretrained(proteus.Student("demo-student", image_size=64), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_user_s_own_vit_is_not_exported_under_a_guessed_name(tmp_path):
    assert proteus.Student(vit(), image_size=32).architecture == ""


def test_the_card_says_what_a_stranger_must_know(distiller, tmp_path, caplog):
    student = proteus.Student("demo-student", image_size=64)
    teacher = proteus.Teacher("demo-teacher")
    teacher.license = "dinov3-license"
    folder = proteus.save_pretrained(
        proteus.Distiller(teacher, student),
        tmp_path / "mine",
        details={
            "data": "my photographs",
            "recipe": {"steps": 7, "weights": {"token": 1.0}},
            "scores": {"ADE20K UperNet mIoU": 41.5, "my test": 3},
        },
    )
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "other"
    assert card.data["license_name"] == "dinov3-license"
    assert card.data.library_name == "timm"
    results = {r.dataset_name: (r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert results == {"ADE20K UperNet mIoU": ("miou", 41.5), "my test": ("accuracy", 3)}
    for part in (
        "# mine",
        "demo-teacher",
        "my photographs",
        '"steps": 7',
        "@inproceedings",
        "torch",
    ):
        assert part in text
    assert "not permissive" in caplog.text
    config = json.loads((folder / "config.json").read_text())
    assert config["proteus"]["recipe"]["steps"] == 7
    assert config["proteus"]["versions"]["timm"] == timm.__version__


def test_a_permissive_licence_is_stated_without_a_warning(tmp_path, caplog):
    student = proteus.Student("demo-student", image_size=64)
    proteus.save_pretrained(student, tmp_path, details={"license": "apache-2.0"})
    assert ModelCard((tmp_path / "README.md").read_text()).data.license == "apache-2.0"
    assert caplog.text == ""


def test_a_card_without_a_licence_says_so(tmp_path):
    proteus.save_pretrained(proteus.Student("demo-student", image_size=64), tmp_path)
    assert "Not stated" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (None, "Trained without labels, by matching a teacher's features"),
        ({"kl": 0.5, "ce": 0.5}, "Trained by a teacher's class logits and labels with"),
        ({"kl": 1.0, "ce": 0.0}, "Trained by a teacher's class logits, without labels, with"),
        ({"kl": 0.0, "ce": 1.0}, "Trained on labels alone (supervised) with"),
    ],
)
def test_a_card_says_what_taught_the_student(logits, words):
    student = proteus.Student("demo-student", image_size=64)
    assert words in model_card(student, "mine", {"recipe": {"science": {"logits": logits}}})


def test_an_export_can_be_read_by_others(tmp_path):
    proteus.save_pretrained(proteus.Student("demo-student", image_size=64), tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    before = os.umask(0)
    os.umask(before)
    assert modes == {0o666 & ~before}


def test_a_card_is_written_where_the_system_knows_ascii_only(tmp_path):
    code = "import proteus; s = proteus.Student('demo-student', image_size=64)\n"
    code += f"proteus.save_pretrained(s, {str(tmp_path / 'export')!r})"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **plain}, check=True)
    assert "64×64 pixels" in (tmp_path / "export/README.md").read_text(encoding="utf-8")


def test_another_save_that_is_running_is_left_alone(tmp_path):
    running = tmp_path / f".tmp-save-{os.getppid()}-x"
    running.mkdir()
    dead = tmp_path / ".tmp-save-999999999-x"
    dead.mkdir()
    proteus.save_pretrained(proteus.Student("demo-student", image_size=64), tmp_path)
    assert running.exists()
    assert not dead.exists()


def test_a_plain_model_is_no_student(tmp_path):
    model = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(ValueError, match=r"not a student. Got a ResNet.*Wrap"):
        proteus.save_pretrained(model, tmp_path)


def test_details_of_other_types_are_written_as_text(tmp_path):
    student = proteus.Student("demo-student", image_size=64)
    proteus.save_pretrained(student, tmp_path, details={"data": Path("photos")})
    assert json.loads((tmp_path / "config.json").read_text())["proteus"]["data"] == "photos"


HOSTILE = (
    "x\n---\ntags: [evil]\n---\n# Evil | [a](javascript:1) <script>alert(1)</script> \x1b \udcff"
)


def test_names_and_details_change_nothing_but_their_own_line_of_the_card(tmp_path, student):
    details = {
        "name": HOSTILE, "teacher": HOSTILE, "data": HOSTILE, "license": HOSTILE, HOSTILE: HOSTILE,
        "scores": {HOSTILE: 1.5}, "recipe": {"a": f"{HOSTILE}\n```\n# Evil"}, "more": [HOSTILE],
    }  # fmt: skip
    proteus.save_pretrained(
        proteus.Student("demo-student", image_size=64), tmp_path, details=details
    )
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.tags == ["proteus", "distillation", "timm", "image-feature-extraction"]
    assert card.data.license == "other"
    body = text.split("\n---\n", 1)[1]
    code = re.findall("```json\n(.*?)\n```", body, re.DOTALL)
    assert json.loads(code[0])["a"].endswith("# Evil")
    body = body.replace(code[0], "")
    assert "<script" not in body
    assert not re.search(r"^# Evil|^---|^tags|(?<!\\)\]\(|[\x1b]", body, re.MULTILINE)
    assert proteus.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "scores", [{"k-NN": "high"}, {"k-NN": float("nan")}, {"": 1.0}, {"k-NN": None}, [1.0], "x"]
)
def test_scores_are_names_with_numbers(tmp_path, scores):
    student = proteus.Student("demo-student", image_size=64)
    with pytest.raises(ValueError, match=r"a score is a name with a number|details are no JSON"):
        proteus.save_pretrained(student, tmp_path, details={"scores": scores})
    assert not list(tmp_path.iterdir())


def test_details_without_a_number_s_end_are_refused(tmp_path):
    student = proteus.Student("demo-student", image_size=64)
    with pytest.raises(ValueError, match="details are no JSON"):
        proteus.save_pretrained(student, tmp_path, details={"loss": float("inf")})


LEAVES = {  # what stands between the features and the vector differs
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 1},
    "vit_small_patch16_dinov3": {"img_size": 64, "depth": 1},
    "vit_base_patch16_siglip_224": {"img_size": 64, "depth": 1},
    "vit_pe_core_tiny_patch16_384": {"img_size": 64, "depth": 1},
    "beit_base_patch16_224": {"img_size": 64, "depth": 1},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_050": {},
    "ghostnet_050": {},
    "test_convnext": {},
    "test_mambaout": {},
}


@pytest.mark.parametrize("name", LEAVES)
def test_timm_s_plain_call_of_an_export_gives_what_was_distilled(name, tmp_path):
    model = timm.create_model(name, num_classes=0, **LEAVES[name])
    student = proteus.Student(model, image_size=64).eval()
    for buffer in student.backbone.buffers():
        if buffer.dtype == torch.float32 and buffer.ndim == 1:
            buffer.add_(torch.rand_like(buffer) / 10)  # statistics of a training
    folder = proteus.save_pretrained(student, tmp_path)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = student(images).cls
        torch.testing.assert_close(plain(student.inputs(images)), ours, rtol=1e-5, atol=1e-5)
        again = proteus.Teacher(f"local-dir:{folder}", image_size=64)
        torch.testing.assert_close(again(images), student(images), rtol=1e-5, atol=1e-5)


def test_the_layers_that_were_distilled_are_told_and_can_be_had_again(tmp_path):
    student = proteus.Student("test_resnet", image_size=64, layers=(-2, -1)).eval()
    teacher = proteus.Teacher("test_resnet", pretrained=False, image_size=64, layers=-2)
    distiller = proteus.Distiller(
        teacher, student, proteus.ProteusLoss(student.width, teacher.width, patch=0)
    )
    folder = proteus.save_pretrained(distiller, tmp_path)
    told = json.loads((folder / "config.json").read_text())["proteus"]
    assert (told["layers"], told["teacher_layers"]) == ([3, 4], [3])
    card = (folder / "README.md").read_text()
    assert "patches: from layers 3, 4 (from 0 on), 4×4, width 288" in card.replace("\\", "")
    again = proteus.Student(f"local-dir:{folder}", image_size=64, layers=told["layers"]).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(images), student(images))


def test_a_model_with_tied_weights_leaves_whole(tmp_path):
    model = timm.create_model(
        "coat_lite_tiny",
        num_classes=0,
        img_size=64,
        embed_dims=(16,) * 4,
        serial_depths=(2, 1, 1, 1),
    )
    student = proteus.Student(model, image_size=64).eval()
    folder = proteus.save_pretrained(student, tmp_path)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(student.inputs(images)), student(images).cls)


@pytest.mark.parametrize(
    "change", [{"global_pool": "avg", "fc_norm": False}, {"act_layer": "relu"}]
)
def test_a_description_with_the_same_weights_but_another_output_is_refused(change, tmp_path):
    student = proteus.Student("demo-student", image_size=64)
    student.arguments = {**student.arguments, **change}
    with pytest.raises(ValueError, match=r"it returns another vector|disagrees"):
        proteus.save_pretrained(student, tmp_path)
    assert not list(tmp_path.iterdir())
