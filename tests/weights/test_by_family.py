"""`Teacher(NAME, checkpoint=FILE)` in every format, with shrunken stand-ins for the big models."""

from dataclasses import replace
from types import MappingProxyType

import pytest
import timm
import torch
from oracles import openai_names
from safetensors.torch import save_file

import proteus
from proteus.models import build as backbone
from proteus.models import names as catalog

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1}


@pytest.fixture(autouse=True)
def shrunken(monkeypatch):
    teachers = {
        name: replace(entry, arguments=MappingProxyType({**entry.arguments, **SMALL}))
        for name, entry in catalog.TEACHERS.items()
    }
    monkeypatch.setattr(backbone, "TEACHERS", teachers)


def model_of(name, **options):
    entry = backbone.TEACHERS[name]
    model = timm.create_model(entry.architecture, num_classes=0, **entry.arguments, **options)
    for value in model.state_dict().values():
        value.copy_(0.1 * torch.randn_like(value))
    return model.eval()


def as_dinov2(model):
    return {**model.state_dict(), "mask_token": torch.randn(1, 64)}


def as_dinov2_registers(model):
    state = as_dinov2(model)
    state["register_tokens"] = state.pop("reg_token")
    position = torch.randn(1, 1, 64)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    return state


def as_dinov3(model):
    state = {**model.state_dict(), "mask_token": torch.randn(1, 64)}
    state["storage_tokens"] = state.pop("reg_token")
    state["rope_embed.periods"] = torch.randn(16)
    state = {k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v
             for k, v in state.items()}  # fmt: skip
    for block in range(2):
        state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(192)
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(192)
    return state


def as_clip(model):
    tower = {**openai_names(model.state_dict()), "proj": torch.zeros(64, 32)}
    return {
        **{f"visual.{k}": v for k, v in tower.items()},
        "logit_scale": torch.zeros(()),
        "positional_embedding": torch.zeros(7, 32),
        "token_embedding.weight": torch.zeros(9, 32),
    }


def as_trunk(model):
    return {
        **{f"visual.trunk.{k}": v for k, v in model.state_dict().items()},
        "logit_scale": torch.zeros(()),
    }


CASES = {
    "timm": ("dinov2_vits14", lambda m: m.state_dict()),
    "dinov2": ("dinov2_vits14", as_dinov2),
    "dinov2 registers": ("dinov2_vitb14_reg", as_dinov2_registers),
    "dinov3": ("dinov3_vits16", as_dinov3),
    "synclr": (
        "synclr_vitb16",
        lambda m: {"model": {f"module.visual.{k}": v for k, v in m.state_dict().items()}},
    ),
    "synclr with mask token": ("synclr_vitl14", as_dinov2),
    "openai": ("clip_vitl14", as_clip),
    "openai tower": (
        "clip_vitb16",
        lambda m: {
            k.removeprefix("visual."): v for k, v in as_clip(m).items() if k.startswith("visual.")
        },
    ),
    "open_clip": ("openclip_vitb16", as_clip),
    "siglip": ("siglip_vitb16", as_trunk),
    "authors": (
        "dinov2_vitb14",
        lambda m: {"model": {f"student.backbone.{k}": v for k, v in m.state_dict().items()}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_named_teacher_reads_the_file_of_its_family(case, tmp_path):
    name, write = CASES[case]
    model = model_of(name)
    content = write(model)
    torch.save(content, tmp_path / "weights.pth")
    files = [tmp_path / "weights.pth"]
    if "model" not in content:
        save_file({k: v.clone() for k, v in content.items()}, tmp_path / "weights.safetensors")
        files.append(tmp_path / "weights.safetensors")
    for file in files:
        teacher = proteus.Teacher(name, checkpoint=file)
        state = teacher.backbone.state_dict()
        expected = model.state_dict()
        assert state.keys() == expected.keys()
        for key in state:
            torch.testing.assert_close(state[key], expected[key], rtol=0, atol=1e-6)


def drop(tensors):
    endings = ("1.attn.proj.bias", "1.attn.out_proj.bias")
    del tensors[next(name for name in tensors if name.endswith(endings))]


def add(tensors):
    beside = next(name for name in tensors if "norm" in name or "ln_" in name)
    tensors[f"{beside}_extra"] = torch.zeros(1)


@pytest.mark.parametrize("change", [drop, add])
@pytest.mark.parametrize("case", CASES)
def test_a_missing_or_left_over_key_is_an_error(case, change, tmp_path):
    name, write = CASES[case]
    content = write(model_of(name))
    change(content.get("model", content))
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing|left over"):
        proteus.Teacher(name, checkpoint=tmp_path / "weights.pth")


def test_a_file_of_another_model_is_refused(tmp_path):
    small = model_of("dinov2_vits14", mlp_ratio=2)
    torch.save(as_dinov2(small), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"another model.*other\.pth.*of other shapes"):
        proteus.Teacher("dinov2_vits14", checkpoint=tmp_path / "other.pth")
    torch.save(as_clip(model_of("openclip_vitb16", img_size=240)), tmp_path / "size.pth")
    with pytest.raises(ValueError, match=r"another image or patch size.*positional_embedding"):
        proteus.Teacher("openclip_vitb16", checkpoint=tmp_path / "size.pth")


def test_dinov3_biases_are_never_dropped_silently(tmp_path):
    content = as_dinov3(model_of("dinov3_vits16"))
    content["blocks.1.attn.qkv.bias"] += 1
    torch.save(content, tmp_path / "biased.pth")
    with pytest.raises(ValueError, match="attention biases would be dropped"):
        proteus.Teacher("dinov3_vits16", checkpoint=tmp_path / "biased.pth")


def test_the_positions_of_the_file_are_resampled_once(tmp_path):
    model = model_of("dinov2_vits14", img_size=140)
    torch.save(as_dinov2(model), tmp_path / "file.pth")
    teacher = proteus.Teacher("dinov2_vits14", checkpoint=tmp_path / "file.pth", image_size=98)
    expected = proteus.weights.positions.resample_positions(
        model.pos_embed, (7, 7), prefix=1, rule="dinov2"
    )
    torch.testing.assert_close(teacher.backbone.pos_embed, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mean", "terms"),
    [
        ("dinov2_vits14", 0.485, 3),
        ("synclr_vitb16", 0.485, 3),
        ("clip_vitb16", 0.48145466, 1),
        ("siglip_vitb16", 0.5, 1),
    ],
)
def test_each_name_has_its_statistics_and_objectives(name, mean, terms):
    teacher = proteus.Teacher(name, pretrained=False, image_size=112)
    assert teacher.inputs.mean[0, 0, 0, 0].item() == pytest.approx(mean)
    assert len(teacher.objectives) == terms


def test_clip_is_distilled_with_the_token_term_alone():
    teacher = proteus.Teacher("clip_vitl14", pretrained=False, image_size=56)
    student = proteus.Student("vit_tiny_patch14", image_size=56)
    distiller = proteus.Distiller(teacher, student)
    assert (distiller.loss.token, distiller.loss.feature, distiller.loss.patch) == (1, 0, 0)
    losses = distiller(torch.rand(2, 3, 56, 56))
    assert losses.total == losses.token


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"]
)
def test_timm_s_own_file_with_its_classifier_is_read(name, tmp_path):
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    teacher = proteus.Teacher(name, checkpoint=tmp_path / "timm.pth")
    state = teacher.backbone.state_dict()
    assert all(torch.equal(state[key], model.state_dict()[key]) for key in state)


def test_batch_norm_s_counts_may_be_cast_with_the_weights(tmp_path):
    halves = {
        name: value.half() for name, value in timm.create_model("resnet18").state_dict().items()
    }
    torch.save(halves, tmp_path / "half.pth")
    teacher = proteus.Teacher("resnet18", checkpoint=tmp_path / "half.pth", image_size=64)
    assert teacher.backbone.bn1.num_batches_tracked.dtype == torch.int64
