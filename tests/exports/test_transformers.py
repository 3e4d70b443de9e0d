import json
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import proteus
from proteus.cli import main
from proteus.exports import to_transformers

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def randomized(name, **options):
    model = timm.create_model(name, num_classes=0, **options).eval()
    for value in model.state_dict().values():
        value.copy_(0.1 * torch.randn_like(value))
    return model


MODELS = {
    "student": lambda: randomized(
        "vit_small_patch14_dinov2", img_size=56, depth=2, embed_dim=192, num_heads=3
    ),
    "registers": lambda: randomized("vit_small_patch14_reg4_dinov2", img_size=56, depth=2),
    "swiglu": lambda: randomized(
        "vit_giant_patch14_dinov2", img_size=56, depth=2, embed_dim=192, num_heads=3
    ),
    "no layer scale": lambda: randomized("vit_tiny_patch16_224", img_size=64, depth=2),
}


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_gives_the_same_tokens(kind, tmp_path):
    model = MODELS[kind]()
    folder = to_transformers(model, tmp_path / "hf")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    expected = "Dinov2WithRegistersModel" if kind == "registers" else "Dinov2Model"
    assert type(theirs).__name__ == expected
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        got = theirs(images).last_hidden_state
        torch.testing.assert_close(got, model.forward_features(images), rtol=0, atol=1e-5)
    assert theirs.config.image_size == model.patch_embed.img_size[0]


def test_its_preprocessing_says_size_and_statistics(tmp_path):
    folder = to_transformers(MODELS["student"](), tmp_path)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 56, "width": 56}
    assert processor["image_mean"] == [0.485, 0.456, 0.406]


def test_our_own_folder_loads_in_transformers_as_it_is(tmp_path):
    student = proteus.Student("vit_tiny_patch14", image_size=56).eval()
    folder = proteus.save_pretrained(student, tmp_path / "export")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(images).last_hidden_state,
            student.backbone.forward_features(images),
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: timm.create_model("resnet18", num_classes=0), "a ResNet"),
        (
            lambda: randomized("vit_base_patch16_clip_quickgelu_224", depth=1, embed_dim=64,
                               num_heads=1),
            "a norm before the blocks and the activation QuickGELU",
        ),
        (
            lambda: randomized("vit_tiny_patch16_224", img_size=(64, 32), depth=1),
            "the image size 64x32",
        ),
        (lambda: randomized("vit_tiny_patch16_224", depth=1, mlp_ratio=2.5), "an MLP of width 480"),
        (
            lambda: randomized("vit_tiny_patch16_224", depth=1, patch_size=(16, 8)),
            "patches of 16x8 of 3 channels",
        ),
        (
            lambda: randomized("vit_tiny_patch16_224", depth=1, qkv_bias=False, pos_embed="none"),
            "fewer tensors, without attn.qkv.bias, pos_embed",
        ),
        *(
            (
                lambda option=option: randomized("vit_tiny_patch16_224", depth=1, **option),
                f"more tensors .{tensor}",
            )
            for option, tensor in (
                ({"scale_attn_norm": True}, "attn.norm.bias"),
                ({"scale_mlp_norm": True}, "mlp.norm.bias"),
                ({"embed_norm_layer": nn.LayerNorm}, "patch_embed.norm.bias"),
                ({"qk_norm": True}, "attn.k_norm.bias"),
            )
        ),
    ],
)  # fmt: skip
def test_what_it_cannot_express_is_said(make, message, tmp_path):
    with pytest.raises(ValueError, match=rf"{message}.*AutoModel"):
        to_transformers(make(), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


ELSEWHERE = """
import sys
from pathlib import Path
sys.modules.update(proteus=None, timm=None)  # as where they are not installed
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel
folder, images, out = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
with torch.no_grad():
    inputs = processor([Image.open(p) for p in sorted(Path(images).iterdir())], return_tensors="pt")
    found = model(**inputs)
save_file({"tokens": found.last_hidden_state.contiguous(), "pooled": found.pooler_output.clone(),
           "pixels": inputs["pixel_values"].contiguous()}, out)
"""


def test_what_the_command_exports_works_where_neither_we_nor_timm_are(tmp_path):
    student = proteus.Student("vit_tiny_patch14", image_size=56).eval()
    proteus.save_pretrained(student, tmp_path / "run")
    words = ["export", str(tmp_path / "run"), "--to", "transformers", "--out", str(tmp_path / "hf")]
    assert main(words) == 0
    pictures = tmp_path / "images"
    pictures.mkdir()
    pixels = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)  # of its size: no resizing
    for number, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{number}.png")
    out = tmp_path / "found.safetensors"
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "hf", pictures, out],
        check=True, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    found = load_file(out)
    with torch.no_grad():
        ours = student(pixels)
        normalised = student.inputs(pixels)
    torch.testing.assert_close(found["pixels"], normalised, rtol=0, atol=1e-5)
    tokens = torch.cat([ours.cls[:, None], ours.patches], 1)
    torch.testing.assert_close(found["tokens"], tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["pooled"], ours.cls, rtol=0, atol=1e-5)
