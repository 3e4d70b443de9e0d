"""`hf-transformers:`: folders that transformers wrote, and repositories on a Hub on loopback."""

import json
import logging
import sys

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file

import proteus
from proteus.models.frozen import as_extractor

t = pytest.importorskip("transformers")

VIT = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A DINOv2 with its preprocessing and card, as transformers and the Hub have it."""
    folder = tmp_path_factory.mktemp("dinov2")
    t.Dinov2Model(t.Dinov2Config(**VIT, mlp_ratio=2)).save_pretrained(folder)
    processor = t.BitImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 48},
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6],
    )  # fmt: skip
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """The same, for a test to change."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change(folder, **entries):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_folder_brings_weights_size_statistics_and_licence(saved):
    teacher = proteus.Teacher(f"hf-transformers:{saved}")
    assert teacher.image_size == (64, 48)
    assert teacher.grid == (8, 6)
    assert teacher.license == "apache-2.0"
    assert teacher.objectives == ("token", "feature", "patch")
    assert teacher.name == f"hf-transformers:{saved}"
    assert next(teacher.parameters()).dtype == torch.float32
    by_hand = t.AutoModel.from_pretrained(saved).eval()
    images = torch.rand(2, 3, 64, 48)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    with torch.no_grad():
        expected = by_hand((images - mean) / std).last_hidden_state
    torch.testing.assert_close(teacher(images).cls, expected[:, 0])
    torch.testing.assert_close(teacher(images).patches, expected[:, 1:])
    measured = as_extractor(teacher)
    assert measured.image_size == (64, 48)
    torch.testing.assert_close(measured(images).patches, expected[:, 1:])


def test_a_student_starts_from_it_at_the_size_asked_for(saved):
    student = proteus.Student(f"hf-transformers:{saved}", image_size=32)
    assert student.grid == (4, 4)
    assert student.statistics[0] == (0.1, 0.2, 0.3)
    assert not student.architecture


def test_half_precision_files_are_read_as_single(saved, tmp_path):
    t.AutoModel.from_pretrained(saved, dtype=torch.float16).save_pretrained(tmp_path)
    teacher = proteus.Teacher(f"hf-transformers:{tmp_path}")
    assert next(teacher.parameters()).dtype == torch.float32


def test_without_preprocessing_the_family_s_statistics_are_taken_and_said(tmp_path, caplog):
    t.SiglipVisionModel(t.SiglipVisionConfig(**VIT)).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "proteus"):
        teacher = proteus.Teacher(f"hf-transformers:{tmp_path}")
    assert "no preprocessor_config.json" in caplog.text
    assert teacher.inputs.mean.flatten().tolist() == [0.5] * 3
    assert teacher.image_size == (32, 32)
    assert teacher.license == ""


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_text_and_images_the_vision_tower_is_loaded(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "clip":
        whole = t.CLIPModel(t.CLIPConfig(vision_config=VIT, text_config=TEXT))
    else:
        whole = t.SiglipModel(t.SiglipConfig(vision_config=VIT, text_config=TEXT))
    whole.save_pretrained(tmp_path)
    # As `CLIPProcessor` of transformers 5 writes it.
    inner = {"image_mean": [0.3] * 3, "image_std": [0.2] * 3, "size": {"height": 16, "width": 24}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    teacher = proteus.Teacher(f"hf-transformers:{tmp_path}", normalize=False)
    assert teacher.objectives == ("token",)
    assert teacher.image_size == (16, 24)
    assert not [name for name, _ in teacher.named_parameters() if "text" in name]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.eval().vision_model(images).pooler_output
    torch.testing.assert_close(teacher(images).cls, expected)


def test_a_classifier_s_file_gives_its_body(tmp_path):
    whole = t.ViTForImageClassification(t.ViTConfig(**VIT))
    whole.save_pretrained(tmp_path)  # with a classifier, without a pooling layer
    teacher = proteus.Teacher(f"hf-transformers:{tmp_path}", normalize=False)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.eval()(images).logits
        torch.testing.assert_close(whole.classifier(teacher(images).cls), expected)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("layernorm.weight"), r"layernorm\.weight \(1\) missing"),
        (lambda w: w.update(extra=torch.zeros(2)), r"extra \(1\) left over"),
        (lambda w: w["layernorm.weight"].fill_(torch.nan), "NaN|not finite|finite"),
        (lambda w: w.update({"layernorm.bias": torch.zeros(7)}), "layernorm.bias|mismatch"),
    ],
    ids=["missing", "left over", "nan", "shape"],
)
def test_weights_that_do_not_fit_are_refused(copy, edit, message):
    weights = load_file(copy / "model.safetensors")
    edit(weights)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"(?s)Teacher.*({message})"):
        proteus.Teacher(f"hf-transformers:{copy}")


def test_a_mask_token_that_is_missing_does_not_matter(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["embeddings.mask_token"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert proteus.Teacher(f"hf-transformers:{copy}").embed_dim == 24


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "scaled in another way"),
        ({"do_rescale": False}, "scaled in another way"),
        ({"image_mean": [0.5]}, "mean is wrong"),
        ({"crop_size": {"height": 10**6, "width": 8}}, "input_size is wrong"),
        ({"crop_size": None, "size": {"longest_edge": 8}}, "input_size is wrong"),
    ],
)
def test_images_prepared_in_another_way_are_refused(copy, entries, message):
    change(copy, **entries)
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json.*{message}"):
        proteus.Teacher(f"hf-transformers:{copy}")


@pytest.mark.parametrize(
    ("entries", "size", "mean"),
    [
        ({"do_center_crop": False}, (72, 72), 0.1),
        ({"crop_size": 40}, (40, 40), 0.1),
        ({"crop_size": None, "size": {"height": 16, "width": 24}}, (16, 24), 0.1),
        ({"do_normalize": False}, (64, 48), 0.0),
        ({"crop_size": None, "size": None}, (32, 32), 0.1),
    ],
)
def test_every_form_of_size_and_statistics_is_read(copy, entries, size, mean):
    change(copy, **entries)
    teacher = proteus.Teacher(f"hf-transformers:{copy}")
    assert teacher.image_size == size
    assert teacher.inputs.mean[0, 0, 0, 0].item() == pytest.approx(mean)


def test_pickled_weights_and_code_of_others_are_not_touched(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"could not be loaded.*model\.safetensors"):
        proteus.Teacher(f"hf-transformers:{copy}")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match="could not be loaded"):
        proteus.Teacher(f"hf-transformers:{copy}")


@pytest.mark.parametrize("option", [{"checkpoint": "a.pth"}])
def test_settings_that_would_be_ignored_are_refused(saved, option):
    with pytest.raises(ValueError, match="would be ignored"):
        proteus.Teacher(f"hf-transformers:{saved}", **option)
    with pytest.raises(ValueError, match="would be ignored"):
        proteus.Student(f"hf-transformers:{saved}", drop_path=0.1)


def test_without_transformers_it_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install transformers.*proteus-distill\[eval\]"):
        proteus.Teacher(f"hf-transformers:{saved}")


@pytest.mark.parametrize("name", ["some/model", "no such folder", ""])
def test_what_is_neither_there_nor_reachable_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=rf"Teacher.*could not be loaded.*'hf-transformers:{name}"):
        proteus.Teacher(f"hf-transformers:{name}")


def test_a_repository_on_the_hub(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    server = Hub()
    try:
        server.add_folder("some/dinov2", saved)
        teacher = proteus.Teacher("hf-transformers:some/dinov2")
        assert teacher.image_size == (64, 48)
        assert teacher.license == "apache-2.0"
        with pytest.raises(ValueError, match="could not be loaded"):
            proteus.Teacher("hf-transformers:some/nothing")
    finally:
        server.close()
    images = torch.rand(1, 3, 64, 48)
    local = proteus.Teacher(f"hf-transformers:{saved}")
    torch.testing.assert_close(teacher(images).cls, local(images).cls)
