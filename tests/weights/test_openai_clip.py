import pytest
import timm
import torch
from oracles import clip_visual_tower
from torch import nn

from proteus import Student
from proteus.weights import from_openai_clip

WIDTH, DEPTH, PATCH, SIZE = 128, 2, 14, 56


@pytest.fixture
def tower():
    """OpenAI's names and shapes, float16 as in their files."""
    shapes = {
        "class_embedding": (WIDTH,),
        "positional_embedding": (1 + (SIZE // PATCH) ** 2, WIDTH),
        "conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "proj": (WIDTH, 64),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    for block in range(DEPTH):
        name = f"transformer.resblocks.{block}"
        shapes |= {
            f"{name}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{name}.attn.in_proj_bias": (3 * WIDTH,),
            f"{name}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{name}.attn.out_proj.bias": (WIDTH,),
            f"{name}.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
            f"{name}.mlp.c_fc.bias": (4 * WIDTH,),
            f"{name}.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
            f"{name}.mlp.c_proj.bias": (WIDTH,),
        }
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{name}.{norm}.weight": (WIDTH,), f"{name}.{norm}.bias": (WIDTH,)}
    return {name: (0.2 * torch.randn(shape)).half() for name, shape in shapes.items()}


def whole(tower):
    """The tower inside a whole CLIP."""
    return {
        **{f"visual.{k}": v for k, v in tower.items()},
        "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
        "token_embedding.weight": torch.zeros(9, 8),
        "positional_embedding": torch.zeros(7, 8),
        "ln_final.weight": torch.zeros(8),
        "text_projection": torch.zeros(8, 8),
        "logit_scale": torch.zeros(()),
        "input_resolution": torch.tensor(SIZE),
        "context_length": torch.tensor(7),
        "vocab_size": torch.tensor(9),
    }


@pytest.mark.parametrize("make", [lambda t: t, whole, lambda t: {"state_dict": whole(t)}])
def test_the_class_token_is_openai_s(tower, make):
    model = from_openai_clip(make(tower))
    images = torch.randn(2, 3, SIZE, SIZE)
    expected = clip_visual_tower({k: v.float() for k, v in tower.items()}, images, heads=2)
    with torch.no_grad():
        got = model.forward_features(images)
    torch.testing.assert_close(got[:, 0], expected[:, 0], rtol=0, atol=1e-5)
    assert model.norm_pre.eps == model.norm.eps == 1e-5


def test_patch_tokens_are_normed_too(tower):
    # *Different:* the authors hand back patch tokens without `ln_post`.
    model = from_openai_clip(tower)
    images = torch.randn(1, 3, SIZE, SIZE)
    tower = {k: v.float() for k, v in tower.items()}
    raw = clip_visual_tower(tower, images, heads=2)[:, 1:]
    normed = nn.functional.layer_norm(raw, (WIDTH,), tower["ln_post.weight"], tower["ln_post.bias"])
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images)[:, 1:], normed, rtol=0, atol=1e-5)


def test_the_argument_is_never_changed(tower):
    content = {"state_dict": whole(tower)}
    before = {k: v.clone() for k, v in content["state_dict"].items()}
    from_openai_clip(content, image_size=70)
    assert content["state_dict"].keys() == before.keys()
    assert all(torch.equal(content["state_dict"][k], v) for k, v in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("ln_post.bias"), r"1 missing \(norm\.bias\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 left over \(extra\)"),
        (lambda t: t.update({"ln_pre.bias": torch.zeros(5)}), r"norm_pre\.bias \(5,\)"),
        (lambda t: t.pop("conv1.weight"), r"another family.*conv1\.weight"),
    ],
)
def test_anything_but_exactly_the_right_keys_is_an_error(tower, change, message):
    change(tower)
    with pytest.raises(ValueError, match=message):
        from_openai_clip(tower)


def test_a_stranger_beside_the_towers_is_an_error(tower):
    with pytest.raises(ValueError, match=r"left over \(stranger\)"):
        from_openai_clip({**whole(tower), "stranger": torch.zeros(1)})


@pytest.mark.parametrize(
    "stranger", ["conv1.weight", "visual.patch_embed.proj.weight", "visual.cls_token"]
)
def test_no_tensor_takes_another_s_place_silently(tower, stranger):
    shape = (1, 1, WIDTH) if "cls" in stranger else tower["conv1.weight"].shape
    with pytest.raises(ValueError, match="two tensors for one place"):
        from_openai_clip({**whole(tower), stranger: torch.zeros(shape)})


def test_half_precision_positions_are_resampled_in_full(tower):
    full = {name: value.float() for name, value in tower.items()}
    half, expected = (from_openai_clip(t, image_size=70).pos_embed for t in (tower, full))
    assert torch.equal(half, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_a_torchscript_archive_is_refused_with_the_way_out(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match=r"TorchScript.*not run.*save_file"):
        from_openai_clip(tmp_path / "ViT-B-16.pt")


def test_another_image_size_is_resampled_once(tower):
    model = from_openai_clip(tower, image_size=(70, 84))
    assert model.pos_embed.shape == (1, 31, WIDTH)
    assert Student(model, image_size=(70, 84)).grid == (5, 6)


def test_published_shapes_are_timm_s(tower):
    model = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, depth=2)
    assert {k for k in model.state_dict() if ".1." not in k} == {
        k for k in from_openai_clip(tower).state_dict() if ".1." not in k
    }
