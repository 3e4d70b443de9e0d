"""Each family of transformers beside what it gives when it is called by hand."""

import pytest
import torch

import proteus
from proteus.features import ShapeError
from proteus.models.frozen import as_extractor
from proteus.models.read_transformers import FAMILIES

t = pytest.importorskip("transformers")

VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
        "window_size": 4}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
TWO = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}

# Family: class, configuration, and how to read its output by hand: cls and patches.
FIRST = lambda m, o: (o.last_hidden_state[:, 0], o.last_hidden_state[:, 1:])  # noqa: E731
POOLED = lambda m, o: (o.pooler_output, o.last_hidden_state)  # noqa: E731
MAP = lambda m, o: (o.pooler_output.flatten(1), o.last_hidden_state.flatten(2).mT)  # noqa: E731
MODELS = {
    "dinov2": ("Dinov2", VIT, FIRST),
    "dinov2_with_registers": (
        "Dinov2WithRegisters",
        {**VIT, "num_register_tokens": 3},
        lambda m, o: (o.pooler_output, o.last_hidden_state[:, 4:]),
    ),
    "dinov3_vit": (
        "DINOv3ViT",
        {**VIT, "num_register_tokens": 3},
        lambda m, o: (o.pooler_output, o.last_hidden_state[:, 4:]),
    ),
    "vit": ("ViT", VIT, FIRST),
    "deit": ("DeiT", VIT, lambda m, o: (o.last_hidden_state[:, 0], o.last_hidden_state[:, 2:])),
    "ijepa": ("IJepa", VIT, lambda m, o: (o.last_hidden_state.mean(1), o.last_hidden_state)),
    "clip_vision_model": (
        "CLIPVision",
        VIT,
        lambda m, o: (o.pooler_output, m.post_layernorm(o.last_hidden_state[:, 1:])),
    ),
    "siglip_vision_model": ("SiglipVision", VIT, POOLED),
    "beit": (
        "Beit",
        {**VIT, "use_mean_pooling": True, "use_relative_position_bias": True},
        lambda m, o: (o.pooler_output, m.pooler.layernorm(o.last_hidden_state[:, 1:])),
    ),
    "beit by class token": ("Beit", {**VIT, "use_mean_pooling": False}, FIRST),
    "data2vec-vision": (
        "Data2VecVision",
        VIT,
        lambda m, o: (o.pooler_output, m.pooler.layernorm(o.last_hidden_state[:, 1:])),
    ),
    "swin": ("Swin", SWIN, POOLED),
    "swinv2": ("Swinv2", SWIN, POOLED),
    "dinov3_convnext": ("DINOv3ConvNext", STAGES, FIRST),
    "convnext": ("ConvNext", STAGES, MAP),
    "convnextv2": ("ConvNextV2", STAGES, MAP),
    "resnet": ("ResNet", TWO, MAP),
    "regnet": ("RegNet", {**TWO, "groups_width": 8}, MAP),
    "efficientnet": (
        "EfficientNet",
        {"width_coefficient": 1.0, "depth_coefficient": 0.25, "hidden_dim": 1280},
        MAP,
    ),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.25}, MAP),
}
NORMED = ("dinov2", "dinov3_vit", "vit", "clip_vision_model", "siglip_vision_model", "swin")


def make(name):
    kind, settings, by_hand = MODELS[name]
    torch.manual_seed(0)
    options = {"add_pooling_layer": True} if name == "data2vec-vision" else {}
    model = getattr(t, f"{kind}Model")(getattr(t, f"{kind}Config")(**settings), **options).eval()
    for weight in model.parameters():  # layers scaled by 1e-5 would hide what is wrong
        weight.data.add_(0.1 * torch.randn_like(weight))
    return model, by_hand


def test_there_is_a_model_for_each_family():
    assert FAMILIES.keys() <= MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_a_teacher_gives_what_the_model_gives_by_hand(name, size):
    model, by_hand = make(name)
    teacher = proteus.Teacher(model, image_size=size, normalize=False)
    images = torch.randn(2, 3, *size)
    resample = {"interpolate_pos_encoding": True} if name in FAMILIES else {}
    with torch.no_grad():
        cls, patches = by_hand(model, model(images, **resample))
    features = teacher(images)
    torch.testing.assert_close(features.cls, cls, rtol=0, atol=1e-6)
    torch.testing.assert_close(features.patches, patches, rtol=0, atol=1e-6)
    height, width = features.grid
    assert (height * width, width * size[0]) == (patches.shape[1], height * size[1])
    assert teacher.grid == features.grid
    assert teacher.embed_dim == cls.shape[1]


@pytest.mark.parametrize("name", ["vit", "clip_vision_model", "siglip_vision_model", "beit"])
def test_at_its_own_size_positions_are_the_model_s(name):
    model, by_hand = make(name)
    teacher = proteus.Teacher(model, normalize=False)
    assert teacher.image_size == (32, 32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        cls, patches = by_hand(model, model(images))
    assert torch.equal(teacher(images).cls, cls)
    assert torch.equal(teacher(images).patches, patches)


@pytest.mark.parametrize("name", NORMED)
def test_vector_and_patches_are_behind_a_norm_of_their_own(name):
    model, _ = make(name)
    for key, value in model.state_dict().items():
        if "norm" in key and "layer." not in key and "layers." not in key:
            value.fill_(1.0 if key.endswith("weight") else 0.0)
    size = model.config.image_size
    patches = proteus.Teacher(model, normalize=False)(torch.randn(1, 3, size, size)).patches
    torch.testing.assert_close(patches.mean(-1), 0 * patches[..., 0], rtol=0, atol=1e-5)


def test_patches_are_row_major():
    model, _ = make("swin")
    teacher = proteus.Teacher(model, normalize=False)
    images = torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :8, 56:] = 5.0
    difference = (teacher(changed).patches - teacher(images).patches).abs().sum(-1)
    assert divmod(int(difference.argmax()), 8) == (0, 7)


@pytest.mark.parametrize("size", [(65, 63), (35, 100)])
@pytest.mark.parametrize("name", ["swin", "dinov3_convnext", "resnet"])
def test_sizes_between_patches_have_the_model_s_own_grid(name, size):
    model, _ = make(name)
    features = proteus.Teacher(model, image_size=size)(torch.rand(1, 3, *size))
    assert features.patches.shape[1] == features.grid[0] * features.grid[1]


@pytest.mark.parametrize("name", ["dinov2", "vit", "siglip_vision_model"])
def test_a_size_that_is_no_number_of_patches_is_refused(name):
    with pytest.raises(ShapeError, match=r"multiple of the patch size.*36x32.*32x32 or 40x40"):
        proteus.Teacher(make(name)[0], image_size=(36, 32))


def test_positions_that_transformers_cannot_resample_are_a_plain_error():
    config = t.ViTConfig(**{**VIT, "image_size": (32, 64)})
    own = proteus.Teacher(t.ViTModel(config))
    assert (own.image_size, own.grid) == ((32, 64), (4, 8))
    with pytest.raises(ShapeError, match=r"cannot take images of this size.*64x64.*ViTModel"):
        proteus.Teacher(t.ViTModel(config), image_size=64)


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: t.ViTForImageClassification(t.ViTConfig(**VIT)), "returns logits.*its base_model"),
        (lambda: t.Dinov2Backbone(t.Dinov2Config(**VIT)), "returns feature_maps.*its base_model"),
        (
            lambda: t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**VIT)),
            "no pooler_output.*CLIPVisionModel",
        ),
        (lambda: t.ViTMAEModel(t.ViTMAEConfig(**VIT)), "no pooler_output"),
        (lambda: t.ViTMAEModel(t.ViTMAEConfig(**VIT | {"image_size": 64})), "raised ValueError"),
        (
            lambda: t.Siglip2VisionModel(
                t.Siglip2VisionConfig(**{k: v for k, v in VIT.items() if k != "image_size"})
            ),
            "raised TypeError.*pixel_attention_mask",
        ),
        (
            lambda: t.HieraModel(
                t.HieraConfig(image_size=[32, 32], embed_dim=8, depths=[1, 1], num_heads=[1, 1],
                              num_query_pool=1, masked_unit_size=[4, 4])
            ),
            "'hiera', unknown here",
        ),
        (
            lambda: t.TimmWrapperModel(t.TimmWrapperConfig(architecture="test_vit")),
            "timm_wrapper.*its timm_model",
        ),
        (
            lambda: t.BeitModel(t.BeitConfig(**VIT), add_pooling_layer=False),
            "no pooler_output.*pooling layer",
        ),
        (
            lambda: t.BertModel(
                t.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                             intermediate_size=8, vocab_size=8)
            ),
            "takes input_ids",
        ),
    ],
    ids=["logits", "backbone", "projection", "mae", "mae of another size", "naflex", "hiera",
         "timm", "no pooling", "text"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(make_model, message):
    with pytest.raises(ShapeError, match=f"(?s)cannot be read.*{message}"):
        proteus.Teacher(make_model(), image_size=32)


def test_models_trained_against_text_are_token_only_with_their_own_statistics():
    clip = proteus.Teacher(make("clip_vision_model")[0])
    assert clip.objectives == ("token",)
    assert clip.inputs.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    siglip = make("siglip_vision_model")[0]
    assert proteus.Teacher(siglip).inputs.std.flatten().tolist() == [0.5] * 3
    assert as_extractor(siglip).inputs.std.flatten().tolist() == [0.5] * 3
    assert as_extractor(siglip).image_size == (32, 32)
    dino = proteus.Teacher(make("dinov2")[0])
    assert dino.objectives == ("token", "feature", "patch")
    assert dino.inputs.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize("name", ["dinov2", "swin", "resnet"])
def test_a_student_learns(name):
    student = proteus.Student(make(name)[0].train(), image_size=32)
    teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
    loss = proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, token=1, feature=0, patch=0)
    distiller = proteus.Distiller(teacher, student, loss, None).train()
    distiller(torch.rand(4, 3, 32, 32)).total.backward()
    learning = [p for p in student.parameters() if p.requires_grad]
    assert learning
    assert all(p.grad is not None for p in learning)


def test_a_student_does_not_leave_as_a_model_of_timm(tmp_path):
    student = proteus.Student(make("dinov2")[0])
    with pytest.raises(ValueError, match=r"not a timm model.*student\.backbone\.save_pretrained"):
        proteus.save_pretrained(student, tmp_path / "export")
    student.backbone.save_pretrained(tmp_path / "theirs")
    rebuilt = proteus.Teacher(t.AutoModel.from_pretrained(tmp_path / "theirs"))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images).patches, student.eval()(images).patches)
